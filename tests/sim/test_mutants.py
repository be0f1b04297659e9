"""The simulation notices each rule that is taken out of the real code.

Each is looked for from the first seed that is known to find it, in the kind of cluster where it
is missed soonest.
"""

import os

import pytest

from tests.sim.mutants import MUTANTS, without
from torus.testing.simrun import run

pytestmark = [pytest.mark.sim, pytest.mark.slow]
SEEDS = 2000 if int(os.environ.get("TORUS_SIM_SEEDS", "0")) >= 10_000 else 100


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_missing_is_noticed(name: str) -> None:
    """Seeds from the one that is known to notice it on, as another change may have moved it."""
    _, first, make = MUTANTS[name]
    for seed in range(first, first + SEEDS):
        with without(name):
            outcome = run(seed, make)
        if outcome.violations:
            print(f"{name}: seed {seed} of {make.__name__}")
            assert not run(seed, make).violations, "the rule was not needed for that"
            return
    pytest.fail(f"{SEEDS} seeds from {first} on do not notice that rule {name!r} is missing")
