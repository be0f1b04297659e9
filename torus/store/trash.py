"""Deleted chunks on their way to free slots.

Decides how long a deleted chunk is kept (a grace period, or until ordinary writes are short of
slots, oldest first) and when its slot may hold another one: when its header says so durably.
A chunk in the trash is not here any more for everybody who asks; its slot still has its header
and content, so it can be taken back, and after a restart it is a plain chunk again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice

from torus import limits
from torus.clock import Clock
from torus.errors import DiskFailed, TorusError
from torus.format.segment import FREED_SLOT
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.appender import Slot
from torus.store.disk import Disk
from torus.store.groupcommit import GroupCommit
from torus.store.pool import Pool
from torus.store.space import Space

log = get_logger("torus.store")
_ROOM_SLOTS = 16  # freed at once for a writer that waits


class Trash:
    """The deleted chunks of one disk.  Used from one event loop."""

    def __init__(
        self,
        space: Space,
        disk: Disk,
        pool: Pool,
        commits: GroupCommit,
        clock: Clock,
        grace_s: float,
        on_freed: Callable[[Sequence[Slot]], Awaitable[None]],
        translate: Callable[[OSError, str], TorusError],
    ) -> None:
        """``on_freed`` is given the slots and cells whose wiped headers are durable."""
        self._space = space
        self._disk = disk
        self._pool = pool
        self._commits = commits
        self._clock = clock
        self._grace_s = grace_s
        self._on_freed = on_freed
        self._translate = translate
        self._held: dict[ChunkId, tuple[Slot, int]] = {}  # with the time of deletion, oldest first
        self._leaving: set[ChunkId] = set()
        self._emptying: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._freed = 0

    def __contains__(self, chunk: ChunkId) -> bool:
        """True while a deleted chunk's header may still be on the disk."""
        return chunk in self._held or chunk in self._leaving

    @property
    def chunks(self) -> list[ChunkId]:
        """Return the chunks that can still be taken back, oldest first."""
        return list(self._held)

    @property
    def holds_any(self) -> bool:
        """True when emptying the trash may make room."""
        return bool(self._held or self._emptying)

    @property
    def keeps(self) -> bool:
        """True when there is a grace period."""
        return self._grace_s > 0

    def add(self, slots: Sequence[Slot]) -> None:
        """Keep deleted chunks for the grace period."""
        now_ns = self._clock.monotonic_ns()
        self._count(slots, self._space.discard)
        for slot in slots:
            self._held[slot.chunk] = (slot, now_ns)
        self.relieve()
        self._later()

    def take_back(self, chunk: ChunkId) -> Slot | None:
        """Return a chunk's slot, which is in use again; None when it is not in the trash."""
        slot, _ = self._held.pop(chunk, (None, 0))
        if slot is not None:
            self._count([slot], self._space.restore)
        return slot

    async def wipe(self, slots: Sequence[Slot]) -> None:
        """Free slots of deleted chunks now; where that fails they are in use as before.

        Raises: PoolFull, DiskFailed.
        """
        self._count(slots, self._space.discard)
        try:
            await self._free(slots)
        except TorusError:
            self._count(slots, self._space.restore)
            raise

    def _count(self, slots: Sequence[Slot], change: Callable[[], None]) -> None:
        """Tell the space of each slot; a cell is a part of one that is in use all the time."""
        for slot in slots:
            if slot.counted:
                change()

    # --- when space is short ------------------------------------------------------------

    def relieve(self) -> None:
        """Free the oldest when writes are about to run out of slots."""
        if self._held:
            wanted = self._space.trash_wanted - len(self._leaving)
            self._start(list(islice(self._held, max(0, wanted))))

    async def make_room(self) -> bool:
        """Free some now and wait for it; False when nothing was freed.

        For a writer that found no slot: it tries again after True.
        """
        before = self._freed
        if not self._leaving:
            self._start(list(islice(self._held, _ROOM_SLOTS)))
        under_way = [task for task in self._emptying if not task.done()]
        if under_way:
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        return self._freed > before

    # --- when time is over --------------------------------------------------------------

    def _later(self, at_least_s: float = 0.0) -> None:
        if self._timer is not None or self._closed or not self._held:
            return
        _, oldest_ns = next(iter(self._held.values()))
        left_s = self._grace_s - (self._clock.monotonic_ns() - oldest_ns) / 1e9
        delay_s = max(left_s, at_least_s, 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.expire)

    def expire(self) -> None:
        """Begin to free what was kept long enough; the timer calls it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        before_ns = self._clock.monotonic_ns() - int(self._grace_s * 1e9)
        old = []
        for chunk, (_, deleted_ns) in self._held.items():
            if deleted_ns > before_ns:
                break
            old.append(chunk)
        self._start(old)
        self._later()

    # --- emptying -----------------------------------------------------------------------

    def _start(self, chunks: Iterable[ChunkId]) -> None:
        batch = [self._held.pop(chunk) for chunk in chunks]
        if not batch:
            return
        self._leaving.update(slot.chunk for slot, _ in batch)
        task = asyncio.ensure_future(self._empty(batch))
        self._emptying.add(task)
        task.add_done_callback(self._ended)

    async def _empty(self, batch: list[tuple[Slot, int]]) -> None:
        try:
            await self._free([slot for slot, _ in batch])
        except TorusError as exc:
            self._held = {**{slot.chunk: (slot, since) for slot, since in batch}, **self._held}
            if not isinstance(exc, DiskFailed):  # which is known already, and final
                log.warning("store.trash.not_emptied", chunks=len(batch), error=str(exc))
                self._later(limits.TRASH_RETRY_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._emptying.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _free(self, slots: Sequence[Slot]) -> None:
        """Order: headers wiped, synced, and only then free for others.

        Raises: PoolFull, DiskFailed.
        """
        chunks = {slot.chunk for slot in slots}
        self._leaving |= chunks
        try:
            await self._pool.submit(self._wipe_headers, slots)
            segments = {slot.segment for slot in slots}
            waits = [self._commits.request(segment) for segment in segments]
            await asyncio.gather(*waits)
        except OSError as exc:
            raise self._translate(exc, "delete chunks") from exc
        finally:
            self._leaving -= chunks
        self._freed += len(slots)
        if slots:
            await self._on_freed(slots)

    def _wipe_headers(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self._disk.write(slot.address, FREED_SLOT)

    async def close(self) -> None:
        """Wait for what is being freed; what is in the trash stays there.  Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._emptying:
            await asyncio.wait(self._emptying)
