"""The simulation notices each rule that is taken out of the real code.

Rules that take long to be missed are only searched with TORUS_SIM_SEEDS of 1000 or more.
"""

import os

import pytest

from tests.sim.mutants import MUTANTS, without
from torus.testing.simrun import run

pytestmark = [pytest.mark.sim, pytest.mark.slow]
LONG = int(os.environ.get("TORUS_SIM_SEEDS", "160")) >= 1000
RARE = {"answer_before_all", "one_boot_id", "read_then_fence", "shortest_copy", "wiped_disk"}
SEEDS = 2000 if LONG else 40


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in MUTANTS if LONG or name not in RARE])
def test_a_rule_that_is_missing_is_noticed(name: str) -> None:
    """Seeds from the one that is known to notice it on, as another change may have moved it."""
    _, first, make = MUTANTS[name]
    for seed in range(first, first + SEEDS):
        with without(name):
            outcome = run(seed, make)
        if outcome.violations:
            assert not run(seed, make).violations, "the rule was not needed for that"
            return
    pytest.fail(f"{SEEDS} seeds from {first} on do not notice that rule {name!r} is missing")
