"""Print how long the compiled kernels take: ``python bench/kernels.py [CASE ...]``."""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make `bench` importable, not its modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.cases.kernels import CASES
from bench.results import markdown_table


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Time the compiled kernels alone.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    chosen = parser.parse_args().cases or list(CASES)
    for name in chosen:
        if name not in CASES:
            parser.error(f"unknown case {name!r}; known are {', '.join(CASES)}")
    lines = []
    for name in chosen:
        for timing in CASES[name]():
            rate = f"{timing.gigabytes_per_s():.2f}" if timing.bytes_each else ""
            lines.append([timing.name, f"{timing.best_ns:,.0f}", f"{timing.median_ns:,.0f}", rate])
    print(markdown_table(["operation", "best ns", "median ns", "GB/s"], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
