"""Moving a machine's metadata into etcd, and metadata to and from files.

Decides when a store may be moved (nobody uses it, and from then on nobody can) and in which order
its marks are set.  How the target is filled is decided in `torus.metadata.transfer`, the file's
bytes in `torus.metadata.backup`.  Data stays where it is.

Implements docs/metadata.md, "Moving to etcd" and "Backups".
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torus.clock import Clock
from torus.errors import AlreadyExists, Busy, ConfigError, NotFound, TorusError
from torus.metadata import backup
from torus.metadata.base import Delete, Entry, Expect, Put
from torus.metadata.etcd_url import is_etcd, parse_etcd
from torus.metadata.keys import CLUSTER, GATEWAYS, MOVED, NODES, READERS, VOLUMES
from torus.metadata.moved import DONE, UNDER_WAY
from torus.metadata.open import sqlite_path
from torus.metadata.schema import Cluster, Gateway, Head, Moved, Node, Reader
from torus.metadata.sqlite import SqliteMetadata
from torus.metadata.transfer import Filling, Progress, WholeStore, content, origins_of
from torus.volume.owner import ProcessIdentity, is_alive


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a move, an export or an import did."""

    cluster_id: str
    entries: int
    place: str  # where the content is now
    repeated: bool = False  # it was there already


def migrate(
    meta_url: str, target_url: str, clock: Clock, progress: Progress, *, force: bool = False
) -> Outcome:
    """Move the SQLite store that ``meta_url`` names to the etcd ``target_url``.

    May be repeated after an interruption at any step.  With ``force``, processes of which cannot
    be told whether they live count as dead.

    Raises: Busy while something uses the store, AlreadyExists when the target is not empty,
        ConfigError, NotFound, Unavailable.
    """
    if not is_etcd(target_url):
        raise ConfigError(f"--to {target_url!r} is not etcd",
                          hint="write it as etcd://HOST:2379,HOST:2379/PREFIX")  # fmt: skip
    place = parse_etcd(target_url).place
    with _source(meta_url, clock) as source:
        mark = _moved(source)
        if mark is not None and mark.target != place:
            raise Busy(
                f"metadata store {source.path} is on its way to {mark.target}, or there",
                hint="finish that, or 'torus meta migrate --abort' while it is not complete",
            )
        if mark is not None and mark.state == DONE:
            found = content(source)
            return Outcome(_cluster_id(found.entries), len(found.entries), place, repeated=True)
        _refuse_in_use(source, force=force)
        with _etcd(target_url, clock) as target:
            uid = mark.uid if mark is not None else secrets.token_hex(16)
            filling = Filling(target, place, uid, f"sqlite:{source.path}", clock)
            if mark is None:
                mark = Moved(place, uid, UNDER_WAY, clock.wall_ns())
                _begin(source, mark, force=force)
            found = content(source)
            filling.fill(found.entries, (), progress)
            _write_mark(source, Moved(place, uid, DONE, clock.wall_ns()))
    return Outcome(_cluster_id(found.entries), len(found.entries), place)


def abort(meta_url: str, target_url: str | None, clock: Clock) -> str:
    """Take back a move that is not complete; return where it was going.

    ``target_url`` is needed when etcd is reached with options that the mark does not hold.

    Raises: NotFound when there is none, AlreadyExists when it is complete, Unavailable.
    """
    with _source(meta_url, clock) as source:
        mark = _moved(source)
        if mark is None or mark.state == DONE:
            raise NotFound(
                f"metadata store {source.path} is not being moved",
                hint="a move that is complete cannot be taken back" if mark else None,
            )
        with _etcd(target_url or mark.target, clock) as target:
            Filling(target, mark.target, mark.uid, f"sqlite:{source.path}", clock).empty()
        entry = source.get(MOVED)
        source.commit([Expect(MOVED, entry.revision if entry else 0)], [Delete(MOVED)])
    return mark.target


def export(store: WholeStore, place: str, file: Path, clock: Clock) -> Outcome:
    """Write all lasting entries of ``store``, as they are at one revision, to a new ``file``.

    Raises: AlreadyExists, NotFound, OSError.
    """
    if file.exists():
        raise AlreadyExists(f"{file} exists already", hint="name another file, or remove it")
    found = content(store)
    origins = origins_of(store, found.revision)
    cluster_id = _cluster_id(found.entries)
    whole = backup.Backup(cluster_id, found.revision, clock.wall_ns(), origins, found.entries)
    unfinished = file.with_name(f".{file.name}.new-{os.getpid()}")
    try:
        with unfinished.open("xb") as output:
            os.fchmod(output.fileno(), 0o600)  # it holds the cluster's secret
            output.writelines(backup.lines(whole))
            output.flush()
            os.fsync(output.fileno())
        os.link(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
    return Outcome(cluster_id, len(found.entries), place)


def restore(file: Path, target_url: str, clock: Clock, progress: Progress) -> Outcome:
    """Fill the empty store that ``target_url`` names with what ``file`` holds.

    May be repeated after an interruption at any step.

    Raises: AlreadyExists when the store is not empty, Corruption, Unavailable, OSError.
    """
    with file.open("rb") as source:
        whole = backup.read(source.readlines(), str(file))
    with _target(target_url, clock) as (target, place):
        filling = Filling(target, place, whole.digest, f"backup {file.name}", clock)
        repeated = filling.is_complete()
        filling.fill(whole.entries, whole.origins, progress)
    return Outcome(whole.cluster_id, len(whole.entries), place, repeated)


@contextlib.contextmanager
def _source(meta_url: str, clock: Clock) -> Iterator[SqliteMetadata]:
    """Open the embedded store although it may be moved already."""
    store = SqliteMetadata(sqlite_path(meta_url), clock, create=False, unfinished=True)
    with contextlib.closing(store):
        yield store


@contextlib.contextmanager
def _etcd(url: str, clock: Clock) -> Iterator[WholeStore]:
    from torus.metadata.etcd import EtcdMetadata  # gRPC takes 100 ms to import

    with contextlib.closing(EtcdMetadata(parse_etcd(url), clock, unfinished=True)) as store:
        yield store


@contextlib.contextmanager
def _target(url: str, clock: Clock) -> Iterator[tuple[WholeStore, str]]:
    if is_etcd(url):
        with _etcd(url, clock) as store:
            yield store, parse_etcd(url).place
        return
    embedded = SqliteMetadata(sqlite_path(url), clock, unfinished=True)
    with contextlib.closing(embedded):
        yield embedded, f"sqlite:{embedded.path}"


def _moved(source: SqliteMetadata) -> Moved | None:
    entry = source.get(MOVED)
    return None if entry is None else Moved.from_bytes(entry.value, MOVED)


def _begin(source: SqliteMetadata, mark: Moved, *, force: bool) -> None:
    """Shut everybody out, then look once more: one may have come in between."""
    _write_mark(source, mark)
    try:
        _refuse_in_use(source, force=force)
    except TorusError:
        source.commit([], [Delete(MOVED)])
        raise


def _write_mark(source: SqliteMetadata, mark: Moved) -> None:
    source.commit([], [Put(MOVED, mark.to_bytes())])


def _refuse_in_use(source: SqliteMetadata, *, force: bool) -> None:
    """Raises: Busy naming the process that uses the store."""
    used: list[tuple[str, ProcessIdentity]] = []
    for entry in source.list(NODES).entries:
        used.append(("a node runs", Node.from_bytes(entry.value, entry.key)))
    for entry in source.list(GATEWAYS).entries:
        used.append(("a gateway runs", Gateway.from_bytes(entry.value, entry.key)))
    for entry in source.list(VOLUMES).entries:
        if entry.key.endswith("/head"):
            head = Head.from_bytes(entry.value, entry.key)
            if head.owner is not None:
                used.append((f"{entry.key} is attached", head.owner))
    for entry in source.list(READERS).entries:
        used.append(("a snapshot is read", Reader.from_bytes(entry.value, entry.key)))
    for what, process in used:
        alive = is_alive(process)
        if alive or (alive is None and not force):
            raise Busy(
                f"metadata store {source.path} is in use: {what} by pid {process.pid} on "
                f"{process.host}",
                hint="stop it first"
                if alive
                else "stop it first; if it is certainly gone, say so with --force",
            )


def _cluster_id(entries: tuple[Entry, ...]) -> str:
    for entry in entries:
        if entry.key == CLUSTER:
            return Cluster.from_bytes(entry.value, CLUSTER).cluster_id
    raise NotFound("the metadata belongs to no cluster")
