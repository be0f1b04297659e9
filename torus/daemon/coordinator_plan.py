"""What the coordinator would do now: from the members, who is up, and the ring that holds.

Decides which disks are put out and taken back, which make the next version of the ring, and
when nothing may change.  Pure: `torus.daemon.coordinator` watches and carries out.

Implements docs/operations-cluster.md, "The coordinator".
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torus import limits
from torus.metadata.schema import Member
from torus.ring.member import RingMember, checked_members

IN, DRAINING, OUT, REMOVED = "in", "draining", "out", "removed"


Shares = tuple[RingMember, ...]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the coordinator waits, in nanoseconds."""

    auto_out_ns: int  # 0: a disk is never put out by itself
    join_wait_ns: int = int(limits.JOIN_WAIT_S * 1e9)
    mass_ns: int = int(limits.MASS_FAILURE_S * 1e9)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the coordinator remembers of the disks, times on its own monotonic clock."""

    down_ns: Mapping[str, int]  # since when a disk is down; those that are up are not in it
    known_ns: Mapping[str, int]  # since when a disk is a member that is "in"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done; nothing when all fields are as by default and frozen as before."""

    members: tuple[Member, ...] = ()  # with their new states
    ring: Shares | None = None  # what the ring is to have; it may take several versions
    reason: str = ""  # of the ring's change
    frozen: str = ""  # why nothing changes by itself
    waiting: str = ""  # what would change, but must wait, and for what


def look(seen: Seen, members: Mapping[str, Member], up: Set[str], now_ns: int) -> Seen:
    """Return what is remembered after a look at who is up now."""
    inside = [disk for disk, member in members.items() if member.state == IN]
    return Seen(
        {disk: seen.down_ns.get(disk, now_ns) for disk in members if disk not in up},
        {disk: seen.known_ns.get(disk, now_ns) for disk in inside},
    )


def thawed(seen: Seen, now_ns: int) -> Seen:
    """Return what is remembered when the ring is frozen no more: who is still gone has as long as
    if it went now."""
    return replace(seen, down_ns=dict.fromkeys(seen.down_ns, now_ns))


def decide(
    members: Mapping[str, Member],
    ring: Sequence[RingMember] | None,
    seen: Seen,
    now_ns: int,
    patience: Patience,
    *,
    settled: bool,
    done: Shares | None = None,
    wall_ns: int = 0,
) -> Decision:
    """Return what the coordinator does now, which is ``wall_ns`` for people.

    ``ring``: the disks of the version that holds, None before the first.  ``settled``: no data
    moves because of it any more.  ``done``: with these disks the version that holds is final.
    """
    if ring is None:
        return _first_ring(members, seen)
    frozen = _mass_failure(members, ring, seen, patience)
    marked = _missed(members, seen, now_ns, wall_ns, patience) if wall_ns else {}
    if frozen:
        return Decision(tuple(marked.values()), frozen=frozen)
    states = _states({**members, **marked}, seen, now_ns, patience)
    changed = tuple({**marked, **{member.disk_id: member for member in states}}.values())
    now = {**members, **{member.disk_id: member for member in changed}}
    wanted, waiting = _wanted(now, ring, seen, now_ns, patience)
    present = {share.disk_id: share for share in ring}
    if not settled:
        dead = [disk for disk in present if disk not in wanted and disk in seen.down_ns]
        rest = {disk: share for disk, share in present.items() if disk not in dead}
        if wanted != rest:
            waiting = "the ring changes again when the data of its last change has moved"
        if not dead:
            return Decision(changed, waiting=waiting)
        wanted = rest
    if not any(share.weight for share in wanted.values()):
        return Decision(changed, waiting="no disk would be left in the ring")
    target = checked_members(wanted.values())
    if target == done:
        return Decision(changed, waiting=waiting)
    return Decision(changed, target, _reason(present, target, now), waiting=waiting)


def _first_ring(members: Mapping[str, Member], seen: Seen) -> Decision:
    """The first version is made at once, of what is there."""
    found = [_share(m) for m in members.values() if m.state == IN and m.disk_id not in seen.down_ns]
    if not found:
        return Decision(waiting="no disk is up that may join the ring")
    return Decision(ring=checked_members(found), reason="the first disks")


def _mass_failure(
    members: Mapping[str, Member], ring: Sequence[RingMember], seen: Seen, patience: Patience
) -> str:
    """Say so when more than a third of the ring's disks vanished together."""
    inside = [
        share
        for share in ring
        if (member := members.get(share.disk_id)) is not None and member.state == IN
    ]
    gone = sorted(seen.down_ns[s.disk_id] for s in inside if s.disk_id in seen.down_ns)
    for first, since_ns in enumerate(gone):
        together = sum(since_ns <= other <= since_ns + patience.mass_ns for other in gone[first:])
        if 3 * together > len(inside):
            nodes = {s.node_id for s in inside if s.disk_id in seen.down_ns}
            return (
                f"{together} of {len(inside)} disks vanished within "
                f"{patience.mass_ns / 1e9:.0f} s (on nodes {', '.join(sorted(nodes))}): no data is "
                "moved before they are back or removed"
            )
    return ""


def _missed(
    members: Mapping[str, Member], seen: Seen, now_ns: int, wall_ns: int, patience: Patience
) -> dict[str, Member]:
    """Return the members for which it is new that they are down, or that they are not.

    A new member may be seen before its node is.
    """
    changed = {}
    for disk, member in members.items():
        down_ns = seen.down_ns.get(disk)
        if member.state == REMOVED or bool(member.down_ns) == (down_ns is not None):
            continue
        if down_ns is None:
            changed[disk] = replace(member, down_ns=0)
        elif now_ns - down_ns >= patience.join_wait_ns:
            changed[disk] = replace(member, down_ns=wall_ns - (now_ns - down_ns))
    return changed


def _states(
    members: Mapping[str, Member], seen: Seen, now_ns: int, patience: Patience
) -> tuple[Member, ...]:
    """Return the members that are put out because they are gone, or taken back."""
    changed = []
    for disk, member in members.items():
        down_ns = seen.down_ns.get(disk)
        if member.state == OUT and down_ns is None:
            changed.append(replace(member, state=IN, reason="it came back"))
        elif member.state == IN and _is_gone(disk, seen, now_ns, patience):
            gone_s = patience.auto_out_ns / 1e9
            changed.append(replace(member, state=OUT, reason=f"it was gone for {gone_s:.0f} s"))
    return tuple(changed)


def _wanted(
    members: Mapping[str, Member],
    ring: Sequence[RingMember],
    seen: Seen,
    now_ns: int,
    patience: Patience,
) -> tuple[dict[str, RingMember], str]:
    """Return the disks that the ring should have, and why some of them have to wait.

    A disk that is not in the ring yet joins when it is up and no other came a moment ago.  One
    that is drained stays with weight 0: what it has moves away one copy at a time.
    """
    present = {share.disk_id for share in ring}
    inside = {disk: _share(m) for disk, m in members.items() if m.state == IN}
    for disk, member in members.items():
        if member.state == DRAINING and disk in present:
            if not _is_gone(disk, seen, now_ns, patience):
                inside[disk] = replace(_share(member), weight=0)
    new = [disk for disk in inside if disk not in present]
    fresh = [
        disk for disk in new if now_ns - seen.known_ns.get(disk, now_ns) < patience.join_wait_ns
    ]
    late = new if fresh else [disk for disk in new if disk in seen.down_ns]
    waiting = f"{len(late)} disks join in a moment" if fresh else ""
    if late and not fresh:
        waiting = f"{len(late)} disks join when they are up"
    return {disk: share for disk, share in inside.items() if disk not in late}, waiting


def _is_gone(disk: str, seen: Seen, now_ns: int, patience: Patience) -> bool:
    down_ns = seen.down_ns.get(disk)
    if down_ns is None or not patience.auto_out_ns:
        return False
    return now_ns - down_ns >= patience.auto_out_ns


def _share(member: Member) -> RingMember:
    return RingMember(member.disk_id, member.node_id, member.zone, member.weight)


def _reason(
    present: Mapping[str, RingMember], target: Shares, members: Mapping[str, Member]
) -> str:
    """Return what changed, for people."""
    wanted = {share.disk_id: share for share in target}
    parts = []
    joined = [disk for disk in wanted if disk not in present]
    if joined:
        parts.append(f"{_disks(joined)} joined")
    gone: dict[str, list[str]] = {}
    moved = []
    for disk, share in present.items():
        if disk not in wanted or (share.weight and not wanted[disk].weight):
            member = members.get(disk)
            gone.setdefault("forgotten" if member is None else member.state, []).append(disk)
        elif wanted[disk] != share:
            moved.append(disk)
    parts += [f"{_disks(disks)} {state}" for state, disks in sorted(gone.items())]
    if moved:
        parts.append(f"zone or weight of {_disks(moved)} changed")
    return "; ".join(parts) or "the next step of the last change"


def _disks(disks: Sequence[str]) -> str:
    names = ", ".join(disk[:8] for disk in sorted(disks)[:3])
    return f"disk {names}" if len(disks) == 1 else f"{len(disks)} disks ({names}...)"
