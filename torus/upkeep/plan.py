"""What a disk lacks, what it has too much, and what it has to look at again.  Pure.

Decides from the metadata's spans, the rings and what is here; what others have is asked for
only where this leaves a question, and `judge` decides what the answers mean.  Implements
docs/upkeep.md, "What should be where" and "Deleted chunks that come back".
"""

from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum

from torus import limits
from torus.ids import ChunkId
from torus.metadata.schema import Span
from torus.redundancy.scheme import Scheme, replica
from torus.upkeep.content import Inspected
from torus.upkeep.placement import Placement


@dataclass(frozen=True, slots=True)
class Log:
    """What the metadata says of a volume's log."""

    volume: int
    epoch: int
    copies: int  # whole copies of a chunk of the present scheme
    spans: tuple[Span, ...]
    present: Scheme | None = None  # None: replica of so many copies
    former: tuple[Scheme, ...] = ()  # its chunks may have been written, or lie, under these
    replay: int = 0  # sequence from which on a takeover reads the open span

    @property
    def scheme(self) -> Scheme:
        """Return what its chunks are to be kept as."""
        return replica(self.copies) if self.present is None else self.present

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Return all schemes that it has or had."""
        return self.scheme, *self.former

    @property
    def sharded(self) -> bool:
        """Say whether some of its chunks may lie in shards."""
        return any(one.erasure for one in self.schemes)

    @property
    def floor(self) -> int:
        """Return how many owners have a part of every chunk, whatever scheme it was written or
        kept under."""
        return min(one.copies for one in self.schemes)

    @property
    def reach(self) -> int:
        """Return how many owners may have a part of a chunk."""
        return max(one.disks_needed for one in self.schemes)


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed span, and what came after it."""

    span: Span
    last: int
    failed: frozenset[str] | None  # disks that may have missed its end; None: an epoch ended
    after_ring: int = 0  # version that the next span of its epoch was written under

    @property
    def key(self) -> tuple[int, int, int, int | None]:
        """What it is known by, also after its beginning was trimmed."""
        return self.span.epoch, self.span.tag, self.last, self.span.end

    def chunk(self, volume: int, sequence: int) -> ChunkId:
        """Return one of its chunks."""
        return ChunkId(volume, self.span.epoch, self.span.tag, sequence)

    def exact(self, sequence: int) -> int | None:
        """Return where that chunk ends, where the metadata says so."""
        return self.span.end if sequence == self.last else None

    def in_tail(self, sequence: int) -> bool:
        """Say whether a replica that failed may have less of that chunk, or nothing."""
        return sequence > self.last - limits.UPKEEP_TAIL_CHUNKS

    def may_be_short(self, sequence: int, disk: str, placement: Placement) -> bool:
        """Say whether that disk may have less of that chunk than others.

        A writer that goes on in another span has everything durable on all disks but those that
        the next span leaves out, or that are in its ring no more, and those that it notes: disks
        that were lost, and that the next span has because there are too few others.
        """
        if not self.in_tail(sequence):
            return False
        if self.failed is None or disk in self.failed:
            return True
        return not placement.was_member(disk, self.after_ring)

    def some_short(self, sequence: int) -> bool:
        """Say whether any disk may have less of that chunk than others."""
        moved = self.after_ring != self.span.ring
        return self.in_tail(sequence) and (self.failed is None or bool(self.failed) or moved)

    def doubtful(self, sequence: int, disk: str, placement: Placement) -> bool:
        """Say whether that disk's copy of that chunk is to be compared, once, with others."""
        return self.exact(sequence) is not None or self.may_be_short(sequence, disk, placement)


def settled_spans(log: Log) -> Iterator[Closed]:
    """Yield the closed spans, and what of the open one no takeover reads any more: its chunks are
    full and durable on all their disks."""
    yield from closed_spans(log)
    for span in log.spans:
        if span.last is None and span.first < log.replay:
            yield Closed(span, log.replay - 1, frozenset(), span.ring)


def closed_spans(log: Log) -> Iterator[Closed]:
    """Yield the closed spans of a log."""
    following: Sequence[Span | None] = [*log.spans[1:], None]
    for span, after in zip(log.spans, following, strict=False):  # without spans: none follows
        if span.last is None:
            continue
        same = after is not None and after.epoch == span.epoch
        failed = frozenset((*after.excluded, *span.short)) if after is not None and same else None
        yield Closed(span, span.last, failed, 0 if after is None else after.ring)


@dataclass(slots=True)
class Look:
    """What a disk finds when it compares a piece of a span with what it has."""

    lacking: list[ChunkId] = field(default_factory=list)
    doubtful: list[ChunkId] = field(default_factory=list)  # here, but it may be short
    surplus: list[ChunkId] = field(default_factory=list)


def look(
    log: Log,
    closed: Closed,
    sequences: range,
    here: AbstractSet[ChunkId],
    placement: Placement,
    disk: str,
    *,
    sound: bool,
) -> Look:
    """Compare the chunks ``sequences`` of a span with those that ``disk`` has.

    ``sound``: nothing on the disk is damaged, so that what is not here was never here or is
    gone for good.
    """
    found = Look()
    volume, copies, newest = log.volume, log.copies, placement.version
    epoch, tag, floor = closed.span.epoch, closed.span.tag, log.floor
    slot_of, owned_since = placement.slot_of, placement.owned_since
    for sequence in sequences:
        chunk = ChunkId(volume, epoch, tag, sequence)
        owner = owned_since(disk, slot_of(chunk), copies, newest)
        if chunk in here:
            if not owner:
                found.surplus.append(chunk)
            elif closed.doubtful(sequence, disk, placement):
                found.doubtful.append(chunk)
        elif owner and not (sound and may_witness(closed, chunk, placement, disk, floor)):
            found.lacking.append(chunk)
    return found


def may_witness(
    closed: Closed, chunk: ChunkId, placement: Placement, disk: str, copies: int
) -> bool:
    """Say whether "not here", said with certainty by ``disk``, means that a chunk was deleted."""
    if closed.may_be_short(chunk.sequence, disk, placement):
        return False
    return placement.stayed(disk, chunk, closed.span, copies)


def is_degraded(disk: str, owners: Sequence[str], up: Collection[str]) -> int | None:
    """Return how many owners of a chunk are up, if some are not; None: all are, or another disk
    than ``disk`` counts this chunk: the first one that is up does."""
    reached = [one for one in owners if one in up]
    if len(reached) == len(owners) or not reached or reached[0] != disk:
        return None
    return len(reached)


class Verdict(Enum):
    """What is to become of a chunk that a disk lacks."""

    PULL = "pull"
    GONE = "gone"  # everybody who could have it says that it is not there
    SUSPECT = "suspect"  # somebody has it, but it was deleted
    UNKNOWN = "unknown"  # nobody has it, and somebody who might is silent


def judge(
    holders: Collection[str], silent: Collection[str], witnesses: Collection[str], *, cleared: bool
) -> Verdict:
    """Decide about a chunk that an owner lacks.

    ``silent``: who might have it and did not answer.  ``witnesses``: who may witness, and said
    "not here" with certainty.  ``cleared``: its volume was attached since it was suspected, and
    did not delete it.
    """
    if not holders:
        return Verdict.UNKNOWN if silent else Verdict.GONE
    return Verdict.SUSPECT if witnesses and not cleared else Verdict.PULL


@dataclass(frozen=True, slots=True)
class Want:
    """A copy that a disk is to have, or to make longer."""

    chunk: ChunkId
    epoch: int  # of its volume's newest writer that is known
    exact: int | None  # where it ends, if that is known
    sources: tuple[str, ...]  # who has it or may have it
    here: bool
    good: int  # other copies that are known
    copies: int  # that there should be
    doubtful: bool  # it would be compared with others if it were here

    @property
    def urgency(self) -> tuple[int, int, int]:
        """Sort key: the rarest first, then moves, then what is here already."""
        return (2 if self.here else int(self.moves), self.good, self.chunk.volume)

    @property
    def moves(self) -> bool:
        """Say whether all copies are there, elsewhere."""
        return not self.here and self.good >= self.copies


@dataclass(frozen=True, slots=True)
class Surplus:
    """A copy that a disk has and need not have."""

    chunk: ChunkId
    exact: int | None
    copies: int


def may_drop(own: Inspected, answers: Sequence[tuple[int, int] | None], *, wanted: int) -> bool:
    """Decide whether a copy may go.

    ``answers`` of all owners: (end, crc), None for anything but a good copy that stays;
    ``wanted``: how many there have to be.
    """
    if wanted < 1 or len(answers) < wanted or len(set(answers)) != 1 or answers[0] is None:
        return False
    end, crc = answers[0]
    if own.end == end:
        return own.crc == crc and own.furthest <= end
    # A copy that is damaged or short is of no use once the others have all that it ever had.
    return own.end < end and own.furthest < end
