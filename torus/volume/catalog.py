"""The catalog of volumes, for code that may block: commands and tests.

Carries out what the `*_steps` modules decide, on a metadata store.
"""

import builtins
import os
from typing import TypeVar

from torus.clock import Clock, SystemClock
from torus.metadata.base import MetadataStore
from torus.metadata.schema import Base, Cluster, Head, Owner, Reader, Snapshot, VolumeSpec
from torus.volume import (
    catalog_ask,
    clone_steps,
    epoch_steps,
    removal_steps,
    snapshot_ask,
    snapshot_steps,
    tree_steps,
)
from torus.volume import catalog_steps as steps
from torus.volume.catalog_ask import Alive, Get, ListUnder, Steps, Volume
from torus.volume.catalog_steps import REDUNDANCY
from torus.volume.owner import is_alive
from torus.volume.snapshot_ask import ReaderEntry, SnapshotEntry
from torus.volume.tree_steps import TreeVolume

__all__ = ["Catalog", "SnapshotEntry", "Volume", "new_cluster"]

_T = TypeVar("_T")


class Catalog:
    """All volumes of a cluster; errors and races are those of `catalog_steps`.

    It does not own the store.  ``alive`` tells whether an owner lives: True, False or None.
    """

    def __init__(
        self, store: MetadataStore, clock: Clock | None = None, *, alive: Alive = is_alive
    ) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._alive = alive

    def init_cluster(self, cluster_id: str | None = None) -> Cluster:
        """Begin a cluster if the store has none; with ``cluster_id``, exactly that one.

        Raises: ForeignData when the store belongs to another than ``cluster_id``.
        """
        wanted = new_cluster(self._clock, cluster_id)
        return self._run(steps.init_cluster(wanted, must_match=cluster_id is not None))

    def get_cluster(self) -> Cluster:
        """Return which cluster this is.  Raises: NotFound when there is none yet."""
        return self._run(steps.get_cluster())

    def create(
        self,
        name: str,
        size_bytes: int,
        redundancy: str = REDUNDANCY,
        min_copies: int | None = None,
    ) -> VolumeSpec:
        """Make a volume.  Raises: UsageError, AlreadyExists."""
        now_ns = self._clock.wall_ns()
        return self._run(steps.create(name, size_bytes, redundancy, now_ns, min_copies))

    def get(self, name: str) -> Volume:
        """Return the volume of that name.  Raises: NotFound."""
        return self._run(steps.get(name))

    def get_by_id(self, volume_id: int) -> Volume:
        """Return the volume with that id.  Raises: NotFound."""
        return self._run(catalog_ask.get_by_id(volume_id))

    def list(self) -> list[Volume]:
        """Return all volumes by name, those that are being deleted too."""
        return self._run(steps.list_all())

    def resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> Volume:
        """Give a volume another size.  Raises: UsageError, NotFound, Busy."""
        return self._run(steps.resize(name, size_bytes, shrink=shrink))

    def convert(self, name: str, redundancy: str, min_copies: int | None = None) -> Volume:
        """Have a volume kept in another way.  Raises: UsageError, NotFound, Busy."""
        return self._run(steps.convert(name, redundancy, min_copies))

    def mark_deleting(
        self, name: str, *, force: bool = False, with_snapshots: bool = False
    ) -> Volume:
        """Begin to delete a volume; fences its owner.  Raises: NotFound, Busy, UsageError."""
        return self._run(
            removal_steps.mark_deleting(
                name, force=force, with_snapshots=with_snapshots, alive=self._alive
            )
        )

    def forget(self, volume: Volume) -> None:
        """Remove a volume whose chunks are freed.  Raises: Busy."""
        self._run(removal_steps.forget(volume))

    def acquire(self, volume_id: int, owner: Owner, *, takeover: bool = False) -> Volume:
        """Become the only writer.  Raises: NotFound, Busy."""
        return self._run(
            epoch_steps.acquire(volume_id, owner, takeover=takeover, alive=self._alive)
        )

    def publish(self, volume_id: int, head: Head, head_revision: int) -> int:
        """Replace the head as its holder; return its new revision.  Raises: Fenced."""
        return self._run(epoch_steps.publish(volume_id, head, head_revision))

    def release(self, volume_id: int, head: Head, head_revision: int) -> int:
        """Write the head for the last time, without owner.  Raises: Fenced."""
        return self._run(epoch_steps.release(volume_id, head, head_revision))

    def settle_cut(self, volume_id: int, head_revision: int, cut_bytes: int) -> VolumeSpec:
        """Forget a cut that is done; return the specification.  Raises: Fenced."""
        return self._run(epoch_steps.settle_cut(volume_id, head_revision, cut_bytes))

    # --- snapshots ----------------------------------------------------------------------

    def snapshots(self, name: str) -> builtins.list[Snapshot]:
        """Return a volume's snapshots by number.  Raises: NotFound."""
        return self._run(snapshot_steps.snapshots(name))

    def snapshots_of(self, volume_id: int) -> builtins.list[Snapshot]:
        """Return the snapshots of the volume with that id by number; none without it."""
        return self._run(snapshot_ask.snapshots_of(volume_id))

    def snapshot_values(self, volume_id: int) -> builtins.list[bytes]:
        """Return the snapshots of a volume as they are stored; see `Pins.read`."""
        return self._run(snapshot_ask.snapshot_values(volume_id))

    def get_snapshot(self, name: str, snap: str) -> SnapshotEntry:
        """Return a snapshot by name.  Raises: UsageError, NotFound."""
        return self._run(snapshot_ask.get_snapshot(name, snap))

    def snapshot_by_number(self, volume_id: int, number: int) -> Snapshot:
        """Return a snapshot by its volume's id and its number.  Raises: NotFound."""
        return self._run(snapshot_ask.snapshot_by_number(volume_id, number))

    def check_new_snapshot(self, name: str, snap: str) -> Volume:
        """Refuse a snapshot early.  Raises: UsageError, NotFound, AlreadyExists, Busy."""
        return self._run(snapshot_steps.check_new_snapshot(name, snap))

    def publish_snapshot(
        self, volume_id: int, head: Head, head_revision: int, snapshot: Snapshot
    ) -> int:
        """Write head and snapshot as the head's holder; return the head's new revision.

        Raises: Fenced, AlreadyExists, UsageError.
        """
        return self._run(snapshot_steps.publish_snapshot(volume_id, head, head_revision, snapshot))

    def snapshot_detached(self, name: str, snap: str, now_ns: int, uid: str) -> Snapshot | None:
        """Make a snapshot from the metadata alone; None when the volume must be attached.

        Raises: UsageError, NotFound, AlreadyExists, Busy.
        """
        return self._run(snapshot_steps.snapshot_detached(name, snap, now_ns, uid))

    def set_protected(self, name: str, snap: str, protected: bool) -> Snapshot:
        """Forbid or allow a snapshot's deletion.  Raises: UsageError, NotFound, Busy."""
        return self._run(snapshot_steps.set_protected(name, snap, protected))

    def begin_snapshot_deletion(self, name: str, snap: str) -> SnapshotEntry:
        """Let nobody begin to use a snapshot.  Raises: UsageError, NotFound, Busy."""
        return self._run(removal_steps.begin_snapshot_deletion(name, snap))

    def abort_snapshot_deletion(self, entry: SnapshotEntry) -> None:
        """Take back what `begin_snapshot_deletion` did."""
        self._run(removal_steps.abort_snapshot_deletion(entry))

    def finish_snapshot_deletion(self, entry: SnapshotEntry) -> None:
        """Remove a snapshot that nobody reads.  Raises: Busy."""
        self._run(removal_steps.finish_snapshot_deletion(entry))

    def delete_snapshot(self, name: str, snap: str) -> SnapshotEntry:
        """Begin, look for readers, finish or take back; return what was removed.

        Raises: UsageError, NotFound, Busy.
        """
        return self._run(removal_steps.delete_snapshot(name, snap, alive=self._alive))

    def add_reader(self, entry: SnapshotEntry, reader: Reader, reader_id: str | None = None) -> str:
        """Say that a process reads a snapshot; return the key for `remove_reader`.

        Raises: Busy.
        """
        number = reader_id or os.urandom(16).hex()
        return self._run(snapshot_steps.add_reader(entry, reader, number))

    def remove_reader(self, key: str) -> None:
        """Say that a reader is done; idempotent."""
        self._run(snapshot_steps.remove_reader(key))

    def readers(self, volume_id: int, number: int) -> builtins.list[ReaderEntry]:
        """Return who says that it reads a snapshot, dead or alive."""
        return self._run(snapshot_ask.readers(volume_id, number))

    # --- clones -------------------------------------------------------------------------

    def clone(self, name: str, snap: str, new_name: str, now_ns: int) -> VolumeSpec:
        """Make a volume that begins as a snapshot.

        Raises: UsageError, NotFound, AlreadyExists, Busy.
        """
        return self._run(clone_steps.clone(name, snap, new_name, now_ns))

    def ancestors(self, base: Base | None) -> builtins.list[SnapshotEntry]:
        """Return the snapshots that a volume with that base reads, nearest first.

        Raises: Corruption.
        """
        return self._run(clone_steps.ancestors(base))

    def finish_flatten(self, volume_id: int, head: Head, head_revision: int) -> int:
        """Write a head that has no base any more; return its revision.  Raises: Fenced."""
        return self._run(clone_steps.finish_flatten(volume_id, head, head_revision))

    def publish_rollback(
        self, volume_id: int, head: Head, head_revision: int, size_bytes: int
    ) -> int:
        """Write the head of a rolled back volume, and its size; return the head's revision.

        Raises: Fenced, Busy.
        """
        return self._run(clone_steps.publish_rollback(volume_id, head, head_revision, size_bytes))

    def tree(self) -> tuple[TreeVolume, ...]:
        """Return all volumes with their snapshots and clones, roots by name."""
        return self._run(tree_steps.tree())

    def _run(self, operation: Steps[_T]) -> _T:
        answer: object = None
        while True:
            try:
                step = operation.send(answer)
            except StopIteration as end:
                result: _T = end.value
                return result
            if isinstance(step, Get):
                answer = self._store.get(step.key)
            elif isinstance(step, ListUnder):
                answer = self._store.list(step.prefix).entries
            else:
                answer = self._store.commit(step.expect, step.changes)


def new_cluster(clock: Clock, cluster_id: str | None = None) -> Cluster:
    """Return a cluster that begins now, with a secret; its id is 32 random hexadecimal digits."""
    return Cluster(cluster_id or os.urandom(16).hex(), clock.wall_ns(), os.urandom(32).hex())
