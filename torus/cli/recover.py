"""`torus recover`: make lost or damaged metadata anew from the copies in the log.

Decides how the result is shown, and that a cluster's is shown before it is written; recovering
is `torus.daemon.offline`'s.

Implements docs/cli.md, "torus recover".
"""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from torus.cli.output import Output
from torus.cli.parser import Verbs, add_command
from torus.cli.progress import ProgressLine
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.errors import Corruption
from torus.metadata.etcd_url import is_etcd

if TYPE_CHECKING:
    from torus.daemon.reports import RecoverReport


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus recover`."""
    parser = add_command(
        verbs,
        noun,
        summary,
        run_recover,
        description="Make lost or damaged metadata anew from the copies that the log holds.  The "
        "node must be stopped.  A damaged store is kept beside the new one, never deleted; the "
        "data directory is only read.  For a cluster whose etcd is lost the data directories of "
        "all its nodes are named at once; what would be written is shown, and with --write it "
        "is, into a store that is empty.",
        examples=(
            ("after the SQLite file was lost", "torus recover"),
            (
                "what a cluster's disks, all mounted here, tell",
                "torus recover --data-dir /mnt/a --data-dir /mnt/b --data-dir /mnt/c",
            ),
            (
                "the same, into an empty etcd",
                "torus recover --write --meta etcd://h1:2379/torus --data-dir /mnt/a --data-dir "
                "/mnt/b --data-dir /mnt/c",
            ),
        ),
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", action="append",
        help="a node's segments (default TORUS_HOME/data); again for each of a cluster",
    )  # fmt: skip
    parser.add_argument(
        "--write", action="store_true", help="of a cluster: fill the empty store at --meta"
    )
    parser.add_argument(
        "--partial", action="store_true",
        help="write although volumes are damaged or cannot be recovered",
    )  # fmt: skip


def run_recover(arguments: argparse.Namespace, session: Session) -> int:
    """Recover and show which volumes are known again."""
    config = session.common()
    from torus.daemon.offline import recover, recover_cluster

    data_dirs = session.paths("data-dir") or (config.data_dir,)
    cluster = len(data_dirs) > 1 or is_etcd(config.meta_url)
    with ProgressLine("reading the log", session.environment) as progress:
        if cluster:
            report = recover_cluster(
                data_dirs, config.meta_url, progress,
                write=arguments.write, partial=arguments.partial,
            )  # fmt: skip
        else:
            report = recover(data_dirs[0], config.meta_url, progress)
    document = {"ok": report.ok, **dataclasses.asdict(report)}

    def render() -> None:
        _render(report, session.output, write=arguments.write)

    session.output.show({"recover": document}, render)
    done = report.ok or (report.written and arguments.partial)
    return 0 if done else Corruption.exit_code


def _render(report: "RecoverReport", output: Output, *, write: bool) -> None:
    if report.disks:
        output.table(
            ("DISK", "NODE", ">CHUNKS", ">SHARDS", "DATA DIRECTORY"),
            [
                (one.disk_id, one.node_id, str(one.chunks), str(one.shards), str(one.data_dir))
                for one in report.disks
            ],
        )
        output.line("")
    if report.volumes:
        output.table(
            ("VOLUME", ">SIZE", ">EPOCH", ">CHUNKS", "OUTCOME"),
            [
                (v.name, format_size(v.size_bytes), str(v.epoch), str(v.chunks), v.outcome)
                for v in report.volumes
            ],
        )
    for note in report.notes:
        output.line(f"note: {note}")
    if report.old_meta_kept_at is not None:
        output.line(f"the damaged metadata store was kept at {report.old_meta_kept_at}")
    output.line(f"{len(report.volumes)} volumes found in {report.data_dir}")
    if report.disks:
        output.line(_done(report, write=write))


def _done(report: "RecoverReport", *, write: bool) -> str:
    if report.written:
        return f"written to {report.meta_url}"
    if write:
        return "nothing was written: name the disks that are missing, or accept that: --partial"
    return f"nothing was written; with --write it goes to {report.meta_url}"
