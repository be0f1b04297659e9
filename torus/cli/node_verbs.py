"""`torus node list|info|drain|remove|join|set`: the nodes and disks of a cluster.

Decides how they are shown.  What may be done to them is decided in
`torus.daemon.member_change`.

Implements docs/cli.md, "torus node list" and the following.
"""

import argparse
from typing import TYPE_CHECKING, Any

from torus.cli.disk_options import weight_number, zone_name
from torus.cli.instants import iso_instant
from torus.cli.parser import Parser, add_command
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.clock import SystemClock
from torus.errors import UsageError

if TYPE_CHECKING:
    from torus.daemon.member_change import Change
    from torus.daemon.survey import DiskView, Survey


def declare_verbs(parser: Parser) -> None:
    """Add the verbs below `torus node`, which without one of them runs a node."""
    verbs = parser.add_verbs("verb")
    add_command(
        verbs, "list", "list the nodes and disks of the cluster", run_list,
        examples=(("for a script", "torus node list -o json"),),
    )  # fmt: skip
    info = add_command(
        verbs, "info", "show one node and its disks", run_info,
        examples=(("", "torus node info storage-1"),),
    )  # fmt: skip
    _add_node(info)
    drain = add_command(
        verbs, "drain", "move the data of a node or a disk to others", run_drain,
        description="Take a node or a disk out of the ring: its data moves to the others, and it "
        "serves what it still has meanwhile.  Refused when the others have no room for it, or too "
        "few nodes would be left for the copies of a volume.",
        examples=(("before a machine goes", "torus node drain storage-1"),),
    )  # fmt: skip
    _add_node(drain)
    drain.add_argument("--force", action="store_true", help="drain although it fits nowhere")
    remove = add_command(
        verbs, "remove", "forget a node or a disk for good", run_remove,
        description="Forget a node or a disk that is empty, because it was drained or never "
        "joined, or that is down while others have all copies of what it had. "
        "It cannot come back under its id; an emptied data directory becomes a new disk.",
        examples=(("when it is empty", "torus node remove storage-1"),),
    )  # fmt: skip
    _add_node(remove)
    remove.add_argument(
        "--force",
        action="store_true",
        help="forget what is down now, although some of its chunks have too few copies elsewhere",
    )
    remove.add_argument(
        "--lose-data",
        action="store_true",
        help="with --force: although it may have had the last copy of something",
    )
    join = add_command(
        verbs, "join", "give data to disks that wait, or that were to be drained", run_join,
        examples=(("after 'torus node --no-join'", "torus node join storage-4"),),
    )  # fmt: skip
    _add_node(join)
    shape = add_command(
        verbs, "set", "change the zone or the weight of a node's disks", run_set,
        examples=(
            ("where it stands", "torus node set storage-1 --zone rack-7"),
            ("half of its share", "torus node set storage-1 --weight 500"),
        ),
    )  # fmt: skip
    _add_node(shape)
    shape.add_argument("--zone", metavar="ZONE", help="copies go to distinct zones")
    shape.add_argument("--weight", metavar="N", help="share of the data of each of its disks")


def _add_node(parser: Parser) -> None:
    parser.add_argument(
        "node",
        metavar="NODE",
        nargs="+",
        help="id of a node or a disk, or its beginning, or the host of one node",
    )


# --- showing ----------------------------------------------------------------------------


def run_list(arguments: argparse.Namespace, session: Session) -> int:
    """Show all nodes and disks."""
    survey = _survey(session)
    nodes = [node_document(survey, node_id) for node_id in survey.node_ids()]
    shown = [node for node in nodes if node["up"] or not _is_removed(node)]
    session.output.show({"nodes": nodes}, lambda: _table(session, shown))
    return 0


def run_info(arguments: argparse.Namespace, session: Session) -> int:
    """Show some nodes."""
    from torus.daemon.member_change import chosen

    survey = _survey(session)
    wanted = dict.fromkeys(disk.place.node_id for disk in chosen(survey, arguments.node))
    nodes = [node_document(survey, node_id) for node_id in wanted]
    session.output.show({"nodes": nodes}, lambda: _details(session, nodes))
    return 0


def _survey(session: Session) -> "Survey":
    from torus.daemon.command import run_command
    from torus.daemon.survey import look_around

    common = session.common()
    return run_command(common, look_around(common))


def _is_removed(node: dict[str, Any]) -> bool:
    return all(disk["state"] == "removed" for disk in node["disks"])


def node_document(survey: "Survey", node_id: str) -> dict[str, Any]:
    """Return one node's JSON form."""
    node = survey.nodes.get(node_id)
    disks = survey.disks_of(node_id)
    coordinator = survey.coordinator
    down_ns = min((d.member.down_ns for d in disks if d.member and d.member.down_ns), default=0)
    known = [disk.used_bytes for disk in disks if disk.used_bytes is not None]
    return {
        "node": node_id,
        "host": node.host if node else disks[0].place.host,
        "up": node is not None,
        "since": None if node is None else iso_instant(node.since_ns),
        "down_since": iso_instant(down_ns) if node is None and down_ns else None,
        "version": node.version if node else None,
        "coordinator": coordinator is not None and coordinator.node_id == node_id,
        "peer": None if node is None else node.peer_tcp or node.peer_address,
        "nbd": [] if node is None else list(node.nbd_addresses),
        "http": "" if node is None else node.http_address,
        "erasure": survey.statuses.get(node_id, {}).get("erasure"),
        "used_bytes": sum(known) if known else None,
        "size_bytes": sum(disk.size_bytes for disk in disks),
        "disks": [_disk_document(disk) for disk in disks],
    }


def _disk_document(disk: "DiskView") -> dict[str, Any]:
    member = disk.member
    return {
        "disk": disk.place.disk_id,
        "zone": disk.place.zone,
        "weight": None if member is None else member.weight,
        "state": None if member is None else member.state,
        "reason": "" if member is None else member.reason,
        "state_since": None if member is None else iso_instant(member.since_ns),
        "up": disk.place.up,
        "down_since": iso_instant(member.down_ns) if member and member.down_ns else None,
        "used_bytes": disk.used_bytes,
        "free_bytes": disk.free_bytes,
        "size_bytes": disk.size_bytes,
        "problem": disk.problem,
    }


def _table(session: Session, nodes: list[dict[str, Any]]) -> None:
    columns = ("NODE", "HOST", "DISK", "ZONE", ">WEIGHT", "STATE", "UP", "SINCE", ">USED", ">SIZE",
               "VERSION")  # fmt: skip
    rows = []
    for node in nodes:
        for number, disk in enumerate(node["disks"] or [{}]):
            first = number == 0
            rows.append(
                (
                    node["node"][:12] + ("*" if node["coordinator"] else "") if first else "",
                    node["host"] if first else "",
                    str(disk.get("disk", ""))[:12],
                    disk.get("zone") or "-",
                    str(disk.get("weight") or "-"),
                    disk.get("state") or "-",
                    "up" if disk.get("up") else "DOWN",
                    (node["since"] if disk.get("up") else disk.get("down_since")) or "-",
                    _size(disk.get("used_bytes")),
                    _size(disk.get("size_bytes")),
                    (node["version"] or "-") if first else "",
                )
            )
    session.output.table(columns, rows)
    for node in nodes:
        for disk in node["disks"]:
            if disk["problem"] and disk["state"] != "removed":
                session.output.warning(f"disk {disk['disk']}: {disk['problem']}")


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes)


def _details(session: Session, nodes: list[dict[str, Any]]) -> None:
    for number, node in enumerate(nodes):
        if number:
            session.output.line("")
        up = (
            f"up since {node['since']}" if node["up"] else f"DOWN since {node['down_since'] or '?'}"
        )
        pairs = [
            ("node", node["node"] + (", the coordinator" if node["coordinator"] else "")),
            ("host", node["host"]),
            ("", up),
            ("version", node["version"] or "-"),
            ("peers", node["peer"] or "-"),
            ("nbd", ", ".join(node["nbd"]) or "none"),
            ("shards", f"computed by {node['erasure']}" if node["erasure"] else "-"),
        ]
        for disk in node["disks"]:
            state = disk["state"] or "no member"
            reason = f" ({disk['reason']})" if disk["reason"] else ""
            pairs += [
                ("disk", disk["disk"] + ("" if disk["up"] else ", DOWN")),
                ("  state", f"{state} since {disk['state_since'] or '-'}{reason}"),
                ("  zone", disk["zone"] or "-"),
                ("  weight", str(disk["weight"] or "-")),
                ("  used", f"{_size(disk['used_bytes'])} of {_size(disk['size_bytes'])}"),
                *([("  problem", disk["problem"])] if disk["problem"] else []),
            ]
        session.output.fields(pairs)


# --- changing ---------------------------------------------------------------------------


def run_drain(arguments: argparse.Namespace, session: Session) -> int:
    """Let the data of nodes or disks move to others."""
    from torus.daemon.member_change import chosen, drain

    survey = _survey(session)
    disks = chosen(survey, arguments.node)
    changes = drain(survey, disks, SystemClock().wall_ns(), force=arguments.force)
    return _change(session, changes, "draining: watch it with 'torus node list'")


def run_remove(arguments: argparse.Namespace, session: Session) -> int:
    """Forget nodes or disks."""
    from torus.daemon.command import run_command
    from torus.daemon.last_copies import look_elsewhere
    from torus.daemon.member_change import chosen, remove

    disks = chosen(_survey(session), arguments.node)
    lost = {disk.place.disk_id for disk in disks if disk.used_bytes is None}
    common = session.common()
    elsewhere = run_command(common, look_elsewhere(common, lost)) if lost else None
    changes = remove(
        disks, SystemClock().wall_ns(), elsewhere,
        force=arguments.force, lose_data=arguments.lose_data,
    )  # fmt: skip
    return _change(session, changes, "removed")


def run_join(arguments: argparse.Namespace, session: Session) -> int:
    """Give data to nodes or disks."""
    from torus.daemon.member_change import chosen, join

    changes = join(chosen(_survey(session), arguments.node), SystemClock().wall_ns())
    return _change(session, changes, "in")


def run_set(arguments: argparse.Namespace, session: Session) -> int:
    """Change zone or weight."""
    from torus.daemon.member_change import chosen, set_shape

    if arguments.zone is None and arguments.weight is None:
        raise UsageError("nothing is to be set", hint="give --zone, --weight or both")
    zone = None if arguments.zone is None else zone_name(arguments.zone, "--zone")
    weight = None if arguments.weight is None else weight_number(arguments.weight, "--weight")
    changes = set_shape(chosen(_survey(session), arguments.node), zone=zone, weight=weight)
    return _change(session, changes, "set")


def _change(session: Session, changes: "list[Change]", what: str) -> int:
    """Carry changes out and say so."""
    from torus.daemon.member_change import carry_out

    with session.metadata() as store:
        carry_out(store, changes)
    document = {
        "changed": [
            {
                "disk": change.after.disk_id,
                "node": change.after.node_id,
                "state": change.after.state,
                "zone": change.after.zone,
                "weight": change.after.weight,
            }
            for change in changes
        ]
    }
    session.output.show(document, lambda: None)
    for change in changes:
        session.output.note(f"disk {change.after.disk_id} of node {change.after.node_id}: {what}")
    if not changes:
        session.output.note("nothing to do: it is so already")
    return 0
