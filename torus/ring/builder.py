"""The next version of the ring from the present one and the members it should have.

Decides when a change is done: a large one takes several versions, because in each at most one
copy of a slot leaves its place.  Which slots move is the hashing's decision.

Implements docs/ring.md, "Versions".
"""

from array import array
from collections.abc import Callable, Iterable, Sequence

from torus.errors import UsageError
from torus.ring.ketama import ketama
from torus.ring.member import RingMember, checked_members
from torus.ring.partitioned import partitioned
from torus.ring.rendezvous import rendezvous
from torus.ring.table import NOBODY, Ring

# next_table(old table with the new numbers of members or None, members, version) -> table
Hashing = Callable[[bytes | None, tuple[RingMember, ...], int], bytes]

HASHINGS: dict[str, Hashing] = {
    "partitioned": partitioned,
    "ketama": ketama,
    "rendezvous": rendezvous,
}
DEFAULT_HASHING = "partitioned"
STAGES_MAX = 64  # versions that one change may take; 2 to 5 are usual


def first_ring(members: Iterable[RingMember], hashing: str = DEFAULT_HASHING) -> Ring:
    """Return version 1.

    Raises: UsageError when no member has weight, or one cannot be.
    """
    ordered = _usable(members)
    return Ring(1, ordered, hashing, _hashing(hashing)(None, ordered, 1))


def next_ring(current: Ring, members: Iterable[RingMember], hashing: str | None = None) -> Ring:
    """Return the version that follows ``current``, or ``current`` itself when nothing is left.

    ``members`` are all that the ring shall have: one that is not among them is lost, and all
    that it had is given to others at once; one of weight 0 leaves in order, its slots move one
    copy at a time.  Call it again, when data has settled, until it returns its argument.

    Raises: UsageError when no member has weight, or one cannot be.
    """
    ordered = _usable(members)
    chosen = current.hashing if hashing is None else hashing
    old = _renumbered(current, ordered)
    table = _hashing(chosen)(old, ordered, current.version + 1)
    if (ordered, chosen, table) == (current.members, current.hashing, current.table):
        return current
    return Ring(current.version + 1, ordered, chosen, table)


def stages(current: Ring, members: Sequence[RingMember], hashing: str | None = None) -> list[Ring]:
    """Return all versions that a change takes, in order; empty when nothing changes.

    Raises: UsageError as `next_ring`.
    """
    found: list[Ring] = []
    while len(found) < STAGES_MAX:
        following = next_ring(current, members, hashing)
        if following is current:
            break
        found.append(following)
        current = following
    return found


def _usable(members: Iterable[RingMember]) -> tuple[RingMember, ...]:
    ordered = checked_members(members)
    if not any(member.weight for member in ordered):
        raise UsageError(
            f"a ring of {len(ordered)} disks without weight can own nothing",
            hint="give a disk a weight: torus node set NODE --weight N",
        )
    return ordered


def _hashing(name: str) -> Hashing:
    if name not in HASHINGS:
        raise UsageError(
            f"there is no hashing {name!r}", hint=f"choose one of: {', '.join(HASHINGS)}"
        )
    return HASHINGS[name]


def _renumbered(current: Ring, members: tuple[RingMember, ...]) -> bytes:
    """Return the present table with the members' new numbers; who is lost leaves a hole."""
    if [member.disk_id for member in current.members] == [member.disk_id for member in members]:
        return current.table
    new = {member.disk_id: number for number, member in enumerate(members)}
    numbers = [new.get(member.disk_id, NOBODY) for member in current.members]
    numbers += [NOBODY] * (NOBODY + 1 - len(numbers))
    return array("H", map(numbers.__getitem__, array("H", current.table))).tobytes()
