"""Copies of chunks on one disk: going on with one, putting one there, comparing, taking away.

Decides what a valid copy is (whole records from the first on, payloads included), when bytes that
are there may be kept, and in which order a copy replaces another, so that a power loss at any
moment leaves one of the two.  Implements docs/format.md, "Copies".
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torus.errors import (
    Busy,
    Corruption,
    DiskFailed,
    LocalProtocolError,
    NotFound,
    TorusError,
)
from torus.format.segment import FREED_SLOT, UNUSED_SLOT
from torus.ids import ChunkId, is_shard
from torus.log import get_logger
from torus.store.appender import Slot
from torus.store.content import FIRST, Bytes, Content, Examined, Presence, Reopened, walk
from torus.store.shards import Shards

if TYPE_CHECKING:
    from torus.store.store import Store

log = get_logger("torus.store")
_ATTEMPTS_MAX = 8  # while somebody appends to the chunk at the same time
Result = TypeVar("Result")


class Copies:
    """The copies of one store.  Calls for the same chunk follow each other."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._turns: dict[ChunkId, asyncio.Task[Any]] = {}
        self._shards = Shards(store, self._present)

    async def close(self) -> None:
        """Wait for what is under way; idempotent."""
        while self._turns:
            await asyncio.wait(list(self._turns.values()))

    async def _in_turn(
        self, chunk: ChunkId, work: Callable[[], Coroutine[Any, Any, Result]]
    ) -> Result:
        """Do ``work`` behind what is under way for ``chunk``, to its end also when the caller is
        cancelled: a slot that is being written must not be forgotten."""
        before = self._turns.get(chunk)

        async def turn() -> Result:
            if before is not None:
                await asyncio.wait([before])
            return await work()

        task = self._turns[chunk] = asyncio.get_running_loop().create_task(turn())

        def done(ended: asyncio.Task[Result]) -> None:
            if self._turns.get(chunk) is ended:
                del self._turns[chunk]
            if not ended.cancelled() and (error := ended.exception()) is not None:
                log.info("store.copy.failed", chunk=str(chunk), reason=str(error))

        task.add_done_callback(done)
        return await asyncio.shield(task)

    async def _walk(self, slot: Slot, stop: int) -> Content:
        """Read a slot's records up to offset ``stop``, through the pool.

        Raises: Corruption when the disk cannot read them.
        """
        return (await self._compare(slot, stop, b""))[0]

    async def _compare(self, slot: Slot, stop: int, content: Bytes) -> tuple[Content, bool]:
        """Return also whether the valid records and ``content`` begin with the same bytes.

        Raises: Corruption.
        """
        disk = self._store.disk

        def compare() -> tuple[Content, bool]:
            data = disk.read(slot.address + FIRST, stop - FIRST)
            found = walk(data, slot.chunk)
            size = min(found.end - FIRST, len(content))
            return found, memoryview(data)[:size] == memoryview(content)[:size]

        try:
            return await self._store.in_pool(compare)
        except OSError as exc:
            raise Corruption(f"chunk {slot.chunk} cannot be read: {exc}") from exc

    def _stop(self, slot: Slot) -> int:
        """Return up to where a slot may hold records of its chunk."""
        return self._store.geometry.slot_bytes if slot.end is None else max(slot.end, FIRST)

    # --- going on -----------------------------------------------------------------------

    async def reopen(self, chunk: ChunkId, epoch: int) -> Reopened | None:
        """Find where a chunk's valid records end, so that appending goes on there; idempotent.

        Returns: None when the chunk is positively not here.
        Raises: Fenced, DiskFailed; Corruption when it may lie in a slot that cannot be read, or
            lost records that were answered since the disk was opened; Busy; LocalProtocolError
            for a shard.
        """
        if is_shard(chunk):
            raise LocalProtocolError(f"shard {chunk} is installed, not appended to")
        return await self._in_turn(chunk, lambda: self._reopen(chunk, epoch))

    async def _reopen(self, chunk: ChunkId, epoch: int) -> Reopened | None:
        store = self._store
        for _ in range(_ATTEMPTS_MAX):
            store.check_disk()
            store.fences.check(chunk.volume, epoch)
            slot = store.find(chunk)
            if slot is None:
                return None
            known = slot.end
            found = await self._walk(slot, self._stop(slot))
            if store.find(chunk) is not slot or slot.end != known:
                continue
            store.check_disk()
            store.fences.check(chunk.volume, epoch)
            if known is None:
                # What a power loss left behind the end are records that the writer will send
                # again; until it does, they must not follow the one that is written next.
                slot.end, slot.next_index, slot.stale = found.end, found.records, True
                slot.flushed = slot.prepared = False
                slot.examined = None
            elif found.records != slot.next_index:
                raise Corruption(
                    f"chunk {chunk} has {slot.next_index} records, {found.records} can be read: "
                    f"{found.problem}",
                    hint="run 'torus check'",
                )
            return Reopened(store.boot_id, found.records, found.end, found.lsn)
        raise Busy(f"chunk {chunk} is being appended to")

    # --- putting one there --------------------------------------------------------------

    async def install(self, chunk: ChunkId, epoch: int, end: int, content: Bytes) -> None:
        """Have a copy of ``chunk`` with the records ``content``, which end at offset ``end``.

        Every record is verified.  A valid copy that is there and begins with the same bytes is
        extended, or kept when it is as long; one that differs is replaced.  Durable on return.
        Of a shard ``content`` is descriptor and payload, and ``end`` where they end in its cell.

        Raises: Fenced, Corruption when ``content`` is not that, PoolFull, DiskFailed,
            LocalProtocolError, Busy while a former copy is being deleted; see `Shards.install`.
        """
        store = self._store
        if is_shard(chunk):
            shards = self._shards
            described = await shards.check(chunk, epoch, end, content)
            await self._in_turn(chunk, lambda: shards.install(chunk, epoch, content, described))
            return
        store.check_disk()
        store.fences.check(chunk.volume, epoch)
        if epoch < chunk.epoch:
            raise LocalProtocolError(f"epoch {epoch} cannot have chunk {chunk}")
        if len(content) != end - FIRST or end > store.geometry.slot_bytes:
            raise LocalProtocolError(
                f"{len(content)} bytes for chunk {chunk} up to offset {end} of "
                f"{store.geometry.slot_bytes}"
            )
        if end == FIRST:
            return
        found: Content = await store.in_pool(walk, content, chunk)
        if found.end != end:
            raise Corruption(
                f"copy of chunk {chunk} was refused: record {found.records} at offset "
                f"{found.end} of {end}: {found.problem}"
            )
        await self._in_turn(chunk, lambda: self._install(chunk, epoch, content, found))

    async def _install(self, chunk: ChunkId, epoch: int, content: Bytes, whole: Content) -> None:
        store = self._store
        for _ in range(_ATTEMPTS_MAX):
            store.check_disk()
            store.fences.check(chunk.volume, epoch)
            slot = await self._present(chunk)
            if slot is None:
                await self._write_new(chunk, epoch, content, None)
                return
            known = slot.end
            try:
                found, same = await self._compare(slot, self._stop(slot), content)
            except Corruption:
                same = False
            if store.slots.get(chunk) is not slot or slot.end != known:
                continue
            if not same:
                await self._write_new(chunk, epoch, content, slot)
                return
            store.check_disk()
            store.fences.check(chunk.volume, epoch)
            if found.end < whole.end:
                self._extend(slot, found.end, content, whole)
            await store.sync_segments({slot.segment})
            return
        raise Busy(f"chunk {chunk} is being appended to")

    async def _present(self, chunk: ChunkId) -> Slot | None:
        """Return a chunk's slot, taken back from the trash if it is there.

        Raises: Busy, DiskFailed.
        """
        store = self._store
        slot = store.slots.get(chunk)
        if slot is not None or not store.in_trash(chunk):
            return slot
        try:
            await store.restore(chunk)
        except NotFound as exc:
            raise Busy(f"a former copy of chunk {chunk} is being deleted") from exc
        return store.slots.get(chunk)

    def _extend(self, slot: Slot, end: int, content: Bytes, whole: Content) -> None:
        """Write what lies behind offset ``end``; no turn of the loop between look and write, so
        the slot is still the chunk's.

        Raises: PoolFull, DiskFailed.
        """
        store = self._store
        slot.examined = None
        try:
            if end == FIRST:
                store.disk.write(slot.address, store.slot_header(slot))
            store.disk.write(slot.address + end, memoryview(content)[end - FIRST :])
            for offset, empty in self._cut(whole.end):
                store.disk.write(slot.address + offset, empty)
        except OSError as exc:
            slot.stale = True
            raise store.translate(exc, "extend a chunk") from exc
        if slot.end is not None:
            slot.end, slot.next_index, slot.stale = whole.end, whole.records, True

    def _cut(self, end: int) -> list[tuple[int, Bytes]]:
        """Return what empties the place of the next record, as (offset, bytes): what a former
        end left there is not it."""
        fits = end + len(UNUSED_SLOT) <= self._store.geometry.slot_bytes
        return [(end, UNUSED_SLOT)] if fits else []

    async def _write_new(
        self, chunk: ChunkId, epoch: int, content: Bytes, old: Slot | None
    ) -> None:
        """Write a copy into a slot of its own, and let it take the place of ``old``.

        A copy that replaces another gets its header, with a higher number, when its records are
        durable; the other's slot is freed when that is.  Before, the mark of a freed slot stands
        there, so that nothing takes the records for a chunk whose header was lost.
        """
        store = self._store
        slot = await store.take_waiting(chunk, 0 if old is None else old.copy + 1)
        try:
            if old is not None:
                await store.write_durably(slot, [(0, FREED_SLOT)])
            header = store.slot_header(slot) if old is None else FREED_SLOT
            parts: list[tuple[int, Bytes]] = [(0, header), (FIRST, content)]
            await store.write_durably(slot, [*parts, *self._cut(FIRST + len(content))])
            if old is not None:
                await store.write_durably(slot, [(0, store.slot_header(slot))])
            store.fences.check(chunk.volume, epoch)
            if store.slots.get(chunk) is not old:
                raise Busy(f"chunk {chunk} was changed while a copy was written")
        except TorusError as exc:
            if not isinstance(exc, DiskFailed):
                await store.give_back(slot)
            raise
        store.slots.add(slot)
        if old is not None:
            old.end = None
            log.warning("store.copy.replaced", chunk=str(chunk), copy=slot.copy)
            await store.give_back(old)

    # --- comparing, taking away ---------------------------------------------------------

    async def examine(self, chunks: Sequence[ChunkId], *, afresh: bool = False) -> list[Examined]:
        """Say of each chunk whether it is here and what it holds, one after the other.

        What was found once is remembered for a chunk that nobody appends to; ``afresh``: it is
        read again, which finds what rotted since.  What is said of shards: `Shards.examine`.

        Raises: DiskFailed.
        """
        return [await self._examine(chunk, afresh) for chunk in chunks]

    async def _examine(self, chunk: ChunkId, afresh: bool) -> Examined:
        if is_shard(chunk):
            return await self._shards.examine(chunk, afresh=afresh)
        store = self._store
        for _ in range(_ATTEMPTS_MAX):
            store.check_disk()
            try:
                slot = store.find(chunk)
            except Corruption:
                break
            if slot is None:
                state = Presence.UNKNOWN if store.blind else Presence.ABSENT
                return Examined(chunk, state, 0, 0, 0)
            known = slot.end
            if slot.examined is not None and known is None and not afresh:
                return slot.examined
            try:
                found = await self._walk(slot, self._stop(slot))
            except Corruption as exc:
                log.error("store.copy.unreadable", chunk=str(chunk), reason=exc.message)
                break
            if store.slots.get(chunk) is not slot or slot.end != known:
                continue
            result = Examined(chunk, Presence.PRESENT, found.end, found.records, found.crc)
            slot.examined = result if known is None else None
            return result
        return Examined(chunk, Presence.UNKNOWN, 0, 0, 0)

    async def drop(self, chunks: Iterable[ChunkId]) -> int:
        """Take copies away that this disk need not have; like a deletion, without a fence.

        Each id stands for itself: a chunk's shards stay when its whole copy goes.

        Returns: how many were here.
        Raises: DiskFailed, PoolFull.
        """
        return await self._store.discard(chunks)
