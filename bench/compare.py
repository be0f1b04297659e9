"""Compare a result with the budgets, or with an older result.

Decides whether a goal is reached.  Usage::

    python bench/compare.py RESULT.json            # against budgets.toml
    python bench/compare.py OLD.json NEW.json      # what became faster or slower

Exits with 1 when a goal is missed or could not be judged.
"""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make `bench` importable, not its modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import results
from bench.results import Result

BUDGETS = Path(__file__).resolve().parent / "budgets.toml"
FASTEST_PEER = "fastest-peer"
PEERS = ("qemu-nbd", "nbdkit-file")
# Changes below this are noise on a shared machine.
CHANGE_WORTH_NAMING = 0.10


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of budgets.toml: a ratio of rows, or a value, and its bound.

    ``server`` is whose row it is; ``against`` is ``fastest-peer``, a server, or a row of the same
    server.  ``case`` names a run of its own, such as ``cluster``; empty: the main one.
    """

    title: str
    row: str = ""
    against: str = ""
    value: str = ""
    minimum: float | None = None
    maximum: float | None = None
    server: str = "torus"
    case: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal beside what was found; ``found`` is None when it was not measured."""

    goal: Goal
    found: float | None
    against: str
    rounds: tuple[float, ...] = ()  # the ratio of every single round

    @property
    def reached(self) -> bool:
        """Say whether the goal was measured and is within its bound."""
        if self.found is None:
            return False
        low, high = self.goal.minimum, self.goal.maximum
        return (low is None or self.found >= low) and (high is None or self.found <= high)


def read_goals(path: Path = BUDGETS, *, case: str = "") -> list[Goal]:
    """Read the table of goals of one run.

    Raises:
        ValueError: A goal has neither a row nor a value, or no bound.
    """
    goals = [Goal(**entry) for entry in tomllib.loads(path.read_text())["goal"]]
    for goal in goals:
        if bool(goal.row) == bool(goal.value) or (goal.minimum is None) == (goal.maximum is None):
            raise ValueError(f"{path}: goal {goal.title!r} needs one measure and one bound")
    return [goal for goal in goals if goal.case == case]


def judge(result: Result, goals: Sequence[Goal]) -> list[Verdict]:
    """Compare a result with every goal."""
    return [_judge_row(result, goal) if goal.row else _judge_value(result, goal) for goal in goals]


def _judge_value(result: Result, goal: Goal) -> Verdict:
    value = result.value(goal.value)
    found = value.median() if value is not None and not value.error else None
    return Verdict(goal, found, "")


def _judge_row(result: Result, goal: Goal) -> Verdict:
    torus_rate = result.rate(goal.row, goal.server)
    if goal.against == FASTEST_PEER:
        rates = {peer: result.rate(goal.row, peer) for peer in PEERS}
        known = {peer: rate for peer, rate in rates.items() if rate}
        if torus_rate is None or len(known) < len(PEERS):
            return Verdict(goal, None, "")
        fastest = max(known, key=lambda peer: known[peer])
        rounds = result.ratios((goal.row, "torus"), (goal.row, fastest))
        return Verdict(goal, torus_rate / known[fastest], fastest, tuple(rounds))
    other = (goal.row, goal.against)
    if goal.against not in result.servers():
        other = (goal.against, goal.server)
    base = result.rate(*other)
    found = torus_rate / base if torus_rate is not None and base else None
    rounds = result.ratios((goal.row, goal.server), other)
    return Verdict(goal, found, goal.against, tuple(rounds))


def verdict_table(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of the verdicts."""
    lines = []
    for verdict in verdicts:
        goal = verdict.goal
        bound = f">= {goal.minimum:g}" if goal.minimum is not None else f"<= {goal.maximum:g}"
        lines.append(
            [
                goal.title,
                bound,
                "not measured" if verdict.found is None else f"{verdict.found:.2f}",
                f"{min(verdict.rounds):.2f} to {max(verdict.rounds):.2f}" if verdict.rounds else "",
                verdict.against,
                "reached" if verdict.reached else "MISSED" if verdict.found is not None else "?",
            ]
        )
    return ["goal", "bound", "found", "rounds", "against", "verdict"], lines


def change_table(older: Result, newer: Result) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines: torus then and now, every row and value."""
    lines = []
    for row in newer.rows():
        then, now = older.rate(row, "torus"), newer.rate(row, "torus")
        if then and now:
            lines.append([row, f"{then:,.0f} op/s", f"{now:,.0f} op/s", _change(then, now)])
    for value in newer.values:
        before = older.value(value.name)
        if before is not None and not before.error and not value.error:
            then, now = before.median(), value.median()
            lines.append(
                [
                    value.name,
                    f"{then:.2f} {value.unit}",
                    f"{now:.2f} {value.unit}",
                    _change(then, now),
                ]
            )
    return ["measure", "older", "newer", "change"], lines


def _change(then: float, now: float) -> str:
    if not then:
        return ""
    change = now / then - 1
    return f"{100 * change:+.0f} %" if abs(change) >= CHANGE_WORTH_NAMING else "about the same"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Compare results with budgets or each other.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    arguments = parser.parse_args()
    if len(arguments.results) > 2:
        parser.error("one result to check against the budgets, or two to compare")
    try:
        loaded = [results.load(path) for path in arguments.results]
    except (OSError, ValueError, TypeError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    if len(loaded) == 2:
        print(results.markdown_table(*change_table(loaded[0], loaded[1])))
    goals = read_goals(case=loaded[-1].settings.get("case", ""))
    verdicts = judge(loaded[-1], goals)
    print(results.markdown_table(*verdict_table(verdicts)))
    return 0 if all(verdict.reached for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
