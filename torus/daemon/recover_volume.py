"""One volume's metadata, made anew from the copies of its head in its log.

Decides which copy to go on from: the newest from which recovery reaches the end of the log with
every mapped block in place.  A copy that a checkpoint wrote serves also when the checkpoint was
never published: its map is that of a moment of the log, and proves itself.

Implements docs/format.md, "Rebuilding lost metadata".
"""

from dataclasses import dataclass, replace

from torus import limits
from torus._fast.record import KIND_ROOT, RecordReader
from torus.daemon.check import CACHE_BYTES
from torus.daemon.check_map import MapCheck, Subject, Verified, missing_chunks
from torus.daemon.findings import Findings
from torus.daemon.recover_snapshots import Bonds, read_snapshots
from torus.daemon.slotwalk import ChunkSeen, HeadCopy, walk
from torus.daemon.stopped import StoppedChunks, StoppedData
from torus.errors import Corruption, TorusError
from torus.format.logend import was_durable
from torus.format.root import RootPayload
from torus.ids import ChunkId, join_snapshot
from torus.metadata.schema import Head, RootRef, Snapshot, VolumeSpec
from torus.volume.catalog_ask import READY
from torus.volume.family import Family
from torus.volume.recovery import Recovery
from torus.volume.snapshot_map import read_map
from torus.volume.spans import Spans

_COPIES_MAX = 8  # tried of one volume, newest first; each costs reading its mapped data


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came out for one volume.  ``spec`` and ``head`` are None when nothing did."""

    spec: VolumeSpec | None
    head: Head | None
    problem: str  # "" when every block is in place
    snapshots: tuple[Snapshot, ...] = ()


class VolumeRecovery:
    """The recovery of one volume."""

    def __init__(
        self,
        disk: StoppedData,
        volume: int,
        seen: dict[ChunkId, ChunkSeen],
        bonds: Bonds,
        *,
        closed: bool = False,
    ) -> None:
        """``bonds`` has the volumes that this one can be a clone of.  ``closed``: its last span
        ends where its log was found to end, which no later attach finds out."""
        self._closed = closed
        self._disk = disk
        self._bonds = bonds
        self._chunks = StoppedChunks(disk)
        self._volume = volume
        self._seen = seen
        self._epoch = max([disk.fences.get(volume, 0), *(chunk.epoch for chunk in seen)])

    async def run(self) -> Rebuilt:
        """Try the copies, newest first; take the first good one, else the least bad."""
        best: Rebuilt | None = None
        newest: VolumeSpec | None = None
        problems: list[str] = []
        for chunk, copy in self._copies():
            try:
                spec, head, snapshots = self._read_copy(chunk, copy)
                newest = newest or spec
                rebuilt, verified = await self._try(spec, head)
                whole = not rebuilt.problem
                rebuilt = await self._with_snapshots(rebuilt, snapshots, verified)
            except TorusError as exc:
                problems.append(exc.message)
                continue
            if whole:
                return rebuilt
            best = best or rebuilt
        if best is None and not problems:
            problems.append("no copy of its head is left in its chunks")
        return best or Rebuilt(newest, None, problems[0])

    def _copies(self) -> list[tuple[ChunkId, HeadCopy]]:
        found = [(chunk, copy) for chunk, seen in self._seen.items() for copy in seen.heads]
        found.sort(key=lambda one: (one[0].epoch, one[1].lsn), reverse=True)
        return found[:_COPIES_MAX]

    def _read_copy(self, chunk: ChunkId, copy: HeadCopy) -> tuple[VolumeSpec, Head, list[Snapshot]]:
        """Return the specification, the head and the snapshots that a record holds.

        Raises: Corruption, UnknownVersion.
        """
        where = self._disk.where(self._disk.chunks[chunk], copy.offset)
        data = self._disk.read(self._disk.chunks[chunk] + copy.offset, copy.size)
        reader = RecordReader(data, chunk, copy.offset, copy.index)
        if not reader.advance() or not reader.payload_ok:
            raise Corruption(f"{where}: the copy of the head changed while it was read")
        payload = RootPayload.unpack(reader.payload(), where)
        spec = VolumeSpec.from_bytes(payload.spec, where)
        head = Head.from_bytes(payload.head, where)
        last = head.spans[-1] if head.spans else None
        if spec.volume != self._volume or last is None or last.epoch != chunk.epoch:
            raise Corruption(f"{where}: the copy of the head is not of this log")
        root = None
        if copy.kind == KIND_ROOT:
            root = RootRef(
                chunk.sequence, copy.offset, copy.size, payload.lsn,
                payload.replay_sequence, payload.replay_offset, payload.replay_index,
            )  # fmt: skip
            head = replace(head, root=root)
        snapshots = read_snapshots(payload.snapshots, where, root)
        head = replace(head, epoch=max(self._epoch, head.epoch), owner=None)
        size = max(spec.size_bytes, self._written_bytes(head, spec.size_bytes))
        return replace(spec, size_bytes=size, state=READY), head, snapshots

    def _written_bytes(self, head: Head, size_bytes: int) -> int:
        """Return how far the records reach that the copy is older than: the volume may have
        grown since."""
        root = head.root
        top = 0
        for chunk, seen in self._seen.items():
            if chunk.epoch < head.spans[-1].epoch and root is not None:
                if chunk.sequence < root.replay_sequence:
                    continue
            if seen.top_block * limits.BLOCK_BYTES >= size_bytes + limits.BLOCK_BYTES:
                top = max(top, self._top_after(chunk, 0 if root is None else root.lsn))
        return top * limits.BLOCK_BYTES if top > -(-size_bytes // limits.BLOCK_BYTES) else 0

    def _top_after(self, chunk: ChunkId, lsn: int) -> int:
        tops = [0]

        def visit(reader: RecordReader) -> None:
            if reader.lsn > lsn and reader.payload_ok:
                tops.extend(b + count for b, count, zero in reader.extent_list() if not zero)

        walk(self._disk.read_chunk(chunk), chunk, 0, visit)
        return max(tops)

    # --- a copy on trial ----------------------------------------------------------------

    async def _try(self, spec: VolumeSpec, head: Head) -> tuple[Rebuilt, Verified]:
        """Recover as the next attach would, and compare every block.

        Raises: Corruption when that cannot work.
        """
        origin = self._bonds.origin(head.base)
        recovery = Recovery(self._chunks, spec, head, head.epoch, CACHE_BYTES, origin)
        recovered = await recovery.run()
        missing = missing_chunks(self._disk, recovered.blocks, recovered.spans, head.root)
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise Corruption(f"{missing[0]} is not there, and its map needs it{more}")
        proven = max(seen.committed for seen in self._seen.values())
        if was_durable(recovered.end.lsn + 1, proven):
            raise Corruption(
                f"its log ends at lsn {recovered.end.lsn}, but all up to {proven} was flushed"
            )
        findings = Findings()
        family = Family(recovered.spans, origin.ancestors)
        check = MapCheck(
            self._disk,
            findings,
            Subject(f"volume {spec.name!r}"),
            recovered.blocks,
            family,
            CACHE_BYTES,
        )
        check.run()
        head = replace(head, mapped_blocks=recovered.blocks.mapped_blocks)
        if self._closed:
            head = replace(head, spans=recovered.spans.to_tuple())
        return Rebuilt(spec, head, self._problem(head, findings)), check.verified

    async def _with_snapshots(
        self, rebuilt: Rebuilt, snapshots: list[Snapshot], verified: Verified
    ) -> Rebuilt:
        """Add the snapshots whose maps and blocks are still there.

        One of which a chunk is gone was deleted after the list of it was written, or is lost.
        """
        assert rebuilt.spec is not None
        assert rebuilt.head is not None
        kept: list[Snapshot] = []
        problems = [rebuilt.problem] if rebuilt.problem else []
        known = [verified]
        for snapshot in reversed(snapshots):
            name = join_snapshot(rebuilt.spec.name, snapshot.name)
            findings = Findings()
            try:
                check = await self._prove(snapshot, name, rebuilt.head, known, findings)
            except TorusError as exc:
                problems.append(f"its snapshot {name} is gone, deleted or lost: {exc.message}")
                continue
            if findings.count:
                first = findings.to_tuple()[0].message
                problems.append(f"its snapshot {name} has {findings.count} damaged places, {first}")
            known = [verified, check.verified]
            kept.insert(0, snapshot)
        return replace(rebuilt, snapshots=tuple(kept), problem="; ".join(problems))

    async def _prove(
        self,
        snapshot: Snapshot,
        name: str,
        head: Head,
        known: list[Verified],
        findings: Findings,
    ) -> MapCheck:
        """Compare every block of a snapshot that the maps in ``known`` do not name too.

        Raises: Corruption when a chunk that it needs is not there, or its root cannot be read.
        """
        origin = self._bonds.origin(snapshot.base)
        spans = Spans(self._volume, head.spans)
        opened = await read_map(name, snapshot, spans, origin, self._chunks, CACHE_BYTES)
        subject = Subject(f"snapshot {name!r}", own=False)
        check = MapCheck(
            self._disk, findings, subject, opened.blocks, opened.family, CACHE_BYTES, known,
            whole=False,
        )  # fmt: skip
        check.run()
        if check.missing:
            gone = next(
                f for f in findings.to_tuple() if f.kind in ("missing-chunk", "bad-map-page")
            )
            raise Corruption(gone.message)
        return check

    def _problem(self, head: Head, findings: Findings) -> str:
        """Return what is lost, for people.

        Damaged records of which nothing is mapped any more are no loss.
        """
        problems = []
        if findings.count:
            problems.append(f"{findings.count} damaged places, {findings.to_tuple()[0].message}")
        later = [
            chunk
            for chunk, seen in self._seen.items()
            if chunk.epoch > head.spans[-1].epoch
            and (seen.beyond or seen.records > len(seen.rotten))
        ]
        if later:
            problems.append(
                f"{len(later)} chunks of later epochs, from {min(later)} on, do not continue it"
            )
        return "; ".join(problems)
