"""`torus volume check`: which blocks of a volume and of its snapshots cannot be read.

Decides what is shown of them.  Reading is `torus.daemon.volume_check`'s.

Implements docs/cli.md, "torus volume check".
"""

import argparse
from typing import TYPE_CHECKING, Any

from torus.cli.parser import Verbs, add_command, add_data_dir
from torus.cli.progress import ProgressLine
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.clock import SystemClock
from torus.ids import check_volume_name
from torus.limits import BLOCK_BYTES
from torus.volume.catalog import Catalog

if TYPE_CHECKING:
    from torus.daemon.volume_check import SideCheck, VolumeReadable
    from torus.volume.readable import Bad


def declare(below: Verbs) -> None:
    """Add the verb to `torus volume`."""
    parser = add_command(
        below,
        "check",
        "read all of a volume and its snapshots; list what is lost",
        run_check,
        description="Read every block that a volume and its snapshots have, attached or not, from "
        "whichever disk has it right, and list by address what nobody has.  Reads of that give "
        "EIO; what is written over is well again.  The exit code is 65 when something is lost, 69 "
        "when a disk that may have it is silent.",
        examples=(
            ("after a scrub found damage beyond repair", "torus volume check vm1"),
            ("for a program", "torus volume check vm1 -o json"),
        ),
    )
    parser.add_argument("name", metavar="NAME")
    add_data_dir(parser)


def run_check(arguments: argparse.Namespace, session: Session) -> int:
    """Read, then list."""
    name = check_volume_name(arguments.name)
    from torus.daemon.volume_check import check_volume

    clock = SystemClock()
    with session.metadata() as store, ProgressLine("reading", session.environment) as progress:
        report = check_volume(
            Catalog(store, clock), session.common(), name, clock.wall_ns(), progress
        )
    session.output.show({"check": document_of(report)}, lambda: _render(session, report))
    return report.exit_code


def document_of(report: "VolumeReadable") -> dict[str, Any]:
    """Return the JSON form."""
    return {
        "volume": report.name,
        "ok": report.exit_code == 0,
        "sides": [
            {
                "name": side.name,
                "snapshot": side.name.partition("@")[2] or None,
                "size_bytes": side.size_bytes,
                "read_bytes": side.read_bytes,
                "problem": side.problem,
                "bad": [_bad_document(one) for one in side.bad],
            }
            for side in report.sides
        ],
    }


def _bad_document(one: "Bad") -> dict[str, Any]:
    return {
        "offset": one.block * BLOCK_BYTES,
        "length": one.count * BLOCK_BYTES,
        "chunk": one.chunk or None,
        "lost": one.known,
        "problem": one.problem,
    }


def _render(session: Session, report: "VolumeReadable") -> None:
    output = session.output
    for side in report.sides:
        if side.problem:
            output.line(f"{side.name}: nothing can be read: {side.problem}")
        for one in side.bad:
            state = "LOST" if one.known else "not known"
            place = f"in chunk {one.chunk}" if one.chunk else "in the map"
            output.line(
                f"{side.name}: byte {one.block * BLOCK_BYTES:#x}, "
                f"{format_size(one.count * BLOCK_BYTES)} {state} {place}: {one.problem}"
            )
    output.table(
        ("VOLUME", ">SIZE", ">READ", ">LOST", ">NOT KNOWN"),
        [
            (
                side.name,
                format_size(side.size_bytes),
                format_size(side.read_bytes),
                _bytes(side, known=True),
                _bytes(side, known=False),
            )
            for side in report.sides
        ],
    )
    output.line("ok" if report.exit_code == 0 else "NOT OK")


def _bytes(side: "SideCheck", *, known: bool) -> str:
    if side.problem:
        return "all" if side.known == known else "-"
    return format_size(sum(one.count for one in side.bad if one.known == known) * BLOCK_BYTES)
