"""The rules of snapshots: making, protecting and reading them.

Decides which commit makes a snapshot, when the metadata alone is enough for one, and who may
say that it reads one.  Written like `torus.volume.catalog_steps`, as generators that do no I/O.

Implements docs/metadata.md, "Snapshots".
"""

import dataclasses

from torus.errors import AlreadyExists, Busy, LocalProtocolError, UsageError
from torus.ids import check_snapshot_name, join_snapshot
from torus.limits import CATALOG_ATTEMPTS_MAX, SNAPSHOTS_MAX
from torus.metadata.base import Delete, Expect, Put
from torus.metadata.keys import head_key, reader_key, snapshot_key, spec_key
from torus.metadata.schema import Head, Reader, Snapshot
from torus.volume.catalog_ask import (
    Commit,
    Steps,
    Volume,
    read_entry,
    refuse_deleting,
    too_many_races,
)
from torus.volume.catalog_steps import get
from torus.volume.epoch_steps import commit_head
from torus.volume.snapshot_ask import (
    SnapshotEntry,
    find_snapshots,
    get_snapshot,
    read_snapshot_again,
    refuse_snapshot_deleting,
)


def snapshots(name: str) -> Steps[list[Snapshot]]:
    """Return all snapshots of a volume by number, those that are being deleted too.

    Raises: NotFound when there is no such volume.
    """
    volume = yield from get(name)
    return [one.snapshot for one in (yield from find_snapshots(volume))]


# --- making ---------------------------------------------------------------------------------


def check_new_snapshot(name: str, snap: str) -> Steps[Volume]:
    """Refuse early what cannot become a snapshot, before its owner writes a checkpoint for it.

    Raises: UsageError for the name or when the volume has too many, AlreadyExists, NotFound;
        Busy when the volume is being deleted.
    """
    check_snapshot_name(snap)
    volume = yield from get(name)
    refuse_deleting(volume)
    present = yield from find_snapshots(volume)
    for one in present:
        if one.snapshot.name == snap:
            raise _exists(one)
    if len(present) >= SNAPSHOTS_MAX:
        raise UsageError(
            f"volume {name!r} has {len(present)} snapshots, and no more than {SNAPSHOTS_MAX} "
            "are possible",
            hint=f"delete some: torus volume snapshot delete {name}@{present[0].snapshot.name}",
        )
    return volume


def publish_snapshot(
    volume_id: int, head: Head, head_revision: int, snapshot: Snapshot
) -> Steps[int]:
    """Write a snapshot and the head that counts it, as the head's holder, in one commit.

    After an attempt whose outcome is unknown it may be repeated with the same arguments: only
    this commit writes a head that counts this snapshot.

    Returns: the head's new revision.
    Raises: Fenced, also when the volume is being deleted; AlreadyExists; UsageError for the
        name; LocalProtocolError when the head does not count the snapshot.
    """
    check_snapshot_name(snapshot.name)
    if (head.newest_snapshot, volume_id) != (snapshot.number, snapshot.volume):
        raise LocalProtocolError(
            f"snapshot number {snapshot.number} of volume id {snapshot.volume} does not belong "
            f"to a head of volume id {volume_id} whose newest is {head.newest_snapshot}"
        )
    key = snapshot_key(volume_id, snapshot.name)
    for _ in range(CATALOG_ATTEMPTS_MAX):
        done = yield from commit_head(
            volume_id, head, head, head_revision,
            (Expect(key, 0),), (Put(key, snapshot.to_bytes()),),
        )  # fmt: skip
        if done is not None:
            return done
        present = yield from read_entry(key)
        if present is not None:
            raise AlreadyExists(
                f"volume id {volume_id} has a snapshot {snapshot.name!r} already",
                hint="choose another name",
            )
    raise too_many_races(f"volume id {volume_id}")


def snapshot_detached(name: str, snap: str, now_ns: int, uid: str) -> Steps[Snapshot | None]:
    """Make a snapshot of a volume that nobody has attached, from the metadata alone.

    With the ``uid`` of the snapshot that is there already, that one is returned: an attempt
    whose outcome is unknown may be repeated.

    Returns: the snapshot; None when the newest checkpoint is not the whole log, so that
        somebody must attach the volume first.
    Raises: NotFound, UsageError, AlreadyExists; Busy when the volume is being deleted.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        try:
            volume = yield from check_new_snapshot(name, snap)
        except AlreadyExists:
            present = yield from get_snapshot(name, snap)
            if present.snapshot.uid == uid:
                return present.snapshot
            raise
        if not is_clean(volume):
            return None
        spec, head = volume.spec, volume.head
        number = head.newest_snapshot + 1
        snapshot = Snapshot(
            spec.volume, number, snap, uid, now_ns, spec.size_bytes,
            head.root, head.base, head.mapped_blocks,
        )  # fmt: skip
        head = dataclasses.replace(head, newest_snapshot=number)
        key = snapshot_key(spec.volume, snap)
        revision = yield Commit(
            (
                Expect(spec_key(spec.volume), volume.spec_revision),
                Expect(head_key(spec.volume), volume.head_revision),
                Expect(key, 0),
            ),
            (Put(head_key(spec.volume), head.to_bytes()), Put(key, snapshot.to_bytes())),
        )
        if revision is not None:
            return snapshot
    raise too_many_races(f"volume {name!r}")


def is_clean(volume: Volume) -> bool:
    """Tell whether the volume's root, or its base's, is all that its log says.

    False for a volume with an owner, even a dead one: its log may go on behind the head.  False
    also when the size was changed since the head was written: only an attach cuts the map.
    """
    head = volume.head
    if head.owner is None and head.spans == () and head.root is None and head.base is None:
        return True  # nothing was ever written
    if head.owner is not None or volume.spec_revision > volume.head_revision:
        return False
    if not head.spans:
        return head.root is None
    last, root = head.spans[-1], head.root
    if last.last is None or root is None:
        return False
    if root.replay_sequence != last.last:
        return root.replay_sequence > last.last
    return last.end is not None and root.replay_offset >= last.end


# --- protecting -----------------------------------------------------------------------------


def set_protected(name: str, snap: str, protected: bool) -> Steps[Snapshot]:
    """Forbid or allow again that a snapshot is deleted.

    Raises: NotFound, UsageError; Busy when it or its volume is being deleted.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        entry = yield from get_snapshot(name, snap)
        refuse_deleting(entry.volume)
        refuse_snapshot_deleting(entry)
        if entry.snapshot.protected == protected:
            return entry.snapshot
        changed = dataclasses.replace(entry.snapshot, protected=protected)
        revision = yield Commit(_unchanged(entry), (Put(entry.key, changed.to_bytes()),))
        if revision is not None:
            return changed
    raise too_many_races(f"snapshot {join_snapshot(name, snap)!r}")


# --- reading --------------------------------------------------------------------------------


def add_reader(entry: SnapshotEntry, reader: Reader, reader_id: str) -> Steps[str]:
    """Say that a process reads a snapshot: it stays until `remove_reader` or the process ends.

    ``reader_id`` is unique for each reader.  A repeated call changes nothing.

    Returns: the key for `remove_reader`.
    Raises: Busy when the snapshot or its volume is, or was, deleted.
    """
    snapshot = entry.snapshot
    key = reader_key(snapshot.volume, snapshot.number, reader_id)
    for _ in range(CATALOG_ATTEMPTS_MAX):
        present = yield from read_snapshot_again(entry)
        if present is None:
            raise Busy(f"snapshot {str(entry)!r} was deleted meanwhile")
        refuse_deleting(present.volume)
        refuse_snapshot_deleting(present)
        revision = yield Commit(_unchanged(present), (Put(key, reader.to_bytes()),))
        if revision is not None:
            return key
    raise too_many_races(f"snapshot {str(entry)!r}")


def remove_reader(key: str) -> Steps[None]:
    """Say that a reader is done; nothing when it is gone already."""
    yield Commit((), (Delete(key),))


def _unchanged(entry: SnapshotEntry) -> tuple[Expect, ...]:
    """Expect the snapshot, and that its volume did not begin to be deleted since."""
    spec = entry.volume.spec
    return (
        Expect(spec_key(spec.volume), entry.volume.spec_revision),
        Expect(entry.key, entry.revision),
    )


def _exists(entry: SnapshotEntry) -> AlreadyExists:
    if entry.snapshot.state != "ready":
        return AlreadyExists(
            f"snapshot {str(entry)!r} is still being deleted",
            hint=f"finish it with: torus volume snapshot delete {entry}",
        )
    return AlreadyExists(f"snapshot {str(entry)!r} exists already", hint="choose another name")
