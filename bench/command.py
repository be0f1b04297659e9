"""What every measurement that keeps its results does: end when told to, judge, save, show."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType

from bench import compare, report, results
from bench.processes import BenchError
from bench.results import Result
from torus.errors import TorusError

Announce = Callable[[str], None]


def chosen(
    parser: argparse.ArgumentParser, option: str, text: str, known: Collection[str]
) -> list[str]:
    """Return the names in ``text``, which commas part; one that is not known ends the program."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            parser.error(f"unknown in --{option}: {name!r}; known are {', '.join(known)}")
    return names


def add_places(parser: argparse.ArgumentParser, output: Path) -> None:
    """Add the options of a measurement that needs memory for its nodes and keeps its results."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    add = parser.add_argument
    add("--dir", type=Path, default=memory, help="where nodes and etcd lie (a tmpfs)")
    add("--check", action="store_true", help="fail when a budget is missed")
    add("--output", type=Path, default=output, help="where results go")


def run(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Announce], Result],
    case: str = "",
) -> int:
    """Measure, save, print the tables; return the exit status.

    ``options`` have ``output``, a folder, and ``check``.  ``measure`` ends its servers, whatever
    interrupts it.  ``case``: as in budgets.toml.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        result = measure(options, report.announcer())
    except (BenchError, AssertionError, TorusError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; servers ended, nothing saved", file=sys.stderr)
        return 130
    verdicts = compare.judge(result, compare.read_goals(case=case))
    dated = f"{result.date[:10]}-{result.environment['commit']}"
    path = options.output / (f"latest-{case}.json" if case else f"{dated}.json")
    table = options.output / (f"latest-{case}.md" if case else "latest.md")
    results.save(result, path)
    table.write_text(report.markdown(result, verdicts))
    report.print_tables(result, verdicts)
    print(f"\n{path}\n{table}")
    return 1 if options.check and not all(verdict.reached for verdict in verdicts) else 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
