"""`torus segment inspect`: what a segment file says of itself.

Decides how a nested description is laid out; reading the file is `torus.daemon.offline`'s.

Implements docs/cli.md, "torus segment".
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torus.cli.parser import Verbs, add_command, add_noun
from torus.cli.session import Session
from torus.errors import NotFound


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus segment` and its verb."""
    _, below = add_noun(verbs, noun, summary)
    inspect = add_command(
        below,
        "inspect",
        "show a segment file's header, slots and records",
        run_inspect,
        description="Show a segment file's header, its slots, and the records in them.  Needs "
        "nothing but the file.",
        examples=(
            ("the first one", "torus segment inspect /var/lib/torus/data/segment-00000000.seg"),
        ),
    )
    inspect.add_argument("file", metavar="FILE")


def run_inspect(arguments: argparse.Namespace, session: Session) -> int:
    """Show one segment file."""
    path = Path(arguments.file)
    if not path.exists():
        raise NotFound(f"file {path} does not exist")
    from torus.daemon.offline import inspect_segment

    found = inspect_segment(path)
    session.output.show({"segment": found}, lambda: _render(session, found))
    return 0


def _render(session: Session, found: Mapping[str, Any]) -> None:
    """Print single values as fields, then every list of objects as a table."""
    output = session.output
    pairs = list(_single_values(found))
    if pairs:
        output.fields(pairs)
    for name, value in found.items():
        if not isinstance(value, list) or not value:
            continue
        columns = list(value[0])
        output.line("")
        output.line(f"{name}:")
        output.table(
            [column.upper() for column in columns],
            [[_cell(row.get(column)) for column in columns] for row in value],
        )


def _single_values(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _single_values(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield prefix + name, _cell(value)


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
