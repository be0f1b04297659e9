"""A disk in the ring, and the numbers that the kernels know members by.

Decides the order of members (by disk id), their keys, and that a node is in one zone: that of
its disk with the smallest id.

Implements docs/ring.md, "Members".
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torus._fast.ring import Layout
from torus.errors import UsageError

WEIGHT_MAX = (1 << 24) - 1  # 16 PiB in GiB
MEMBERS_MAX = 4096
NAME_BYTES_MAX = 255


@dataclass(frozen=True, slots=True)
class RingMember:
    """One disk: which node has it, in which zone, and its share of the chunks."""

    disk_id: str
    node_id: str
    zone: str
    weight: int  # 0: it owns nothing, and what it still has moves away


def checked_members(members: Iterable[RingMember]) -> tuple[RingMember, ...]:
    """Return the members in the ring's order, each node in one zone.

    Raises: UsageError when there are too many, one appears twice or has a weight that cannot be.
    """
    ordered = sorted(members, key=lambda member: member.disk_id)
    if len(ordered) > MEMBERS_MAX:
        raise UsageError(f"a ring of {len(ordered)} disks is too large: {MEMBERS_MAX} can be")
    zone_of: dict[str, str] = {}
    for index, member in enumerate(ordered):
        if not 0 <= member.weight <= WEIGHT_MAX:
            raise UsageError(
                f"disk {member.disk_id} cannot have weight {member.weight}: "
                f"0 to {WEIGHT_MAX} are possible"
            )
        for name in (member.disk_id, member.node_id, member.zone):
            if len(name.encode()) > NAME_BYTES_MAX:
                raise UsageError(f"{name[:40]!r}... is too long a name for a ring's member")
        if index and ordered[index - 1].disk_id == member.disk_id:
            raise UsageError(f"disk {member.disk_id} is in the ring twice")
        zone_of.setdefault(member.node_id, member.zone)
    return tuple(
        member
        if member.zone == zone_of[member.node_id]
        else replace(member, zone=zone_of[member.node_id])
        for member in ordered
    )


def member_key(disk_id: str) -> int:
    """Return the 64 bits that stand for a disk in every cost; fixed for ever."""
    digest = hashlib.blake2b(disk_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def numbered(names: Sequence[str]) -> list[int]:
    """Return a number for each name: equal names, equal numbers, counted from 0."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def layout_of(members: Sequence[RingMember]) -> Layout:
    """Return the members as the kernels know them."""
    return Layout(
        [member_key(member.disk_id) for member in members],
        [member.weight for member in members],
        numbered([member.node_id for member in members]),
        numbered([member.zone for member in members]),
    )
