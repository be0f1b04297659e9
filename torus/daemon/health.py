"""Whether a cluster is well, and what is not: judged from a survey.

Decides what counts as degraded, what is only worth a note, and which exit code says it.  Pure.

Implements docs/operations-cluster.md, "Health".
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torus.daemon.spread import Spread, spread_of
from torus.daemon.survey import DiskView, Survey
from torus.errors import DiskFailed, Unavailable
from torus.redundancy.scheme import parse

OK, DEGRADED, DOWN = "ok", "degraded", "down"
SERVING = ("in", "draining", "out")


@dataclass(frozen=True, slots=True)
class Health:
    """What `torus status` says of a cluster."""

    state: str
    problems: tuple[str, ...]  # a sentence each
    notes: tuple[str, ...]  # what goes on and is well
    exit_code: int


def judge(survey: Survey, *, away: str = "") -> Health:
    """Return how the cluster is; ``away`` says that the metadata store is."""
    problems: list[str] = []
    code = 0
    if away:
        problems.append(away)
        code = Unavailable.exit_code
    down = sorted(_nodes_down(survey))
    problems += [_down_sentence(survey, node) for node in down]
    silent = _silent(survey)
    problems += [_silent_sentence(survey, node) for node in sorted(silent)]
    failed = [
        disk
        for disk in survey.disks
        if disk.place.node_id not in silent and _is_failed(disk, survey)
    ]
    problems += [
        f"disk {d.place.disk_id} of node {d.place.node_id}: {d.problem or 'it does not work'}"
        for d in failed
    ]
    problems += list(_ring_problems(survey))
    problems += list(_volume_problems(survey))
    problems += [
        f"node {node}: {problem}"
        for node, status in sorted(survey.statuses.items())
        for problem in status.get("problems", ())
    ]
    state = DEGRADED if problems else OK
    if not survey.nodes:
        problems.insert(0, "no node is running")
        state, code = DOWN, Unavailable.exit_code
    elif failed:
        code = DiskFailed.exit_code
    elif down or silent:
        code = code or Unavailable.exit_code
    return Health(state, tuple(problems), tuple(_notes(survey)), code or (1 if problems else 0))


def _nodes_down(survey: Survey) -> set[str]:
    """Return the nodes that are not registered and have disks that count."""
    return {
        disk.place.node_id
        for disk in survey.disks
        if disk.place.node_id not in survey.nodes and disk.place.state in SERVING
    }


def _down_sentence(survey: Survey, node: str) -> str:
    disks = survey.disks_of(node)
    out = all(disk.place.state == "out" for disk in disks)
    kind = "is put out: its data is copied to others" if out else "is down"
    count = f"{len(disks)} disk" + ("s" if len(disks) > 1 else "")
    return f"node {node} on {disks[0].place.host} {kind} ({count})"


def _silent(survey: Survey) -> set[str]:
    """Return the nodes that are registered and say nothing: they died or hang just now."""
    found = set()
    for node in survey.nodes:
        disks = [disk for disk in survey.disks_of(node) if disk.place.up]
        if disks and all(disk.answer is None and disk.problem for disk in disks):
            found.add(node)
    return found


def _silent_sentence(survey: Survey, node: str) -> str:
    disk = next(disk for disk in survey.disks_of(node) if disk.problem)
    return f"node {node} on {disk.place.host} does not answer: {disk.problem}"


def _is_failed(disk: DiskView, survey: Survey) -> bool:
    """Tell whether a disk of a node that is up failed by itself."""
    if disk.place.node_id not in survey.nodes or disk.place.state not in SERVING:
        return False
    return bool(disk.problem) or not disk.place.up


def _ring_problems(survey: Survey) -> Iterator[str]:
    head = survey.head
    if head is None:
        yield "there is no ring yet: no disk is up that may be in it"
        return
    if head.frozen:
        yield f"the ring is frozen: {head.frozen}"
    if survey.ring is None:
        return
    missing = [one for one in survey.ring.members if one.weight and not _is_up(survey, one.disk_id)]
    if missing:
        yield f"{len(missing)} of {len(survey.ring.members)} disks of the ring are not up"


def _is_up(survey: Survey, disk_id: str) -> bool:
    return any(disk.place.disk_id == disk_id and disk.place.up for disk in survey.disks)


def _volume_problems(survey: Survey) -> Iterator[str]:
    """Volumes that cannot have their copies or shards: with the nodes that are up, or at all."""
    up = {disk.place.node_id for disk in survey.disks if disk.place.up and disk.place.state == "in"}
    never = {spread.scheme for spread, _ in _spreads(survey) if spread.nodes_missing}
    short: dict[tuple[int, str, int], list[str]] = {}
    for volume in survey.volumes:
        scheme = parse(volume.spec.redundancy)
        least = max(volume.spec.min_copies, scheme.data)
        if scheme.erasure and len(up) >= least and scheme in never:
            continue  # it is told below, and goes on
        if len(up) < scheme.disks_needed:
            what = "shards" if scheme.erasure else "copies"
            key = (scheme.disks_needed, what, least)
            short.setdefault(key, []).append(volume.spec.name)
    for (wanted, what, least), names in sorted(short.items()):
        waits = ": their writes wait" if len(up) < least else ""
        yield (
            f"{_names(names)} want {wanted} {what} on distinct nodes, {len(up)} nodes are up{waits}"
        )
    yield from _too_few_nodes(survey)


def _spreads(survey: Survey) -> Iterator[tuple[Spread, list[str]]]:
    """Yield what the ring has for each redundancy, with the volumes that have it."""
    if survey.ring is None:
        return
    names: dict[str, list[str]] = {}
    for volume in survey.volumes:
        names.setdefault(volume.spec.redundancy, []).append(volume.spec.name)
    for redundancy, found in sorted(names.items()):
        yield spread_of(survey.ring, parse(redundancy)), found


def _too_few_nodes(survey: Survey) -> Iterator[str]:
    for spread, names in _spreads(survey):
        if spread.nodes_missing and spread.scheme.erasure:
            nodes = "node" if spread.nodes_missing == 1 else "nodes"
            yield (
                f"{_names(names)} are {spread.scheme}, whose {spread.scheme.shards} shards take as "
                f"many nodes, and {spread.nodes} in the ring have weight: their chunks stay in "
                f"whole copies; add {spread.nodes_missing} {nodes} or more, or "
                f"'torus volume convert'"
            )


def _too_few_zones(survey: Survey) -> Iterator[str]:
    for spread, names in _spreads(survey):
        if spread.zone_is_fatal:
            yield (
                f"{_names(names)} do not outlive the loss of a zone: {spread.zone_parts} of the "
                f"{spread.scheme.shards} shards of {spread.scheme} stand in one of {spread.zones} "
                f"zones, and {spread.scheme.parity} may be lost; spread the nodes evenly over "
                f"{spread.zones_needed} zones or more, or 'torus volume convert'"
            )


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"volumes {shown}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _notes(survey: Survey) -> Iterator[str]:
    yield from _too_few_zones(survey)
    if survey.head is not None and survey.head.paused:
        yield "data does not move: paused by an operator (torus ring rebalance --resume)"
    for state, text in (("draining", "are drained"), ("waiting", "wait for 'torus node join'")):
        count = sum(disk.place.state == state for disk in survey.disks)
        if count:
            yield f"{count} disks {text}"
    upkeep = upkeep_sum(survey.upkeep)
    if upkeep["degraded_bytes"]:
        yield f"{upkeep['degraded_bytes']} bytes have copies on disks that are not up"
    if upkeep["lacking_bytes"]:
        yield f"{upkeep['lacking_bytes']} bytes have too few copies and are being copied"
    if upkeep["moving_bytes"]:
        yield f"{upkeep['moving_bytes']} bytes move to other disks"


def upkeep_sum(documents: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return what all disks together still have to do, in bytes and chunks."""
    total = dict.fromkeys(
        ("degraded_bytes", "lacking_bytes", "moving_bytes", "surplus_bytes",
         "damaged_chunks", "unknown_chunks", "rate_bytes"), 0,
    )  # fmt: skip
    for document in documents:
        for key in total:
            value = document.get(key, 0)
            total[key] += sum(value.values()) if isinstance(value, Mapping) else int(value or 0)
    return total
