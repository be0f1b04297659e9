"""`torus status` of a cluster: nodes, ring, copies, volumes, metadata.

Decides how it is shown, and what is shown while the metadata store is away: what the processes
of this machine say.  What counts as well is decided in `torus.daemon.health`.

Implements docs/cli.md, "torus status".
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torus.cli.node_verbs import node_document
from torus.cli.scrub import scrub_of, summary_line
from torus.cli.session import Session
from torus.cli.sizes import format_seconds, format_size
from torus.config import CommonConfig
from torus.errors import TorusError, Unavailable

if TYPE_CHECKING:
    from torus.daemon.survey import Survey


def gather_cluster(common: CommonConfig) -> dict[str, Any]:
    """Return the status as its JSON form, with the exit code that it means."""
    from torus.daemon.command import run_command
    from torus.daemon.health import judge
    from torus.daemon.survey import look_around

    try:
        survey = run_command(common, look_around(common))
    except Unavailable as exc:
        return _without_metadata(common, exc)
    health = judge(survey)
    return {
        "health": health.state,
        "healthy": not health.problems,
        "problems": list(health.problems),
        "notes": list(health.notes),
        "cluster": survey.cluster.cluster_id,
        "metadata_ok": True,
        "metadata_away_s": None,
        "ring": _ring(survey),
        "upkeep": _upkeep(survey),
        "volumes": _volumes(survey),
        "scrub": scrub_of(survey.statuses.values()),
        "nodes": [_node(survey, node_id) for node_id in survey.node_ids()],
        "exit_code": health.exit_code,
    }


def _ring(survey: "Survey") -> dict[str, Any] | None:
    head, ring = survey.head, survey.ring
    if head is None or ring is None:
        return None
    inside = [member for member in ring.members if member.weight]
    return {
        "version": head.version,
        "disks": len(inside),
        "nodes": len({member.node_id for member in inside}),
        "zones": len({member.zone for member in inside}),
        "paused": head.paused,
        "frozen": head.frozen,
        "coordinator": None if survey.coordinator is None else survey.coordinator.node_id,
    }


def _upkeep(survey: "Survey") -> dict[str, Any]:
    from torus.daemon.health import upkeep_sum

    total: dict[str, Any] = dict(upkeep_sum(survey.upkeep))
    left = total["lacking_bytes"] + total["moving_bytes"]
    total["settled"] = all(document.get("settled") for document in survey.upkeep)
    total["seconds_left"] = left / total["rate_bytes"] if left and total["rate_bytes"] else None
    return total


def _volumes(survey: "Survey") -> dict[str, Any]:
    from torus.redundancy.scheme import parse

    places = [disk.place for disk in survey.disks if disk.place.up and disk.place.state == "in"]
    nodes = len({place.node_id for place in places})
    owned = [volume.head.owner for volume in survey.volumes]
    return {
        "count": len(survey.volumes),
        "attached": sum(owner is not None for owner in owned),
        "degraded": [
            volume.spec.name
            for volume in survey.volumes
            if parse(volume.spec.redundancy).disks_needed > nodes
        ],
    }


def _node(survey: "Survey", node_id: str) -> dict[str, Any]:
    return {**node_document(survey, node_id), "status": survey.statuses.get(node_id)}


def _without_metadata(common: CommonConfig, error: TorusError) -> dict[str, Any]:
    """Return what the processes of this machine say of themselves."""
    statuses = [status for path in _control_sockets(common.home) if (status := _ask(path))]
    problems = [f"the metadata store is away: {error.message}"]
    away_s = None
    for status in statuses:
        problems += [str(problem) for problem in status.get("problems", ())]
        cluster = status.get("cluster") or {}
        away_s = max(filter(None, (away_s, cluster.get("metadata_away_s"))), default=None)
    if not statuses:
        problems.append("no process of this machine can be asked how it is")
    return {
        "health": "degraded" if statuses else "down",
        "healthy": False,
        "problems": problems,
        "notes": [
            "reads, writes and flushes go on; attaching, snapshots, ring changes and deletions wait"
        ],
        "cluster": None,
        "metadata_ok": False,
        "metadata_away_s": away_s,
        "ring": None,
        "upkeep": None,
        "volumes": None,
        "scrub": scrub_of(statuses),
        "nodes": [{"node": status.get("node_id"), "status": status} for status in statuses],
        "exit_code": Unavailable.exit_code,
    }


def _control_sockets(home: Path) -> list[Path]:
    return [*home.glob("peer.sock.ctl"), *sorted((home / "gateways").glob("*.ctl"))]


def _ask(path: Path) -> dict[str, Any] | None:
    from torus.node.control import ask

    try:
        return ask(str(path), {"ask": "status"})
    except TorusError:
        return None  # it has ended, or hangs: the others speak


# --- showing ----------------------------------------------------------------------------


def render_cluster(session: Session, document: dict[str, Any]) -> None:
    """Show a status to people."""
    pairs = [
        ("health", "ok" if document["healthy"] else document["health"].upper()),
        *(("", problem) for problem in document["problems"]),
        *(("note", note) for note in document["notes"]),
        ("cluster", document["cluster"] or "not known"),
        ("metadata", _metadata_line(document)),
    ]
    if document["ring"] is not None:
        ring = document["ring"]
        flags = "".join(f", {word}" for word in ("paused", "frozen") if ring[word])
        pairs.append(
            (
                "ring",
                f"version {ring['version']}: {ring['disks']} disks on {ring['nodes']} nodes in "
                f"{ring['zones']} zones{flags}",
            )
        )
    if document["upkeep"] is not None:
        pairs.append(("copies", _upkeep_line(document["upkeep"])))
    if document["scrub"] is not None:
        pairs.append(("scrub", summary_line(document["scrub"])))
    if document["volumes"] is not None:
        volumes = document["volumes"]
        degraded = f", {len(volumes['degraded'])} degraded" if volumes["degraded"] else ""
        pairs.append(
            ("volumes", f"{volumes['count']}, {volumes['attached']} of them attached{degraded}")
        )
    pairs += [("node", _node_line(node)) for node in document["nodes"]]
    session.output.fields(pairs)


def _metadata_line(document: dict[str, Any]) -> str:
    if document["metadata_ok"]:
        return "ok"
    away_s = document["metadata_away_s"]
    return "AWAY" + (f" since {format_seconds(away_s)}" if away_s else "")


def _upkeep_line(upkeep: dict[str, Any]) -> str:
    parts = [
        f"{format_size(upkeep[key])} {text}"
        for key, text in (
            ("degraded_bytes", "degraded: a disk with a copy is not up"),
            ("lacking_bytes", "under-replicated"),
            ("moving_bytes", "to move"),
            ("surplus_bytes", "to give up"),
        )
        if upkeep[key]
    ]
    if upkeep["damaged_chunks"]:
        parts.append(f"{upkeep['damaged_chunks']} chunks DAMAGED everywhere")
    if upkeep["seconds_left"]:
        rate = format_size(upkeep["rate_bytes"])
        parts.append(f"{format_seconds(upkeep['seconds_left'])} left at {rate}/s")
    return ", ".join(parts) or ("all in place" if upkeep["settled"] else "being looked at")


def _node_line(node: dict[str, Any]) -> str:
    if "disks" not in node:
        return f"{node['node']}: runs on this machine"
    up = (
        "up"
        if node["up"]
        else "DOWN" + (f" since {node['down_since']}" if node["down_since"] else "")
    )
    used = "-" if node["used_bytes"] is None else format_size(node["used_bytes"])
    states = sorted({disk["state"] or "no member" for disk in node["disks"]})
    star = " *" if node["coordinator"] else ""
    return (
        f"{node['node'][:12]}{star} on {node['host']}: {up}, {len(node['disks'])} disks "
        f"({', '.join(states)}), {used} of {format_size(node['size_bytes'])}"
    )
