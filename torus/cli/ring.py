"""`torus ring show|history|diff|simulate|set`: which disks own which part of the data.

Decides what is shown of a ring.  `torus ring rebalance`, which shows how far data has followed,
is `torus.cli.ring_rebalance`'s; `torus ring simulate` is `torus.cli.ring_simulate`'s.

Implements docs/cli.md, "torus ring show" and its neighbours.
"""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torus.cli import ring_rebalance, ring_simulate
from torus.cli.instants import iso_instant
from torus.cli.parser import Parser, Verbs, add_command, add_noun
from torus.cli.session import Session
from torus.clock import SystemClock
from torus.errors import UsageError

if TYPE_CHECKING:
    from torus.metadata.schema import RingHead
    from torus.ring.diff import Difference
    from torus.ring.table import Ring

HASHINGS = ("partitioned", "ketama", "rendezvous")


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus ring`."""
    _, below = add_noun(verbs, noun, summary)
    show = add_command(
        below, "show", "show the ring: its disks and their shares", run_show,
        description="Show the disks of the ring that holds, or of an older version, with the part "
        "of all copies that each of them owns and the part that would be fair.",
        examples=(
            ("the ring that holds", "torus ring show"),
            ("owners of every slot, for a program", "torus ring show --slots -o json"),
        ),
    )  # fmt: skip
    show.add_argument("--version", dest="ring_version", metavar="N", help="an older version")
    show.add_argument("--slots", action="store_true", help="list the owners of all 65536 slots")
    _add_copies(show)
    add_command(
        below, "history", "list the versions of the ring that are kept", run_history,
        description="List the versions of the ring, and why each was made.  A version is kept "
        "while data that was written under it may lie where it says.",
        examples=(("why did data move?", "torus ring history"),),
    )  # fmt: skip
    diff = add_command(
        below, "diff", "show what moves between two versions", run_diff,
        description="Show how many copies move from one version of the ring to another, which "
        "disks get and give them, and how many had to move at least.",
        examples=(("from version 3 to version 4", "torus ring diff 3 4"),),
    )  # fmt: skip
    diff.add_argument("old", metavar="A", help="the older version")
    diff.add_argument("new", metavar="B", help="the newer version")
    diff.add_argument("--slots", action="store_true", help="list the slots whose owners change")
    _add_copies(diff)
    ring_simulate.declare(below)
    change = add_command(
        below, "set", "pause data movement, freeze the ring, choose another hashing", run_set,
        description="Say how the ring behaves.  Paused: data does not follow the ring for now, "
        "losses are not repaired either.  Frozen: the ring is not changed by itself, whoever "
        "comes or goes.",
        examples=(
            ("not during the day", "torus ring set --pause"),
            ("before work on a switch", "torus ring set --freeze switch-3-is-replaced"),
            ("another hashing: nearly all data moves", "torus ring set --hashing rendezvous"),
        ),
    )  # fmt: skip
    _add_set_options(change)
    ring_rebalance.declare(below)


def _add_copies(parser: Parser) -> None:
    parser.add_argument(
        "--copies", metavar="R", help="for volumes with so many copies (default 3, or all nodes)"
    )


def _add_set_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--pause", action="store_true", help="let no data move from now on")
    add("--resume", action="store_true", help="let data move again")
    add("--freeze", metavar="REASON", help="let the ring not be changed by itself")
    add("--unfreeze", action="store_true", help="end a freeze by --freeze")
    add("--hashing", choices=HASHINGS, help="how slots find their owners")


def run_show(arguments: argparse.Namespace, session: Session) -> int:
    """Show one version."""
    from torus.daemon.rings import ring_head, stored_ring

    version = _number(arguments.ring_version, "--version")
    with session.metadata() as store:
        head, _ = ring_head(store)
        stored = stored_ring(store, head.version if version is None else version)
    ring = stored.ring
    copies = _copies(arguments.copies, ring)
    document = {
        "version": ring.version,
        "is_current": ring.version == head.version,
        "created": iso_instant(stored.created_ns),
        "reason": stored.reason,
        "hashing": ring.hashing,
        "paused": head.paused,
        "frozen": head.frozen,
        "copies": copies,
        "members": _members(ring, copies),
    }
    if arguments.slots:
        document["slots"] = _slots(ring, copies)
    session.output.show({"ring": document}, lambda: _render_show(session, document, head))
    return 0


def _members(ring: "Ring", copies: int) -> list[dict[str, Any]]:
    from torus.ring.share import fair_shares
    from torus.ring.table import SLOTS

    places = copies * SLOTS
    fair = fair_shares(ring.members, copies, SLOTS << 16)
    return [
        {
            "disk_id": member.disk_id,
            "node_id": member.node_id,
            "zone": member.zone,
            "weight": member.weight,
            "slots": load,
            "share": load / places,
            "fair_share": share / (places << 16),
        }
        for member, load, share in zip(ring.members, ring.loads(copies), fair, strict=True)
    ]


def _slots(ring: "Ring", copies: int) -> list[list[str]]:
    from torus.ring.table import SLOTS

    return [[one.disk_id for one in ring.order(slot, copies)] for slot in range(SLOTS)]


def _render_show(session: Session, document: dict[str, Any], head: "RingHead") -> None:
    output = session.output
    if "slots" in document:
        for slot, owners in enumerate(document["slots"]):
            output.line(f"{slot} {' '.join(owners)}")
        return
    state = "holds now" if document["is_current"] else f"version {head.version} holds now"
    output.line(
        f"ring version {document['version']}, {state}: {document['hashing']}, "
        f"made {document['created']}: {document['reason']}"
    )
    output.table(
        ("DISK", "NODE", "ZONE", ">WEIGHT", ">SLOTS", ">SHARE", ">FAIR"),
        [
            (
                one["disk_id"],
                one["node_id"],
                one["zone"] or "-",
                str(one["weight"]),
                str(one["slots"]),
                f"{one['share']:.2%}",
                f"{one['fair_share']:.2%}",
            )
            for one in document["members"]
        ],
    )
    if head.paused:
        output.warning("data does not move: paused by an operator (torus ring set --resume)")
    if head.frozen:
        output.warning(f"the ring is not changed by itself: {head.frozen}")


def run_history(arguments: argparse.Namespace, session: Session) -> int:
    """List the versions that are kept."""
    from torus.daemon.rings import history, ring_head

    with session.metadata() as store:
        head, _ = ring_head(store)
        kept = history(store)
    documents = [
        {
            "version": one.ring.version,
            "is_current": one.ring.version == head.version,
            "created": iso_instant(one.created_ns),
            "hashing": one.ring.hashing,
            "disks": len(one.ring.members),
            "weight": sum(member.weight for member in one.ring.members),
            "reason": one.reason,
        }
        for one in kept
    ]

    def render() -> None:
        session.output.table(
            (">VERSION", "CREATED", "HASHING", ">DISKS", ">WEIGHT", "REASON"),
            [
                (
                    f"{'*' if one['is_current'] else ''}{one['version']}",
                    str(one["created"]),
                    str(one["hashing"]),
                    str(one["disks"]),
                    str(one["weight"]),
                    str(one["reason"]),
                )
                for one in documents
            ],
        )

    session.output.show({"rings": documents}, render)
    return 0


def run_diff(arguments: argparse.Namespace, session: Session) -> int:
    """Show what moves between two versions."""
    from torus.daemon.rings import ring_at
    from torus.ring.diff import changes, difference

    versions = [_number(text, "version") for text in (arguments.old, arguments.new)]
    with session.metadata() as store:
        old, new = (ring_at(store, version or 0) for version in versions)
    copies = _copies(arguments.copies, new)
    found = difference(old, new, copies)
    document = {"from": old.version, "to": new.version, **difference_document(found)}
    if arguments.slots:
        document["changes"] = [
            {"slot": one.slot, "joining": one.joining, "leaving": one.leaving}
            for one in changes(old, new, copies)
        ]
    session.output.show({"diff": document}, lambda: _render_diff(session, document))
    return 0


def difference_document(found: "Difference") -> dict[str, Any]:
    """Return the JSON form of a difference."""
    from torus.ring.table import SLOTS

    return {
        "copies": found.copies,
        "slots": found.slots,
        "moved": found.moved,
        "moved_share": found.moved_share,
        "optimum": found.optimum,
        "optimum_share": found.optimum / (found.copies * SLOTS),
        "excess": found.excess if found.optimum else None,
        "most_at_once": found.most_at_once,
        "received": dict(found.received),
        "given": dict(found.given),
    }


def _render_diff(session: Session, document: dict[str, Any]) -> None:
    output = session.output
    excess = "" if document["excess"] is None else f", {document['excess']:.3f} times the least"
    output.line(
        f"from version {document['from']} to {document['to']}, {document['copies']} copies: "
        f"{document['moved_share']:.2%} of all copies move{excess}"
    )
    disks = sorted({*document["received"], *document["given"]})
    if disks:
        output.table(
            ("DISK", ">GETS", ">GIVES"),
            [
                (
                    disk,
                    str(document["received"].get(disk, 0)),
                    str(document["given"].get(disk, 0)),
                )
                for disk in disks
            ],
        )
    for one in document.get("changes", ()):
        gone, come = " ".join(one["leaving"]), " ".join(one["joining"])
        output.line(f"{one['slot']}  {gone or '-'}  ->  {come or '-'}")


def run_set(arguments: argparse.Namespace, session: Session) -> int:
    """Change what the head of the ring says, or the hashing."""
    from torus.daemon.rings import change_head, set_hashing

    _check_set(arguments)
    with session.metadata() as store:
        if arguments.hashing is not None:
            set_hashing(store, arguments.hashing, SystemClock().wall_ns())
        head = change_head(store, lambda present: _changed(present, arguments))
    document = {"version": head.version, "paused": head.paused, "frozen": head.frozen}

    def render() -> None:
        moves = "data does not move" if head.paused else "data moves"
        frozen = f"the ring is frozen: {head.frozen}" if head.frozen else "the ring changes"
        session.output.line(f"ring version {head.version}: {moves}, {frozen}")

    session.output.show({"ring": document}, render)
    return 0


def _check_set(arguments: argparse.Namespace) -> None:
    if arguments.pause and arguments.resume:
        raise UsageError("--pause and --resume contradict each other")
    if arguments.freeze is not None and arguments.unfreeze:
        raise UsageError("--freeze and --unfreeze contradict each other")
    given = (arguments.pause, arguments.resume, arguments.unfreeze, arguments.freeze is not None)
    if not any(given) and arguments.hashing is None:
        raise UsageError("nothing to set", hint="see 'torus ring set --help'")


def _changed(head: "RingHead", arguments: argparse.Namespace) -> "RingHead":
    from torus.daemon.rings import BY_OPERATOR, is_frozen_by_operator

    if arguments.pause or arguments.resume:
        head = replace(head, paused=arguments.pause)
    if arguments.freeze is not None:
        head = replace(head, frozen=f"{BY_OPERATOR}: {arguments.freeze}")
    elif arguments.unfreeze and head.frozen:
        if not is_frozen_by_operator(head):
            raise UsageError(
                f"the ring froze by itself: {head.frozen}",
                hint="it ends when the disks are back; if they never will: torus node remove",
            )
        head = replace(head, frozen="")
    return head


def _number(text: str | None, what: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 32):
        raise UsageError(f"{what} {text!r} is no version of a ring: they count from 1")
    return int(text)


def _copies(text: str | None, ring: "Ring") -> int:
    """Return for how many copies a ring is shown."""
    nodes = len({member.node_id for member in ring.members})
    if text is None:
        return min(3, nodes)
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= nodes):
        raise UsageError(f"--copies {text!r} cannot be: this ring has 1 to {nodes} places for them")
    return int(text)
