"""What an operator may do to nodes and disks: drain, remove, join, set zone and weight.

Decides which words mean which disks, what is refused and with which numbers.  The changes are
compare-and-swaps of members; what follows from them in the ring is the coordinator's.

Implements docs/operations-cluster.md, "Draining and removing".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torus import limits
from torus.daemon.last_copies import Elsewhere
from torus.daemon.survey import DiskView, Survey
from torus.errors import Busy, NotFound, PoolFull, Unavailable, UsageError
from torus.limits import GIB
from torus.metadata.base import Expect, MetadataStore, Put
from torus.metadata.keys import member_key
from torus.metadata.schema import Member
from torus.redundancy.scheme import parse

IN, WAITING, DRAINING, OUT, REMOVED = "in", "waiting", "draining", "out", "removed"
FILL_PERCENT = 90  # how full disks may get by a drain


@dataclass(frozen=True, slots=True)
class Change:
    """A member with what it shall be."""

    before: Member
    after: Member


def chosen(survey: Survey, words: Sequence[str]) -> list[DiskView]:
    """Return the disks that ``words`` mean: ids of nodes or disks or their beginnings, or hosts
    with one node.

    Raises: NotFound, UsageError when a word means several nodes.
    """
    found: dict[str, DiskView] = {}
    for word in words:
        for disk in _meant(survey, word):
            found[disk.place.disk_id] = disk
    return list(found.values())


def _meant(survey: Survey, word: str) -> list[DiskView]:
    known = [disk for disk in survey.disks if disk.member is None or disk.member.state != REMOVED]
    for exact in (True, False):
        nodes = {d.place.node_id for d in known if _fits(d.place.node_id, word, exact=exact)}
        hosts = {d.place.node_id for d in known if d.place.host == word}
        disks = [d for d in known if _fits(d.place.disk_id, word, exact=exact)]
        nodes = nodes or hosts
        if len(nodes) > 1 or (not nodes and len(disks) > 1):
            several = sorted(nodes or {disk.place.disk_id for disk in disks})
            raise UsageError(
                f"{word!r} means several: {', '.join(several[:4])}",
                hint="write more of the id; torus node list shows them",
            )
        if nodes:
            return [disk for disk in known if disk.place.node_id in nodes]
        if disks:
            return disks
    raise NotFound(f"there is no node and no disk {word!r}", hint="torus node list shows them all")


def _fits(identity: str, word: str, *, exact: bool) -> bool:
    return identity == word if exact else len(word) >= 4 and identity.startswith(word)


def _member(disk: DiskView) -> Member:
    if disk.member is None:
        raise NotFound(
            f"disk {disk.place.disk_id} of node {disk.place.node_id} is no member of the cluster",
            hint="start its node again: it makes it one",
        )
    return disk.member


# --- the decisions ----------------------------------------------------------------------


def drain(
    survey: Survey, disks: Sequence[DiskView], now_ns: int, *, force: bool = False
) -> list[Change]:
    """Return the changes that let the data of ``disks`` move to others.

    Raises: PoolFull when it fits nowhere, Busy when too few nodes would be left for the copies of
        a volume; not with ``force``.  Unavailable when a disk cannot be asked how much it has.
    """
    changes = []
    for disk in disks:
        member = _member(disk)
        if member.state != DRAINING:
            after = replace(member, state=DRAINING, since_ns=now_ns, reason="by the operator")
            changes.append(Change(member, after))
    if changes and not force:
        leaving = {disk.place.disk_id for disk in disks}
        staying = [disk for disk in survey.disks if _takes_data(disk, leaving)]
        _check_nodes(survey, staying)
        _check_room([disk for disk in disks if _has_data(disk)], staying)
    return changes


def _takes_data(disk: DiskView, leaving: set[str]) -> bool:
    return disk.member is not None and disk.member.state == IN and disk.place.disk_id not in leaving


def _has_data(disk: DiskView) -> bool:
    return disk.member is not None and disk.member.state not in (WAITING, REMOVED)


def _check_nodes(survey: Survey, staying: Sequence[DiskView]) -> None:
    nodes = {disk.place.node_id for disk in staying}
    for volume in survey.volumes:
        scheme = parse(volume.spec.redundancy)
        parts = "shards" if scheme.erasure else "copies"
        if scheme.disks_needed > len(nodes):
            raise Busy(
                f"volume {volume.spec.name!r} keeps {scheme.disks_needed} {parts} on distinct "
                f"nodes, and {len(nodes)} would be left",
                hint="add a node first; --force drains all the same, and copies will be missing",
            )


def _check_room(leaving: Sequence[DiskView], staying: Sequence[DiskView]) -> None:
    """Refuse when what leaves is more than what the others may take."""
    silent = [d for d in (*leaving, *staying) if d.used_bytes is None]
    if silent and leaving:
        raise Unavailable(
            f"disk {silent[0].place.disk_id} of node {silent[0].place.node_id} cannot be asked how "
            f"much it has: {silent[0].problem or 'it is not up'}",
            hint="wait until it is up, or use --force",
        )
    need = sum(disk.used_bytes or 0 for disk in leaving)
    room = sum(
        max(0, disk.size_bytes * FILL_PERCENT // 100 - (disk.used_bytes or 0)) for disk in staying
    )
    if need > room:
        raise PoolFull(
            f"{_gib(need)} would have to move, and the {len(staying)} disks that stay have room "
            f"for {_gib(room)} up to {FILL_PERCENT} % of their size",
            hint="add a disk, delete something, or use --force: then writes wait where it is full",
        )


def remove(
    disks: Sequence[DiskView],
    now_ns: int,
    elsewhere: Elsewhere | None = None,
    *,
    force: bool = False,
    lose_data: bool = False,
) -> list[Change]:
    """Return the changes that take ``disks`` out of the cluster for good.

    ``elsewhere``: what others have of what the disks that are down may have; None: not looked.
    ``force``: although copies are too few then.  ``lose_data``: with it, although what only they
    have is lost.

    Raises: Busy when one has data that others do not have; when one is up and has data, always.
        UsageError for ``lose_data`` without ``force``.
    """
    if lose_data and not force:
        raise UsageError("--lose-data means nothing without --force")
    changes = []
    for disk in disks:
        member = _member(disk)
        _check_empty(disk, member, force=force)
        if disk.used_bytes is None and not lose_data:
            _check_elsewhere(disk, member, elsewhere, force=force)
        after = replace(member, state=REMOVED, since_ns=now_ns, reason="by the operator")
        changes.append(Change(member, after))
    return changes


def _check_empty(disk: DiskView, member: Member, *, force: bool) -> None:
    name = f"disk {member.disk_id} of node {member.node_id}"
    if member.state not in (DRAINING, WAITING, OUT) and not (force and not disk.place.up):
        raise Busy(
            f"{name} is {member.state!r}: its data was not moved away",
            hint=f"torus node drain {member.disk_id[:8]}, and remove it when it is empty",
        )
    if disk.used_bytes:
        raise Busy(
            f"{name} still has {_gib(disk.used_bytes)}: it may be the last copy",
            hint="wait until it is empty: torus node list, torus status",
        )


def _check_elsewhere(
    disk: DiskView, member: Member, elsewhere: Elsewhere | None, *, force: bool
) -> None:
    """Refuse to forget a disk that cannot be asked while others lack what it may have."""
    name = f"disk {member.disk_id} of node {member.node_id}"
    if elsewhere is None:
        raise Busy(
            f"{name} cannot be asked what it still has: {disk.problem or 'it is not up'}",
            hint="start it",
        )
    asked = f"; {len(elsewhere.silent)} other disks did not answer" if elsewhere.silent else ""
    if elsewhere.last:
        names = ", ".join(elsewhere.volumes[:3]) + ("..." if len(elsewhere.volumes) > 3 else "")
        raise Busy(
            f"{name} may have the last copy of {elsewhere.last} of the {elsewhere.chunks} chunks "
            f"({_gib(elsewhere.last * limits.SLOT_BYTES)}) that it had to have, of volumes "
            f"{names}{asked}",
            hint="start it; if it is lost for good, --force --lose-data gives them up",
        )
    if elsewhere.few and not force:
        raise Busy(
            f"{elsewhere.few} of the {elsewhere.chunks} chunks that {name} had to have "
            f"({_gib(elsewhere.few * limits.SLOT_BYTES)}) have fewer copies elsewhere than they "
            f"should{asked}",
            hint="wait until they are copied: torus ring rebalance --watch; --force does not wait",
        )


def join(disks: Sequence[DiskView], now_ns: int) -> list[Change]:
    """Return the changes that give ``disks`` data, or let those stay that were to leave."""
    return [
        Change(member, replace(member, state=IN, since_ns=now_ns, reason=""))
        for member in map(_member, disks)
        if member.state != IN
    ]


def set_shape(disks: Sequence[DiskView], *, zone: str | None, weight: int | None) -> list[Change]:
    """Return the changes of zone and weight; None leaves them as they are."""
    changes = []
    for member in map(_member, disks):
        after = replace(
            member,
            zone=member.zone if zone is None else zone,
            weight=member.weight if weight is None else weight,
        )
        if after != member:
            changes.append(Change(member, after))
    return changes


# --- carrying out -----------------------------------------------------------------------


def carry_out(store: MetadataStore, changes: Sequence[Change]) -> None:
    """Make all changes in one commit.

    Raises: Busy when a member is not any more what the decision rests on, or there are too many
        at once; NotFound, Unavailable.
    """
    expect, puts = [], []
    for change in changes:
        key = member_key(change.before.disk_id)
        entry = store.get(key)
        if entry is None:
            raise NotFound(f"disk {change.before.disk_id} is no member of the cluster any more")
        present = Member.from_bytes(entry.value, key)
        if replace(present, down_ns=change.before.down_ns) != change.before:
            raise _overtaken(change.before)
        expect.append(Expect(key, entry.revision))
        puts.append(Put(key, replace(change.after, down_ns=present.down_ns).to_bytes()))
    if puts and store.commit(expect, puts) is None:
        raise _overtaken(changes[0].before)


def _overtaken(member: Member) -> Busy:
    return Busy(f"disk {member.disk_id} was changed by somebody else just now", hint="try again")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
