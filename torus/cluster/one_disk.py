"""What copies and spans mean where all chunks are on one disk.

Decides nothing: it is what `LocalChunks` and `PeerChunks` have in common of `Chunks`.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from torus.cluster.chunks import Check, InThread
from torus.ids import ChunkId
from torus.metadata.schema import Span, VolumeSpec


class OneDisk:
    """What copies mean where there is one disk: base of `LocalChunks` and `PeerChunks`."""

    @property
    def replicated(self) -> bool:
        """Return False."""
        return False

    @property
    def lost(self) -> bool:
        """Return False: what fails here fails for good, and says so itself."""
        return False

    slot_bytes: int
    in_thread: InThread | None = None

    @property
    def chunk_bytes(self) -> int:
        """Return the whole slot: what is on one disk is never cut into shards."""
        return self.slot_bytes

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        """See `Chunks.read`."""
        raise NotImplementedError

    async def read_checked(
        self, reads: Sequence[tuple[ChunkId, int, int]], check: Check
    ) -> list[bytes]:
        """Read; there is no other copy."""
        return await self.read(reads)

    def read_soon(
        self, read: tuple[ChunkId, int, int], check: Callable[[bytes], bool]
    ) -> asyncio.Future[bytes | None] | None:
        """Return None: see `Chunks.read_soon`."""
        return None

    def read_many_soon(
        self, reads: Sequence[tuple[ChunkId, int, int]], size: int
    ) -> asyncio.Future[list[bytes]] | None:
        """Return None: see `DiskChunks.read_many_soon`."""
        return None

    def sync_many_soon(self, chunks: Sequence[ChunkId]) -> asyncio.Future[int] | None:
        """Return None: see `DiskChunks.sync_many_soon`."""
        return None

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        """See `Chunks.sync`."""
        raise NotImplementedError

    async def list(self, volume: int) -> Sequence[ChunkId]:
        """See `Chunks.list`."""
        raise NotImplementedError

    def is_certain(self, chunk: ChunkId) -> bool:
        """Return True: the disk has answered."""
        return True

    async def settle(self, ends: Mapping[ChunkId, int]) -> None:
        """Sync the chunks."""
        await self.sync(ends)

    async def survey(self, volume: int) -> tuple[Sequence[ChunkId], bool]:
        """List the chunks: they are all."""
        return await self.list(volume), True

    async def secure(self) -> bool:
        """Return False: nothing is lost."""
        return False

    def new_span(self) -> tuple[int, tuple[str, ...], int]:
        """Return (0, (), 0): there is no ring."""
        return 0, (), 0

    @property
    def missing(self) -> frozenset[str]:
        """Return none: there is one disk."""
        return frozenset()

    def begin_span(self) -> None:
        """Do nothing."""

    def learn(self, volume: int, spans: Iterable[Span]) -> None:
        """Do nothing: all chunks are here."""

    def follow(self, spec: VolumeSpec) -> None:
        """Do nothing: there is one disk."""

    async def better_span(self) -> None:
        """Never return."""
        await asyncio.get_running_loop().create_future()

    @property
    def waiting(self) -> str:
        """Return nothing."""
        return ""

    def stop_waiting(self) -> None:
        """Do nothing: nothing waits."""

    async def stop(self) -> None:
        """Do nothing: nothing works in the background."""
