"""The rules of what goes away: snapshots, and volumes with all that is theirs.

Decides who stands in the way of a deletion, and the order of commits that a crash may end
anywhere: begin (nobody can begin to use it), look who uses it, take the beginning back or
finish.  Written like `torus.volume.catalog_steps`, as generators that do no I/O.

Implements docs/metadata.md, "Deletion".
"""

import dataclasses
from collections.abc import Sequence

from torus.errors import Busy, UsageError
from torus.ids import join_snapshot
from torus.limits import CATALOG_ATTEMPTS_MAX, METADATA_COMMIT_CHANGES_MAX
from torus.metadata.base import Delete, Entry, Expect, Put
from torus.metadata.keys import head_key, name_key, readers_prefix, spec_key, volume_readers_prefix
from torus.metadata.schema import NameRef
from torus.volume.catalog_ask import (
    DELETING,
    READY,
    Alive,
    Commit,
    ListUnder,
    Steps,
    Volume,
    describe,
    find_volume,
    read_entry,
    refuse_attached,
    replace_volume,
    too_many_races,
)
from torus.volume.catalog_steps import get
from torus.volume.snapshot_ask import (
    ReaderEntry,
    SnapshotEntry,
    base_let_go,
    find_snapshots,
    get_snapshot,
    names_of,
    read_snapshot,
    readers_under,
)

_AT_ONCE = METADATA_COMMIT_CHANGES_MAX - 16  # keys removed by one commit

# --- snapshots ------------------------------------------------------------------------------


def delete_snapshot(name: str, snap: str, *, alive: Alive) -> Steps[SnapshotEntry]:
    """Delete a snapshot; its space is the business of the volume's owner.

    Raises: NotFound; UsageError when it is protected; Busy when it has clones, when a process
        reads it that is alive or may be, or when others stood in the way.
    """
    entry = yield from begin_snapshot_deletion(name, snap)
    snapshot = entry.snapshot
    using = yield from readers_under(readers_prefix(snapshot.volume, snapshot.number))
    living = [one for one in using if alive(one.reader) is not False]
    if living:
        yield from abort_snapshot_deletion(entry)
        raise _read_by(str(entry), living)
    yield from _remove([one.key for one in using])
    yield from finish_snapshot_deletion(entry)
    return entry


def begin_snapshot_deletion(name: str, snap: str) -> Steps[SnapshotEntry]:
    """Say that a snapshot goes away: nobody can begin to read, clone or protect it.

    One that is being deleted already is returned as it is, so that an interrupted deletion can
    be finished.

    Raises: NotFound; UsageError when it is protected; Busy when it has clones.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        entry = yield from get_snapshot(name, snap)
        yield from _refuse_needed([entry])
        if entry.snapshot.state == DELETING:
            return entry
        marked = dataclasses.replace(entry.snapshot, state=DELETING)
        revision: int | None = yield Commit(
            (Expect(entry.key, entry.revision),), (Put(entry.key, marked.to_bytes()),)
        )
        if revision is not None:
            return SnapshotEntry(entry.volume, marked, revision)
    raise too_many_races(f"snapshot {join_snapshot(name, snap)!r}")


def abort_snapshot_deletion(entry: SnapshotEntry) -> Steps[None]:
    """Take the beginning of a deletion back, as `begin_snapshot_deletion` returned it.

    Nothing happens when another process finished it or took it back meanwhile.
    """
    ready = dataclasses.replace(entry.snapshot, state=READY)
    yield Commit((Expect(entry.key, entry.revision),), (Put(entry.key, ready.to_bytes()),))


def finish_snapshot_deletion(entry: SnapshotEntry) -> Steps[None]:
    """Remove a snapshot that nobody reads, as `begin_snapshot_deletion` returned it.

    The last snapshot of a flattened clone that reads the origin takes the clone out of the
    origin's list.  Nothing happens when another process finished it.

    Raises: Busy when another process took the deletion back.
    """
    snapshot = entry.snapshot
    for _ in range(CATALOG_ATTEMPTS_MAX):
        present = yield from read_entry(entry.key)
        if present is None or read_snapshot(entry.volume, present).snapshot.uid != snapshot.uid:
            return
        if present.revision != entry.revision:
            raise Busy(
                f"snapshot {str(entry)!r} changed while it was being deleted", hint="try again"
            )
        expect: tuple[Expect, ...] = (Expect(entry.key, entry.revision),)
        changes: tuple[Put | Delete, ...] = (Delete(entry.key),)
        volume = yield from find_volume(snapshot.volume)
        if volume is not None and snapshot.base is not None:
            expect += (Expect(head_key(snapshot.volume), volume.head_revision),)
            if volume.head.base is None:
                let_go = yield from base_let_go(
                    snapshot.volume, snapshot.base, without=snapshot.number
                )
                expect, changes = (*expect, *let_go[0]), (*changes, *let_go[1])
        if (yield Commit(expect, changes)) is not None:
            return
    raise too_many_races(f"snapshot {str(entry)!r}")


# --- volumes --------------------------------------------------------------------------------


def mark_deleting(name: str, *, force: bool, with_snapshots: bool, alive: Alive) -> Steps[Volume]:
    """Say that a volume goes away: nobody can attach it, its chunks may be freed.

    Its epoch rises, which fences an owner that still writes.  A volume that is being deleted
    already is returned as it is, so that an interrupted deletion can be finished.

    Raises: NotFound; UsageError when it has snapshots, unless ``with_snapshots``, or a
        protected one; Busy when a snapshot has clones, and, unless ``force``, when the volume's
        owner or a snapshot's reader is alive or may be.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        # The head is read first: a snapshot that is made after this changes it.
        volume = yield from get(name)
        found = yield from find_snapshots(volume)
        marked = volume.spec.state == DELETING
        if not marked:
            _refuse_snapshots(volume, found, with_snapshots)
        try:
            yield from _refuse_needed(found)
        except (Busy, UsageError):
            # A clone can come between a look and the mark, so every deletion looks again behind
            # the mark.  None has passed it then, so no chunk is freed: the mark can go.
            if marked:
                spec = dataclasses.replace(volume.spec, state=READY)
                yield from replace_volume(volume, spec, volume.head)
            raise
        if not force:
            yield from _refuse_read(found, volume, alive)
        if marked:
            return volume
        if not force:
            refuse_attached(volume, alive, "detach it there, or repeat with --force to cut it off")
        spec = dataclasses.replace(volume.spec, state=DELETING)
        head = dataclasses.replace(volume.head, epoch=volume.head.epoch + 1, owner=None)
        yield from replace_volume(volume, spec, head)
    raise too_many_races(f"volume {name!r}")


def forget(volume: Volume) -> Steps[None]:
    """Remove what is left of a volume whose chunks are freed; nothing if it is gone already.

    Its snapshots and their readers go first, many to a commit.  The last commit takes a clone
    out of its origin's list.

    Raises: Busy when it is not being deleted, or changed since ``volume`` was read.
    """
    spec = volume.spec
    if spec.state != DELETING:
        raise Busy(
            f"volume {spec.name!r} is {spec.state!r}, not {DELETING!r}: its data is not freed"
        )
    for _ in range(CATALOG_ATTEMPTS_MAX):
        present = yield from find_volume(spec.volume)
        if present is None:
            return
        if (present.spec_revision, present.head_revision) != (
            volume.spec_revision,
            volume.head_revision,
        ):
            raise _changed(volume)
        entries: tuple[Entry, ...] = yield ListUnder(volume_readers_prefix(spec.volume))
        yield from _remove([one.key for one in entries], _still(volume))
        found = yield from find_snapshots(volume)
        # The last snapshot that says of which origin a flattened clone is one must stay to the
        # end, and another process must not delete it in the belief that a later one stays.
        bound = [one for one in found if one.snapshot.base is not None]
        last = bound[0] if bound and volume.head.base is None else None
        others = [one.key for one in found if one is not last]
        expect = _still(volume) if last is None else (*_still(volume), _same(last))
        if (yield from _remove(others, expect)) and (yield from _forget_last(volume, last)):
            return
    raise too_many_races(f"volume {spec.name!r}")


def _forget_last(volume: Volume, last: SnapshotEntry | None) -> Steps[bool]:
    """Remove a volume and, with it, its last snapshot; False when a race was lost."""
    spec = volume.spec
    name = yield from read_entry(name_key(spec.name))
    expect = list(_still(volume))
    changes: list[Put | Delete] = [Delete(spec_key(spec.volume)), Delete(head_key(spec.volume))]
    base, without = volume.head.base, None
    if last is not None:
        base, without = last.snapshot.base, last.snapshot.number
        expect.append(_same(last))
        changes.append(Delete(last.key))
    if base is not None:
        let_go = yield from base_let_go(spec.volume, base, without)
        expect += let_go[0]
        changes += let_go[1]
    if name is not None and NameRef.from_bytes(name.value, name.key).volume == spec.volume:
        expect.append(Expect(name.key, name.revision))
        changes.append(Delete(name.key))
    return (yield Commit(tuple(expect), tuple(changes))) is not None


def _remove(keys: Sequence[str], expect: tuple[Expect, ...] = ()) -> Steps[bool]:
    """Remove keys, many to a commit; False when ``expect`` did not hold.

    Keys that are gone already are no error.
    """
    for start in range(0, len(keys), _AT_ONCE):
        changes = tuple(Delete(key) for key in keys[start : start + _AT_ONCE])
        if (yield Commit(expect, changes)) is None:
            return False
    return True


def _same(entry: SnapshotEntry) -> Expect:
    return Expect(entry.key, entry.revision)


def _still(volume: Volume) -> tuple[Expect, ...]:
    number = volume.spec.volume
    return (
        Expect(spec_key(number), volume.spec_revision),
        Expect(head_key(number), volume.head_revision),
    )


# --- who stands in the way ------------------------------------------------------------------


def _refuse_snapshots(volume: Volume, found: Sequence[SnapshotEntry], with_snapshots: bool) -> None:
    if found and not with_snapshots:
        name = volume.spec.name
        what = "a snapshot" if len(found) == 1 else f"{len(found)} snapshots"
        raise UsageError(
            f"volume {name!r} has {what}, which would be deleted with it",
            hint="repeat with --with-snapshots, or delete them first: "
            f"torus volume snapshot delete {found[-1]}",
        )


def _refuse_needed(found: Sequence[SnapshotEntry]) -> Steps[None]:
    """Raise Busy for a snapshot with clones, UsageError for a protected one."""
    for entry in found:
        if entry.snapshot.clones:
            clones = yield from names_of(entry.snapshot.clones)
            listed = ", ".join(clones[:10]) + (", ..." if len(clones) > 10 else "")
            raise Busy(
                f"snapshot {str(entry)!r} is read by {len(clones)} clone(s): {listed}",
                hint=f"flatten or delete them first: torus volume flatten {clones[0]}",
            )
        if entry.snapshot.protected:
            raise UsageError(
                f"snapshot {str(entry)!r} is protected",
                hint=f"allow its deletion first: torus volume unprotect {entry}",
            )


def _refuse_read(found: Sequence[SnapshotEntry], volume: Volume, alive: Alive) -> Steps[None]:
    """Raise Busy when a process that is alive, or may be, reads a snapshot."""
    using = yield from readers_under(volume_readers_prefix(volume.spec.volume))
    living = [one for one in using if alive(one.reader) is not False]
    for entry in found:
        prefix = readers_prefix(volume.spec.volume, entry.snapshot.number)
        mine = [one for one in living if one.key.startswith(prefix)]
        if mine:
            raise _read_by(str(entry), mine)


def _read_by(what: str, living: Sequence[ReaderEntry]) -> Busy:
    more = f" and {len(living) - 1} more" if len(living) > 1 else ""
    return Busy(
        f"snapshot {what!r} is read by {describe(living[0].reader)}{more}",
        hint="end it there first, then try again",
    )


def _changed(volume: Volume) -> Busy:
    name = volume.spec.name
    return Busy(
        f"volume {name!r} changed while it was being deleted",
        hint=f"finish it with: torus volume delete {name}",
    )
