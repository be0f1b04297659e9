"""The write queue of a volume: everything that the fast path does not take.

One task empties it, so one record is appended at a time and a block is never merged with stale
bytes.  Decides how requests become extents, what waits when the pool is full, and what may go
on then (trims and checkpoints, from the reserve).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from torus import limits
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.errors import Corruption, LocalProtocolError, PoolFull, ShuttingDown, TorusError
from torus.volume.core import Core
from torus.volume.items import Item, Work
from torus.volume.leaves import LEAF_BLOCKS

BLOCK = limits.BLOCK_BYTES
_ZERO_STEP_BLOCKS = 256 * LEAF_BLOCKS  # 1 GiB: bounds the leaves that one trim loads at once
_ZERO_DATA = bytes(limits.MIB)


class WriteQueue:
    """Turns requests into records, in order, one record at a time."""

    def __init__(
        self,
        core: Core,
        read_blocks: Callable[[int, int], Awaitable[bytearray]],
        *,
        pause_when_full: bool,
        on_progress: Callable[[], None],
        on_full: Callable[[], None],
    ) -> None:
        """``on_progress`` is called after each record, ``on_full`` when one found no space:
        both are times to think of a checkpoint."""
        self._core = core
        self._read_blocks = read_blocks
        self._pause = pause_when_full
        self._on_progress = on_progress
        self._on_full = on_full
        self._items: deque[Item] = deque()
        self._blocked: list[Item] = []  # data that waits for space
        self._batch: list[Item] = []  # items wholly in the record being built
        self._current: Item | None = None  # the item that is being added
        self._record = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, limits.RECORD_EXTENTS_MAX)
        self._from_reserve = False
        self._stopped = False
        self._wake = asyncio.Event()
        self._rest = asyncio.Event()
        self._rest.set()
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(self._ended)
        self._waiter: asyncio.Future[None] | None = None

    @property
    def idle(self) -> bool:
        """True when the fast path may append: nothing is queued, under way or waiting."""
        return self._rest.is_set() and not self._blocked and not self._stopped

    @property
    def blocked(self) -> int:
        """Requests that wait for space in the pool."""
        return len(self._blocked)

    @property
    def open(self) -> bool:
        """True when `put_soon` takes new data."""
        return not self._blocked and not self._stopped

    def put_soon(self, item: Item) -> asyncio.Future[None]:
        """Queue new data while the queue is `open`; the future is done as `put` is.

        Cancelling it lets the write go on.
        """
        self._items.append(item)
        self._start()
        return item.done

    async def put(self, item: Item) -> None:
        """Queue ``item`` and wait until its records are appended and in the map.

        Raises: PoolFull (unless writes pause), DiskFailed, Fenced, Unavailable, Corruption.
        """
        self._core.check()
        if self._stopped:
            raise ShuttingDown("the volume is closed")
        if self._blocked and not item.may_use_reserve:
            self._blocked.append(item)
        else:
            self._items.append(item)
            self._start()
        try:
            await asyncio.shield(item.done)
        except asyncio.CancelledError:
            item.done.add_done_callback(_forget)  # it goes on, and nobody waits for it
            raise

    def note_progress(self) -> None:
        """Say that somebody else appended a record: a time to think of a checkpoint, too."""
        self._on_progress()

    def stop_waiting(self) -> None:
        """Refuse what waits for space, now and from now on."""
        self._pause = False
        blocked, self._blocked = self._blocked, []
        for item in blocked:
            _reject(item, PoolFull("the pool is full, and this process is stopping"))

    async def drain(self) -> None:
        """Wait until nothing is queued or under way; what waits for space is refused."""
        blocked, self._blocked = self._blocked, []
        for item in blocked:
            _reject(item, PoolFull("the pool is full and the volume is being closed"))
        await self._rest.wait()

    async def stop(self) -> None:
        """End the task; idempotent."""
        self._stopped = True
        self._task.cancel()
        await asyncio.wait([self._task])
        self._reject_all(ShuttingDown("the volume was closed before this request was done"))
        if self._waiter is not None:
            self._waiter.cancel()
            await asyncio.wait([self._waiter])

    # --- the task -----------------------------------------------------------------------

    def _start(self) -> None:
        self._rest.clear()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while self._items:
                    await self._round()
            except TorusError as exc:
                self._lose(exc)
            self._rest.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._lose(LocalProtocolError(f"the write queue ended: {error!r}"))
        self._rest.set()

    def _lose(self, error: TorusError) -> None:
        """The log can go no further: refuse everything, now and later."""
        self._core.fail(error)
        self._reject_all(error)

    def _reject_all(self, error: TorusError) -> None:
        current = [self._current] if self._current else []
        for item in (*self._batch, *current, *self._items, *self._blocked):
            _reject(item, error)
        self._current = None
        self._batch.clear()
        self._items.clear()
        self._blocked.clear()

    async def _round(self) -> None:
        """Take items until the queue is empty, then append what is left of the record."""
        core = self._core
        core.hold_leaves = True
        try:
            while self._items:
                if self._take_plain():
                    continue
                current = self._current = self._items.popleft()
                self._from_reserve = current.may_use_reserve and all(
                    item.may_use_reserve for item in self._batch
                )
                if current.kind == KIND_DATA:
                    try:
                        await self._add(current)
                        self._batch.append(current)
                    except Corruption as exc:
                        # A neighbour in the same block is rotten: this request alone fails.
                        _reject(current, exc)
                elif isinstance(current, Work):
                    await self._commit()
                    await current.run()
                    _resolve(current)
                else:
                    await self._append_raw(current)
                self._current = None
            await self._commit()
        except PoolFull as exc:
            found = [*self._batch, *([self._current] if self._current else [])]
            self._current = None
            self._full(found, exc)
        finally:
            core.hold_leaves = False
        core.shrink_cache()

    def _full(self, items: list[Item], error: PoolFull) -> None:
        """Sort the items that found no space: again from the reserve, wait, or refuse."""
        self._on_full()
        self._batch.clear()
        self._record.clear()
        data = [item for item in items if not item.may_use_reserve]
        for item in reversed([item for item in items if item.may_use_reserve]):
            if data:
                self._items.appendleft(item)
            else:
                _reject(item, error)
        if not self._pause:
            for item in data:
                _reject(item, error)
            return
        self._blocked.extend(data)
        queued = [item for item in self._items if not item.may_use_reserve]
        self._items = deque(item for item in self._items if item.may_use_reserve)
        self._blocked.extend(queued)
        if self._blocked and self._waiter is None:
            self._waiter = asyncio.ensure_future(self._wait_for_space())

    async def _wait_for_space(self) -> None:
        await self._core.chunks.wait_for_space()
        self._waiter = None
        self._items.extend(self._blocked)
        self._blocked.clear()
        self._start()

    # --- requests to extents ------------------------------------------------------------

    def _take_plain(self) -> bool:
        """Add what needs no waiting to the record: whole blocks of new data that fit, and whose
        leaves are here.  Tells whether there was any."""
        items, record, blocks = self._items, self._record, self._core.blocks
        self._from_reserve = False
        room, taken = self._room, False
        while items:
            item = items[0]
            payload, length = item.payload, item.length
            if payload is None or item.kind != KIND_DATA or (item.offset | length) % BLOCK:
                break
            block = item.offset // BLOCK
            if record.room(room) < length or blocks.missing(block, length // BLOCK, 1):
                break
            record.add_data(block, payload, 0, length)
            self._batch.append(items.popleft())
            taken = True
        return taken

    async def _add(self, item: Item) -> None:
        offset, end = item.offset, item.offset + item.length
        position = 0
        if offset % BLOCK or end - offset < BLOCK:
            size = min(BLOCK - offset % BLOCK, end - offset)
            await self._merge(offset, size, item, 0)
            offset += size
            position = size
        whole = (end - offset) // BLOCK * BLOCK
        if whole:
            if item.payload is not None:
                await self._data(offset // BLOCK, item.payload, position, position + whole)
            elif item.allocate:
                for at in range(0, whole, len(_ZERO_DATA)):
                    size = min(len(_ZERO_DATA), whole - at)
                    await self._data((offset + at) // BLOCK, _ZERO_DATA, 0, size)
            else:
                await self._zero(offset // BLOCK, whole // BLOCK)
            offset += whole
            position += whole
        if offset < end:
            await self._merge(offset, end - offset, item, position)

    async def _merge(self, offset: int, size: int, item: Item, position: int) -> None:
        """Write part of a block: its other bytes come from what is there now."""
        await self._commit()
        block = offset // BLOCK
        if item.payload is None and not item.allocate and not await self._mapped(block):
            return
        data = await self._read_blocks(block, 1)
        start = offset % BLOCK
        piece = bytes(size) if item.payload is None else item.payload[position : position + size]
        data[start : start + size] = piece
        await self._data(block, bytes(data), 0, BLOCK)

    async def _mapped(self, block: int) -> bool:
        await self._core.load(block, 1)
        return self._core.blocks.get(block) is not None

    async def _data(self, block: int, payload: bytes, start: int, stop: int) -> None:
        while start < stop:
            room = self._record.room(self._room)
            if room == 0:
                if self._record.empty:
                    await self._next_chunk()
                else:
                    await self._commit()
                continue
            size = min(room, stop - start)
            await self._core.load(block, size // BLOCK)
            self._record.add_data(block, payload, start, start + size)
            block += size // BLOCK
            start += size

    async def _zero(self, block: int, count: int) -> None:
        """Unmap blocks; ranges without anything mapped cost nothing."""
        stop = block + count
        while block < stop:
            step = min(stop - block, _ZERO_STEP_BLOCKS)
            extents, reached = self._core.blocks.extents(block, stop - block, 1)
            if extents and not extents[0][1]:
                block += extents[0][0]
                continue
            if reached == block and not extents:
                await self._core.load(block, min(step, LEAF_BLOCKS))
                continue
            if not self._record.empty:
                await self._commit()
            await self._core.load(block, step)
            self._from_reserve = True  # the data before it, if there was any, is in the log
            if self._record.room(self._core.journal.room) == 0:
                await self._next_chunk()
            self._record.add_zero(block, step)
            await self._commit()
            block += step

    # --- records ------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        """Bytes left in the open chunk; none for new data in a chunk of the reserve."""
        journal = self._core.journal
        return 0 if journal.reserved and not self._from_reserve else journal.room

    async def _next_chunk(self) -> None:
        try:
            await self._core.journal.next_chunk(from_reserve=False)
        except PoolFull:
            if not self._from_reserve:
                raise
            await self._core.journal.next_chunk(from_reserve=True)

    async def _commit(self) -> None:
        """Append the record under way, enter it into the map, answer its items."""
        core = self._core
        if not self._record.empty:
            await core.journal.append(self._record, KIND_DATA)
            core.enter(self._record)
            self._record.clear()
        batch, self._batch = self._batch, []
        for item in batch:
            _resolve(item)
        core.drop_leaves()  # nothing is under way that needs them
        self._on_progress()

    async def _append_raw(self, item: Item) -> None:
        """Append a record that is not data: map pages or a root."""
        await self._commit()
        assert item.payload is not None
        core = self._core
        record = RecordBuilder(len(item.payload), 1)
        record.set_payload(item.payload)
        need = len(item.payload) + limits.RECORD_ALIGN_BYTES * 4 + len(item.payload) // 1024
        if core.journal.room < need:
            self._from_reserve = True
            await self._next_chunk()
        await core.journal.append(record, item.kind)
        item.place = (*core.journal.placed, record.header_bytes)
        _resolve(item)


def _forget(done: asyncio.Future[None]) -> None:
    """Take note of an error that nobody is told."""
    if not done.cancelled():
        done.exception()


def _resolve(item: Item) -> None:
    if not item.done.done():
        item.done.set_result(None)


def _reject(item: Item, error: TorusError) -> None:
    if not item.done.done():
        item.done.set_exception(error)
