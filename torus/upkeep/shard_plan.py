"""What a disk is to have of a chunk that may lie in shards, and what it has too much.  Pure.

Decides from the scheme, the ring and what disks say they have; what a part is worth is found out
when it is read.  Implements docs/upkeep.md, "Shards".
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum

from torus.ids import ChunkId, shard_id, split_part
from torus.redundancy.assignment import assign
from torus.redundancy.scheme import Scheme
from torus.upkeep.placement import Placement
from torus.upkeep.plan import Closed, Log, may_witness

Part = int | None
"""The number of a shard; None: a whole copy."""
Parts = AbstractSet[Part]
NOTHING: frozenset[Part] = frozenset()
_WHOLE: frozenset[Part] = frozenset((None,))


class Goal(Enum):
    """How a chunk is to lie in the end."""

    SHARDS = "shards"  # K+M shards on as many disks, and no whole copy
    COPIES = "copies"  # whole copies, and no shard
    BOTH = "both"  # there are too few disks for shards: nothing goes, whole copies are kept up


def goal(log: Log, chunk: ChunkId, placement: Placement, long: Collection[ChunkId]) -> Goal:
    """Return how a chunk is to lie; ``long``: chunks that are known not to fit into shards."""
    scheme = log.scheme
    if not scheme.erasure or chunk in long:
        return Goal.COPIES
    enough = len(placement.owners(chunk, scheme.shards)) == scheme.shards
    return Goal.SHARDS if enough else Goal.BOTH


def part_id(chunk: ChunkId, part: Part) -> ChunkId:
    """Return the id of a part."""
    return chunk if part is None else shard_id(chunk, part)


def by_chunk(parts: Iterable[ChunkId]) -> dict[ChunkId, frozenset[Part]]:
    """Return the parts of each chunk."""
    found: dict[ChunkId, frozenset[Part]] = {}
    for one in parts:
        chunk, part = split_part(one)
        found[chunk] = found.get(chunk, NOTHING) | {part}
    return found


def questions(
    log: Log,
    closed: Closed,
    sequences: range,
    here: Mapping[ChunkId, frozenset[Part]],
    placement: Placement,
    disk: str,
    *,
    sound: bool,
    doubted: AbstractSet[ChunkId],
    verified: AbstractSet[ChunkId],
    long: AbstractSet[ChunkId],
) -> list[ChunkId]:
    """Return the chunks of a piece of a span about which others have to be asked.

    ``here``: what ``disk`` has.  ``sound``: nothing on it is damaged.  ``doubted``: chunks of
    which a part here may be damaged; ``verified``: of which the whole copy here is as long as
    everybody's.
    """
    found = []
    volume, epoch, tag = log.volume, closed.span.epoch, closed.span.tag
    for sequence in sequences:
        chunk = ChunkId(volume, epoch, tag, sequence)
        mine = here.get(chunk, NOTHING)
        aim = goal(log, chunk, placement, long)
        owners = placement.owners(chunk, _count(log, aim))
        if disk not in owners:
            if mine:
                found.append(chunk)
            continue
        if not mine:
            gone = sound and may_witness(closed, chunk, placement, disk, log.floor)
            fine = gone
        elif aim is Goal.SHARDS:
            fine = mine == {owners.index(disk)}
        elif aim is Goal.COPIES:
            short = chunk not in verified and closed.doubtful(sequence, disk, placement)
            fine = mine == _WHOLE and not short
        else:
            fine = False
        if not fine or chunk in doubted:
            found.append(chunk)
    return found


def _count(log: Log, aim: Goal) -> int:
    return log.copies if aim is Goal.COPIES else log.scheme.shards


@dataclass(frozen=True, slots=True)
class Todo:
    """What a disk has to do about one chunk."""

    wants: tuple[Part, ...] = ()
    surplus: tuple[Part, ...] = ()  # here, and not needed in the end
    confirm: tuple[tuple[str, Part], ...] = ()  # what must be where before that goes
    copies: bool = False  # these are whole copies
    ready: bool = False  # all of it is said to be there


def decide(
    log: Log,
    chunk: ChunkId,
    aim: Goal,
    placement: Placement,
    disk: str,
    parts: Mapping[str, Parts],
    *,
    bad: Collection[Part] = (),
    foreign: Collection[Part] = (),
) -> Todo:
    """Decide about a chunk; ``parts``: what every disk that answered has, ``disk`` among them.

    ``bad``: parts here that are to be compared with others.  ``foreign``: shards here that are of
    another K+M.  Where one stands in the way of the disk's own shard it stays until there are
    whole copies, else until all shards are there.
    """
    mine = parts.get(disk, NOTHING)
    holders = placement.owners(chunk, log.copies)
    owners = placement.owners(chunk, log.scheme.shards)
    count = log.scheme.shards  # a greater number is of another K+M
    native = [part for part in mine - {*foreign} if part is not None and part < count]
    if aim is Goal.COPIES or (foreign and disk in owners and not native):
        wants: list[Part] = [None] if disk in holders and (None not in mine or None in bad) else []
        surplus = [one for one in mine if one is not None or (disk not in holders and not foreign)]
        return _todo(wants, surplus, [(one, None) for one in holders], parts, copies=True)
    owners = placement.owners(chunk, log.scheme.shards)
    numbers = {
        one: [part for part in having if part is not None and part < count]
        for one, having in parts.items()
    }
    numbers[disk] = native
    assigned = assign(owners, numbers)
    number = assigned.get(disk)
    if aim is Goal.BOTH:
        if any(None in having for having in parts.values()):
            lacks = disk in holders and (None not in mine or None in bad)
            return Todo((None,) if lacks else ())
        return Todo((number,) if number is not None and number not in mine else ())
    lacks = number is not None and (number not in mine or number in bad)
    wants = [number] if lacks else []
    if None in bad and disk in holders:
        wants.append(None)  # somebody with shards of another K+M may wait for it
    surplus = [one for one in mine if one != number or number is None]
    confirm = [(one, assigned[one]) for one in owners]
    return _todo(wants, surplus, confirm, parts, copies=False)


def _todo(
    wants: Sequence[Part],
    surplus: Sequence[Part],
    confirm: Sequence[tuple[str, Part]],
    parts: Mapping[str, Parts],
    *,
    copies: bool,
) -> Todo:
    ready = bool(confirm) and all(part in parts.get(one, NOTHING) for one, part in confirm)
    return Todo(tuple(wants), tuple(surplus), tuple(confirm), copies, ready)


def bearable(parts: Mapping[str, Parts], data: int) -> int:
    """Return how many disks have to be lost until a chunk is: 0: it cannot be had.

    ``data``: how many shards are enough; 0: there are none.
    """
    whole = [disk for disk, having in parts.items() if None in having]
    others = {part for disk, having in parts.items() if None not in having for part in having}
    return len(whole) + (max(0, len(others) - data + 1) if data else 0)


def chances(log: Log, parts: Mapping[str, Parts]) -> int:
    """Return how many disks have to be lost until a chunk is, as far as that can be told: shards
    of schemes with other K look alike, and count for the largest unless there are too few."""
    sizes = {one.data for one in log.schemes if one.erasure} or {0}
    return bearable(parts, max(sizes)) or min(1, bearable(parts, min(sizes)))


@dataclass(frozen=True, slots=True)
class PartWant:
    """A part that a disk is to have; like `torus.upkeep.plan.Want` for whoever counts them."""

    chunk: ChunkId
    part: Part
    epoch: int  # of its volume's newest writer that is known
    exact: int | None  # where the chunk ends, if that is known
    scheme: Scheme  # of the shard
    sources: tuple[tuple[str, frozenset[Part]], ...]  # what every other disk has of the chunk
    mine: frozenset[Part]
    here: bool  # it is here, and may be damaged
    good: int  # disks that have to be lost until the chunk is
    copies: int  # what that should be
    doubtful: bool  # copies of it may be short

    @property
    def urgency(self) -> tuple[int, int, int]:
        """Sort key: the rarest first, then moves, then what is here already."""
        return (2 if self.here else int(self.moves), self.good, self.chunk.volume)

    @property
    def moves(self) -> bool:
        """Say whether all parts are there, elsewhere."""
        return not self.here and self.good >= self.copies

    @property
    def encodes(self) -> bool:
        """Say whether it is made of a chunk that still has all its whole copies."""
        whole = sum(None in parts for _, parts in self.sources) + (None in self.mine)
        return self.part is not None and whole >= self.copies


@dataclass(frozen=True, slots=True)
class PartSurplus:
    """A part that a disk has and need not have in the end."""

    chunk: ChunkId
    part: Part
    exact: int | None
    scheme: Scheme
    todo: Todo  # what has to be elsewhere first

    @property
    def id(self) -> ChunkId:
        """Return the part's own id."""
        return part_id(self.chunk, self.part)
