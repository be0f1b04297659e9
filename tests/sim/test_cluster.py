"""The cluster's own code in a simulated world: many lives, nothing lost in any.

TORUS_SIM_SEEDS sets how many.
"""

import os

import pytest

from tests.sim.mutants import Cuts
from torus.testing.simreplicas import ReplicatedCluster
from torus.testing.simrun import run

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(1800)]
SEEDS = int(os.environ.get("TORUS_SIM_SEEDS", "1000"))
BLOCK = 20
# Seeds that showed a mistake when it was there; lives move, so each mistake has a unit test too.
# 174: a takeover that reached nobody opened a span on no disk at all.
FOUND = (174,)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_promise_is_broken_whatever_happens(first: int) -> None:
    """Flushed data is there, images are prefixes, a superseded writer is told nothing, and all
    volumes live when everything has healed.  ./dev sim SEED shows one seed."""
    takeovers = answers = flushes = 0
    for seed in range(first, first + BLOCK):
        outcome = run(seed)
        assert not outcome.violations, f"seed {seed} (./dev sim {seed}): {outcome.violations[0]}"
        takeovers += outcome.takeovers
        answers += outcome.answers
        flushes += outcome.flushes
    assert takeovers > BLOCK
    assert answers > 10 * BLOCK
    assert flushes > 10 * BLOCK


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once_stays_mended(seed: int) -> None:
    """Seeds that showed a mistake, each by its own way."""
    assert run(seed, ReplicatedCluster).violations == ()


def test_an_attach_that_was_overtaken_is_told_so() -> None:
    """Chunks that it misses were deleted by the writers after it: that is no damage."""
    assert run(436, Cuts).violations == ()


def test_a_seed_shows_the_same_again() -> None:
    """Every callback of a run depends on its seed alone."""
    for seed in (3, 4):
        first, again, other = run(seed), run(seed), run(seed + 2)
        assert (first.trace, first.turns) == (again.trace, again.turns)
        assert first.trace != other.trace
