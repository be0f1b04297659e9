"""`torus gc`: free what overwriting and trimming left behind in the logs.

Decides which volumes are meant, what is shown, and which exit code says that some could not be
collected.  Collecting is `torus.daemon.collection`'s.

Implements docs/cli.md, "torus gc".
"""

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torus.cli.parser import Verbs, add_command, add_data_dir
from torus.cli.session import Session
from torus.cli.sizes import format_size, parse_seconds
from torus.clock import SystemClock
from torus.errors import Busy, Interrupted, TorusError, UsageError
from torus.limits import GC_TARGET_PERCENT
from torus.metadata.base import MetadataStore
from torus.volume.catalog import Catalog

if TYPE_CHECKING:
    from torus.daemon.collection import Wanted

_INTERVAL = "60s"


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus gc`."""
    parser = add_command(
        verbs,
        noun,
        summary,
        run_gc,
        description="Free what overwriting and trimming left behind.  What still lives in chunks "
        "that are mostly garbage is written again, then they are freed; what a snapshot needs "
        "stays.  Attached volumes are collected by their owner, which does so by itself when it "
        "is worth it; for detached ones this is the way.  A volume that is busy is skipped; the "
        "exit code is 75 then.",
        examples=(
            ("what would it free?", "torus gc --dry-run"),
            ("one volume, thoroughly", "torus gc disk --target 0.9"),
            ("make sequential reading fast again", "torus gc disk --defragment"),
            ("all detached volumes, for ever", "torus gc --watch"),
        ),
    )
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", help="volumes (default all)")
    add("--dry-run", action="store_true", help="only say what would be done")
    enough = f"{GC_TARGET_PERCENT / 100:.2f}"
    add("--target", metavar="SHARE", help=f"live part of the log to reach (default {enough})")
    add("--defragment", action="store_true", help="write everything anew, in order of addresses")
    add("--watch", action="store_true", help="look again and again, until interrupted")
    add("--interval", metavar="TIME", help=f"between two looks of --watch (default {_INTERVAL})")
    add_data_dir(parser)


def run_gc(arguments: argparse.Namespace, session: Session) -> int:
    """Collect once, or with --watch again and again."""
    wanted = _wanted(arguments)
    if arguments.interval is not None and not arguments.watch:
        raise UsageError("--interval goes with --watch")
    interval_s = parse_seconds(arguments.interval or _INTERVAL, "--interval")
    with session.metadata() as store:
        while True:
            documents = _collect_all(arguments.names, store, session, wanted)
            _show(session, documents)
            if not arguments.watch:
                return max((int(one["exit_code"]) for one in documents), default=0)
            time.sleep(interval_s)


def _show(session: Session, documents: list[dict[str, Any]]) -> None:
    session.output.show({"gc": documents}, lambda: _render(session, documents))
    session.output.flush()


def _wanted(arguments: argparse.Namespace) -> "Wanted":
    from torus.daemon.collection import Wanted

    if arguments.defragment and (arguments.dry_run or arguments.target is not None):
        raise UsageError("--defragment moves everything: it goes with no --dry-run or --target")
    if arguments.target is None:
        return Wanted(dry_run=arguments.dry_run, defragment=arguments.defragment)
    try:
        target = float(arguments.target)
    except ValueError:
        target = 0.0
    if not 0 < target <= 1:
        raise UsageError(
            f"--target {arguments.target!r} is no share between 0 and 1", hint="write it like 0.7"
        )
    return Wanted(target=target, dry_run=arguments.dry_run)


def _collect_all(
    names: list[str], store: MetadataStore, session: Session, wanted: "Wanted"
) -> list[dict[str, Any]]:
    catalog = Catalog(store, SystemClock())
    chosen = [catalog.get(name).spec.name for name in dict.fromkeys(names)]
    if not names:
        chosen = [one.spec.name for one in catalog.list() if one.spec.state == "ready"]
    return [_collect(name, catalog, store, session, wanted) for name in chosen]


def _collect(
    name: str, catalog: Catalog, store: MetadataStore, session: Session, wanted: "Wanted"
) -> dict[str, Any]:
    """Return what became of one volume; a refusal is part of the result."""
    from torus.cli.progress import ProgressLine
    from torus.daemon.collection import Outcome, collect

    with ProgressLine(f"collecting {name}", session.environment) as progress:
        try:
            outcome = collect(catalog, session.common(), name, wanted, progress, store)
        except Interrupted:
            raise
        except TorusError as exc:
            state = "skipped" if isinstance(exc, Busy) else "failed"
            nothing = asdict(Outcome(problem=exc.message))
            return {"volume": name, "state": state, "exit_code": exc.exit_code, **nothing}
    state = "planned" if wanted.dry_run else "ended early" if outcome.problem else "collected"
    return {"volume": name, "state": state, "exit_code": int(bool(outcome.problem)),
            **asdict(outcome)}  # fmt: skip


def _render(session: Session, documents: list[dict[str, Any]]) -> None:
    output = session.output
    if not documents:
        output.note("no volumes")
        return
    output.table(
        ("VOLUME", "STATE", ">LIVE", ">AFTER", ">CHUNKS", ">AFTER", ">MOVED", ">FREED"),
        [
            (
                one["volume"],
                one["state"],
                f"{one['utilisation_before']:.0%}",
                f"{one['utilisation_after']:.0%}",
                str(one["chunks_before"]),
                str(one["chunks_after"]),
                format_size(one["moved_bytes"]),
                format_size(max(one["freed_bytes"], 0)),
            )
            for one in documents
        ],
    )
    for one in documents:
        if one["problem"]:
            output.warning(f"volume {one['volume']!r}: {one['problem']}")
