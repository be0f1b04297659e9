"""`torus volume import` and `export`: whole volumes from and to files and pipes.

Decides what may be overwritten and how large a new volume is.  Copying is
`torus.daemon.app`'s.

Implements docs/cli.md, "torus volume import" and "torus volume export".
"""

import argparse
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from torus.cli.parser import Verbs, add_command, add_data_dir
from torus.cli.session import Session
from torus.cli.sizes import format_seconds, format_size, parse_size
from torus.clock import SystemClock
from torus.errors import AlreadyExists, NotFound, PermissionDenied, TorusError, UsageError
from torus.ids import check_volume_name, split_snapshot
from torus.limits import SECTOR_BYTES
from torus.volume.catalog import Catalog

if TYPE_CHECKING:
    from torus.daemon.reports import CopyReport


def declare(below: Verbs) -> None:
    """Add the two verbs to `torus volume`."""
    arrive = add_command(
        below,
        "import",
        "fill a volume from a file or a pipe",
        run_import,
        description="Fill a volume from a raw image.  Holes and zeroes cost no space.  The volume "
        "is made if it does not exist, as large as the file or as --size says.",
        examples=(
            ("a raw image", "torus volume import disk.raw disk"),
            ("from a pipe", "zcat disk.gz | torus volume import - disk --size 10GiB"),
        ),
    )
    arrive.add_argument("source", metavar="FILE", help="a file, a block device, or - for a pipe")
    arrive.add_argument("name", metavar="NAME")
    arrive.add_argument("--size", metavar="SIZE", help="size of the new volume")
    arrive.add_argument("--overwrite", action="store_true", help="write over a volume that exists")
    add_data_dir(arrive)
    leave = add_command(
        below,
        "export",
        "write a volume to a file or a pipe",
        run_export,
        description="Write a volume, or a snapshot, as a raw image.  What was never written "
        "becomes a hole.  A snapshot can be exported while its volume is attached.",
        examples=(
            ("a raw image", "torus volume export disk disk.raw"),
            ("a snapshot", "torus volume export disk@monday monday.raw"),
            ("to a pipe", "torus volume export disk - | zstd > disk.zst"),
        ),
    )
    leave.add_argument("name", metavar="NAME[@SNAP]")
    leave.add_argument("target", metavar="FILE", help="a file, a block device, or - for a pipe")
    leave.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    add_data_dir(leave)


def run_import(arguments: argparse.Namespace, session: Session) -> int:
    """Make the volume where needed, then copy into it."""
    check_volume_name(arguments.name)
    source_bytes = None if arguments.source == "-" else _size_of(Path(arguments.source))
    wanted_bytes = None if arguments.size is None else parse_size(arguments.size, "--size")
    made = _prepare(arguments, session, source_bytes, wanted_bytes)
    from torus.cli.progress import ProgressLine
    from torus.daemon.app import import_volume

    with ProgressLine(f"importing {arguments.name}", session.environment) as progress:
        try:
            report = import_volume(session.common(), arguments.name, arguments.source, progress)
        except TorusError as exc:
            if made:
                exc.hint = " ".join(filter(None, (exc.hint, _half_made(arguments.name))))
            raise
    say_copied(session, report, "imported")
    return 0


def run_export(arguments: argparse.Namespace, session: Session) -> int:
    """Copy a volume out."""
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        if "@" in arguments.name:
            catalog.get_snapshot(*split_snapshot(arguments.name))
        else:
            catalog.get(arguments.name)
    target = Path(arguments.target)
    if arguments.target == "-":
        if os.isatty(1):
            raise UsageError(
                "a volume's bytes will not be written to a terminal",
                hint="send the output to a file or another program",
            )
        if session.output.as_json:
            raise UsageError("'-o json' and '-' both want the standard output")
    elif target.is_file() and target.stat().st_size and not arguments.overwrite:
        raise AlreadyExists(f"file {target} exists", hint="--overwrite replaces it")
    from torus.cli.progress import ProgressLine
    from torus.daemon.app import export_volume

    with ProgressLine(f"exporting {arguments.name}", session.environment) as progress:
        report = export_volume(session.common(), arguments.name, arguments.target, progress)
    say_copied(session, report, "exported")
    return 0


def _prepare(
    arguments: argparse.Namespace,
    session: Session,
    source_bytes: int | None,
    wanted_bytes: int | None,
) -> bool:
    """Make the volume unless it exists, and check that the source fits; say if it was made."""
    name, made = arguments.name, False
    with session.metadata(make=True) as store:
        catalog = Catalog(store, SystemClock())
        catalog.init_cluster()
        try:
            size_bytes = catalog.get(name).spec.size_bytes
        except NotFound:
            size_bytes = 0
        if size_bytes:
            if not arguments.overwrite:
                raise AlreadyExists(
                    f"volume {name!r} exists", hint="--overwrite writes over its data"
                )
        elif wanted_bytes is None and source_bytes is None:
            raise UsageError(
                f"the size of the new volume {name!r} is not known: a pipe does not say it",
                hint="give --size",
            )
        else:
            size_bytes = wanted_bytes or -(-(source_bytes or 0) // SECTOR_BYTES) * SECTOR_BYTES
            made = True
        if source_bytes is not None and source_bytes > size_bytes:
            raise UsageError(
                f"{arguments.source} has {source_bytes} bytes, "
                f"volume {name!r} has room for {size_bytes}",
                hint="give a larger --size, or resize the volume first",
            )
        if wanted_bytes is not None and wanted_bytes != size_bytes:
            raise UsageError(
                f"volume {name!r} has {size_bytes} bytes, --size says {wanted_bytes}",
                hint=f"'torus volume resize {name} SIZE' changes it",
            )
        if made:
            catalog.create(name, size_bytes)
    return made


def _size_of(source: Path) -> int:
    """Return the bytes of a file or a block device."""
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{source} is a folder, not an image")
        with source.open("rb") as file:
            return file.seek(0, os.SEEK_END) if file.seekable() else 0
    except FileNotFoundError as exc:
        raise NotFound(f"file {source} does not exist") from exc
    except PermissionError as exc:
        raise PermissionDenied(f"file {source} may not be read") from exc


def _half_made(name: str) -> str:
    return f"volume {name!r} was made and is incomplete: 'torus volume delete {name}' removes it"


def say_copied(session: Session, report: "CopyReport", verb: str) -> None:
    """Say what a copy moved, and how fast; ``verb`` goes behind the volume's name."""
    rate = report.copied_bytes / report.seconds if report.seconds > 0 else 0.0
    text = (
        f"volume {report.volume!r} {verb}: {format_size(report.size_bytes)}, of it "
        f"{format_size(report.copied_bytes)} data, in {format_seconds(report.seconds)} "
        f"({format_size(int(rate))}/s){', verified' if report.verified else ''}"
    )
    document = {
        "volume": report.volume,
        "size_bytes": report.size_bytes,
        "copied_bytes": report.copied_bytes,
        "hole_bytes": report.hole_bytes,
        "verified": report.verified,
        "seconds": report.seconds,
    }
    if session.output.as_json:
        session.output.show({"copy": document}, lambda: None)
    else:  # on standard error: standard output may be the image
        session.output.note(text)
