"""One version of the ring: which disks own which slot.

Decides nothing: it looks up what a builder decided (`torus.ring.builder`).  The order of a
slot's owners is the kernel's (`torus._fast.ring`).

Implements docs/ring.md, "Owners".
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from torus._fast.ring import Placement, slot_of
from torus.ids import ChunkId
from torus.ring.member import RingMember, layout_of

__all__ = ["COLUMNS", "NOBODY", "SLOTS", "Ring", "slot_of"]

SLOTS = 1 << 16
COLUMNS = 4  # owners of a slot that are stored and evened out; further ones are computed
NOBODY = 0xFFFF
NO_DISKS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ring:
    """An immutable version of the ring.

    ``members`` are sorted by disk id; ``table`` is native uint16 [slot][column], the index of a
    member or `NOBODY` where there are not as many nodes.
    """

    version: int
    members: tuple[RingMember, ...]
    hashing: str
    table: bytes = field(repr=False)
    _placement: "Placement[RingMember]" = field(init=False, repr=False, compare=False)
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepare for look-ups.  Raises: ValueError when the table is not of these members."""
        if len(self.table) != SLOTS * COLUMNS * 2:
            raise ValueError(f"a ring's table of {len(self.table)} bytes is not possible")
        placement = Placement(self.members, layout_of(self.members), self.table, COLUMNS)
        object.__setattr__(self, "_placement", placement)
        numbers = {member.disk_id: i for i, member in enumerate(self.members)}
        object.__setattr__(self, "_numbers", numbers)

    def order(
        self, slot: int, count: int, excluded: Collection[str] = NO_DISKS
    ) -> list[RingMember]:
        """Return the first ``count`` owners of a slot, without the excluded disks.

        Never two on one node; no zone has two more than another that has a free node.  Fewer
        are returned where there are not as many nodes.  Disks that are not in this ring may be
        excluded too.

        Raises: ValueError when there is no such slot.
        """
        if not excluded:
            return self._placement.order(slot, count)
        numbers = self._numbers
        known = [numbers[disk] for disk in excluded if disk in numbers]
        return self._placement.order(slot, count, known)

    def owners(
        self, chunk: ChunkId, count: int, excluded: Collection[str] = NO_DISKS
    ) -> list[RingMember]:
        """Return the first ``count`` owners of a chunk's slot, as `order` does."""
        if not excluded:
            return self._placement.find(chunk, count)
        return self.order(slot_of(chunk), count, excluded)

    def member(self, disk_id: str) -> RingMember | None:
        """Return the member with that disk, or None."""
        number = self._numbers.get(disk_id)
        return None if number is None else self.members[number]

    def row(self, slot: int) -> tuple[int, ...]:
        """Return the numbers of the stored owners of a slot; `NOBODY` stands for none."""
        cells = memoryview(self.table).cast("H")
        return tuple(cells[slot * COLUMNS : (slot + 1) * COLUMNS])

    def loads(self, copies: int) -> list[int]:
        """Return how many slots each member owns for volumes with ``copies`` copies."""
        counts = [0] * len(self.members)
        cells = memoryview(self.table).cast("H")
        if copies <= COLUMNS:
            for column in range(copies):
                for number in cells[column::COLUMNS].tolist():
                    if number != NOBODY:
                        counts[number] += 1
            return counts
        for slot in range(SLOTS):
            for member in self._placement.order(slot, copies):
                counts[self._numbers[member.disk_id]] += 1
        return counts
