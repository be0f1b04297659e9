"""The chunks of this process's own store, called directly."""

import asyncio
from collections.abc import Iterable, Sequence

from torus._fast.record import RecordBuilder
from torus.cluster.chunks import Place
from torus.cluster.one_disk import OneDisk
from torus.errors import Corruption, LocalProtocolError, PoolFull
from torus.ids import VOLUME_ID_BITS, ChunkId, is_shard
from torus.store.appender import Appender, check_room
from torus.store.content import Bytes, Examined, Reopened
from torus.store.store import Store

_SPACE_WAIT_S = 1.0


class LocalWriter:
    """One open chunk of the local store: nothing here waits."""

    __slots__ = ("_appender", "append_record", "boot_id")
    immediate = True

    def __init__(self, appender: Appender, boot_id: int) -> None:
        self._appender = appender
        self.append_record = appender.append
        self.boot_id = boot_id

    def append_now(self, index: int, offset: int, record: RecordBuilder) -> bool:
        self.append_record(index, offset, record)
        return True

    async def append(self, index: int, offset: int, record: RecordBuilder) -> None:
        self.append_record(index, offset, record)

    def append_soon(self, index: int, offset: int, record: bytes) -> None:
        return None

    def sync_soon(self) -> None:
        return None

    async def append_bytes(self, index: int, offset: int, record: bytes) -> None:
        self._appender.append_bytes(index, offset, record)


class LocalChunks(OneDisk):
    """A `Chunks` over the store in this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.disk_id = store.identity.disk_id
        self.boot_id = store.boot_id
        self.slot_bytes = store.geometry.slot_bytes
        self.io = store.disk.io
        self.in_thread = store.in_pool

    def open_now(self, chunk: ChunkId, *, from_reserve: bool) -> LocalWriter | None:
        try:
            return self._open(chunk, from_reserve=from_reserve)
        except PoolFull:
            if self._store.has_trash:
                return None  # emptying it takes a sync
            raise

    async def open(self, chunk: ChunkId, *, from_reserve: bool) -> LocalWriter:
        while True:
            try:
                return self._open(chunk, from_reserve=from_reserve)
            except PoolFull:
                if not await self._store.make_room():
                    raise

    def _open(self, chunk: ChunkId, *, from_reserve: bool) -> LocalWriter:
        appender = self._store.appender(chunk)
        appender.open(from_reserve=from_reserve)
        return LocalWriter(appender, self.boot_id)

    def writer(self, chunk: ChunkId, boot_id: int) -> LocalWriter:
        return LocalWriter(self._store.appender(chunk), boot_id)

    def place(self, chunk: ChunkId, known: Place | None = None) -> int | None:
        slot = self._store.find(chunk)
        return None if slot is None else slot.address

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        await self._store.sync(chunks)

    def sync_soon(self, chunks: Iterable[ChunkId]) -> asyncio.Future[None] | None:
        return self._store.sync_soon(chunks)

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        places = []
        for chunk, offset, size in reads:
            slot = self._store.find(chunk)
            if slot is None:
                raise Corruption(
                    f"chunk {chunk} is not on disk {self._store.identity.disk_id}",
                    hint="run 'torus check'",
                )
            check_room(slot, offset, size, self.slot_bytes)
            places.append((slot.address + offset, size))
        return await self._store.read(places)

    async def fence(self, volume: int, epoch: int) -> None:
        self._store.check_disk()
        if volume >> VOLUME_ID_BITS:
            raise LocalProtocolError(f"{volume} is no volume's id: those are below 2**56")
        try:
            self._store.fences.advance(volume, epoch)
        except OSError as exc:
            raise self._store.translate(exc, "record a fence") from exc

    async def scan(self, chunk: ChunkId, epoch: int, offset: int) -> bytes | None:
        if is_shard(chunk):
            raise LocalProtocolError(f"shard {chunk} is no part of a log that has an end")
        await self.fence(chunk.volume, epoch)
        slot = self._store.find(chunk)
        if slot is None:
            return None
        [data] = await self._store.read([(slot.address + offset, self.slot_bytes - offset)])
        return data

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        return await self._store.delete(volume, epoch, chunks)

    async def list(self, volume: int) -> Sequence[ChunkId]:
        self._store.check_disk()
        return self._store.chunks_of(volume)

    # --- copies -------------------------------------------------------------------------

    async def ping(self) -> None:
        return

    async def reopen(self, chunk: ChunkId, epoch: int) -> Reopened | None:
        return await self._store.copies.reopen(chunk, epoch)

    async def install(self, chunk: ChunkId, epoch: int, end: int, content: Bytes) -> None:
        await self._store.copies.install(chunk, epoch, end, content)

    async def examine(
        self, chunks: Sequence[ChunkId], *, afresh: bool = False
    ) -> Sequence[Examined]:
        return await self._store.copies.examine(chunks, afresh=afresh)

    async def drop(self, chunks: Iterable[ChunkId]) -> int:
        """Take surplus copies away: like a deletion, without a fence.  Returns: how many.

        Raises: DiskFailed, PoolFull.
        """
        return await self._store.copies.drop(chunks)

    # --- space --------------------------------------------------------------------------

    def space(self) -> tuple[int, int]:
        usage = self._store.usage
        return usage.available, usage.limit

    async def room(self) -> tuple[int, int]:
        return self.space()

    async def wait_for_space(self) -> None:
        self._store.space_freed.clear()
        try:
            await asyncio.wait_for(self._store.space_freed.wait(), _SPACE_WAIT_S)
        except TimeoutError:
            return
