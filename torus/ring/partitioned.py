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
from torus.ring.staging import one_step
from torus.ring.table import COLUMNS, NOBODY, SLOTS

_OVER_PERCENT = 1  # a member may have this much more than its fair share before it must give
_UNDER_PERCENT = 2  # ... and this much (and one slot) less before it is given some
_FRACTION_BITS = 16
_DETOURS_MAX = 4  # rounds in which a third member helps two that the rule keeps apart


@dataclass(frozen=True, slots=True)
class _Column:
    """What each member should have in the columns up to this one, in slots."""

    fair: list[int]
    low: list[int]
    high: list[int]
    exact: list[int]  # in units of 2**-_FRACTION_BITS


def partitioned(old: bytes | None, members: tuple[RingMember, ...], version: int) -> bytes:
    """Return the next table; ``old`` names members by their new numbers."""
    bench = Workbench(layout_of(members), old or b"\xff" * (SLOTS * COLUMNS * 2), COLUMNS, version)
    columns = [_column(members, copies) for copies in range(1, COLUMNS + 1)]
    failed = bench.fill([column.fair for column in columns])
    mend(bench, old, failed)
    active = [member.weight > 0 for member in members]
    leaving = bench.column_loads(COLUMNS - 1)
    if any(load for load, has_weight in zip(leaving, active, strict=True) if not has_weight):
        return bench.state()[0]  # what they still have goes to those that have too little now
    for number, column in enumerate(columns):
        _even(bench, number, column, active, fresh=old is None)
    return bench.state()[0]


def mend(bench: Workbench, old: bytes | None, slots: Sequence[int]) -> None:
    """Bring slots that break the rule nearer to it; those that lost a copy, at once."""
    cells = memoryview(old).cast("H") if old is not None else None
    for slot in slots:
        wanted = bench.chosen_row(slot)
        row = [NOBODY] * COLUMNS
        if cells is not None:
            row = cells[slot * COLUMNS : (slot + 1) * COLUMNS].tolist()
        if NOBODY in row[: bench.width]:
            bench.set_row(slot, wanted)
        else:
            bench.set_row(slot, one_step(row, wanted, bench.allows))


def _column(members: Sequence[RingMember], copies: int) -> _Column:
    fair = fair_shares(members, copies, SLOTS)
    exact = fair_shares(members, copies, SLOTS << _FRACTION_BITS)
    high = [
        max(share, (fine * (100 + _OVER_PERCENT) // 100) >> _FRACTION_BITS)
        for share, fine in zip(fair, exact, strict=True)
    ]
    low = [share - share * _UNDER_PERCENT // 100 - 1 for share in fair]
    return _Column(fair, low, high, exact)


def _even(
    bench: Workbench, number: int, column: _Column, active: Sequence[bool], *, fresh: bool
) -> None:
    """Even out one column; the columns before it stay."""
    blocked = _move(bench, number, column, active, fresh=fresh)
    uneven = _unevenness(bench, number, column)
    for _ in range(_DETOURS_MAX):
        if not uneven or blocked:
            return
        state = bench.state()
        loads = bench.column_loads(number)
        wants, _ = _balance(loads, column, active)
        anybody = [max(0, load - low) for load, low in zip(loads, column.low, strict=True)]
        if fresh:
            bench.release()
        bench.even(number, wants, anybody)
        _move(bench, number, column, active, fresh=fresh)
        after = _unevenness(bench, number, column)
        if after >= uneven:
            bench.restore(*state)
            return
        uneven = after


def _move(
    bench: Workbench, number: int, column: _Column, active: Sequence[bool], *, fresh: bool
) -> int:
    """Move what must move; returns how many slots of those that give were not free to."""
    wants, gives = _balance(bench.column_loads(number), column, active)
    if not any(wants):
        return 0
    if fresh:
        bench.release()
    return bench.even(number, wants, gives)[1]


def _unevenness(bench: Workbench, number: int, column: _Column) -> int:
    return sum(
        max(0, load - high) + max(0, low - load)
        for load, low, high in zip(
            bench.column_loads(number), column.low, column.high, strict=True
        )
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

    queue = [
        entry(m) for m in range(len(loads)) if active[m] and column.exact[m] and has_more(m)
    ]
    heapq.heapify(queue)
    while missing and queue:
        m = queue[0][1]
        amounts[m] += 1
        missing -= 1
        if has_more(m):
            heapq.heapreplace(queue, entry(m))
        else:
            heapq.heappop(queue)
