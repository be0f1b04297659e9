"""Show a result: Markdown for the repository, rich tables for a terminal."""

import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from bench import compare, results
from bench.compare import Verdict
from bench.results import Result


def announcer() -> Callable[[str], None]:
    """Return a function that prints one line of progress with the time so far."""
    began = time.monotonic()

    def announce(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", file=sys.stderr, flush=True)

    return announce


def markdown(result: Result, verdicts: Sequence[Verdict]) -> str:
    """Return the whole result as a page."""
    facts, settings = result.environment, result.settings
    fdatasync = facts["fdatasync_us"]
    versions = ", ".join(f"{name} {text}" for name, text in facts["versions"].items())
    parts = [
        f"# Measured {result.date} at {facts['commit']}",
        "",
        *(f"**{remark}**  " for remark in result.remarks),
        f"{facts['processor']}, {facts['processors']} processors, "
        f"{facts['memory_bytes'] / (1 << 30):.0f} GiB, Linux {facts['kernel']}, "
        f"{facts['file_system']} on {facts['device']}; {versions}.",
        f"{settings['rounds']} rounds with rotated order, {settings['seconds']:g} s a timed row, "
        f"{settings['main_bytes'] >> 20} MiB volumes and fully written raw files, all in the page "
        f"cache; {settings['took_s']} s in all.",
        f"A 4 KiB overwrite + fdatasync takes {fdatasync['median']:.0f} us here "
        f"({fdatasync['min']:.0f} to {fdatasync['max']:.0f}).",
        results.describe_noise(result),
        "",
        "## Goals",
        "",
        results.markdown_table(*compare.verdict_table(verdicts)),
    ]
    if result.samples:
        parts += [
            "",
            "## Every row: median (smallest to largest round)",
            "",
            results.markdown_table(*results.row_table(result)),
        ]
    if result.values:
        parts += ["", "## torus alone", "", results.markdown_table(*results.value_table(result))]
    return "\n".join(parts) + "\n"


def print_tables(result: Result, verdicts: Sequence[Verdict]) -> None:
    """Print rows, values and verdicts on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for title, (headings, lines) in (
        ("rows", results.row_table(result)),
        ("torus alone", results.value_table(result)),
        ("goals", compare.verdict_table(verdicts)),
    ):
        if not lines:
            continue
        table = Table(*headings, title=title, title_justify="left")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for remark in result.remarks:
        console.print(remark)
    console.print(results.describe_noise(result))
