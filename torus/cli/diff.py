"""`torus volume diff`: what changed between two snapshots.

Decides what is shown of a change.  What a change is, is `torus.volume.changes`'.

Implements docs/cli.md, "torus volume diff".
"""

import argparse
from typing import TYPE_CHECKING, Any

from torus.cli.parser import Verbs, add_command, add_data_dir
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.clock import SystemClock
from torus.ids import check_volume_name, split_snapshot
from torus.volume.catalog import Catalog

if TYPE_CHECKING:
    from torus.daemon.diff import DiffReport, Side


def declare(below: Verbs) -> None:
    """Add the verb to `torus volume`."""
    parser = add_command(
        below,
        "diff",
        "list what changed between two snapshots",
        run_diff,
        description="List the ranges that changed from FROM to TO: 'data' was written, 'zero' "
        "reads as zeroes now.  Each is a snapshot, or a volume as it is now, attached or not; "
        "one may be a clone of the other.  With one argument: all that has data in it.",
        examples=(
            ("between two snapshots", "torus volume diff vm1@monday vm1@tuesday"),
            ("since a snapshot", "torus volume diff vm1@monday vm1"),
            ("all data of a snapshot, for a program", "torus volume diff vm1@monday -o json"),
        ),
    )
    parser.add_argument("first", metavar="FROM", help="NAME@SNAP, or NAME: as it is now")
    parser.add_argument("second", metavar="TO", nargs="?", help="NAME@SNAP, or NAME: as it is now")
    add_data_dir(parser)


def run_diff(arguments: argparse.Namespace, session: Session) -> int:
    """Compare, then list."""
    first = _side(arguments.first)
    second = None if arguments.second is None else _side(arguments.second)
    base, to = (None, first) if second is None else (first, second)
    from torus.daemon.diff import diff, side_name

    with session.metadata() as store:
        clock = SystemClock()
        report = diff(Catalog(store, clock), session.common(), base, to, clock.wall_ns())
    document = {
        "from": None if base is None else side_name(base),
        "to": side_name(to),
        **_document(report),
    }
    session.output.show({"diff": document}, lambda: _render(session, report))
    return 0


def _side(text: str) -> "Side":
    if "@" in text:
        return split_snapshot(text)
    return check_volume_name(text), None


def _document(report: "DiffReport") -> dict[str, Any]:
    return {
        "size_bytes": report.size_bytes,
        "data_bytes": report.changed_bytes(mapped=True),
        "zero_bytes": report.changed_bytes(mapped=False),
        "ranges": [
            {"offset": one.offset, "length": one.length, "type": _kind(one.mapped)}
            for one in report.changes
        ],
    }


def _kind(mapped: bool) -> str:
    return "data" if mapped else "zero"


def _render(session: Session, report: "DiffReport") -> None:
    if report.changes:
        session.output.table(
            (">OFFSET", ">LENGTH", "TYPE"),
            [(str(one.offset), str(one.length), _kind(one.mapped)) for one in report.changes],
        )
    session.output.note(
        f"{_counted(len(report.changes))}: {format_size(report.changed_bytes(mapped=True))} data, "
        f"{format_size(report.changed_bytes(mapped=False))} zero"
    )


def _counted(ranges: int) -> str:
    return "1 range" if ranges == 1 else f"{ranges} ranges"
