"""Which chunks of a volume's log are worth emptying.  Pure.

Decides victims, their number, and when to stop.  Greedy: the chunks with the fewest live units
first, because each costs a copy of what lives and gives back the rest.  Chunks without a live
unit are no victims: the next checkpoint frees them as they are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torus import limits


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which chunks may be victims, by sequence number, and how many units a chunk holds.

    ``before``: those from here on are replayed after a crash, or still open.
    ``pinned_through``: those up to here belong to snapshots; emptying one frees nothing.
    """

    chunk_units: int
    before: int
    pinned_through: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one round empties.  Units are 512 bytes."""

    victims: tuple[int, ...]
    live_units: int  # of the victims: what is to be moved
    utilisation: float  # of the log now, 1.0 when it has no chunk
    reached: float  # what it will be afterwards
    chunk_units: int

    @property
    def freed_units(self) -> int:
        """Units that the victims give back, less what their survivors take elsewhere."""
        return len(self.victims) * self.chunk_units - self.live_units

    def nothing(self) -> "Plan":
        """Return the plan to leave all as it is."""
        return Plan((), 0, self.utilisation, self.utilisation, self.chunk_units)

    @property
    def worth(self) -> bool:
        """True when it frees a whole chunk: less only moves the same blocks again and again."""
        return bool(self.victims) and self.freed_units >= self.chunk_units


def utilisation(counts: Mapping[int, int], bounds: Bounds) -> float:
    """Return the live part of the chunks that no snapshot pins; 1.0 when there is none.

    ``counts``: live units by sequence number.
    """
    live, capacity = _sums(counts, bounds)
    return live / capacity if capacity else 1.0


def plan(
    counts: Mapping[int, int],
    bounds: Bounds,
    *,
    target: float,
    chunks_max: int,
    live_units_max: int | None = None,
    skipped: Iterable[int] = (),
) -> Plan:
    """Return the victims of one round; none when the log is used well enough.

    ``live_units_max`` bounds what is copied, for a round that must make do with little space;
    the first victim is taken whatever it holds.  ``skipped``: chunks that cannot be emptied.
    """
    live, capacity = _sums(counts, bounds)
    now = live / capacity if capacity else 1.0
    most = bounds.chunk_units * limits.GC_WORTH_PERCENT // 100
    victims: list[int] = []
    moved = 0
    for sequence in sorted(_open_to_all(counts, bounds, skipped), key=lambda s: (counts[s], s)):
        units = counts[sequence]
        if len(victims) >= chunks_max or units > most or _after(live, capacity) >= target:
            break
        if victims and live_units_max is not None and moved + units > live_units_max:
            break
        victims.append(sequence)
        moved += units
        capacity -= bounds.chunk_units - units
    return Plan(tuple(victims), moved, now, _after(live, capacity), bounds.chunk_units)


def plan_all(
    counts: Mapping[int, int],
    bounds: Bounds,
    *,
    after: int,
    chunks_max: int,
    live_units_max: int | None = None,
) -> Plan:
    """Return the oldest chunks behind ``after``, however full: for writing everything anew."""
    live, capacity = _sums(counts, bounds)
    now = live / capacity if capacity else 1.0
    victims: list[int] = []
    moved = 0
    for sequence in sorted(s for s in _open_to_all(counts, bounds, ()) if s > after):
        units = counts[sequence]
        over = live_units_max is not None and moved + units > live_units_max
        if len(victims) >= chunks_max or (victims and over):
            break
        victims.append(sequence)
        moved += units
        capacity -= bounds.chunk_units - units
    return Plan(tuple(victims), moved, now, _after(live, capacity), bounds.chunk_units)


def _open_to_all(
    counts: Mapping[int, int], bounds: Bounds, skipped: Iterable[int]
) -> Iterable[int]:
    left_out = frozenset(skipped)
    return (
        sequence
        for sequence, units in counts.items()
        if units and bounds.pinned_through < sequence < bounds.before and sequence not in left_out
    )


def _sums(counts: Mapping[int, int], bounds: Bounds) -> tuple[int, int]:
    """Return live units and capacity of the chunks that no snapshot pins."""
    live = chunks = 0
    for sequence, units in counts.items():
        if units and sequence > bounds.pinned_through:
            live += units
            chunks += 1
    return live, chunks * bounds.chunk_units


def _after(live: int, capacity: int) -> float:
    return live / capacity if capacity > 0 else 1.0
