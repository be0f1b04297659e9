"""`torus recover`: make lost or damaged metadata anew from the copies in the log.

Decides how the result is shown; recovering is `torus.daemon.offline`'s.

Implements docs/cli.md, "torus recover".
"""

import argparse
import dataclasses

from torus.cli.parser import Verbs, add_command, add_data_dir
from torus.cli.progress import ProgressLine
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.errors import Corruption


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus recover`."""
    parser = add_command(
        verbs,
        noun,
        summary,
        run_recover,
        description="Make lost or damaged metadata anew from the copies that the log holds.  The "
        "node must be stopped.  A damaged store is kept beside the new one, never deleted; the "
        "data directory is only read.",
        examples=(("after the SQLite file was lost", "torus recover"),),
    )
    add_data_dir(parser)


def run_recover(arguments: argparse.Namespace, session: Session) -> int:
    """Recover and show which volumes are known again."""
    config = session.common()
    from torus.daemon.offline import recover

    with ProgressLine("reading the log", session.environment) as progress:
        report = recover(config.data_dir, config.meta_url, progress)
    document = {"ok": report.ok, **dataclasses.asdict(report)}

    def render() -> None:
        output = session.output
        if report.volumes:
            output.table(
                ("VOLUME", ">SIZE", ">EPOCH", ">CHUNKS", "OUTCOME"),
                [
                    (
                        one.name,
                        format_size(one.size_bytes),
                        str(one.epoch),
                        str(one.chunks),
                        one.outcome,
                    )
                    for one in report.volumes
                ],
            )
        for note in report.notes:
            output.line(f"note: {note}")
        if report.old_meta_kept_at is not None:
            output.line(f"the damaged metadata store was kept at {report.old_meta_kept_at}")
        output.line(f"{len(report.volumes)} volumes found in {report.data_dir}")

    session.output.show({"recover": document}, render)
    return 0 if report.ok else Corruption.exit_code
