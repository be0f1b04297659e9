"""The catalog of volumes, for code that may block: commands and tests.

Carries out what `catalog_steps` and `epoch_steps` decide, on a metadata store.
"""

import os
from typing import TypeVar

from torus.clock import Clock, SystemClock
from torus.metadata.base import MetadataStore
from torus.metadata.schema import Cluster, Head, Owner, VolumeSpec
from torus.volume import catalog_ask, epoch_steps
from torus.volume import catalog_steps as steps
from torus.volume.catalog_ask import Alive, Get, ListUnder, Steps, Volume
from torus.volume.catalog_steps import REDUNDANCY
from torus.volume.owner import is_alive

__all__ = ["Catalog", "Volume", "new_cluster"]

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

    def create(self, name: str, size_bytes: int, redundancy: str = REDUNDANCY) -> VolumeSpec:
        """Make a volume.  Raises: UsageError, AlreadyExists."""
        return self._run(steps.create(name, size_bytes, redundancy, self._clock.wall_ns()))

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

    def mark_deleting(self, name: str, *, force: bool = False) -> Volume:
        """Begin to delete a volume; fences its owner.  Raises: NotFound, Busy."""
        return self._run(steps.mark_deleting(name, force=force, alive=self._alive))

    def forget(self, volume: Volume) -> None:
        """Remove a volume whose chunks are freed.  Raises: Busy."""
        self._run(steps.forget(volume))

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
    """Return a cluster that begins now; its id is 32 random hexadecimal digits."""
    return Cluster(cluster_id or os.urandom(16).hex(), clock.wall_ns())
