"""A ring of members that do not exist, to see what a change would cost.

Decides which members those are: names counted up, weights and zones dealt out in turn, so that
the same question always has the same answer.

Implements docs/ring.md, "Figures".
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torus.ring.diff import Difference, difference
from torus.ring.member import RingMember
from torus.ring.share import fair_shares
from torus.ring.table import SLOTS, Ring

_FRACTION_BITS = 20


@dataclass(frozen=True, slots=True)
class Evenness:
    """How evenly slots lie, for volumes with ``copies`` copies; 1.0 is perfect."""

    copies: int
    by_weight: float  # greatest load per weight, in units of the mean
    by_share: float  # ... greatest load, in units of what the rule lets that member have
    least_by_share: float


def imagined_members(
    nodes: int, zones: int, weights: Sequence[int], disks: int = 1, first: int = 0
) -> list[RingMember]:
    """Return the disks of ``nodes`` nodes; ``first`` is the first node's number.

    A node's weight is chosen by a hash of its number: zones differ as chance makes them.
    """
    members = []
    for number in range(first, first + nodes):
        digest = hashlib.blake2b(f"node {number}".encode(), digest_size=8).digest()
        weight = weights[int.from_bytes(digest, "little") % len(weights)]
        for disk in range(disks):
            name = hashlib.blake2b(f"disk {number} {disk}".encode(), digest_size=16)
            zone = f"zone-{number % zones}" if zones > 1 else ""
            members.append(RingMember(name.hexdigest(), f"node-{number:04}", zone, weight))
    return members


def evenness(ring: Ring, copies: int) -> Evenness:
    """Return how evenly a ring's slots lie."""
    loads = ring.loads(copies)
    shares = fair_shares(ring.members, copies, SLOTS << _FRACTION_BITS)
    parts = [
        (load << _FRACTION_BITS) / share for load, share in zip(loads, shares, strict=True) if share
    ]
    mean = sum(loads) / sum(member.weight for member in ring.members)
    by_weight = max(
        load / member.weight / mean
        for load, member in zip(loads, ring.members, strict=True)
        if member.weight
    )
    return Evenness(copies, by_weight, max(parts), min(parts))


def total_movement(old: Ring, versions: Sequence[Ring], copies: int) -> tuple[Difference, int, int]:
    """Return the whole difference, copies moved step by step, and most at once of one slot."""
    moved = most = 0
    before = old
    for version in versions:
        step = difference(before, version, copies)
        moved += step.moved
        most = max(most, step.most_at_once)
        before = version
    return difference(old, before, copies), moved, most
