"""What changes between two versions of the ring.

Decides what counts as moved: for volumes with a number of copies, a disk that owns a slot and
did not before.  The optimum is what the members' fair shares grow by: less cannot move.

Implements docs/ring.md, "Movement".
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torus.ring.share import fair_shares
from torus.ring.table import COLUMNS, NOBODY, SLOTS, Ring

_FRACTION_BITS = 20


@dataclass(frozen=True, slots=True)
class SlotChange:
    """One slot whose owners change: disk ids that own it newly, and that own it no more."""

    slot: int
    joining: tuple[str, ...]
    leaving: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much moves from one version to another, for volumes with ``copies`` copies."""

    copies: int
    slots: int  # whose set of owners changes
    moved: int  # copies of slots that go to a disk that had none
    moved_share: float  # of all copies
    optimum: float  # copies that had to move: growth of the fair shares
    most_at_once: int  # copies of one slot that leave
    received: Mapping[str, int]  # by disk id: copies of slots
    given: Mapping[str, int]

    @property
    def excess(self) -> float:
        """Return moved copies in units of the optimum; 1.0 where nothing had to move."""
        return (
            self.moved / self.optimum if self.optimum else 1.0 if not self.moved else float("inf")
        )


def changes(old: Ring, new: Ring, copies: int) -> Iterator[SlotChange]:
    """Yield the slots whose set of owners differs, in order."""
    if copies > COLUMNS:
        for slot in range(SLOTS):
            before = {member.disk_id for member in old.order(slot, copies)}
            after = {member.disk_id for member in new.order(slot, copies)}
            if before != after:
                yield _change(slot, before, after)
        return
    numbers = {member.disk_id: number for number, member in enumerate(new.members)}
    names = [member.disk_id for member in new.members]
    renamed = [NOBODY] * (NOBODY + 1)
    for number, member in enumerate(old.members):
        if member.disk_id not in numbers:
            numbers[member.disk_id] = len(names)
            names.append(member.disk_id)
        renamed[number] = numbers[member.disk_id]
    old_cells = array("H", map(renamed.__getitem__, array("H", old.table)))
    new_cells = array("H", new.table)
    for slot in range(SLOTS):
        at = slot * COLUMNS
        old_row, new_row = old_cells[at : at + copies], new_cells[at : at + copies]
        if old_row != new_row and set(old_row) != set(new_row):
            before = {names[number] for number in old_row if number != NOBODY}
            yield _change(slot, before, {names[number] for number in new_row if number != NOBODY})


def _change(slot: int, before: set[str], after: set[str]) -> SlotChange:
    return SlotChange(slot, tuple(sorted(after - before)), tuple(sorted(before - after)))


def difference(old: Ring, new: Ring, copies: int) -> Difference:
    """Return how much moves from ``old`` to ``new``."""
    received: dict[str, int] = {}
    given: dict[str, int] = {}
    slots = most = 0
    for change in changes(old, new, copies):
        slots += 1
        most = max(most, len(change.leaving))
        for disk in change.joining:
            received[disk] = received.get(disk, 0) + 1
        for disk in change.leaving:
            given[disk] = given.get(disk, 0) + 1
    moved = sum(received.values())
    share = moved / (SLOTS * copies)
    return Difference(copies, slots, moved, share, optimum(old, new, copies), most, received, given)


def optimum(old: Ring, new: Ring, copies: int) -> float:
    """Return how many copies of slots must move at least: what fair shares grow by."""
    unit = SLOTS << _FRACTION_BITS
    before = dict(
        zip(
            (member.disk_id for member in old.members),
            fair_shares(old.members, copies, unit),
            strict=True,
        )
    )
    after = zip(new.members, fair_shares(new.members, copies, unit), strict=True)
    grown = sum(max(0, share - before.get(member.disk_id, 0)) for member, share in after)
    return grown / (1 << _FRACTION_BITS)
