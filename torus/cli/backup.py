"""`torus volume export-diff` and `import-diff`: backup streams.

Decides what is said of a stream; what it may be put on is `torus.daemon.backup_import`'s.

Implements docs/cli.md, "torus volume export-diff" and "torus volume import-diff".
"""

import argparse
import os
from typing import TYPE_CHECKING, Any

from torus.cli.parser import Verbs, add_command, add_data_dir
from torus.cli.session import Session
from torus.cli.sizes import format_seconds, format_size
from torus.clock import SystemClock
from torus.errors import UsageError
from torus.ids import check_snapshot_name, check_volume_name, join_snapshot, split_snapshot
from torus.volume.catalog import Catalog

if TYPE_CHECKING:
    from torus.daemon.backup import BackupReport


def declare(below: Verbs) -> None:
    """Add the two verbs to `torus volume`."""
    leave = add_command(
        below,
        "export-diff",
        "write what a snapshot changed to a backup file or a pipe",
        run_export,
        description="Write a snapshot as a backup stream: what changed since an older snapshot "
        "(--from), or all of it.  The stream is checksummed; import-diff puts it on another "
        "volume.  A file is called FILE.partial until it is whole.",
        examples=(
            ("all of it", "torus volume export-diff vm1@monday monday.tdiff"),
            (
                "what changed since",
                "torus volume export-diff vm1@tuesday tuesday.tdiff --from monday",
            ),
            (
                "to another machine",
                "torus volume export-diff vm1@tuesday - --from monday | "
                "ssh backup torus volume import-diff - vm1",
            ),
        ),
    )
    leave.add_argument("snapshot", metavar="NAME@SNAP")
    leave.add_argument("target", metavar="FILE", help="a file, or - for a pipe")
    leave.add_argument("--from", dest="base", metavar="SNAP", help="an older snapshot of it")
    leave.add_argument("--resume", action="store_true", help="go on with FILE.partial")
    leave.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    add_data_dir(leave)
    arrive = add_command(
        below,
        "import-diff",
        "put a backup stream on a volume",
        run_import,
        description="Put a stream of export-diff on a volume and make the snapshot that it leads "
        "to.  A full stream makes the volume.  Any other needs the snapshot it was made from, "
        "and a volume that has not changed since.",
        examples=(
            ("a new volume", "torus volume import-diff monday.tdiff vm1"),
            ("the next day", "torus volume import-diff tuesday.tdiff vm1"),
            (
                "drop what changed since monday",
                "torus volume import-diff tuesday.tdiff vm1 --rollback",
            ),
        ),
    )
    arrive.add_argument("source", metavar="FILE", help="a file, or - for a pipe")
    arrive.add_argument("name", metavar="NAME")
    arrive.add_argument(
        "--rollback",
        action="store_true",
        help="first drop what was written since the snapshot that the stream was made from",
    )
    add_data_dir(arrive)


def run_export(arguments: argparse.Namespace, session: Session) -> int:
    """Write a stream."""
    name, snap = split_snapshot(arguments.snapshot)
    if arguments.base is not None:
        check_snapshot_name(arguments.base)
    if arguments.target == "-":
        if os.isatty(1):
            raise UsageError(
                "a backup stream will not be written to a terminal",
                hint="send the output to a file or another program",
            )
        if session.output.as_json:
            raise UsageError("'-o json' and '-' both want the standard output")
    from torus.cli.progress import ProgressLine
    from torus.daemon.backup_export import export_diff

    with (
        session.metadata() as store,
        ProgressLine(f"exporting {arguments.snapshot}", session.environment) as progress,
    ):
        report = export_diff(
            Catalog(store, SystemClock()),
            session.common(),
            (name, snap, arguments.base),
            arguments.target,
            progress,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
        )
    since = f" since {arguments.base!r}" if arguments.base is not None else ""
    _say(session, report, name, f"'{join_snapshot(name, snap)}' exported{since}")
    return 0


def run_import(arguments: argparse.Namespace, session: Session) -> int:
    """Put a stream on a volume."""
    name = check_volume_name(arguments.name)
    if arguments.source == "-" and os.isatty(0):
        raise UsageError("a backup stream cannot be typed", hint="redirect the standard input")
    from torus.cli.progress import ProgressLine
    from torus.daemon.backup_import import import_diff

    with ProgressLine(f"importing {name}", session.environment) as progress:
        report = import_diff(
            session.common(), arguments.source, name, progress, rollback=arguments.rollback
        )
    to = join_snapshot(name, report.header.to.name)
    _say(session, report, name, f"'{to}' {'is there already' if report.present else 'imported'}")
    return 0


def _say(session: Session, report: "BackupReport", name: str, what: str) -> None:
    if session.output.as_json:
        session.output.show({"backup": _document(report, name)}, lambda: None)
        return
    moved = (
        f": {format_size(report.data_bytes)} data, {format_size(report.zero_bytes)} zero, "
        f"in {format_seconds(report.seconds)}"
    )
    # on standard error: standard output may be the stream
    session.output.note(f"snapshot {what}" + ("" if report.present else moved))


def _document(report: "BackupReport", name: str) -> dict[str, Any]:
    header = report.header
    base = header.base
    return {
        "volume": name,
        "from": None if base is None else {"name": base.name, "uid": base.uid},
        "to": {"name": header.to.name, "uid": header.to.uid},
        "size_bytes": header.size_bytes,
        "frames": report.frames,
        "data_bytes": report.data_bytes,
        "zero_bytes": report.zero_bytes,
        "resumed_at": report.resumed_at,
        "present": report.present,
        "made": report.made,
        "seconds": report.seconds,
    }
