"""A snapshot that is served: read only, from its own map, to any number of clients.

Decides which reads take the fast path and that nothing can be changed.  That the snapshot stays
while it is read is `torus.volume.served_snapshots`' care.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

from torus._fast.frame import RequestBatch
from torus._fast.reply import ReplyBuilder
from torus.errors import PermissionDenied
from torus.metadata.schema import Snapshot
from torus.volume.reads import Reads
from torus.volume.view import View


class SnapshotVolume:
    """What the NBD gateway calls an export, over one snapshot's map."""

    read_only = True

    def __init__(self, view: View, snapshot: Snapshot) -> None:
        """``view`` must stay readable until nobody uses this any more."""
        self.view = view
        self.snapshot = snapshot
        self.name = view.name
        self.size_bytes = snapshot.size_bytes
        made = datetime.fromtimestamp(snapshot.created_ns // 10**9, UTC).isoformat()
        self.description = f"snapshot {snapshot.number}, made {made}"
        self._reads = Reads(view)

    def read_now(
        self, requests: RequestBatch, first: int, stop: int, replies: ReplyBuilder
    ) -> Sequence[int]:
        """Answer READs that need no waiting; return the indexes of the others."""
        if self.view.path is None:
            return range(first, stop)
        return self.view.path.read_now(requests, first, stop, replies)

    def write_now(self, requests: RequestBatch, first: int, stop: int) -> int:
        """Take nothing."""
        return first

    async def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes.

        Raises: Corruption, Unavailable.
        """
        return await self._reads.read(offset, length)

    async def read_sparse(self, offset: int, length: int) -> Sequence[tuple[int, bytes | None]]:
        """Return the range as adjacent pieces of (bytes, data or None for zeroes)."""
        return await self._reads.sparse(offset, length)

    async def write(self, offset: int, payload: bytes, *, durable: bool) -> None:
        """Raises: PermissionDenied, always."""
        self._refuse()

    def read_soon(self, offset: int, length: int) -> None:
        """Return None: a read is a coroutine here."""

    def write_soon(self, offset: int, payload: bytes) -> None:
        """Return None: a write is a coroutine here."""

    def flush_soon(self) -> asyncio.Future[None]:
        """Return a future that is done: a snapshot was durable before it had a name."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def trim(self, offset: int, length: int, *, durable: bool) -> None:
        """Raises: PermissionDenied, always."""
        self._refuse()

    async def write_zeroes(
        self, offset: int, length: int, *, durable: bool, allocate: bool
    ) -> None:
        """Raises: PermissionDenied, always."""
        self._refuse()

    async def cache(self, offset: int, length: int) -> None:
        """Read a range into the page cache."""
        await self._reads.cache(offset, length)

    async def block_status(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return (bytes, base:allocation flags) extents."""
        return await self._reads.status(offset, length, limit)

    def _refuse(self) -> NoReturn:
        raise PermissionDenied(
            f"snapshot {self.name!r} cannot be written",
            hint="clone it: 'torus volume clone'",
        )
