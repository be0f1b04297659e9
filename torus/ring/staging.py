"""From one row of a slot to another, one copy at a time.

Decides which step comes first: the first place that differs gets its new member.  A step never
lets more than one member leave the first `c` places, for any `c`: a volume with `c` copies then
has all others where they were.

Implements docs/ring.md, "One copy at a time".
"""

from collections.abc import Callable, Iterator, Sequence

from torus.ring.table import NOBODY

Row = tuple[int, ...]


def leaving(old: Sequence[int], new: Sequence[int]) -> int:
    """Return how many members at most leave the first places, over all numbers of places."""
    most = 0
    for places in range(1, len(old) + 1):
        gone = set(old[:places]) - set(new[:places]) - {NOBODY}
        most = max(most, len(gone))
    return most


def one_step(old: Sequence[int], wanted: Sequence[int], allowed: Callable[[Row], bool]) -> Row:
    """Return the row that follows ``old`` on the way to ``wanted``.

    It is ``wanted`` itself when that is one step away, and also when no single step that
    ``allowed`` accepts leads there: a rule that was broken is mended before all else.
    """
    target = tuple(wanted)
    if leaving(old, target) <= 1:
        return target
    for candidate in _candidates(tuple(old), target):
        if leaving(old, candidate) <= 1 and allowed(candidate):
            return candidate
    return target


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
