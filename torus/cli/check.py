"""`torus check`: verify a stopped node's data, reading all of it and changing none.

Decides how findings are shown.  Checking is `torus.daemon.offline`'s.

Implements docs/cli.md, "torus check".
"""

import argparse
import dataclasses
from collections.abc import Sequence

from torus.cli.parser import Verbs, add_command
from torus.cli.progress import ProgressLine
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.daemon.reports import CheckReport, SnapshotCheck, VolumeCheck
from torus.errors import Corruption, TorusError


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus check`."""
    parser = add_command(
        verbs,
        noun,
        summary,
        run_check,
        description="Verify a stopped node's data directories: every record's checksums and "
        "every block that a volume maps.  It reads all and changes nothing.  The exit code is 65 "
        "when data is wrong or missing.",
        examples=(
            ("what the configuration names, or the default store", "torus check"),
            ("another one, for a program", "torus check --data-dir /mnt/torus -o json"),
        ),
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", action="append",
        help="the node's segments (default TORUS_HOME/data); may be given several times",
    )  # fmt: skip


def run_check(arguments: argparse.Namespace, session: Session) -> int:
    """Check and show what was found; a directory that cannot be checked stops no other."""
    config = session.common()
    from torus.daemon.offline import check_store

    reports: list[CheckReport] = []
    failures: list[TorusError] = []
    for data_dir in session.paths("data-dir") or (config.data_dir,):
        with ProgressLine("checking", session.environment) as progress:
            try:
                reports.append(check_store(data_dir, config.meta_url, progress))
            except TorusError as exc:
                failures.append(exc)
    if reports:
        documents = [{"ok": report.ok, **dataclasses.asdict(report)} for report in reports]
        session.output.show(
            {"check": documents[0], "checks": documents}, lambda: _render_all(session, reports)
        )
    if failures:
        raise failures[0]
    return 0 if all(report.ok for report in reports) else Corruption.exit_code


def _render_all(session: Session, reports: Sequence[CheckReport]) -> None:
    for number, report in enumerate(reports):
        if number:
            session.output.line("")
        _render(session, report)


def _render(session: Session, report: CheckReport) -> None:
    output = session.output
    for finding in report.findings:
        output.line(f"{finding.severity}: {finding.where}: {finding.message} [{finding.kind}]")
    if report.findings:
        output.line("")
    rows: list[VolumeCheck | SnapshotCheck] = []
    for volume in report.volumes:
        rows += [volume, *volume.snapshots]
    if rows:
        output.table(
            ("VOLUME", ">SIZE", ">MAPPED", ">VERIFIED", ">FINDINGS"),
            [
                (
                    one.name,
                    format_size(one.size_bytes),
                    format_size(one.mapped_bytes),
                    format_size(one.verified_bytes),
                    str(one.findings),
                )
                for one in rows
            ],
        )
        output.line("")
    output.fields(
        [
            ("data directory", str(report.data_dir)),
            ("segments", f"{report.segments}, {report.slots_free} of {report.slots} slots free"),
            ("chunks", f"{report.chunks} with {report.records} records"),
            *([("shards", str(report.shards))] if report.shards else []),
            ("read", format_size(report.bytes_read)),
            ("torn tails", f"{report.torn_tails} (unflushed ends after a crash: normal)"),
            ("left over", f"{report.left_over} chunks that nothing needs (a node frees them)"),
            ("result", "ok" if report.ok else "DAMAGED"),
        ]
    )
