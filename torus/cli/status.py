"""`torus status`: is all well, and if not, what is not.

Decides what counts as well.  The facts are the registrations' and the running nodes' own.

Implements docs/cli.md, "torus status".
"""

import argparse
import time
from typing import Any

from torus.cli.instants import iso_instant
from torus.cli.nodes import NodeView, node_views
from torus.cli.parser import Verbs, add_command
from torus.cli.scrub import scrub_of, summary_document, summary_line
from torus.cli.session import Session
from torus.cli.sizes import format_seconds, format_size
from torus.cli.space import space_text
from torus.clock import SystemClock
from torus.config import is_shared
from torus.errors import DiskFailed, Unavailable
from torus.metadata.base import MetadataStore
from torus.metadata.keys import CLUSTER
from torus.metadata.schema import Cluster
from torus.volume.catalog import Catalog
from torus.volume.owner import is_alive

_WATCH_S = 2.0


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus status`."""
    parser = add_command(
        verbs,
        noun,
        summary,
        run_status,
        description="Show whether nodes, disks, metadata and volumes are well.  The exit code is "
        "0 when they are, 69 when a node is not running or does not answer or the metadata store "
        "is away, 74 when a disk has failed, 1 for everything else.",
        examples=(("for a monitor", "torus status -o json"), ("live", "torus status --watch")),
    )
    parser.add_argument(
        "--watch", action="store_true", help="show it again every 2 seconds, until Ctrl-C"
    )


def run_status(arguments: argparse.Namespace, session: Session) -> int:
    """Gather, judge and show."""
    if not arguments.watch:
        return _show(session)
    code = 0
    try:
        while True:
            session.output.clear()
            code = _show(session)
            session.output.flush()
            time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        return code


def _show(session: Session) -> int:
    common = session.common()
    if is_shared(common.meta_url):
        from torus.cli.status_cluster import gather_cluster, render_cluster

        document, render = gather_cluster(common), render_cluster
    else:
        with session.metadata() as store:
            document, render = gather(store), _render
    code = document.pop("exit_code")
    shown = dict(document)
    if shown["scrub"] is not None:
        shown["scrub"] = summary_document(shown["scrub"])
    session.output.show(shown, lambda: render(session, document))
    return int(code)


def gather(store: MetadataStore) -> dict[str, Any]:
    """Return the whole status as its JSON form, with the exit code that it means."""
    entry = store.get(CLUSTER)
    cluster = None if entry is None else Cluster.from_bytes(entry.value, entry.key)
    views = node_views(store, ask=True)
    owners = [volume.head.owner for volume in Catalog(store, SystemClock()).list()]
    attached = sum(owner is not None and is_alive(owner) is not False for owner in owners)
    problems, code = _judge(views)
    return {
        "healthy": not problems,
        "problems": problems,
        "cluster": None if cluster is None else cluster.cluster_id,
        "metadata_ok": all((view.status or {}).get("metadata_ok", True) for view in views),
        "volumes": {"count": len(owners), "attached": attached},
        "scrub": scrub_of(view.status for view in views),
        "nodes": [_node_document(view) for view in views],
        "exit_code": code,
    }


def _judge(views: tuple[NodeView, ...]) -> tuple[list[str], int]:
    """Return what is wrong, as sentences, and the exit code of the worst of it."""
    problems: list[str] = []
    code = 0
    if not views:
        return ["no node is running"], Unavailable.exit_code
    for view in views:
        name = f"node {view.node.node_id}"
        if view.alive is False:
            problems.append(f"{name} is not running")
            code = code or Unavailable.exit_code
        elif view.status is None:
            reason = view.problem or f"it runs on {view.node.host} and cannot be asked from here"
            problems.append(f"{name} does not answer: {reason}")
            code = code or Unavailable.exit_code
        else:
            problems += [f"{name}: {problem}" for problem in view.status.get("problems", ())]
            if view.status.get("disk_failed"):
                problems.append(f"{name}: its disk has failed and takes no more data")
                code = DiskFailed.exit_code
            if view.status.get("metadata_ok") is False:
                problems.append(f"{name} cannot reach the metadata store")
                code = code or Unavailable.exit_code
            code = code or (1 if view.status.get("problems") else 0)
    return problems, code


def _node_document(view: NodeView) -> dict[str, Any]:
    node = view.node
    return {
        "node": node.node_id,
        "host": node.host,
        "pid": node.pid,
        "running": view.alive,
        "since": iso_instant(node.since_ns),
        "data_dirs": list(node.data_dirs),
        "nbd": list(node.nbd_addresses),
        "http": node.http_address,
        "size_bytes": node.size_bytes,
        "status": view.status,
    }


def _render(session: Session, document: dict[str, Any]) -> None:
    volumes = document["volumes"]
    pairs = [
        ("health", "ok" if document["healthy"] else "NOT OK"),
        *(("", problem) for problem in document["problems"]),
        ("cluster", document["cluster"] or "none yet"),
        ("metadata", "ok" if document["metadata_ok"] else "NOT reachable from a node"),
        ("volumes", f"{volumes['count']}, {volumes['attached']} of them attached"),
    ]
    if document["scrub"] is not None:
        pairs.append(("scrub", summary_line(document["scrub"])))
    for node in document["nodes"]:
        pairs += _node_lines(node)
    session.output.fields(pairs)


def _node_lines(node: dict[str, Any]) -> list[tuple[str, str]]:
    running = {True: f"running, pid {node['pid']}", False: "not running", None: "not known"}
    lines = [
        ("node", f"{node['node']} on {node['host']}: {running[node['running']]}"),
        ("  data", ", ".join(node["data_dirs"])),
        ("  nbd", ", ".join(node["nbd"]) or "none"),
    ]
    status = node["status"]
    if status is None:
        return [*lines, ("  pool", format_size(node["size_bytes"]))]
    return [
        *lines,
        ("  up", format_seconds(float(status["uptime_s"]))),
        (
            "  pool",
            f"{format_size(status['pool_bytes'])}: {format_size(status['used_bytes'])} used, "
            f"{format_size(status['trash_bytes'])} trash, "
            f"{format_size(status['free_bytes'])} free, "
            f"{format_size(status['reserve_bytes'])} in reserve",
        ),
        ("  disk", "FAILED" if status["disk_failed"] else "ok"),
        ("  clients", f"{status['connections']} connections"),
        ("  shards", f"computed by {status.get('erasure') or 'nobody'}"),
        *(("  volume", _volume_line(volume)) for volume in status["volumes"]),
    ]


def _volume_line(volume: dict[str, Any]) -> str:
    return f"{volume['name']}: {space_text(volume)}"
