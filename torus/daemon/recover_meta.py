"""A new metadata store in the place of an old one.

Decides the order: the new file is complete and synced under another name before the old one is
moved aside.  Whatever stops this, no byte of the old store is lost, and `recover` can be run
again.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from torus import limits
from torus.clock import Clock
from torus.errors import Busy, PermissionDenied
from torus.metadata.base import Put
from torus.metadata.sqlite import SqliteMetadata

_CHANGES_AT_ONCE = 32
_BYTES_AT_ONCE = limits.MIB // 2
_SUFFIXES = ("", "-wal", "-shm", "-journal")


def replace_store(path: Path, values: Mapping[str, bytes], clock: Clock) -> Path | None:
    """Make a store of ``values`` at ``path``; return where what was there is kept.

    Raises: PermissionDenied, PoolFull, ConfigError; Busy when another process made one at the
        same time.
    """
    stamp = datetime.datetime.fromtimestamp(clock.wall_ns() // 1_000_000_000, datetime.UTC)
    name = f"{path.name}.before-recovery-{stamp:%Y%m%dT%H%M%SZ}"
    new = path.with_name(f".{path.name}.recovered-{os.getpid()}-{os.urandom(4).hex()}")
    store = SqliteMetadata(str(new), clock)
    try:
        try:
            for puts in _split(values):
                store.commit((), puts)
        finally:
            store.close()
        kept = _move_aside(path, name)
        try:
            os.link(new, path)
        except FileExistsError as exc:
            raise Busy(
                f"another process made {path} at the same time", hint="stop it, then try again"
            ) from exc
        _sync(path.parent)
    except PermissionError as exc:
        raise PermissionDenied(
            f"{path} cannot be replaced: {exc.strerror}", hint="run as its owner"
        ) from exc
    finally:
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{new}{suffix}")
    return kept


def _split(values: Mapping[str, bytes]) -> Iterable[list[Put]]:
    puts: list[Put] = []
    size = 0
    for key, value in values.items():
        if puts and (len(puts) >= _CHANGES_AT_ONCE or size + len(value) > _BYTES_AT_ONCE):
            yield puts
            puts, size = [], 0
        puts.append(Put(key, value))
        size += len(value)
    yield puts


def _move_aside(path: Path, name: str) -> Path | None:
    """Move a store and its log under another name, under which they can still be opened."""
    aside = path.with_name(name)
    number = 1
    while any(Path(f"{aside}{suffix}").exists() for suffix in _SUFFIXES):
        number += 1
        aside = path.with_name(f"{name}-{number}")
    kept = None
    for suffix in _SUFFIXES:
        try:
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        except FileNotFoundError:
            continue
        kept = kept or Path(f"{aside}{suffix}")
    if kept is not None:
        _sync(path.parent)
    return kept


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
