"""From one row of a slot to another, one copy at a time.

Decides which step comes first: the first place that differs gets its new member.  A step never
lets more than one member leave the first `c` places, for any `c`: a volume with `c` copies then
has all others where they were.

Implements docs/ring.md, "One copy at a time".
"""

from array import array
from collections.abc import Callable, Iterator, Sequence

from torus._fast.ringbuild import Workbench
from torus.ring.table import COLUMNS, NOBODY

Row = tuple[int, ...]


def towards(old: bytes | None, filled: bytes, final: bytes, bench: Workbench) -> bytes:
    """Return the table that follows ``old`` on the way to ``final``.

    A slot that lost a copy gets what stands in ``filled``, where nothing else moves.
    """
    if old is None:
        return final
    before, mended, after = array("H", old), array("H", filled), array("H", final)
    for start in range(0, len(before), COLUMNS):
        row = before[start : start + COLUMNS]
        wanted = after[start : start + COLUMNS]
        if row == wanted:
            continue
        simplest = mended[start : start + COLUMNS]
        if NOBODY in row[: bench.width] and leaving(row, wanted):
            after[start : start + COLUMNS] = simplest
        else:
            targets = (wanted,) if row == simplest else (wanted, simplest)
            step = one_step(row, targets, (bench.allows, bench.allows_open))
            after[start : start + COLUMNS] = array("H", step)
    return after.tobytes()


def leaving(old: Sequence[int], new: Sequence[int]) -> int:
    """Return how many members at most leave the first places, over all numbers of places."""
    most = 0
    for places in range(1, len(old) + 1):
        gone = set(old[:places]) - set(new[:places]) - {NOBODY}
        most = max(most, len(gone))
    return most


def one_step(
    old: Sequence[int],
    targets: Sequence[Sequence[int]],
    allowed: Sequence[Callable[[Row], bool]],
) -> Row:
    """Return the row that follows ``old`` on the way to the first of ``targets``.

    The others are rows that would do as well, ``allowed`` are rules, the strictest first.  When
    no single step is allowed it is the first target itself: a rule that is broken is mended
    before all else.
    """
    for target in targets:
        if leaving(old, target) <= 1:
            return tuple(target)
    for is_allowed in allowed:
        for target in targets:
            for candidate in _candidates(tuple(old), tuple(target)):
                if leaving(old, candidate) <= 1 and is_allowed(candidate):
                    return candidate
    return tuple(targets[0])


def _candidates(old: Row, target: Row) -> Iterator[Row]:
    """Yield the rows that have one more place right than ``old``, simplest first."""
    at = next(place for place, member in enumerate(target) if old[place] != member)
    member = target[at]
    if member == NOBODY:
        return
    if member in old:
        source = old.index(member)
        swapped = list(old)
        swapped[at], swapped[source] = member, old[at]
        yield tuple(swapped)
        rest = list(old)
        del rest[source]
        yield (*rest[:at], member, *rest[at:])
        return
    yield (*old[:at], member, *old[at + 1 :])
    for source in range(at + 1, len(old)):
        replaced = list(old)
        replaced[at], replaced[source] = member, old[at]
        yield tuple(replaced)
    for source in range(at + 1, len(old)):
        rest = list(old)
        del rest[source]
        yield (*rest[:at], member, *rest[at:])
