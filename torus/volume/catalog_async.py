"""The catalog of volumes, for the event loop: nodes and gateways.

Carries out what `catalog_steps` and `epoch_steps` decide, on an `AsyncMetadata`.
"""

from typing import TypeVar

from torus.clock import Clock, SystemClock
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Cluster, Head, Owner, VolumeSpec
from torus.volume import catalog_ask, epoch_steps
from torus.volume import catalog_steps as steps
from torus.volume.catalog import new_cluster
from torus.volume.catalog_ask import Alive, Get, ListUnder, Steps, Volume
from torus.volume.catalog_steps import REDUNDANCY
from torus.volume.owner import is_alive

_T = TypeVar("_T")


class AsyncCatalog:
    """`torus.volume.catalog.Catalog` as coroutines; it does not own the store.

    A cancelled change may have happened all the same.
    """

    def __init__(
        self, store: AsyncMetadata, clock: Clock | None = None, *, alive: Alive = is_alive
    ) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._alive = alive

    async def init_cluster(self, cluster_id: str | None = None) -> Cluster:
        """Begin a cluster if the store has none; with ``cluster_id``, exactly that one.

        Raises: ForeignData when the store belongs to another than ``cluster_id``.
        """
        wanted = new_cluster(self._clock, cluster_id)
        return await self._run(steps.init_cluster(wanted, must_match=cluster_id is not None))

    async def get_cluster(self) -> Cluster:
        """Return which cluster this is.  Raises: NotFound when there is none yet."""
        return await self._run(steps.get_cluster())

    async def create(self, name: str, size_bytes: int, redundancy: str = REDUNDANCY) -> VolumeSpec:
        """Make a volume.  Raises: UsageError, AlreadyExists."""
        return await self._run(steps.create(name, size_bytes, redundancy, self._clock.wall_ns()))

    async def get(self, name: str) -> Volume:
        """Return the volume of that name.  Raises: NotFound."""
        return await self._run(steps.get(name))

    async def get_by_id(self, volume_id: int) -> Volume:
        """Return the volume with that id.  Raises: NotFound."""
        return await self._run(catalog_ask.get_by_id(volume_id))

    async def list(self) -> list[Volume]:
        """Return all volumes by name, those that are being deleted too."""
        return await self._run(steps.list_all())

    async def resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> Volume:
        """Give a volume another size.  Raises: UsageError, NotFound, Busy."""
        return await self._run(steps.resize(name, size_bytes, shrink=shrink))

    async def mark_deleting(self, name: str, *, force: bool = False) -> Volume:
        """Begin to delete a volume; fences its owner.  Raises: NotFound, Busy."""
        return await self._run(steps.mark_deleting(name, force=force, alive=self._alive))

    async def forget(self, volume: Volume) -> None:
        """Remove a volume whose chunks are freed.  Raises: Busy."""
        await self._run(steps.forget(volume))

    async def acquire(self, volume_id: int, owner: Owner, *, takeover: bool = False) -> Volume:
        """Become the only writer.  Raises: NotFound, Busy."""
        return await self._run(
            epoch_steps.acquire(volume_id, owner, takeover=takeover, alive=self._alive)
        )

    async def publish(self, volume_id: int, head: Head, head_revision: int) -> int:
        """Replace the head as its holder; return its new revision.  Raises: Fenced."""
        return await self._run(epoch_steps.publish(volume_id, head, head_revision))

    async def release(self, volume_id: int, head: Head, head_revision: int) -> int:
        """Write the head for the last time, without owner.  Raises: Fenced."""
        return await self._run(epoch_steps.release(volume_id, head, head_revision))

    async def _run(self, operation: Steps[_T]) -> _T:
        answer: object = None
        while True:
            try:
                step = operation.send(answer)
            except StopIteration as end:
                result: _T = end.value
                return result
            if isinstance(step, Get):
                answer = await self._store.get(step.key)
            elif isinstance(step, ListUnder):
                answer = (await self._store.list(step.prefix)).entries
            else:
                answer = await self._store.commit(step.expect, step.changes)
