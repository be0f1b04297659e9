"""The pieces that the operations on snapshots and clones share: finding them, and who uses a base.

Decides what a commit must expect and change so that an origin's list of clones stays true.
The operations are in `snapshot_steps`, `clone_steps` and `removal_steps`.  No I/O.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from torus.errors import Busy, NotFound
from torus.ids import check_snapshot_name, join_snapshot
from torus.metadata.base import Delete, Entry, Expect, Put
from torus.metadata.keys import readers_prefix, snapshot_key, snapshots_prefix
from torus.metadata.schema import Base, Reader, Snapshot
from torus.volume.catalog_ask import READY, ListUnder, Steps, Volume, find_volume, read_entry
from torus.volume.catalog_steps import get

Changes = tuple[tuple[Expect, ...], tuple[Put | Delete, ...]]


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """A snapshot and its volume as they were at one moment; ``revision`` is the snapshot's."""

    volume: Volume
    snapshot: Snapshot
    revision: int

    @property
    def key(self) -> str:
        """Return the snapshot's key."""
        return snapshot_key(self.snapshot.volume, self.snapshot.name)

    def __str__(self) -> str:
        return join_snapshot(self.volume.spec.name, self.snapshot.name)


@dataclass(frozen=True, slots=True)
class ReaderEntry:
    """One who reads a snapshot, under its key."""

    key: str
    reader: Reader
    revision: int


def find_snapshots(volume: Volume) -> Steps[list[SnapshotEntry]]:
    """Return all snapshots of a volume by number, those that are being deleted too."""
    entries: tuple[Entry, ...] = yield ListUnder(snapshots_prefix(volume.spec.volume))
    found = [read_snapshot(volume, entry) for entry in entries]
    return sorted(found, key=lambda one: one.snapshot.number)


def snapshot_values(volume_id: int) -> Steps[list[bytes]]:
    """Return the values of all snapshots of a volume as they are stored."""
    entries: tuple[Entry, ...] = yield ListUnder(snapshots_prefix(volume_id))
    return [entry.value for entry in entries]


def read_snapshot(volume: Volume, entry: Entry) -> SnapshotEntry:
    """Read a snapshot's value."""
    return SnapshotEntry(volume, Snapshot.from_bytes(entry.value, entry.key), entry.revision)


def read_snapshot_again(entry: SnapshotEntry) -> Steps[SnapshotEntry | None]:
    """Return a snapshot that was read before as it is now; None when it was deleted."""
    volume = yield from find_volume(entry.snapshot.volume)
    present = yield from read_entry(entry.key)
    if volume is None or present is None:
        return None
    again = read_snapshot(volume, present)
    return again if again.snapshot.number == entry.snapshot.number else None


def get_snapshot(name: str, snap: str) -> Steps[SnapshotEntry]:
    """Return a snapshot by the names of its volume and its own.

    Raises: UsageError for a name that cannot be one; NotFound.
    """
    check_snapshot_name(snap)
    volume = yield from get(name)
    entry = yield from read_entry(snapshot_key(volume.spec.volume, snap))
    if entry is None:
        raise NotFound(
            f"volume {name!r} has no snapshot {snap!r}",
            hint=f"see: torus volume snapshot list {name}",
        )
    return read_snapshot(volume, entry)


def find_by_number(volume_id: int, number: int) -> Steps[SnapshotEntry | None]:
    """Return a snapshot by its volume's id and its number, or None."""
    volume = yield from find_volume(volume_id)
    if volume is None:
        return None
    found = yield from find_snapshots(volume)
    return next((one for one in found if one.snapshot.number == number), None)


def snapshot_by_number(volume_id: int, number: int) -> Steps[Snapshot]:
    """Return a snapshot by its volume's id and its number.

    Raises: NotFound.
    """
    found = yield from find_by_number(volume_id, number)
    if found is None:
        raise NotFound(
            f"volume id {volume_id} has no snapshot number {number}", hint="see: torus volume tree"
        )
    return found.snapshot


def snapshots_of(volume_id: int) -> Steps[list[Snapshot]]:
    """Return all snapshots of a volume by number; none when there is no such volume."""
    entries: tuple[Entry, ...] = yield ListUnder(snapshots_prefix(volume_id))
    found = [Snapshot.from_bytes(entry.value, entry.key) for entry in entries]
    return sorted(found, key=lambda one: one.number)


def readers(volume_id: int, number: int) -> Steps[list[ReaderEntry]]:
    """Return who says that it reads a snapshot, dead or alive."""
    return (yield from readers_under(readers_prefix(volume_id, number)))


def readers_under(prefix: str) -> Steps[list[ReaderEntry]]:
    """Return the readers under a prefix, dead or alive."""
    entries: tuple[Entry, ...] = yield ListUnder(prefix)
    return [
        ReaderEntry(one.key, Reader.from_bytes(one.value, one.key), one.revision) for one in entries
    ]


def names_of(volume_ids: Iterable[int]) -> Steps[list[str]]:
    """Return the names of volumes, for people; the id where one has none any more."""
    names = []
    for volume_id in volume_ids:
        volume = yield from find_volume(volume_id)
        names.append(f"id {volume_id}" if volume is None else volume.spec.name)
    return sorted(names)


def refuse_snapshot_deleting(entry: SnapshotEntry) -> None:
    """Raise Busy when the snapshot is being deleted."""
    if entry.snapshot.state != READY:
        raise Busy(
            f"snapshot {str(entry)!r} is being deleted",
            hint=f"finish it with: torus volume snapshot delete {entry}",
        )


def base_let_go(volume_id: int, base: Base, without: int | None = None) -> Steps[Changes]:
    """Return what a commit expects and changes when it takes away a use of ``base``.

    The caller's commit takes the base from the volume's head, or removes the snapshot number
    ``without`` while the head has no base; it expects the head's revision, so that no snapshot
    is made meanwhile.  When a snapshot is left that needs the base, that one is expected to
    stay: of two who each count on the other's being there, one then loses and looks again.
    When none is left, the volume's id leaves the list of clones of its origin.
    """
    entries: tuple[Entry, ...] = yield ListUnder(snapshots_prefix(volume_id))
    for entry in entries:
        own = Snapshot.from_bytes(entry.value, entry.key)
        if own.base == base and own.number != without:
            return (Expect(entry.key, entry.revision),), ()
    origin = yield from find_by_number(base.volume, base.number)
    if origin is None or volume_id not in origin.snapshot.clones:
        return (), ()
    clones = tuple(one for one in origin.snapshot.clones if one != volume_id)
    value = dataclasses.replace(origin.snapshot, clones=clones).to_bytes()
    return (Expect(origin.key, origin.revision),), (Put(origin.key, value),)
