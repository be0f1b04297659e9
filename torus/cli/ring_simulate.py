"""`torus ring simulate`: what a ring would be like, and what a change of it would move.

Decides which members are imagined and what is measured of them.  Nothing is stored.

Implements docs/cli.md, "torus ring simulate".
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from torus.cli.parser import Verbs, add_command
from torus.cli.session import Session
from torus.errors import UsageError

if TYPE_CHECKING:
    from torus.ring.member import RingMember
    from torus.ring.table import Ring

_NODES, _COPIES, _WEIGHTS = 20, 3, "1"
_NODES_MAX, _COPIES_MAX = 4096, 64


def declare(verbs: Verbs) -> None:
    """Add `torus ring simulate`."""
    parser = add_command(
        verbs,
        "simulate",
        "compute a ring that does not exist, and what a change of it would move",
        run_simulate,
        description="Build a ring of imagined nodes, or take the cluster's, and say how even it "
        "is; then change it, and say how much moves and how much had to.  Nothing is stored.",
        examples=(
            ("a large cluster of mixed machines",
             "torus ring simulate --nodes 1000 --zones 5 --weights 4,8,16"),
            ("what would two more nodes move?", "torus ring simulate --current --add 2"),
            ("other hashings", "torus ring simulate --nodes 20 --hashing ketama --remove 1"),
        ),
    )  # fmt: skip
    add = parser.add_argument
    add("--current", action="store_true", help="begin with the cluster's ring")
    add("--nodes", metavar="N", help=f"nodes to begin with (default {_NODES})")
    add("--disks", metavar="N", help="of each node (default 1)")
    add("--zones", metavar="Z", help="that the nodes stand in (default 1)")
    add("--weights", metavar="W,W...", help=f"of disks, dealt out by chance (default {_WEIGHTS})")
    add("--copies", metavar="R", help=f"for volumes with so many copies (default {_COPIES})")
    add("--hashing", choices=("partitioned", "ketama", "rendezvous"),
        help="how slots find their owners (default partitioned)")  # fmt: skip
    add("--add", metavar="N", help="then let so many nodes join")
    add("--remove", metavar="N", help="then let so many nodes be lost")
    add("--drain", metavar="N", help="then let so many nodes leave in order")
    add("--reweigh", metavar="FACTOR", help="then let one node's weight change so")


def run_simulate(arguments: argparse.Namespace, session: Session) -> int:
    """Build, change, measure."""
    from torus.ring.builder import first_ring, stages
    from torus.ring.imagined import evenness

    copies = _whole(arguments.copies, "--copies", _COPIES, _COPIES_MAX)
    began = time.perf_counter()
    ring = (
        _current(arguments, session)
        if arguments.current
        else first_ring(_begin(arguments), arguments.hashing or "partitioned")
    )
    built_s = time.perf_counter() - began
    document: dict[str, Any] = {
        "hashing": ring.hashing,
        "members": len(ring.members),
        "nodes": len({member.node_id for member in ring.members}),
        "zones": len({member.zone for member in ring.members}),
        "build_s": built_s,
        "evenness": [asdict(evenness(ring, r)) for r in sorted({1, min(2, copies), copies})],
        "change": None,
    }
    wanted = _changed(ring.members, arguments)
    if wanted is not None:
        began = time.perf_counter()
        steps = stages(ring, wanted)
        document["change"] = {
            "build_s": time.perf_counter() - began,
            **_change(ring, steps, copies),
        }
    session.output.show({"simulation": document}, lambda: _render(session, document))
    return 0


def _begin(arguments: argparse.Namespace) -> "list[RingMember]":
    from torus.ring.imagined import imagined_members

    nodes = _whole(arguments.nodes, "--nodes", _NODES, _NODES_MAX)
    zones = _whole(arguments.zones, "--zones", 1, nodes)
    disks = _whole(arguments.disks, "--disks", 1, _NODES_MAX // nodes)
    return imagined_members(nodes, zones, _weights(arguments), disks)


def _current(arguments: argparse.Namespace, session: Session) -> "Ring":
    from torus.daemon.rings import current_ring

    for name in ("nodes", "zones", "disks"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} is for an imagined ring: --current has its own")
    with session.metadata() as store:
        ring = current_ring(store)
    return ring if arguments.hashing is None else replace(ring, hashing=arguments.hashing)


def _changed(
    members: "Sequence[RingMember]", arguments: argparse.Namespace
) -> "list[RingMember] | None":
    """Return the members after the change; None when none is asked for."""
    from torus.ring.imagined import imagined_members

    wanted = (arguments.add, arguments.remove, arguments.drain, arguments.reweigh)
    if all(one is None for one in wanted) and not (arguments.current and arguments.hashing):
        return None
    zones = sorted({member.zone for member in members})
    nodes = list(dict.fromkeys(member.node_id for member in members))
    lost = _whole(arguments.remove, "--remove", 0, len(nodes) - 1)
    drained = _whole(arguments.drain, "--drain", 0, len(nodes) - 1 - lost)
    gone, leaving = set(nodes[:lost]), set(nodes[lost : lost + drained])
    changed = [
        replace(member, weight=0) if member.node_id in leaving else member
        for member in members
        if member.node_id not in gone
    ]
    if arguments.reweigh is not None:
        factor = _factor(arguments.reweigh)
        last = nodes[-1]
        changed = [
            replace(one, weight=max(1, round(one.weight * factor))) if one.node_id == last else one
            for one in changed
        ]
    added = _whole(arguments.add, "--add", 0, _NODES_MAX)
    disks = _whole(arguments.disks, "--disks", 1, _NODES_MAX)
    fresh = imagined_members(added, 1, _weights(arguments), disks, first=1 << 20)
    numbers = {node: n for n, node in enumerate(dict.fromkeys(one.node_id for one in fresh))}
    changed += [replace(one, zone=zones[numbers[one.node_id] % len(zones)]) for one in fresh]
    return changed


def _change(old: "Ring", steps: "Sequence[Ring]", copies: int) -> dict[str, Any]:
    from torus.ring.imagined import evenness, total_movement
    from torus.ring.table import SLOTS

    found, moved, most = total_movement(old, steps, copies)
    final = steps[-1] if steps else old
    return {
        "versions": len(steps),
        "moved": found.moved,
        "moved_step_by_step": moved,
        "moved_share": found.moved_share,
        "optimum_share": found.optimum / (copies * SLOTS),
        "excess": found.excess if found.optimum else None,
        "most_at_once": most,
        "evenness": [asdict(evenness(final, r)) for r in sorted({1, min(2, copies), copies})],
    }


def _render(session: Session, document: dict[str, Any]) -> None:
    output = session.output
    output.line(
        f"{document['members']} disks on {document['nodes']} nodes in {document['zones']} zones, "
        f"{document['hashing']}: built in {document['build_s']:.2f} s"
    )
    rows = [("at first", one) for one in document["evenness"]]
    change = document["change"]
    if change is not None:
        rows += [("changed", one) for one in change["evenness"]]
    output.table(
        ("RING", ">COPIES", ">MAX/MEAN", ">MAX/FAIR", ">MIN/FAIR"),
        [
            (
                name,
                str(one["copies"]),
                f"{one['by_weight']:.4f}",
                f"{one['by_share']:.4f}",
                f"{one['least_by_share']:.4f}",
            )
            for name, one in rows
        ],
    )
    if change is not None:
        excess = "" if change["excess"] is None else f", {change['excess']:.3f} times the least"
        output.line(
            f"{change['moved_share']:.3%} of all copies move{excess}; {change['versions']} "
            f"versions, at most {change['most_at_once']} copy of a slot at once, "
            f"computed in {change['build_s']:.2f} s"
        )


def _weights(arguments: argparse.Namespace) -> list[int]:
    text = arguments.weights or _WEIGHTS
    return [_whole(part, "--weights", 1, (1 << 24) - 1) for part in text.split(",")]


def _whole(text: str | None, what: str, default: int, most: int) -> int:
    """Return a number from 1 on, or the default."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= most):
        raise UsageError(f"{what} {text!r} cannot be: a whole number from 1 to {most} can")
    return int(text)


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1000:
        raise UsageError(f"--reweigh {text!r} is no factor", hint="write it like 1.5")
    return factor
