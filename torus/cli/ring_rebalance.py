"""`torus ring rebalance`: how far data has moved to where the ring wants it.

Decides how that is shown.  The facts are the nodes' own.

Implements docs/cli.md, "torus ring rebalance".
"""

import argparse
from typing import TYPE_CHECKING, Any

from torus.cli.parser import Verbs, add_command
from torus.cli.session import Session
from torus.cli.sizes import format_seconds, format_size, parse_seconds
from torus.errors import UsageError

if TYPE_CHECKING:
    from torus.daemon.rebalance import ClusterState, DiskState

_INTERVAL = "2s"


def declare(verbs: Verbs) -> None:
    """Add `torus ring rebalance`."""
    parser = add_command(
        verbs,
        "rebalance",
        "show how far data has moved to where the ring wants it; pause it, go on",
        run_rebalance,
        description="Show what each disk has still to pull, and what it has too much.  Data moves "
        "by itself: each disk pulls what it should have and gives up what others have to have.  "
        "The exit code is 0 when everything lies where the ring wants it, 75 when it does not yet.",
        examples=(
            ("until it is done", "torus ring rebalance --watch"),
            ("what would be moved?", "torus ring rebalance --dry-run"),
            ("not during the day", "torus ring rebalance --pause"),
        ),
    )
    add = parser.add_argument
    add("--watch", action="store_true", help="show it again and again, until it is done")
    add("--interval", metavar="TIME", help=f"between two looks of --watch (default {_INTERVAL})")
    add("--dry-run", action="store_true", help="only show what is to be moved; also while paused")
    add("--pause", action="store_true", help="let no data move from now on")
    add("--resume", action="store_true", help="let data move again")


def run_rebalance(arguments: argparse.Namespace, session: Session) -> int:
    """Pause, go on, show."""
    from torus.daemon.command import run_command

    if arguments.pause and arguments.resume:
        raise UsageError("--pause and --resume contradict each other")
    if arguments.dry_run and (arguments.watch or arguments.pause or arguments.resume):
        raise UsageError("--dry-run goes alone")
    if arguments.interval is not None and not arguments.watch:
        raise UsageError("--interval goes with --watch")
    interval_s = parse_seconds(arguments.interval or _INTERVAL, "--interval")
    if arguments.pause or arguments.resume:
        from torus.daemon.rebalance import set_paused

        with session.metadata() as store:
            set_paused(store, paused=bool(arguments.pause))
        session.output.note("paused: no data moves" if arguments.pause else "data moves again")
    work = _show(session, interval_s if arguments.watch else None)
    return run_command(session.common(), work)


async def _show(session: Session, interval_s: float | None) -> int:
    import asyncio  # only now: 80 ms that completing a word must not cost

    from torus.daemon.rebalance import Watching

    async with Watching(session.common()) as watching:
        while True:
            state = await watching.look()
            document = document_of(state)
            session.output.show({"rebalance": document}, lambda: _render(session, state))  # noqa: B023
            session.output.flush()
            if interval_s is None or state.settled:
                return 0 if state.settled else 75
            await asyncio.sleep(interval_s)


def document_of(state: "ClusterState") -> dict[str, Any]:
    """Return the JSON form."""
    return {
        "ring": state.head.version,
        "paused": state.head.paused,
        "frozen": state.head.frozen,
        "settled": state.settled,
        "lacking_bytes": {str(copies): count for copies, count in state.lacking().items()},
        "degraded_bytes": {str(copies): count for copies, count in state.degraded().items()},
        "moving_bytes": state.total("moving_bytes"),
        "pending_bytes": state.total("pending_bytes"),
        "doubtful_bytes": state.total("doubtful_bytes"),
        "surplus_bytes": state.total("surplus_bytes"),
        "suspect_chunks": state.total("suspect_chunks"),
        "damaged_chunks": state.total("damaged_chunks"),
        "unknown_chunks": state.total("unknown_chunks"),
        "rate_bytes": state.total("rate_bytes"),
        "seconds_left": state.seconds_left,
        "disks": [_disk_document(one) for one in state.disks],
    }


def _disk_document(one: "DiskState") -> dict[str, Any]:
    return {
        "disk": one.place.disk_id,
        "node": one.place.node_id,
        "host": one.place.host,
        "problem": one.problem,
        **({} if one.report is None else one.report),
    }


def _render(session: Session, state: "ClusterState") -> None:
    output = session.output
    rows = []
    for one in state.disks:
        report = one.report
        name = (one.place.node_id[:12], one.place.disk_id[:12])
        if report is None:
            rows.append((*name, one.problem, "-", "-", "-", "-", "-"))
            continue
        left = report["seconds_left"]
        lacking = int(report["pending_bytes"]) - int(report["moving_bytes"])
        rows.append(
            (
                *name,
                str(report["state"]),
                format_size(lacking),
                format_size(int(report["moving_bytes"])),
                format_size(int(report["surplus_bytes"])),
                f"{format_size(int(report['rate_bytes']))}/s",
                "-" if left is None or not report["pending_bytes"] else format_seconds(left),
            )
        )
    columns = ("NODE", "DISK", "STATE", ">LACKS", ">MOVES IN", ">TOO MUCH", ">RATE", ">LEFT")
    output.table(columns, rows)
    output.line(_sentence(state))
    for one in state.disks:
        if one.report is not None and one.report["last_error"] and not one.report["settled"]:
            output.warning(f"disk {one.place.disk_id}: {one.report['last_error']}")


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count} copies"


def _sentence(state: "ClusterState") -> str:
    """Return how it stands, in a line."""
    parts = [f"ring version {state.head.version}"]
    if state.head.paused:
        parts.append("PAUSED")
    if state.head.frozen:
        parts.append(f"FROZEN: {state.head.frozen}")
    for copies, count in state.degraded().items():
        parts.append(f"{format_size(count)} with {_copies(copies)} on disks that are up")
    for copies, count in state.lacking().items():
        parts.append(f"{format_size(count)} with {_copies(copies)} left")
    if state.total("pending_bytes"):
        seconds = state.seconds_left
        left = "time left unknown" if seconds is None else f"{format_seconds(seconds)} left"
        parts.append(f"{format_size(state.total('pending_bytes'))} to move, {left}")
    shares = [one.report.get("moving_share", 0.0) for one in state.disks if one.report is not None]
    if slowed := [share for share in shares if 0.0 < share < 1.0]:
        parts.append(f"what moves goes at {min(slowed):.0%} of its rate: clients come first")
    if state.total("damaged_chunks"):
        parts.append(f"{state.total('damaged_chunks')} chunks DAMAGED in all copies")
    if state.settled:
        parts.append("everything lies where the ring wants it")
    return "; ".join(parts)
