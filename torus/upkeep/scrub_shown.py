"""What a disk says of its scrub: how far it is, what it found.  Pure.

Decides the JSON that nodes answer and that commands and status show (docs/protocol.md,
"Reports").
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torus import limits
from torus.ids import whole_id
from torus.metadata.schema import ScrubPause
from torus.upkeep.scrub_judge import Kind
from torus.upkeep.scrub_state import DEEP, LIGHT, LOST, Done, Finding, ScrubState, Tour


def document_of(
    disk_id: str,
    state: ScrubState,
    tour: Tour | None,
    *,
    total: int,
    rate_bytes: float,
    problem: str,
    pause: ScrubPause | None = None,
    most: int = limits.SCRUB_SHOWN_MAX,
) -> dict[str, Any]:
    """Return what is known of one disk's scrub.

    ``tour``: the one that goes on now, with ``total`` parts; ``rate_bytes``: a second;
    ``most``: findings that are listed.
    """
    waiting = [one for one in state.tours if one.asked]
    word = "paused" if pause is not None else "idle" if tour is None else tour.depth
    return {
        "disk_id": disk_id,
        "state": word,
        "paused_since_ns": None if pause is None else pause.since_ns,
        "paused_by": None if pause is None else pause.by,
        "asked": bool(waiting),
        "problem": problem,
        "done_chunks": 0 if tour is None else tour.chunks,
        "total_chunks": 0 if tour is None else total,
        "done_bytes": 0 if tour is None else tour.bytes,
        "rate_bytes": round(rate_bytes),
        "last": {depth: _done(state.last.get(depth)) for depth in (LIGHT, DEEP)},
        "found": dict(state.found),
        "repaired": dict(state.repaired),
        "open": len(state.open),
        "lost": state.count(LOST),
        "findings": [finding_document(one) for one in shown(state)[:most]],
    }


def shown(state: ScrubState) -> list[Finding]:
    """Return the findings that are shown: those that are lost first, then the newest."""
    first = sorted(state.open.values(), key=lambda one: (one.state != LOST, one.part))
    return [*first, *reversed(state.closed)]


def finding_document(one: Finding) -> dict[str, Any]:
    """Return one finding as JSON."""
    return {
        "part": str(one.part),
        "chunk": str(whole_id(one.part)),
        "volume": one.volume,
        "name": one.name,
        "kind": one.kind,
        "state": one.state,
        "where": one.where,
        "what": one.what,
        "found_ns": one.found_ns,
        "changed_ns": one.changed_ns,
    }


def _done(done: Done | None) -> dict[str, Any] | None:
    if done is None:
        return None
    return {
        "began_ns": done.began_ns,
        "ended_ns": done.ended_ns,
        "chunks": done.chunks,
        "found": done.found,
    }


def summary(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all disks together found; times are of the disk that is behind most."""
    disks = list(documents)
    last: dict[str, int | None] = {}
    for depth in (LIGHT, DEEP):
        ended = [disk["last"][depth] for disk in disks]
        whole = bool(ended) and all(one is not None for one in ended)
        last[depth] = min(one["ended_ns"] for one in ended) if whole else None
    paused = [disk for disk in disks if disk["state"] == "paused"]
    return {
        "disks": len(disks),
        "running": sum(disk["state"] in (LIGHT, DEEP) for disk in disks),
        "paused": len(paused),
        "paused_since_ns": paused[0]["paused_since_ns"] if paused else None,
        "paused_by": paused[0]["paused_by"] if paused else None,
        "found": _sum(disk["found"] for disk in disks),
        "repaired": _sum(disk["repaired"] for disk in disks),
        "open": sum(int(disk["open"]) for disk in disks),
        "lost": sum(int(disk["lost"]) for disk in disks),
        "lost_volumes": sorted(
            {one["name"] for disk in disks for one in disk["findings"]
             if one["state"] == LOST and one["name"]}
        ),
        "last_light_ns": last[LIGHT],
        "last_deep_ns": last[DEEP],
    }  # fmt: skip


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total = dict.fromkeys(map(str, Kind), 0)
    for part in parts:
        for kind, count in part.items():
            total[kind] = total.get(kind, 0) + int(count)
    return total


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Return what of a `summary` is not well, a sentence each."""
    if not found["lost"]:
        return []
    names = found["lost_volumes"]
    of = f" of volumes {', '.join(names[:3])}" + (", ..." if len(names) > 3 else "")
    which = of if names else ""
    check = names[0] if names else "NAME"
    return [f"{found['lost']} parts of chunks{which} are beyond repair: torus volume check {check}"]
