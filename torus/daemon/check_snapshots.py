"""The snapshots of one volume: is every page and block that they read there, and will it stay.

Decides the order, which is what keeps it cheap: the volume's present map was verified before,
and each snapshot reads only what neither that map, nor the next newer snapshot, nor its base
names at the same place.  The rule of `torus.volume.pins` is checked against what is read: a
dead chunk with an era must be kept for every snapshot that reads it.

Implements docs/operations.md, "Checking".
"""

from dataclasses import dataclass, field

from torus import limits
from torus.daemon.check_map import MapCheck, Subject, Verified
from torus.daemon.findings import Findings
from torus.daemon.recover_snapshots import Bonds
from torus.daemon.reports import SnapshotCheck
from torus.daemon.stopped import StoppedChunks, StoppedDisk
from torus.errors import TorusError
from torus.ids import ChunkId, join_snapshot
from torus.metadata.schema import Base, RootRef, Snapshot, VolumeSpec
from torus.volume.catalog_ask import READY
from torus.volume.recovery import Recovered
from torus.volume.snapshot_map import read_map
from torus.volume.spans import Spans

CACHE_BYTES = 64 * limits.MIB


@dataclass(slots=True)
class SnapshotsCheck:
    """What was learnt of all volumes so far; origins come before their clones."""

    disk: StoppedDisk
    findings: Findings
    bonds: Bonds
    _eras: dict[int, dict[int, int]] = field(default_factory=dict)  # dead chunks, by volume
    _bad_leaves: dict[Base, set[int]] = field(default_factory=dict)  # of verified snapshots

    def note_dead(self, volume: int, recovered: Recovered) -> None:
        """Take the dead chunks of a volume and their eras, before its snapshots are checked."""
        dead: dict[int, int] = {}
        for span in recovered.spans:
            if span.last is not None:
                for sequence in recovered.blocks.dead(span.first, span.last):
                    dead[sequence] = recovered.blocks.era(sequence)
        self._eras[volume] = dead

    async def open_base(self, base: Base | None) -> list[Verified]:
        """Return the map of a snapshot that was verified; none when there is no such."""
        if base is None or base not in self._bad_leaves:
            return []
        try:
            opened = await self._open(self.bonds.find(base), StoppedChunks(self.disk))
        except TorusError:
            return []
        opened.bad_leaves |= self._bad_leaves[base]
        return [opened]

    async def run(self, spec: VolumeSpec, head: Verified | None) -> tuple[SnapshotCheck, ...]:
        """Check all snapshots of a volume; ``head`` is its verified map."""
        snapshots = self.bonds.snapshots_of(spec.volume)
        self._check_order(spec, snapshots)
        newer: Verified | None = None
        done = []
        for snapshot in reversed(snapshots):
            before = self.findings.count
            known = [one for one in (head, newer) if one is not None]
            check = await self._check(spec, snapshot, known)
            if check is not None:
                newer = check.verified
            done.append(
                SnapshotCheck(
                    name=join_snapshot(spec.name, snapshot.name),
                    size_bytes=snapshot.size_bytes,
                    mapped_bytes=snapshot.mapped_blocks * limits.BLOCK_BYTES,
                    verified_bytes=0 if check is None else check.verified_bytes,
                    findings=self.findings.count - before,
                )
            )
        return tuple(reversed(done))

    # --- one snapshot -------------------------------------------------------------------

    async def _check(
        self, spec: VolumeSpec, snapshot: Snapshot, known: list[Verified]
    ) -> MapCheck | None:
        full = join_snapshot(spec.name, snapshot.name)
        subject = snapshot_subject(full)
        if snapshot.state != READY:
            self.findings.warning(
                "deleting",
                subject.name,
                f"its deletion is not finished: torus volume snapshot delete {full}",
            )
        chunks = _NotingChunks(self.disk)
        try:
            opened = await self._open(snapshot, chunks)
        except TorusError as exc:
            self.findings.error("bad-snapshot", subject.name, f"{exc.message}{subject.advice}")
            return None
        head_base = self.bonds.heads[spec.volume].base
        if snapshot.base != head_base:  # a clone that was flattened since
            known = [*known, *await self.open_base(snapshot.base)]
        check = MapCheck(
            self.disk, self.findings, subject, opened.blocks, opened.family, CACHE_BYTES,
            known, whole=False,
        )  # fmt: skip
        check.run()
        self._bad_leaves[Base(snapshot.volume, snapshot.number)] = check.verified.bad_leaves
        self._check_kept(snapshot, subject, check.needed | chunks.noted)
        return check

    async def _open(self, snapshot: Snapshot, chunks: StoppedChunks) -> Verified:
        origin = self.bonds.origin(snapshot.base)
        spans = Spans(snapshot.volume, self.bonds.heads[snapshot.volume].spans)
        opened = await read_map(snapshot.name, snapshot, spans, origin, chunks, CACHE_BYTES)
        return Verified(opened.blocks, opened.family)

    # --- will it stay -------------------------------------------------------------------

    def _check_kept(self, snapshot: Snapshot, subject: Subject, needed: set[ChunkId]) -> None:
        """Report chunks that are dead in their volume and that the interval rule would free
        although the snapshot reads them."""
        keepers: dict[int, Snapshot] = {snapshot.volume: snapshot}
        for one in self.bonds.chain(snapshot.base):
            keepers.setdefault(one.volume, one)
        for chunk in sorted(needed):
            era = self._eras.get(chunk.volume, {}).get(chunk.sequence)
            keeper = keepers.get(chunk.volume)
            if era is None or keeper is None or keeper.root is None:
                continue
            # Without an era it gets one that is newer than every snapshot.
            if (era == 0 or keeper.number <= era) and keeper.root.sequence >= chunk.sequence:
                continue
            self.findings.error(
                "unkept-chunk",
                f"{subject} chunk {chunk}",
                f"it reads the chunk, which counts as dead since snapshot number {era} and so is "
                f"not kept for number {keeper.number} of volume id {chunk.volume}: its writer "
                "may free it. Copy the data directory before the node is started",
            )

    def _check_order(self, spec: VolumeSpec, snapshots: list[Snapshot]) -> None:
        """Numbers and places of roots must rise together: what is kept is decided by that."""
        last: tuple[str, RootRef] | None = None
        rooted = [(join_snapshot(spec.name, one.name), one.root) for one in snapshots]
        rooted.append((f"volume {spec.name!r}", self.bonds.heads[spec.volume].root))
        for name, root in rooted:
            if root is None:
                continue
            if last is not None and (root.sequence, root.offset) < (
                last[1].sequence,
                last[1].offset,
            ):
                self.findings.error(
                    "bad-snapshot",
                    f"snapshot {last[0]!r}",
                    f"its root in chunk number {last[1].sequence} at {last[1].offset} is younger "
                    f"than that of {name}, in {root.sequence} at {root.offset}; 'torus recover' "
                    "makes the metadata anew",
                )
            last = name, root


class _NotingChunks(StoppedChunks):
    """Remembers which chunks were read."""

    def __init__(self, disk: StoppedDisk) -> None:
        super().__init__(disk)
        self.noted: set[ChunkId] = set()

    def _read(self, chunk: ChunkId, offset: int, size: int) -> bytes:
        self.noted.add(chunk)
        return super()._read(chunk, offset, size)


def snapshot_subject(full: str) -> Subject:
    """Return how a snapshot ``VOLUME@SNAP`` is spoken of."""
    return Subject(
        f"snapshot {full!r}",
        "; restore it from a backup, or let it go: torus volume snapshot delete " + full,
        own=False,
    )
