"""What every measurement that keeps its results does: end when told to, judge, save, show."""

import argparse
import signal
import sys
from collections.abc import Callable
from types import FrameType

from bench import compare, report, results
from bench.processes import BenchError
from bench.results import Result
from torus.errors import TorusError

Announce = Callable[[str], None]


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
