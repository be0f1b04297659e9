"""Which metadata contexts an export has, and what each of them needs open.

Decides their names and order; what they say is `torus.volume.contexts`' business.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from torus.errors import NotFound
from torus.nbd.contexts import ALLOCATION_DEPTH, BASE_ALLOCATION, CHANGED_SINCE
from torus.volume.catalog_ask import READY
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.contexts import Allocation, AllocationDepth, ChangedSince
from torus.volume.served_snapshots import ServedSnapshots
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.standby import StandbyVolume
from torus.volume.volume import Volume


class Context(Protocol):
    """One context of one export, open for one connection."""

    async def extents(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return at most ``limit`` (bytes, flags) extents from ``offset`` on."""


class _Late:
    """A context of a volume that stands by: what it says has to wait for the volume."""

    def __init__(
        self,
        standby: StandbyVolume,
        name: str,
        open_it: Callable[[Volume, str], Awaitable[Context]],
    ) -> None:
        self._standby = standby
        self._name = name
        self._open = open_it
        self._lock = asyncio.Lock()
        self.inner: Context | None = None

    async def extents(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return at most ``limit`` (bytes, flags) extents from ``offset`` on."""
        async with self._lock:
            inner = self.inner
            if inner is None:
                inner = self.inner = await self._open(await self._standby.taken(), self._name)
        return await inner.extents(offset, length, limit)


class ServedContexts:
    """The contexts of the volumes and snapshots of one process."""

    def __init__(self, catalog: AsyncCatalog, snapshots: ServedSnapshots) -> None:
        self._catalog = catalog
        self._snapshots = snapshots

    async def names(self, name: str, queries: Sequence[str]) -> list[str]:
        """Return what an export has: a volume compares with each of its snapshots, a snapshot
        with each that is older.

        Snapshots are looked at only where a query, or that there is none, can mean them: a
        volume may have a thousand, and most clients ask for base:allocation alone.

        Raises: NotFound, UsageError, Unavailable.
        """
        volume, at, newer = name.partition("@")
        found = [BASE_ALLOCATION, ALLOCATION_DEPTH]
        limit = None
        if at:
            limit = (await self._catalog.get_snapshot(volume, newer)).snapshot.number
        else:
            await self._catalog.get(volume)
        namespace = CHANGED_SINCE.partition(":")[0] + ":"
        if queries and not any(query.startswith(namespace) for query in queries):
            return found
        for one in await self._catalog.snapshots(volume):
            if one.state == READY and (limit is None or one.number < limit):
                found.append(CHANGED_SINCE + one.name)
        return found

    async def open(self, export: object, names: Sequence[str]) -> list[Context]:
        """Return these contexts of an open export, all or none.

        Raises: NotFound, Busy, Corruption, Unavailable.
        """
        if isinstance(export, StandbyVolume):
            return [_Late(export, name, self._open) for name in names]
        assert isinstance(export, Volume | SnapshotVolume)
        opened: list[Context] = []
        try:
            for name in names:
                opened.append(await self._open(export, name))
        except BaseException:
            await self.close(opened)
            raise
        return opened

    async def close(self, contexts: Sequence[object]) -> None:
        """Give contexts back; never fails."""
        for context in contexts:
            if isinstance(context, _Late):
                context = context.inner
            if isinstance(context, ChangedSince):
                await self._snapshots.close(context.older)

    async def _open(self, export: Volume | SnapshotVolume, name: str) -> Context:
        view = export.view if isinstance(export, SnapshotVolume) else export.core
        if name == BASE_ALLOCATION:
            return Allocation(export)
        if name == ALLOCATION_DEPTH:
            return AllocationDepth(view)
        if not name.startswith(CHANGED_SINCE):
            raise NotFound(f"there is no metadata context {name!r}")
        volume = export.name.partition("@")[0]
        older = await self._snapshots.open(volume, name.removeprefix(CHANGED_SINCE))
        return ChangedSince(older, view)
