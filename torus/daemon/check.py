"""`check_store`: read all of a stopped node's data and say what is wrong with it.

Decides the order: the headers of all slots, every record of every chunk, then for each volume
its map as an attach would rebuild it, every block that the map names, and its snapshots.
Origins come before their clones, which are younger.  Nothing is written, no fence is raised.
Memory is bounded by the number of chunks and the maps' caches.
"""

import asyncio
import contextlib
from pathlib import Path

from torus import limits
from torus.daemon.check_log import LogCheck, sort_chunks
from torus.daemon.check_map import MapCheck, Subject, Verified, missing_chunks
from torus.daemon.check_shards import check_shards
from torus.daemon.check_snapshots import SnapshotsCheck
from torus.daemon.findings import Findings
from torus.daemon.known import Known, read_known
from torus.daemon.recover_snapshots import Bonds
from torus.daemon.reports import CheckReport, Progress, SnapshotCheck, VolumeCheck
from torus.daemon.slotwalk import ChunkSeen, walk
from torus.daemon.stopped import StoppedChunks, StoppedData, StoppedDisk
from torus.errors import Corruption, TorusError
from torus.ids import ChunkId, volume_of
from torus.metadata.schema import Head, VolumeSpec
from torus.volume.catalog_ask import DELETING
from torus.volume.family import Family
from torus.volume.recovery import Recovered, Recovery

CACHE_BYTES = 64 * limits.MIB
_BLOCK = limits.BLOCK_BYTES
_ADVICE = "; restore those bytes, or the volume, from a backup"

ByVolume = dict[int, dict[ChunkId, ChunkSeen]]


def check_store(data_dir: Path, meta_url: str, progress: Progress) -> CheckReport:
    """Verify the data directory of a stopped node against itself and its metadata.

    Raises: Busy while a node runs on it, NotFound, UsageError, PermissionDenied, ConfigError,
        Unavailable; Corruption or UnknownVersion when the directory's identity is damaged.
    """
    findings = Findings()
    disk = StoppedDisk(data_dir, findings)
    with contextlib.closing(disk):
        return asyncio.run(_Check(disk, read_known(meta_url), progress).run())


def scan_chunks(disk: StoppedData, progress: Progress, more: int = 0) -> ByVolume:
    """Walk the records of every chunk; what cannot be read becomes a finding.

    ``more``: bytes that the caller will read afterwards, for the progress.
    """
    seen: ByVolume = {}
    slot_bytes = disk.geometry.slot_bytes
    total = len(disk.chunks) * slot_bytes + more
    for count, (chunk, address) in enumerate(sorted(disk.chunks.items(), key=_by_address)):
        progress(count * slot_bytes, total)
        try:
            one = walk(disk.read(address, slot_bytes), chunk, address)
        except Corruption as exc:
            disk.findings.error("unreadable", disk.where(address), exc.message)
            continue
        seen.setdefault(chunk.volume, {})[chunk] = one
    return seen


def _by_address(item: tuple[ChunkId, int]) -> int:
    return item[1]


class _Check:
    """One check."""

    def __init__(self, disk: StoppedDisk, known: Known, progress: Progress) -> None:
        self._disk = disk
        self._known = known
        self._progress = progress
        self._findings = disk.findings
        self._chunks = StoppedChunks(disk)
        self._torn_tails = 0
        self._volumes: list[VolumeCheck] = []
        self._left_over = 0
        self._bonds = Bonds(infer=False)
        self._snapshots = SnapshotsCheck(disk, disk.findings, self._bonds)
        for volume in known.specs.keys() & known.heads.keys():
            self._bonds.add(
                known.specs[volume], known.heads[volume], known.snapshots.get(volume, [])
            )

    async def run(self) -> CheckReport:
        disk, known = self._disk, self._known
        self._check_metadata()
        mapped = sum(head.mapped_blocks for head in known.heads.values()) * limits.BLOCK_BYTES
        more = mapped + sum(place.room for place in disk.shelves.shards.values())
        seen = scan_chunks(disk, self._progress, more)
        total = len(disk.chunks) * disk.geometry.slot_bytes + more
        check_shards(disk, known, self._progress, total)
        for volume in sorted(known.specs.keys() & known.heads.keys()):
            before = self._findings.count
            one = await self._check_volume(volume, seen.get(volume, {}), before)
            self._volumes.append(one)
            self._progress(min(disk.bytes_read, total), total)
        if known.usable:
            for volume in sorted(seen.keys() - known.specs.keys()):
                self._report_unknown(volume, list(seen[volume].values()))
        self._progress(total, total)
        return CheckReport(
            data_dir=disk.path,
            segments=disk.segments,
            slots=disk.slots,
            slots_free=disk.slots_free,
            chunks=len(disk.chunks),
            shards=len(disk.shelves.shards),
            records=sum(one.records for chunks in seen.values() for one in chunks.values()),
            bytes_read=disk.bytes_read,
            torn_tails=self._torn_tails,
            volumes=tuple(self._volumes),
            findings=self._findings.to_tuple(),
            left_over=self._left_over,
        )

    # --- the metadata -------------------------------------------------------------------

    def _check_metadata(self) -> None:
        known, identity = self._known, self._disk.identity
        for where, message in known.oddities:
            self._findings.warning("dead-reader", where, message)
        for where, message in known.problems:
            kind = "no-metadata" if known.missing else "bad-metadata"
            self._findings.error(kind, where, f"{message}; 'torus recover' rebuilds it")
        if known.cluster is not None and known.cluster.cluster_id != identity.cluster_id:
            self._findings.error(
                "foreign-metadata",
                "metadata",
                f"it belongs to cluster {known.cluster.cluster_id}, this disk to cluster "
                f"{identity.cluster_id}",
            )
            known.specs.clear()
            known.heads.clear()
        used = {*self._disk.fences, *(chunk.volume for chunk in self._disk.chunks)}
        used |= {volume_of(shard) for shard in self._disk.shelves.shards}
        if known.usable and max(used, default=0) >= known.next_volume:
            self._findings.error(
                "stale-metadata",
                "metadata next-volume",
                f"the next volume would get id {known.next_volume}, but the disk knows volume "
                f"{max(used)}: the metadata is older than the data",
            )

    def _report_unknown(self, volume: int, chunks: list[ChunkSeen]) -> None:
        records = sum(one.records + one.beyond for one in chunks)
        where, place = f"volume {volume}", self._disk.where(chunks[0].address)
        if not records:
            self._findings.warning(
                "unknown-volume",
                where,
                f"{len(chunks)} chunks without a whole record, the first in {place}, are of a "
                "volume that the metadata does not know",
            )
            return
        if self._known.was_deleted(volume):
            self._left_over += len(chunks)
            self._findings.warning(
                "unknown-volume",
                where,
                f"{len(chunks)} chunks with {records} records, the first in {place}, are of a "
                "volume that was deleted; a node frees them in time",
            )
            return
        self._findings.error(
            "unknown-volume",
            where,
            f"{len(chunks)} chunks with {records} records, the first in {place}, are of a volume "
            "that the metadata does not know; 'torus recover' brings it back",
        )

    # --- one volume ---------------------------------------------------------------------

    async def _check_volume(
        self, volume: int, seen: dict[ChunkId, ChunkSeen], before: int
    ) -> VolumeCheck:
        spec, head = self._known.specs[volume], self._known.heads[volume]
        recovered = check = None
        snapshots: tuple[SnapshotCheck, ...] = ()
        if spec.state == DELETING:
            self._report_deleting(spec)
        elif self._lies_elsewhere(volume):
            self._check_epochs(spec, head, seen)
            self._check_copies(spec, seen)
        else:
            self._check_epochs(spec, head, seen)
            recovered = await self._recover(spec, head)
            log_check = self._check_log(spec, head, seen, recovered)
            if recovered is not None:
                check = await self._check_map(spec, head, recovered)
                self._snapshots.note_dead(volume, recovered)
            snapshots = await self._snapshots.run(spec, None if check is None else check.verified)
            if log_check is not None and recovered is not None:
                kept = self._bonds.snapshots_of(volume)
                self._left_over += log_check.count_left_over(head, recovered.blocks, kept)
        own = self._findings.count - before - sum(one.findings for one in snapshots)
        return VolumeCheck(
            name=spec.name,
            volume=volume,
            size_bytes=spec.size_bytes,
            mapped_bytes=0 if recovered is None else recovered.blocks.mapped_blocks * _BLOCK,
            verified_bytes=0 if check is None else check.verified_bytes,
            findings=own,
            recovered_lsn=None if recovered is None else recovered.end.lsn,
            snapshots=snapshots,
        )

    def _lies_elsewhere(self, volume: int) -> bool:
        """Tell whether chunks of a volume, or of one that it grew from, may be on other disks:
        then this one has a part of its log, and what is missing here is not missing."""
        head: Head | None = self._known.heads[volume]
        while head is not None:
            if any(span.ring for span in head.spans):
                return True
            head = None if head.base is None else self._known.heads.get(head.base.volume)
        return False

    def _check_copies(self, spec: VolumeSpec, seen: dict[ChunkId, ChunkSeen]) -> None:
        """Compare the checksums of this disk's copies; one may be short, others are whole."""
        for chunk, one in seen.items():
            places = [*(rotten.offset for rotten in one.rotten), *([one.end] if one.beyond else [])]
            if places:
                self._findings.warning(
                    "bad-copy",
                    self._disk.where(one.address, min(places)),
                    f"volume {spec.name!r} chunk {chunk}: the copy on this disk is damaged from "
                    f"offset {min(places)} on; a node repairs it from another disk's",
                )

    def _report_deleting(self, spec: VolumeSpec) -> None:
        snapshots = len(self._bonds.snapshots_of(spec.volume))
        more = f", and that of its {snapshots} snapshots" if snapshots else ""
        self._findings.warning(
            "deleting",
            f"volume {spec.name}",
            f"its deletion{more} is not finished; the next start of the node goes on, or: "
            f"torus volume delete {spec.name}",
        )

    async def _check_map(self, spec: VolumeSpec, head: Head, recovered: Recovered) -> MapCheck:
        blocks, spans = recovered.blocks, recovered.spans
        for chunk in missing_chunks(self._disk, blocks, spans, head.root):
            self._findings.error(
                "missing-chunk",
                f"volume {spec.name!r} {chunk}",
                "it is not there, and the map needs it",
            )
        family = Family(spans, self._bonds.origin(head.base).ancestors)
        known: list[Verified] = await self._snapshots.open_base(head.base)
        subject = Subject(f"volume {spec.name!r}", _ADVICE, own=head.base is None)
        check = MapCheck(self._disk, self._findings, subject, blocks, family, CACHE_BYTES, known)
        check.run()
        return check

    def _check_epochs(self, spec: VolumeSpec, head: Head, seen: dict[ChunkId, ChunkSeen]) -> None:
        newest = max((chunk.epoch for chunk in seen), default=0)
        newest = max(newest, self._disk.fences.get(spec.volume, 0))
        if newest > head.epoch:
            self._findings.error(
                "stale-metadata",
                f"volume {spec.name!r} epoch",
                f"the disk knows epoch {newest}, the metadata only {head.epoch}: it is older "
                "than the data; 'torus recover' brings it up to date",
            )

    async def _recover(self, spec: VolumeSpec, head: Head) -> Recovered | None:
        try:
            origin = self._bonds.origin(head.base)
            recovery = Recovery(self._chunks, spec, head, head.epoch, CACHE_BYTES, origin)
            return await recovery.run()
        except TorusError as exc:
            self._findings.error("bad-log", f"volume {spec.name!r}", exc.message)
            return None

    def _check_log(
        self,
        spec: VolumeSpec,
        head: Head,
        seen: dict[ChunkId, ChunkSeen],
        recovered: Recovered | None,
    ) -> LogCheck | None:
        try:
            log_check: LogCheck = sort_chunks(self._disk, repr(spec.name), spec.volume, head, seen)
        except Corruption as exc:
            self._findings.error("bad-head", f"volume {spec.name!r} head", exc.message)
            return None
        log_check.run(None if recovered is None else recovered.end)
        self._torn_tails += log_check.torn_tails
        return log_check
