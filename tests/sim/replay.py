"""Run seeds of the simulated cluster from the command line: ``./dev sim``.

``replay.py SEED``: one life, with everything that happened in it.  ``replay.py --seeds A B``:
the lives A to B-1, every violation and a summary.
"""

import argparse
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from torus.log import configure
from torus.testing.simrun import Outcome, run


def one(seed: int) -> int:
    """Replay a seed with its trace; return 1 when it shows a violation."""
    configure("info", "human", stream=sys.stdout)
    outcome = run(seed, tell=lambda line: print(line, flush=True))
    return report([outcome])


def quiet(seed: int) -> Outcome:
    """Run a seed for its outcome."""
    logging.getLogger("torus").setLevel(logging.CRITICAL)
    return run(seed)


def many(first: int, stop: int) -> int:
    """Run a range of seeds on all CPUs; return 1 when one shows a violation."""
    began = time.monotonic()
    outcomes = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for outcome in pool.map(quiet, range(first, stop), chunksize=4):
            outcomes.append(outcome)
            if outcome.violations:
                report([outcome])
    code = report(outcomes, violations=False)
    print(f"{time.monotonic() - began:.0f} s")
    return code


def report(outcomes: list[Outcome], *, violations: bool = True) -> int:
    """Print what was seen; return 1 when something was wrong."""
    bad = [outcome for outcome in outcomes if outcome.violations]
    if violations:
        for outcome in bad:
            for text in outcome.violations[:5]:
                print(f"seed {outcome.seed}: {text}")
    print(
        f"{len(outcomes)} seeds, {len(bad)} with violations: "
        f"{sum(one.takeovers for one in outcomes)} takeovers, "
        f"{sum(one.answers for one in outcomes)} answered writes, "
        f"{sum(one.flushes for one in outcomes)} answered flushes, "
        f"{sum(one.faults for one in outcomes)} faults, "
        f"{sum(one.turns for one in outcomes)} turns",
        flush=True,
    )
    return 1 if bad else 0


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("A", "B"))
    arguments = parser.parse_args()
    if arguments.seeds is not None:
        return many(*arguments.seeds)
    if arguments.seed is None:
        parser.error("which seed?")
    return one(arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
