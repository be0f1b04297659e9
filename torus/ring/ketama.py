"""Ketama: members have points on a circle, a slot's owners are the next ones clockwise.

Decides where the points are: 128 to 255 for a member of average weight.  Loads differ by a
quarter and more; for comparison, and for who knows it from other systems.

Implements docs/ring.md, "Other hashings".
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from torus._fast.ringbuild import Workbench
from torus.ring.member import RingMember, layout_of, member_key, numbered
from torus.ring.staging import towards
from torus.ring.table import COLUMNS, NOBODY, SLOTS

_POINTS_BITS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def ketama(old: bytes | None, members: tuple[RingMember, ...], version: int) -> bytes:
    """Return the next table; ``old`` names members by their new numbers."""
    circle = sorted(_points(members))
    positions = [position for position, _ in circle]
    nodes = numbered([member.node_id for member in members])
    zones = numbered([member.zone for member in members])
    room = [0] * (max(zones) + 1)
    for zone, _ in {(zones[m], nodes[m]) for m, one in enumerate(members) if one.weight}:
        room[zone] += 1
    table = array("H")
    for slot in range(SLOTS):
        start = bisect_left(positions, slot << 48)
        walk = _clockwise(circle, start)
        row = _owners(walk, nodes, zones, room)
        table.extend(row + [NOBODY] * (COLUMNS - len(row)))
    final = table.tobytes()
    bench = Workbench(layout_of(members), final, COLUMNS, version)
    return towards(old, final, final, bench)


def _points(members: Sequence[RingMember]) -> Iterator[tuple[int, int]]:
    """Yield (position, member); the scale is a power of two, so that most joins keep it."""
    weights = [member.weight for member in members if member.weight]
    average = sum(weights) // len(weights)
    down = max(0, average.bit_length() - _POINTS_BITS)
    up = max(0, _POINTS_BITS - average.bit_length())
    for number, member in enumerate(members):
        if member.weight:
            key = member_key(member.disk_id)
            for point in range(max(1, (member.weight << up) >> down)):
                yield _mix((key + _GOLDEN * (point + 1)) & _MASK), number


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _clockwise(circle: Sequence[tuple[int, int]], start: int) -> Iterator[int]:
    """Yield each member once, in the order of the circle from ``start`` on."""
    seen = set()
    for step in range(len(circle)):
        number = circle[(start + step) % len(circle)][1]
        if number not in seen:
            seen.add(number)
            yield number


def _owners(
    walk: Iterator[int], nodes: Sequence[int], zones: Sequence[int], room: Sequence[int]
) -> list[int]:
    """Return the owners by the rule: each is the first on the walk that it allows."""
    owners: list[int] = []
    passed: list[int] = []
    used = [0] * len(room)
    while len(owners) < COLUMNS and used != list(room):
        level = min(used[zone] for zone in range(len(room)) if used[zone] < room[zone])
        taken = {nodes[owner] for owner in owners}
        found = next((m for m in passed if nodes[m] not in taken and used[zones[m]] == level), None)
        while found is None:
            m = next(walk)
            if nodes[m] not in taken and used[zones[m]] == level:
                found = m
            passed.append(m)
        owners.append(found)
        used[zones[found]] += 1
    return owners
