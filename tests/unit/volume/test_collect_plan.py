"""Which victims a collection takes, and what greedy choice costs."""

import random

from torus.volume.collect_plan import Bounds, plan, plan_all, utilisation

UNITS = 64
BOUNDS = Bounds(UNITS, before=1000)


def test_emptiest_chunks_go_first_until_the_target_is_reached() -> None:
    """Four chunks of 64 units, half of it live: one emptied makes 2 of 3 live, two 2 of 2.3."""
    counts = {1: 48, 2: 16, 3: 8, 4: 56}
    found = plan(counts, BOUNDS, target=0.70, chunks_max=10)
    assert found.victims == (3, 2)
    assert found.live_units == 24
    assert found.freed_units == 2 * UNITS - 24
    assert found.worth
    assert not plan({1: 1, 2: 63, 3: 63}, BOUNDS, target=0.9, chunks_max=10).worth
    assert found.utilisation == 0.5
    assert 0.70 <= found.reached < 1
    assert plan(counts, BOUNDS, target=0.60, chunks_max=10).victims == (3,)
    assert plan(counts, BOUNDS, target=0.50, chunks_max=10).victims == ()
    assert plan(counts, BOUNDS, target=0.70, chunks_max=1).victims == (3,)


def test_dead_pinned_replayed_and_skipped_chunks_are_no_victims() -> None:
    """Nor do dead and pinned ones count as badly used space."""
    counts = {1: 1, 2: 1, 3: 0, 4: 2, 5: 3, 9: 1, 10: 1}
    bounds = Bounds(UNITS, before=9, pinned_through=2)
    assert plan(counts, bounds, target=1.0, chunks_max=10).victims == (4, 5)
    assert plan(counts, bounds, target=1.0, chunks_max=10, skipped=[4]).victims == (5,)
    assert utilisation(counts, bounds) == 7 / (4 * UNITS)
    assert utilisation({}, bounds) == 1.0
    assert utilisation({1: 5, 3: 0}, bounds) == 1.0


def test_nearly_full_chunks_are_not_worth_a_copy() -> None:
    """Even when the target is out of reach."""
    counts = {1: 61, 2: 60, 3: 64}
    assert plan(counts, BOUNDS, target=1.0, chunks_max=10).victims == (2,)


def test_what_a_round_may_write_bounds_it() -> None:
    """The first victim is always taken: it gives back more than it takes."""
    counts = {1: 20, 2: 20, 3: 20, 4: 20}
    assert plan(counts, BOUNDS, target=1.0, chunks_max=9, live_units_max=45).victims == (1, 2)
    assert plan(counts, BOUNDS, target=1.0, chunks_max=9, live_units_max=1).victims == (1,)


def test_writing_all_anew_takes_full_chunks_too_and_goes_on_behind_the_last() -> None:
    """But not the snapshots' and not those that are replayed."""
    counts = {1: 64, 2: 64, 3: 0, 4: 64, 5: 10, 6: 64}
    bounds = Bounds(UNITS, before=6, pinned_through=1)
    assert plan_all(counts, bounds, after=0, chunks_max=2).victims == (2, 4)
    assert plan_all(counts, bounds, after=4, chunks_max=2).victims == (5,)
    assert plan_all(counts, bounds, after=5, chunks_max=2).victims == ()


class _Log:
    """Chunks of 64 blocks under overwriting, collected by the plan."""

    def __init__(self, blocks: int, target: float) -> None:
        self.where = [0] * blocks
        self.counts: dict[int, int] = {0: 0}
        self.held: dict[int, list[int]] = {0: []}
        self.open = 0
        self.target = target
        self.appended = 0

    def append(self, block: int) -> None:
        if len(self.held[self.open]) == UNITS:
            self.open += 1
            self.counts[self.open], self.held[self.open] = 0, []
        old = self.where[block]
        if self.appended >= len(self.where):
            self.counts[old] -= 1
        self.where[block] = self.open
        self.counts[self.open] += 1
        self.held[self.open].append(block)
        self.appended += 1

    def collect(self) -> None:
        bounds = Bounds(UNITS, before=self.open)
        found = plan(self.counts, bounds, target=self.target, chunks_max=64)
        for victim in found.victims:
            for block in self.held[victim]:
                if self.where[block] == victim:
                    self.append(block)
        for sequence in [s for s, live in self.counts.items() if not live and s < self.open]:
            del self.counts[sequence], self.held[sequence]


def test_random_overwriting_at_seventy_percent_costs_less_than_two_writes() -> None:
    """Greedy choice under uniform overwriting: theory says 1.88 bytes written for each byte."""
    rng, blocks = random.Random(11), 400 * UNITS
    log = _Log(blocks, 0.70)
    for block in range(blocks):
        log.append(block)
    written = 0
    for step in range(12 * blocks):
        if step == 6 * blocks:
            before = log.appended
        log.append(rng.randrange(blocks))
        if step >= 6 * blocks:
            written += 1
        if step % (4 * UNITS) == 0:
            log.collect()
    amplification = (log.appended - before) / written
    assert 1.5 < amplification <= 2.1, amplification
