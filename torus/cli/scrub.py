"""`torus scrub`: have running nodes read their data again; how far they are, what they found.

Decides how that is shown.  The facts are the nodes' own.

Implements docs/cli.md, "torus scrub".
"""

import argparse
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torus.cli.instants import iso_instant
from torus.cli.parser import Verbs, add_command
from torus.cli.session import Session
from torus.cli.sizes import format_seconds, format_size, parse_seconds
from torus.errors import Corruption, Unavailable, UsageError
from torus.ids import check_volume_name

if TYPE_CHECKING:
    from torus.daemon.scrub_ask import Scrubbed

_INTERVAL = "2s"


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus scrub`."""
    parser = add_command(
        verbs,
        noun,
        summary,
        run_scrub,
        description="Have every disk of the running nodes look again at what lies on it: headers, "
        "lengths and presence, or with --deep every byte.  What is damaged is repaired from other "
        "copies.  Disks do this by themselves, light every day and deep within two weeks; this "
        "begins it now.  The exit code is 65 when something is beyond repair, 69 when a node does "
        "not answer.",
        examples=(
            ("everything, every byte, until it is done", "torus scrub --deep --watch"),
            ("one volume", "torus scrub vm1 --deep"),
            ("what was found?", "torus scrub --status"),
            ("not during the day", "torus scrub --pause"),
        ),
    )
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", help="volumes (default: all)")
    add("--deep", action="store_true", help="read every byte")
    add("--watch", action="store_true", help="show it again and again, until it is done")
    add("--interval", metavar="TIME", help=f"between two looks of --watch (default {_INTERVAL})")
    add("--status", action="store_true", help="begin nothing, only show")
    add("--pause", action="store_true", help="let no disk of the cluster scrub from now on")
    add("--resume", action="store_true", help="let them scrub again")


def run_scrub(arguments: argparse.Namespace, session: Session) -> int:
    """Give the order, show."""
    from torus.daemon.command import run_command

    orders = [name for name in ("status", "pause", "resume") if getattr(arguments, name)]
    if len(orders) > 1:
        raise UsageError(f"--{orders[0]} and --{orders[1]} contradict each other")
    if orders and (arguments.names or arguments.deep):
        raise UsageError(f"--{orders[0]} goes without names and without --deep")
    if arguments.interval is not None and not arguments.watch:
        raise UsageError("--interval goes with --watch")
    for name in arguments.names:
        check_volume_name(name)
    interval_s = parse_seconds(arguments.interval or _INTERVAL, "--interval")
    work = _scrub(arguments, session, orders[0] if orders else "begin", interval_s)
    return run_command(session.common(), work)


async def _scrub(
    arguments: argparse.Namespace, session: Session, order: str, interval_s: float
) -> int:
    import asyncio  # only now: 80 ms that completing a word must not cost

    from torus.daemon.scrub_ask import ScrubAsking

    async with ScrubAsking(session.common()) as asking:
        if order == "begin":
            volumes = await asking.volumes(arguments.names)
            found = await asking.begin(volumes, deep=arguments.deep)
        else:
            give = {"pause": asking.pause, "resume": asking.resume, "status": asking.tell}
            found = await give[order]()
        while True:
            document = document_of(found)
            session.output.show({"scrub": document}, lambda: _render(session, found))  # noqa: B023
            session.output.flush()
            waits = found.going_on or (order == "status" and found.running)
            if not arguments.watch or not waits:
                return _exit_code(found, order)
            await asyncio.sleep(interval_s)
            found = await asking.tell()


def _exit_code(found: "Scrubbed", order: str) -> int:
    if order in ("pause", "resume"):
        return 0  # it holds for who is silent as well
    if found.summary()["lost"]:
        return Corruption.exit_code
    return Unavailable.exit_code if found.silent else 0


def document_of(found: "Scrubbed") -> dict[str, Any]:
    """Return the JSON form."""
    return {
        **summary_document(found.summary()),
        "going_on": found.going_on,
        "nodes": [
            {
                "node": node.node_id,
                "host": node.host,
                "problem": node.problem,
                "disks": None if node.disks is None else [_disk_document(d) for d in node.disks],
            }
            for node in found.nodes
        ],
    }


def summary_document(total: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all disks found, with times as people write them."""
    document = dict(total)
    for depth in ("light", "deep"):
        ended_ns = document.pop(f"last_{depth}_ns")
        document[f"last_{depth}"] = None if ended_ns is None else iso_instant(ended_ns)
    return _with_pause(document)


def _with_pause(document: dict[str, Any]) -> dict[str, Any]:
    since_ns = document.pop("paused_since_ns", None)
    document["paused_since"] = iso_instant(since_ns) if since_ns else None
    return document


def _disk_document(disk: Mapping[str, Any]) -> dict[str, Any]:
    document = _with_pause(dict(disk))
    document["last"] = {
        depth: None
        if one is None
        else {
            "began": iso_instant(one["began_ns"]), "ended": iso_instant(one["ended_ns"]),
            "chunks": one["chunks"], "found": one["found"],
        }
        for depth, one in disk["last"].items()
    }  # fmt: skip
    document["findings"] = [_finding_document(one) for one in disk["findings"]]
    return document


def _finding_document(one: Mapping[str, Any]) -> dict[str, Any]:
    document = {key: value for key, value in one.items() if not key.endswith("_ns")}
    document["found"] = iso_instant(one["found_ns"])
    document["changed"] = iso_instant(one["changed_ns"])
    return document


def scrub_of(statuses: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return what the scrubs of all nodes that answer found; None when none does."""
    from torus.upkeep.scrub_shown import summary

    found = [disk for status in statuses if status for disk in status.get("scrub", ())]
    return summary(found) if found else None


def summary_line(total: Mapping[str, Any]) -> str:
    """Return what a `summary` says, in a line."""
    now_ns = time.time_ns()
    parts = []
    for depth in ("light", "deep"):
        ended_ns = total[f"last_{depth}_ns"]
        ago = "never" if ended_ns is None else f"{format_seconds((now_ns - ended_ns) / 1e9)} ago"
        parts.append(f"{depth} {ago}")
    if total["running"]:
        parts.append(f"{total['running']} disks read now")
    if total["paused"]:
        parts.append(_paused(total))
    found, repaired = sum(total["found"].values()), sum(total["repaired"].values())
    if found:
        kinds = ", ".join(f"{count} {kind}" for kind, count in total["found"].items() if count)
        parts.append(f"{found} damaged ({kinds}), {repaired} repaired")
    if total["open"] - total["lost"]:
        parts.append(f"{total['open'] - total['lost']} to be repaired")
    if total["lost"]:
        parts.append(f"{total['lost']} BEYOND REPAIR")
    return ", ".join(parts)


def _paused(total: Mapping[str, Any]) -> str:
    since_ns = total["paused_since_ns"]
    since = f" since {iso_instant(since_ns)}" if since_ns else ""
    return f"{total['paused']} disks PAUSED{since} by {total['paused_by']} (torus scrub --resume)"


def _render(session: Session, found: "Scrubbed") -> None:
    output = session.output
    rows: list[tuple[str, ...]] = []
    for node in found.nodes:
        if node.disks is None:
            rows.append((node.node_id[:12], "-", node.problem, "-", "-", "-", "-", "-"))
        for disk in node.disks or ():
            rows.append((node.node_id[:12], *_row(disk)))
    columns = ("NODE", "DISK", "STATE", ">DONE", ">RATE", ">FOUND", ">REPAIRED", ">LOST")
    output.table(columns, rows)
    output.line(f"scrub: {summary_line(found.summary())}")
    for disk in found.disks:
        if disk["problem"]:
            output.warning(f"disk {disk['disk_id']}: {disk['problem']}")
        for one in disk["findings"]:
            if one["state"] in ("repaired", "gone"):
                continue
            of = f"volume {one['name']!r} " if one["name"] else ""
            output.warning(
                f"disk {disk['disk_id'][:12]}: {one['kind']}, {one['state']}: {of}"
                f"chunk {one['part']} in {one['where']}: {one['what']}"
            )


def _row(disk: Mapping[str, Any]) -> tuple[str, ...]:
    total, rate = disk["total_chunks"], disk["rate_bytes"]
    return (
        disk["disk_id"][:12],
        disk["state"] + (", asked" if disk["asked"] else ""),
        f"{disk['done_chunks']} of {total}" if total else "-",
        f"{format_size(rate)}/s" if rate else "-",
        str(sum(disk["found"].values())),
        str(sum(disk["repaired"].values())),
        str(disk["lost"]),
    )
