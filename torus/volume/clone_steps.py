"""The rules of clones: making them, the snapshots they read, flattening, rolling back.

Decides which commits keep the three places in step that name a family's bonds: a clone's head,
the clone's own snapshots, and the list of clones in the origin's snapshot.  Written like
`torus.volume.catalog_steps`, as generators that do no I/O.

Implements docs/metadata.md, "Clones".
"""

import dataclasses

from torus.errors import Busy, Corruption, LocalProtocolError, UsageError
from torus.ids import check_volume_name, join_snapshot
from torus.limits import CATALOG_ATTEMPTS_MAX, CLONE_DEPTH_MAX
from torus.metadata.base import Delete, Entry, Expect, Put
from torus.metadata.keys import NEXT_VOLUME, head_key, name_key, snapshots_prefix, spec_key
from torus.metadata.schema import Base, Head, NameRef, NextVolume, Snapshot, VolumeSpec
from torus.volume.catalog_ask import (
    Commit,
    ListUnder,
    Steps,
    find_volume,
    read_entry,
    refuse_deleting,
    too_many_races,
)
from torus.volume.catalog_steps import name_taken, next_id
from torus.volume.epoch_steps import commit_head
from torus.volume.snapshot_ask import (
    Changes,
    SnapshotEntry,
    base_let_go,
    find_by_number,
    get_snapshot,
    refuse_snapshot_deleting,
)


def ancestors(base: Base | None) -> Steps[list[SnapshotEntry]]:
    """Return the snapshots that a volume with that base reads, nearest first; [] without one.

    A snapshot keeps its base for good and pins it, so what is found stays true while the
    volume has this base.

    Raises: Corruption when one is not there, or the chain does not end.
    """
    chain: list[SnapshotEntry] = []
    while base is not None:
        found = yield from find_by_number(base.volume, base.number)
        if found is None:
            raise Corruption(
                f"snapshot number {base.number} of volume id {base.volume} does not exist, but "
                "a clone reads it",
                hint="rebuild the metadata from the volumes' logs: torus recover",
            )
        if chain and found.snapshot.volume >= chain[-1].snapshot.volume:
            raise Corruption(
                f"snapshot {str(chain[-1])!r} grew from {str(found)!r}, which is not older"
            )
        chain.append(found)
        base = found.snapshot.base
    return chain


def clone(name: str, snap: str, new_name: str, now_ns: int) -> Steps[VolumeSpec]:
    """Make a volume that begins as the snapshot and shares all its data.

    Raises: NotFound, AlreadyExists; UsageError for a name, or when the new volume would have
        too many ancestors; Busy when the snapshot or its volume is being deleted.
    """
    check_volume_name(new_name)
    for _ in range(CATALOG_ATTEMPTS_MAX):
        origin = yield from get_snapshot(name, snap)
        refuse_deleting(origin.volume)
        refuse_snapshot_deleting(origin)
        taken = yield from read_entry(name_key(new_name))
        if taken is not None:
            raise (yield from name_taken(new_name))
        yield from _refuse_deep(origin, new_name)
        made = yield from _make_clone(origin, new_name, now_ns)
        if made is not None:
            return made
    raise too_many_races(f"snapshot {join_snapshot(name, snap)!r}")


def _refuse_deep(origin: SnapshotEntry, new_name: str) -> Steps[None]:
    depth = 1 + len((yield from ancestors(origin.snapshot.base)))
    if depth > CLONE_DEPTH_MAX:
        name = origin.volume.spec.name
        raise UsageError(
            f"volume {new_name!r} would be the {depth}th clone in a row, more than "
            f"{CLONE_DEPTH_MAX}",
            hint=f"flatten an ancestor and snapshot it anew: torus volume flatten {name}",
        )


def _make_clone(origin: SnapshotEntry, new_name: str, now_ns: int) -> Steps[VolumeSpec | None]:
    """Commit a clone; None when a race was lost."""
    counter = yield from read_entry(NEXT_VOLUME)
    if counter is None:
        raise Corruption(f"metadata key {NEXT_VOLUME!r} is gone, but volumes exist")
    volume_id, parent = next_id(counter), origin.volume.spec
    snapshot = origin.snapshot
    spec = VolumeSpec(
        volume_id, new_name, snapshot.size_bytes, parent.redundancy, now_ns,
        min_copies=parent.min_copies,
    )  # fmt: skip
    base = Base(snapshot.volume, snapshot.number)
    head = Head(0, None, (), None, mapped_blocks=snapshot.mapped_blocks, base=base)
    pinned = dataclasses.replace(snapshot, clones=(*snapshot.clones, volume_id))
    revision = yield Commit(
        (
            Expect(NEXT_VOLUME, counter.revision),
            Expect(name_key(new_name), 0),
            Expect(spec_key(volume_id), 0),
            Expect(head_key(volume_id), 0),
            Expect(spec_key(parent.volume), origin.volume.spec_revision),
            Expect(origin.key, origin.revision),
        ),
        (
            Put(NEXT_VOLUME, NextVolume(volume_id + 1).to_bytes()),
            Put(name_key(new_name), NameRef(volume_id).to_bytes()),
            Put(spec_key(volume_id), spec.to_bytes()),
            Put(head_key(volume_id), head.to_bytes()),
            Put(origin.key, pinned.to_bytes()),
        ),
    )
    return None if revision is None else spec


def finish_flatten(volume_id: int, head: Head, head_revision: int) -> Steps[int]:
    """Write the head of a clone whose map names no ancestor any more; return its new revision.

    ``head`` has no base.  The clone leaves its origin's list in the same commit, unless one of
    its own snapshots still reads the origin.  It may be repeated with the same arguments.

    Raises: Fenced, LocalProtocolError as `epoch_steps.publish`.
    """
    if head.base is not None:
        raise LocalProtocolError(f"volume id {volume_id} is not flat: its head has {head.base}")
    return (yield from _publish(volume_id, head, head_revision, None))


def publish_rollback(volume_id: int, head: Head, head_revision: int, size_bytes: int) -> Steps[int]:
    """Give a volume the size that it had at a snapshot, and ``head``, in one commit.

    ``head`` is the holder's, with the root of a checkpoint of the snapshot's map, and with the
    snapshot's base: a flattened clone can get its base back, and lose it again.  It may be
    repeated with the same arguments.

    Returns: the head's new revision.
    Raises: Fenced; Busy when the snapshots that read the base were deleted meanwhile.
    """
    return (yield from _publish(volume_id, head, head_revision, size_bytes))


def _publish(volume_id: int, head: Head, head_revision: int, size_bytes: int | None) -> Steps[int]:
    """Write a head whose base may differ from the present one's, and a size with it."""
    for _ in range(CATALOG_ATTEMPTS_MAX):
        present = yield from find_volume(volume_id)
        expect: tuple[Expect, ...] = ()
        changes: tuple[Put | Delete, ...] = ()
        # An attempt that was done already is not judged by what became of other keys since, and
        # a head that was lost is refused when it is written.
        if present is not None and present.head_revision == head_revision:
            expect, changes = yield from _rebase(present.head.base, head.base, volume_id)
            spec = present.spec
            if size_bytes is not None:  # what was cut off is back, too
                spec = dataclasses.replace(spec, size_bytes=size_bytes, cut_bytes=0)
            if spec != present.spec:
                expect += (Expect(spec_key(volume_id), present.spec_revision),)
                changes += (Put(spec_key(volume_id), spec.to_bytes()),)
        done = yield from commit_head(volume_id, head, head, head_revision, expect, changes)
        if done is not None:
            return done
    raise too_many_races(f"volume id {volume_id}")


def _rebase(old: Base | None, new: Base | None, volume_id: int) -> Steps[Changes]:
    """Return what a commit expects and changes that replaces a head's base."""
    if old == new:
        return (), ()
    if new is None and old is not None:
        return (yield from base_let_go(volume_id, old))
    # Only a snapshot of the volume's own can give a base back: it holds the origin's entry.
    entries: tuple[Entry, ...] = yield ListUnder(snapshots_prefix(volume_id))
    for entry in entries:
        if Snapshot.from_bytes(entry.value, entry.key).base == new:
            return (Expect(entry.key, entry.revision),), ()
    raise Busy(
        f"volume id {volume_id} has no snapshot any more that reads {new}",
        hint="the snapshot was deleted meanwhile: choose another one",
    )
