"""The default hashing: a stored table, kept even, changed as little as possible.

Decides which members have too much and too little, column by column, and how much of it is
worth moving.  Which slots move is the kernel's decision (`torus._fast.ringbuild`).

Implements docs/ring.md, "Building".
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from torus._fast.ringbuild import Workbench
from torus.ring.member import RingMember, layout_of
from torus.ring.share import fair_shares
from torus.ring.staging import towards
from torus.ring.table import COLUMNS, SLOTS

_FRACTION_BITS = 16
_DETOURS_MAX = 16  # rounds in which a third member helps two that the rule keeps apart


@dataclass(frozen=True, slots=True)
class _Bounds:
    """How far a member may be from its fair share, in thousandths of it."""

    over: int
    under: int


# Wider for a ring that has data, or each small change would move a little of everybody's.
_AT_FIRST = _Bounds(over=5, under=10)
_LATER = _Bounds(over=15, under=40)
_WORTH_IT = _Bounds(over=19, under=70)  # less than this begins no change of such a ring


@dataclass(frozen=True, slots=True)
class _Column:
    """What each member should have in the columns up to this one, in slots, and may have."""

    fair: list[int]
    exact: list[int]  # in units of 2**-_FRACTION_BITS
    low: list[int]  # who has less is given some, once a change is worth it
    high: list[int]
    least: list[int]  # who has less makes it worth it
    most: list[int]


def partitioned(old: bytes | None, members: tuple[RingMember, ...], version: int) -> bytes:
    """Return the next table; ``old`` names members by their new numbers."""
    empty = b"\xff" * (SLOTS * COLUMNS * 2)
    bench = Workbench(layout_of(members), old or empty, COLUMNS, version)
    goal, begin = (_AT_FIRST, _AT_FIRST) if old is None else (_LATER, _WORTH_IT)
    columns = [_column(members, copies, goal, begin) for copies in range(1, COLUMNS + 1)]
    targets, limits = [one.fair for one in columns], [one.high for one in columns]
    for slot in bench.fill(targets, limits):
        bench.set_row(slot, bench.chosen_row(slot))
    filled = bench.table_bytes()
    active = [member.weight > 0 for member in members]
    for number, column in enumerate(columns):
        _even(bench, number, column, active)
    return towards(old, filled, bench.table_bytes(), bench)


def _column(members: Sequence[RingMember], copies: int, goal: _Bounds, begin: _Bounds) -> _Column:
    fair = fair_shares(members, copies, SLOTS)
    exact = fair_shares(members, copies, SLOTS << _FRACTION_BITS)

    def low(bounds: _Bounds) -> list[int]:
        return [share - share * bounds.under // 1000 - 1 for share in fair]

    def high(bounds: _Bounds) -> list[int]:
        return [
            max(share, (fine * (1000 + bounds.over) // 1000) >> _FRACTION_BITS)
            for share, fine in zip(fair, exact, strict=True)
        ]

    return _Column(fair, exact, low(goal), high(goal), low(begin), high(begin))


def _even(bench: Workbench, number: int, column: _Column, active: Sequence[bool]) -> None:
    """Even out one column, if somebody is far from fair; the columns before it stay."""
    loads = bench.column_loads(number)
    bounds = zip(loads, column.least, column.most, strict=True)
    if all(least <= load <= most for load, least, most in bounds):
        return
    before = uneven = _unevenness(bench, number, column)
    begun = bench.table_bytes()
    _move(bench, number, column, active, detour=False)
    for _ in range(_DETOURS_MAX):
        uneven = _unevenness(bench, number, column)
        if not uneven:
            return
        reached = bench.table_bytes()
        _move(bench, number, column, active, detour=True)
        _move(bench, number, column, active, detour=False)
        if _unevenness(bench, number, column) >= uneven:
            bench.restore(reached)
            break
    if uneven > before - before // 4:  # the rule allows no better: leave it, or it never ends
        bench.restore(begun)


def _move(
    bench: Workbench, number: int, column: _Column, active: Sequence[bool], *, detour: bool
) -> None:
    """Move from who has too much to who has too little; on a detour, from anybody."""
    loads = bench.column_loads(number)
    wants, gives = _balance(loads, column, active)
    if detour:
        gives = [max(0, load - least) for load, least in zip(loads, column.low, strict=True)]
    if any(wants):
        bench.even(number, wants, gives)


def _unevenness(bench: Workbench, number: int, column: _Column) -> int:
    return sum(
        max(0, load - high) + max(0, low - load)
        for load, low, high in zip(bench.column_loads(number), column.low, column.high, strict=True)
    )


def _balance(
    loads: Sequence[int], column: _Column, active: Sequence[bool]
) -> tuple[list[int], list[int]]:
    """Return how many slots each member should be given, and how many it should give.

    Only who is outside of the bounds has to; its partners are those furthest from fair.
    """
    wants = [
        fair - load if load < low else 0
        for load, low, fair in zip(loads, column.low, column.fair, strict=True)
    ]
    gives = [max(0, load - high) for load, high in zip(loads, column.high, strict=True)]
    missing = sum(wants) - sum(gives)
    if missing > 0:
        _spread(gives, missing, loads, column, active, sign=-1)
    elif missing < 0:
        _spread(wants, -missing, loads, column, active, sign=1)
    return wants, gives


def _spread(
    amounts: list[int],
    missing: int,
    loads: Sequence[int],
    column: _Column,
    active: Sequence[bool],
    *,
    sign: int,
) -> None:
    """Add ``missing`` to ``amounts``: one by one to the member that is furthest from fair.

    ``sign`` is 1 for members that are given slots, -1 for members that give.
    """

    def entry(m: int) -> tuple[int, int]:
        return sign * (((loads[m] + sign * amounts[m]) << 40) // column.exact[m]), m

    def has_more(m: int) -> bool:
        return sign * (column.fair[m] - loads[m]) > amounts[m]

    queue = [entry(m) for m in range(len(loads)) if active[m] and column.exact[m] and has_more(m)]
    heapq.heapify(queue)
    while missing and queue:
        m = queue[0][1]
        amounts[m] += 1
        missing -= 1
        if has_more(m):
            heapq.heapreplace(queue, entry(m))
        else:
            heapq.heappop(queue)
