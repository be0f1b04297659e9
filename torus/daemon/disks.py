"""A data directory becomes a store: made, recognised or refused.

Decides which cluster a directory belongs to and what a missing or contradicting identity
means.
"""

import errno
import os
import secrets
from dataclasses import replace
from pathlib import Path

from torus import limits
from torus.clock import Clock
from torus.errors import (
    Corruption,
    ForeignData,
    NotFound,
    PermissionDenied,
    PoolFull,
    TorusError,
    UsageError,
)
from torus.format.identity import IDENTITY_FILE, DiskIdentity
from torus.format.segment import parse_segment_name
from torus.log import get_logger
from torus.store.disk import PosixDisk
from torus.store.pool import ThreadPool
from torus.store.store import Store

log = get_logger("torus.disk")
_HARMLESS = frozenset({"lost+found", IDENTITY_FILE + ".new"})


def read_identity(data_dir: Path) -> DiskIdentity | None:
    """Return whose data directory this is; None when it is not there or empty.

    Raises: Corruption, UnknownVersion, PermissionDenied.
    """
    path = data_dir / IDENTITY_FILE
    try:
        return DiskIdentity.from_bytes(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except PermissionError as exc:
        raise PermissionDenied(f"{path} may not be read", hint="run as the owner") from exc
    except NotADirectoryError as exc:
        raise UsageError(f"data directory {data_dir} is not a folder") from exc
    except OSError as exc:
        raise _refusal(data_dir, exc) from exc


def open_store(
    data_dir: Path,
    cluster_id: str,
    clock: Clock,
    *,
    size_bytes: int | None,
    punch_delay_s: float | None = limits.PUNCH_DELAY_S,
    trash_grace_s: float = 0.0,
    make: bool = True,
    node_id: str = "",
) -> Store:
    """Open a data directory as a store, made first when it is empty and ``make`` is set.

    ``size_bytes``: the operator's limit; None keeps the one it has.  A process that ends soon
    keeps no trash: what it deletes would be there again.  A directory that is made is made for the
    node ``node_id``; empty: for one of its own.

    Raises: Busy when another process has it, ForeignData when it is another cluster's,
        UsageError when a new one needs a size, Corruption, UnknownVersion, PermissionDenied,
        PoolFull.
    """
    if not make and not data_dir.is_dir():
        raise NotFound(
            f"no node runs and data directory {data_dir} does not exist",
            hint="start a node to make it: torus node --size 20GiB; or name the right --data-dir",
        )
    disk = None
    try:
        disk = PosixDisk(data_dir, make=make)
        identity = _identify(disk, data_dir, cluster_id, clock, size_bytes, node_id)
        disk.use_geometry(identity.geometry)
        store = Store(
            disk, identity, ThreadPool(limits.POOL_THREADS, "disk"), clock,
            secrets.randbits(64), size_bytes=identity.size_bytes, punch_delay_s=punch_delay_s,
            trash_grace_s=trash_grace_s,
        )  # fmt: skip
        store.open()
    except OSError as exc:
        if disk is not None:
            disk.close()
        raise _refusal(data_dir, exc) from exc
    except TorusError:
        if disk is not None:
            disk.close()
        raise
    return store


def _identify(
    disk: PosixDisk, data_dir: Path, cluster_id: str, clock: Clock, size_bytes: int | None,
    node_id: str,
) -> DiskIdentity:  # fmt: skip
    data = disk.read_file(IDENTITY_FILE)
    if data is None:
        return _make(disk, data_dir, cluster_id, clock, size_bytes, node_id)
    identity = DiskIdentity.from_bytes(data, str(data_dir / IDENTITY_FILE))
    if identity.cluster_id != cluster_id:
        raise ForeignData(
            f"data directory {data_dir} belongs to cluster {identity.cluster_id}, the metadata "
            f"store to cluster {cluster_id}",
            hint="name the right --data-dir or --meta; if the metadata was lost, run "
            "'torus recover'",
        )
    if size_bytes is not None and size_bytes != identity.size_bytes:
        identity = replace(identity, size_bytes=size_bytes)
        disk.replace_file(IDENTITY_FILE, identity.to_bytes())
        log.info("disk.resized", data_dir=str(data_dir), size_bytes=size_bytes)
    return identity


def _make(
    disk: PosixDisk, data_dir: Path, cluster_id: str, clock: Clock, size_bytes: int | None,
    node_id: str,
) -> DiskIdentity:  # fmt: skip
    strangers = [name for name in disk.names() if name not in _HARMLESS]
    if any(parse_segment_name(name) is not None for name in strangers):
        raise Corruption(
            f"data directory {data_dir} has segments but no {IDENTITY_FILE}",
            hint="restore that file; without it the segments cannot be told from a stranger's",
        )
    if strangers:
        raise ForeignData(
            f"data directory {data_dir} is not empty: it holds {strangers[0]!r}",
            hint="name an empty folder",
        )
    if size_bytes is None:
        raise UsageError(
            f"data directory {data_dir} is new: its size is not known",
            hint="give --size, such as --size 20GiB",
        )
    identity = DiskIdentity(
        secrets.token_hex(16), cluster_id, limits.SLOT_BYTES, limits.SEGMENT_SLOTS,
        clock.wall_ns(), size_bytes, node_id,
    )  # fmt: skip
    disk.replace_file(IDENTITY_FILE, identity.to_bytes())
    space = os.statvfs(data_dir)
    free = space.f_bavail * space.f_frsize
    if size_bytes > free:
        log.warning("disk.overcommitted", data_dir=str(data_dir), size=size_bytes, free=free)
    log.info("disk.made", data_dir=str(data_dir), disk=identity.disk_id, size_bytes=size_bytes)
    return identity


def _refusal(data_dir: Path, exc: OSError) -> TorusError:
    if isinstance(exc, PermissionError) or exc.errno == errno.EROFS:
        return PermissionDenied(
            f"data directory {data_dir} cannot be used: {exc.strerror}",
            hint="run as its owner, or name another --data-dir",
        )
    if isinstance(exc, NotADirectoryError | FileExistsError):
        return UsageError(f"data directory {data_dir} is not a folder")
    if exc.errno == errno.ENOSPC:
        return PoolFull(f"data directory {data_dir}: {exc.strerror}", hint="free some space")
    return TorusError(f"data directory {data_dir} cannot be opened: {exc}")
