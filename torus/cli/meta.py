"""`torus meta`: the metadata store itself: its health, its backup, its way into etcd.

Decides what is shown.  Moving is `torus.daemon.migrate`'s.

Implements docs/cli.md, "torus meta".
"""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from torus.cli.parser import Verbs, add_command, add_noun
from torus.cli.progress import ProgressLine
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.clock import SystemClock
from torus.errors import Unavailable, UsageError
from torus.metadata.base import MetadataStore
from torus.metadata.keys import CLUSTER
from torus.metadata.schema import Cluster

_ETCD = "etcd://h1:2379,h2:2379,h3:2379/torus"


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus meta` with its verbs."""
    _, below = add_noun(verbs, noun, summary)
    add_command(
        below, "status", "show the store, its members, size and alarms", run_status,
        description="Show where the metadata is and, with etcd, what each member says of itself.  "
        "The exit code is 69 when no majority of etcd's members answers.",
        examples=(("is etcd well?", f"torus meta status --meta {_ETCD}"),),
    )  # fmt: skip
    moved = add_command(
        below, "migrate", "move this machine's SQLite metadata into etcd", run_migrate,
        description="Move this machine's metadata from SQLite into etcd, so that it can grow into "
        "a cluster; no data is copied.  The node and everything else must be stopped.  An "
        "interrupted move goes on when the same command is run again.  Afterwards the SQLite file "
        "is refused by every torus, with the name of the place where it went.",
        examples=(
            ("move", f"torus meta migrate --to {_ETCD}"),
            ("then start the node with it", f"torus node --meta {_ETCD}"),
        ),
    )  # fmt: skip
    moved.add_argument("--to", metavar="URL", help="etcd://HOST:PORT,HOST:PORT/PREFIX")
    moved.add_argument("--abort", action="store_true", help="take an incomplete move back")
    moved.add_argument("--force", action="store_true",
                       help="processes that may be alive on another host are dead")  # fmt: skip
    out = add_command(
        below, "export", "write all metadata to a file", run_export,
        description="Write all metadata, as it is at one moment, to a new file: the backup of "
        "what etcd or SQLite holds.  It contains the secret by which nodes know each other.",
        examples=(("keep what etcd holds", "torus meta export /backup/meta.jsonl"),),
    )  # fmt: skip
    out.add_argument("file", metavar="FILE")
    back = add_command(
        below, "import", "fill an empty store from such a file", run_import,
        description="Fill an empty store with what 'torus meta export' wrote.  A backup that is "
        "older than what the nodes have seen is refused by them.",
        examples=(("into another etcd", f"torus meta import meta.jsonl --meta {_ETCD}"),),
    )  # fmt: skip
    back.add_argument("file", metavar="FILE")


def run_status(arguments: argparse.Namespace, session: Session) -> int:
    """Show the store."""
    from torus.metadata.etcd_url import is_etcd

    url = session.common().meta_url
    if is_etcd(url):
        return _etcd_status(url, session)
    with session.metadata() as store:
        path = getattr(store, "path", "")
        sizes = [os.stat(path + end).st_size for end in ("", "-wal") if os.path.exists(path + end)]
        document = {
            "backend": url.partition(":")[0],
            "place": url,
            "cluster_id": _cluster_id(store),
            "revision": store.list("names/").revision,
            "db_bytes": sum(sizes),
        }
    pairs = [(name.replace("_", " "), str(value)) for name, value in document.items()]
    pairs[-1] = ("size", format_size(sum(sizes)))
    session.output.show({"meta": document}, lambda: session.output.fields(pairs))
    return 0


def _etcd_status(url: str, session: Session) -> int:
    from torus.metadata.etcd import EtcdMetadata
    from torus.metadata.etcd_status import etcd_status
    from torus.metadata.etcd_url import parse_etcd

    store = EtcdMetadata(parse_etcd(url), SystemClock(), unfinished=True)
    problem = cluster_id = ""
    try:
        try:
            cluster_id = _cluster_id(store)
        except Unavailable as exc:
            problem = exc.message
        found = etcd_status(store)
    finally:
        store.close()
    document: dict[str, Any] = {
        "backend": "etcd",
        "place": store.access.place,
        "cluster_id": cluster_id,
        "problem": problem,
        **dataclasses.asdict(found),
    }
    document["etcd_cluster_id"] = found.cluster_id
    document["cluster_id"] = cluster_id

    def render() -> None:
        output = session.output
        output.fields([("place", store.access.place), ("cluster", cluster_id or "none"),
                       ("alarms", ", ".join(found.alarms) or "none")])  # fmt: skip
        output.table(
            ("MEMBER", "ROLE", "VERSION", ">REVISION", ">TERM", ">SIZE", "PROBLEM"),
            [
                (one.endpoint, "leader" if one.leads else "follower" if one.answers else "away",
                 one.version, str(one.revision), str(one.term), format_size(one.db_bytes),
                 one.problem)
                for one in found.members
            ],
        )  # fmt: skip
        if problem:
            output.warning(problem)

    session.output.show({"meta": document}, render)
    return Unavailable.exit_code if problem else 0


def run_migrate(arguments: argparse.Namespace, session: Session) -> int:
    """Move the metadata into etcd, or take an incomplete move back."""
    from torus.daemon.migrate import abort, migrate

    url = session.common().meta_url
    target = None if arguments.to is None else session.etcd_url(arguments.to)
    if arguments.abort:
        place = abort(url, target, SystemClock())
        session.output.show(
            {"aborted": place}, lambda: session.output.line(f"nothing is at {place} any more")
        )
        return 0
    if target is None:
        raise UsageError("--to is missing", hint=f"torus meta migrate --to {_ETCD}")
    with ProgressLine("moving metadata", session.environment) as progress:
        outcome = migrate(url, target, SystemClock(), progress, force=arguments.force)
    text = "was there already" if outcome.repeated else "moved"
    _show(session, outcome, f"{outcome.entries} entries {text}: start with --meta {outcome.place}")
    return 0


def run_export(arguments: argparse.Namespace, session: Session) -> int:
    """Write the backup."""
    from torus.daemon.migrate import export
    from torus.metadata.etcd import EtcdMetadata
    from torus.metadata.sqlite import SqliteMetadata

    file = Path(arguments.file).absolute()
    with session.metadata() as store:
        if not isinstance(store, EtcdMetadata | SqliteMetadata):
            raise UsageError("there is no store to export: metadata is 'memory:'")
        outcome = export(store, str(file), file, SystemClock())
    _show(session, outcome, f"{outcome.entries} entries written to {file}")
    return 0


def run_import(arguments: argparse.Namespace, session: Session) -> int:
    """Fill an empty store from a backup."""
    from torus.daemon.migrate import restore

    file = Path(arguments.file).absolute()
    with ProgressLine("importing", session.environment) as progress:
        outcome = restore(file, session.common().meta_url, SystemClock(), progress)
    text = "were there already" if outcome.repeated else "imported"
    _show(session, outcome, f"{outcome.entries} entries {text}: {outcome.place}")
    return 0


def _show(session: Session, outcome: Any, text: str) -> None:
    session.output.show({"meta": dataclasses.asdict(outcome)}, lambda: session.output.line(text))


def _cluster_id(store: MetadataStore) -> str:
    entry = store.get(CLUSTER)
    return "" if entry is None else Cluster.from_bytes(entry.value, CLUSTER).cluster_id
