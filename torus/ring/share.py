"""How many slots each member should own.

Decides the fair share: in proportion to weight, as far as the rule of zones and nodes allows
(a node owns a slot once; zones take turns).  Whole slots go to whom they overload least
(D'Hondt), ties to the first in the ring's order.  Exact integers of any size.

Implements docs/ring.md, "Fair shares".
"""

from collections import Counter
from collections.abc import Callable, Sequence

from torus.ring.member import RingMember

_SHIFT = 40  # a level of filling x gives a member (weight * x) >> _SHIFT slots

Nodes = list[list[int]]  # for each node of a zone, its members' numbers
Shapes = list[tuple[int, tuple[int, ...]]]  # how many nodes have disks of these weights


def fair_shares(members: Sequence[RingMember], copies: int, unit: int) -> list[int]:
    """Return each member's number of the ``copies`` x ``unit`` places.

    ``unit`` is the number of slots; a multiple of it gives fractions of slots.
    """
    weights = [member.weight for member in members]
    zones = _grouped(members)
    least, most = _turns([len(nodes) for nodes in zones], copies)
    shares = [0] * len(members)
    if not zones:
        return shares

    shapes = [_shapes(nodes, weights) for nodes in zones]

    def zone_seats(zone: int, level: int) -> int:
        filled = _filled(shapes[zone], level, unit)
        return max(least[zone] * unit, min(most[zone] * unit, filled))

    total = min(copies, sum(len(nodes) for nodes in zones)) * unit
    numbers = range(len(zones))
    level = _level(lambda x: sum(zone_seats(z, x) for z in numbers), total, unit)
    seats = [zone_seats(z, level) for z in numbers]
    left = total - sum(seats)
    for z in numbers:
        more = min(left, zone_seats(z, level + 1) - seats[z])
        seats[z] += more
        left -= more
    for nodes, wanted in zip(zones, seats, strict=True):
        _fill_zone(nodes, weights, wanted, unit, shares)
    return shares


def most_in_a_zone(members: Sequence[RingMember], copies: int) -> int:
    """Return how many of a slot's first ``copies`` owners may stand in one zone."""
    _, most = _turns([len(nodes) for nodes in _grouped(members)], copies)
    return max(most, default=0)


def _grouped(members: Sequence[RingMember]) -> list[Nodes]:
    """Return zones of nodes of members with weight, each in order of first appearance."""
    zones: dict[str, dict[str, list[int]]] = {}
    for number, member in enumerate(members):
        if member.weight:
            zones.setdefault(member.zone, {}).setdefault(member.node_id, []).append(number)
    return [list(nodes.values()) for nodes in zones.values()]


def _turns(sizes: Sequence[int], copies: int) -> tuple[list[int], list[int]]:
    """Return how many copies of each slot a zone has at least and at most."""
    least = [0] * len(sizes)
    left = copies
    while left:
        free = [z for z, size in enumerate(sizes) if size > least[z]]
        if not free or left < len(free):
            return least, [least[z] + (z in free) for z in range(len(sizes))]
        for z in free:
            least[z] += 1
        left -= len(free)
    return least, list(least)


def _shapes(nodes: Nodes, weights: Sequence[int]) -> Shapes:
    """Return the nodes that count alike once: there are few sizes of machines."""
    counted = Counter(tuple(weights[m] for m in node) for node in nodes)
    return [(count, shape) for shape, count in counted.items()]


def _filled(shapes: Shapes, level: int, unit: int) -> int:
    return sum(
        count * min(unit, sum((weight * level) >> _SHIFT for weight in shape))
        for count, shape in shapes
    )


def _level(filled: Callable[[int], int], total: int, unit: int) -> int:
    """Return the highest level that gives out no more than ``total``."""
    low, high = 0, 1 << _SHIFT
    while filled(high) <= total and high < (unit + 1) << _SHIFT:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if filled(middle) <= total:
            low = middle
        else:
            high = middle
    return low


def _fill_zone(
    nodes: Nodes, weights: Sequence[int], seats: int, unit: int, shares: list[int]
) -> None:
    """Give out a zone's seats: no node gets more than ``unit``."""
    shapes = _shapes(nodes, weights)
    level = _level(lambda x: _filled(shapes, x, unit), seats, unit)
    left = seats
    sums = []
    for node in nodes:
        given = sum((weights[m] * level) >> _SHIFT for m in node)
        if given >= unit and len(node) > 1:
            _fill_node(node, weights, unit, shares)
            given = unit
        else:
            for m in node:
                shares[m] = min(unit, (weights[m] * level) >> _SHIFT)
        sums.append(min(unit, given))
        left -= sums[-1]
    for at, node in enumerate(nodes):
        for m in node:
            ticks = (weights[m] * (level + 1)) >> _SHIFT > (weights[m] * level) >> _SHIFT
            if left and ticks and sums[at] < unit:
                shares[m] += 1
                sums[at] += 1
                left -= 1


def _fill_node(node: Sequence[int], weights: Sequence[int], seats: int, shares: list[int]) -> None:
    def filled(level: int) -> int:
        return sum((weights[m] * level) >> _SHIFT for m in node)

    level = _level(filled, seats, seats)
    left = seats - filled(level)
    for m in node:
        shares[m] = (weights[m] * level) >> _SHIFT
        if left and (weights[m] * (level + 1)) >> _SHIFT > shares[m]:
            shares[m] += 1
            left -= 1
