"""What a volume's log needs from where its chunks lie: one interface, near and far.

`LocalChunks` (torus.cluster.local) calls the store of this process, `PeerChunks`
(torus.cluster.peer) asks a node through the peer protocol.  The rules are those of design
section 4; both are held to them by the same contract test.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from torus._fast.blockio import BlockIo
from torus._fast.record import RecordBuilder
from torus.ids import ChunkId


class ChunkWriter(Protocol):
    """Appends records to one open chunk."""

    def append_now(self, index: int, offset: int, record: RecordBuilder) -> bool:
        """Append without waiting; False when this place can only be reached by waiting.

        Raises: as `append`.
        """

    async def append(self, index: int, offset: int, record: RecordBuilder) -> None:
        """Append a finished record; it is in the page cache of its node on return.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable, LocalProtocolError; Corruption when its
        node restarted since the chunk was opened.
        """


class Chunks(Protocol):
    """The chunks of a cluster, as one volume's writer sees them."""

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot: how long a chunk may get."""

    @property
    def io(self) -> BlockIo | None:
        """Direct access, when the chunks are in this process."""

    def open_now(self, chunk: ChunkId, *, from_reserve: bool) -> ChunkWriter | None:
        """Open a new chunk without waiting; None when that takes waiting.

        Raises: Fenced, PoolFull, DiskFailed.
        """

    async def open(self, chunk: ChunkId, *, from_reserve: bool) -> ChunkWriter:
        """Open a new chunk for appending.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """

    def place(self, chunk: ChunkId) -> int | None:
        """Return the disk address of a chunk in this process; None when it is elsewhere."""

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        """Make all that was appended to ``chunks`` durable.

        Raises: DiskFailed, Unavailable; Corruption when a node restarted since the appends.
        """

    def sync_soon(self, chunks: Iterable[ChunkId]) -> asyncio.Future[None] | None:
        """Return the future of `sync` where that needs no coroutine, else None.

        Raises: as `sync`; so does the future.
        """

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        """Return the bytes of each (chunk, offset, size), unverified.

        Raises: Corruption when a chunk is not there or cannot be read, Unavailable.
        """

    async def fence(self, volume: int, epoch: int) -> None:
        """Refuse older epochs of ``volume`` from now on, durably.

        Raises: Fenced when there is a newer one, DiskFailed, Unavailable.
        """

    async def scan(self, chunk: ChunkId, epoch: int, offset: int) -> bytes | None:
        """Fence and read in one step: the chunk's bytes from ``offset`` to its slot's end.

        Returns: None when the chunk was never there: a positive answer, never a guess.
        Raises: Fenced, DiskFailed, Unavailable.
        """

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        """Free ``chunks``; returns how many were there.

        Raises: Fenced, DiskFailed, Unavailable.
        """

    async def list(self, volume: int) -> Sequence[ChunkId]:
        """Return the chunks of ``volume`` that exist.

        Raises: DiskFailed, Unavailable.
        """

    def space(self) -> tuple[int, int] | None:
        """Return (slots that ordinary writes may still take, slots in all) of the disk that new
        chunks go to; None when that takes asking."""

    async def wait_for_space(self) -> None:
        """Return when slots may have become free, or after about a second."""
