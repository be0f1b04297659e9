"""`recover` for a cluster whose metadata store is gone: made anew from the disks of all nodes.

Decides what a new store begins with: the volumes as their logs tell, every disk as a member, and
a ring behind all that the logs name, so that none of those is mistaken for a new one.  Nothing
is written without being asked for, nothing is deleted, and the store has to be empty.

Implements docs/format.md, "Rebuilding the metadata of a cluster".
"""

import asyncio
import base64
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from torus.clock import Clock, SystemClock
from torus.daemon.check import scan_chunks
from torus.daemon.findings import Findings
from torus.daemon.known import Known
from torus.daemon.merged import MergedDisks
from torus.daemon.recover import Rebuilding
from torus.daemon.registration import IN, weight_of
from torus.daemon.reports import Progress, RecoveredDisk, RecoverReport
from torus.daemon.rings import FIRST_VERSION
from torus.daemon.stopped import StoppedDisk
from torus.errors import AlreadyExists, Corruption
from torus.log import get_logger
from torus.metadata.base import Entry
from torus.metadata.keys import CLUSTER, RING_HEAD, member_key, ring_key
from torus.metadata.open import open_metadata
from torus.metadata.schema import Head, Member, RingHead, RingVersion
from torus.metadata.transfer import Filling, WholeStore
from torus.ring.builder import first_ring
from torus.ring.codec import pack
from torus.ring.member import RingMember

log = get_logger("torus.recover")

LOST = (
    "zones and weights that were set, drains, and the ring's history stand in no log: the disks "
    "that were named are all members, in a new ring, and data moves to where that wants it; a "
    "node that is started with --zone or --weight says those again"
)
TOKENS = (
    "each node remembers the store that was lost: move history.json out of every data directory "
    "before the nodes are started with this one"
)


def recover_cluster(
    data_dirs: Sequence[Path],
    meta_url: str,
    progress: Progress,
    *,
    write: bool,
    partial: bool = False,
) -> RecoverReport:
    """Find out what the volumes of a cluster are from all its disks; with ``write``, fill the
    empty store at ``meta_url`` with it, if every volume is whole or ``partial`` is given.

    Raises: AlreadyExists when the store is not empty, ForeignData when the disks are not of one
        cluster, UsageError, Busy while a node runs, NotFound, PermissionDenied, ConfigError,
        Unavailable; Corruption when a directory's identity is damaged.
    """
    clock = SystemClock()
    findings = Findings()
    with contextlib.ExitStack() as stack:
        if write:
            _check_empty(meta_url)
        disks = []
        for data_dir in data_dirs:
            disks.append(StoppedDisk(data_dir, findings))
            stack.callback(disks[-1].close)
        merged = MergedDisks(disks, findings)
        made = Rebuilding(merged, Known(), closed=True)
        seen = scan_chunks(merged, progress)
        asyncio.run(made.rebuild({chunk.volume for chunk in merged.chunks}, seen))
        report = RecoverReport(
            data_dir=merged.path,
            meta_url=meta_url,
            cluster_id=merged.cluster_id,
            volumes=tuple(sorted(made.volumes, key=lambda one: one.volume)),
            notes=(*made.notes(), LOST, TOKENS),
            disks=tuple(_disk_report(disk) for disk in disks),
            written=False,
        )
        if not write or not (report.ok or partial):
            return report
        for disk in disks:
            disk.make_durable()
        values = {**made.values(), **_ring(disks, made.bonds.heads.values(), clock)}
        _fill(meta_url, merged.cluster_id, values, clock)
    log.info("metadata.recovered", url=meta_url, volumes=len(report.volumes), disks=len(disks))
    return replace(report, written=True)


def _disk_report(disk: StoppedDisk) -> RecoveredDisk:
    identity = disk.identity
    shards = len(disk.shelves.shards)
    return RecoveredDisk(disk.path, identity.disk_id, identity.node, len(disk.chunks), shards)


def _ring(disks: Iterable[StoppedDisk], heads: Iterable[Head], clock: Clock) -> dict[str, bytes]:
    """Return the members, and a ring of them behind every version that a span names.

    Of the versions before nobody knows any more who was in them, so that whatever has to know
    asks all disks.
    """
    now_ns = clock.wall_ns()
    members = [
        Member(
            one.disk_id, one.node, "", "", weight_of(one.size_bytes), one.size_bytes, IN, now_ns,
            "found by torus recover",
        )
        for one in (disk.identity for disk in disks)
    ]  # fmt: skip
    shares = [RingMember(one.disk_id, one.node_id, one.zone, one.weight) for one in members]
    named = (span.ring for head in heads for span in head.spans)
    version = max([FIRST_VERSION, *named]) + 1
    table = base64.b64encode(pack(replace(first_ring(shares), version=version))).decode()
    stored = RingVersion(version, now_ns, "made anew by torus recover", table)
    return {
        **{member_key(one.disk_id): one.to_bytes() for one in members},
        ring_key(version): stored.to_bytes(),
        RING_HEAD: RingHead(version).to_bytes(),
    }


def _check_empty(meta_url: str) -> None:
    """Raises: AlreadyExists when a cluster is in the store; Unavailable, ConfigError."""
    with contextlib.closing(open_metadata(meta_url, SystemClock())) as store:
        if store.get(CLUSTER) is not None:
            raise AlreadyExists(
                f"metadata store {meta_url} is not empty: it holds a cluster",
                hint="name an empty one, such as another prefix: etcd://HOST:PORT/PREFIX",
            )


def _fill(meta_url: str, cluster_id: str, values: dict[str, bytes], clock: Clock) -> None:
    """Raises: AlreadyExists, Busy, Unavailable: then it can be run again."""
    with contextlib.closing(open_metadata(meta_url, clock)) as store:
        if not isinstance(store, WholeStore):
            raise Corruption(f"metadata store {meta_url} does not last")
        entries = [Entry(key, value, 0) for key, value in values.items()]
        uid, source = f"recover-{cluster_id}", "the disks of a cluster (torus recover)"
        Filling(store, meta_url, uid, source, clock).fill(entries, (), lambda _done, _total: None)
