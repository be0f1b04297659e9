"""The records of a volume's chunks against what its log must hold.

Decides, for each chunk, how far it must be whole: to the end that its closed span names, to the
next chunk's first record, or to where recovery found the open span's end.  Damage before that
is a finding.  Behind it lie unflushed ends after a crash, which are normal.

Implements docs/format.md, "Recovery".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torus._fast.blockmap import BlockMap
from torus.daemon.slotwalk import ChunkSeen
from torus.daemon.stopped import StoppedDisk
from torus.errors import Corruption
from torus.format.logend import follows, was_durable
from torus.ids import ChunkId
from torus.metadata.schema import Head, Snapshot
from torus.volume.log import Position
from torus.volume.pins import Pins
from torus.volume.spans import Spans


@dataclass(slots=True)
class LogCheck:
    """The chunks of one volume, sorted into those of its log and others."""

    disk: StoppedDisk
    name: str
    spans: Spans
    kept: dict[int, ChunkSeen]  # by sequence number
    strays: list[ChunkSeen]
    torn_tails: int = 0

    def run(self, end: Position | None) -> None:
        """Judge every chunk; ``end`` is where recovery found the log's end, None if it failed."""
        proven = self._proven(end)
        for sequence in sorted(self.kept):
            seen = self.kept[sequence]
            self._check_records(seen, self._settled(sequence, end, proven))
        for stray in self.strays:
            if self._was_dropped(stray.chunk.sequence):
                continue
            self.disk.findings.warning(
                "stray-chunk",
                self.disk.where(stray.address),
                f"chunk {stray.chunk} with {stray.records} records is in no span of volume "
                f"{self.name}: the next attach frees it",
            )
        if end is not None and was_durable(end.lsn + 1, proven):
            self.disk.findings.error(
                "lost-records",
                f"volume {self.name} lsn {end.lsn + 1}",
                f"its log ends at lsn {end.lsn}, but a record says that all up to {proven} were "
                "durable",
            )

    def _was_dropped(self, sequence: int) -> bool:
        """Tell whether a stray chunk is one that the log had, and dropped from its spans: it
        lies in front of them, or between them.  Others are what a writer left behind the end."""
        last = self.spans.last
        if last is None or sequence >= last.first:
            return False
        return not any(
            span.last is not None and span.first <= sequence <= span.last for span in self.spans
        )

    def count_left_over(self, head: Head, blocks: BlockMap, snapshots: Sequence[Snapshot]) -> int:
        """Return how many chunks no map and no snapshot needs, and replay does not either.

        They wait for their deletion, or came back from the trash when the node ended.
        """
        replay = 0 if head.root is None else head.root.replay_sequence
        named = {*blocks.pinned_sequences(), 0 if head.root is None else head.root.sequence}
        pins = Pins(snapshots)
        count = sum(self._was_dropped(one.chunk.sequence) for one in self.strays)
        for sequence in self.kept.keys() - named:
            if sequence < replay and not blocks.live(sequence):
                gone = blocks.live(sequence) is None
                era = blocks.era(sequence) or head.newest_snapshot
                count += gone or not pins.pinned(sequence, era)
        return count

    def _proven(self, end: Position | None) -> int:
        """Return the highest lsn that any record of the log says was durable."""
        return max((seen.committed for seen in self.kept.values()), default=0)

    def _settled(self, sequence: int, end: Position | None, proven: int) -> "_Bound":
        """Return how far a chunk must be whole."""
        last = self.spans.last
        assert last is not None
        if last.last is None and sequence >= last.first:
            return self._settled_open(sequence, end, proven)
        for span in self.spans:
            if span.last == sequence and span.end is not None:
                return _Bound(span.end, exact=True)
        return _Bound(self.disk.geometry.slot_bytes, exact=False)

    def _settled_open(self, sequence: int, end: Position | None, proven: int) -> "_Bound":
        if end is None:
            return _Bound(0, exact=False, proven=proven)
        if sequence < end.sequence:
            return _Bound(self.disk.geometry.slot_bytes, exact=False)
        if sequence == end.sequence:
            return _Bound(end.offset, exact=True)
        return _Bound(0, exact=False, proven=proven)

    # --- one chunk ----------------------------------------------------------------------

    def _check_records(self, seen: ChunkSeen, bound: "_Bound") -> None:
        for rotten in seen.rotten:
            if rotten.offset < bound.offset or was_durable(rotten.lsn, bound.proven):
                self._report(
                    "bad-record",
                    seen,
                    rotten.offset,
                    f"record {rotten.index} (lsn {rotten.lsn}) is damaged: {rotten.what}",
                )
        if bound.exact and seen.end < bound.offset:
            self._report(
                "bad-record",
                seen,
                seen.end,
                f"{_problem(seen)}, records are due up to offset {bound.offset}",
            )
        elif not bound.exact and bound.offset:
            self._check_full(seen)
        self._count_torn(seen, bound)

    def _check_full(self, seen: ChunkSeen) -> None:
        """A chunk that others follow: its records lead to the first one of the next."""
        if seen.beyond or seen.problem:
            self._report("bad-record", seen, seen.end, _problem(seen))
            return
        follower = self.kept.get(seen.chunk.sequence + 1)
        if follower is None or not follower.records:
            if not seen.records:
                self._report("bad-record", seen, seen.end, "there is no record at all")
            return
        if seen.records and not follows(seen.last_lsn, follower.first_lsn):
            self._report(
                "bad-record",
                seen,
                seen.end,
                f"the last record has lsn {seen.last_lsn}, the next chunk begins with "
                f"{follower.first_lsn}",
            )

    def _count_torn(self, seen: ChunkSeen, bound: "_Bound") -> None:
        if bound.exact:
            behind = seen.end > bound.offset or seen.beyond or seen.problem
            torn = behind and seen.end >= bound.offset
        else:
            torn = bound.offset == 0
        if torn:
            self.torn_tails += 1

    def _report(self, kind: str, seen: ChunkSeen, offset: int, what: str) -> None:
        self.disk.findings.error(
            kind,
            self.disk.where(seen.address, offset),
            f"volume {self.name} chunk {seen.chunk} offset {offset}: {what}",
        )


@dataclass(frozen=True, slots=True)
class _Bound:
    """How far a chunk must be whole: to ``offset``, exactly or at most.

    0 is an end nobody waited for; there only what is durable up to lsn ``proven`` must be whole.
    """

    offset: int
    exact: bool
    proven: int = 0


def _problem(seen: ChunkSeen) -> str:
    problem = f"the record there is damaged ({seen.problem})" if seen.problem else "no record"
    if seen.beyond:
        problem += f", but {seen.beyond} later ones of this chunk stand from "
        problem += f"{seen.beyond_offset} on"
    return problem


def sort_chunks(
    disk: StoppedDisk, name: str, volume: int, head: Head, chunks: dict[ChunkId, ChunkSeen]
) -> LogCheck:
    """Sort a volume's chunks by its head.

    Raises: Corruption when the head's spans are not in order.
    """
    spans = Spans(volume, head.spans)
    check = LogCheck(disk, name, spans, {}, [])
    for chunk, seen in chunks.items():
        try:
            known = spans.chunk(chunk.sequence) == chunk
        except Corruption:
            known = False
        if known:
            check.kept[chunk.sequence] = seen
        else:
            check.strays.append(seen)
    return check
