"""The chunks of one volume that are being written, and their copies.

Decides when an append or a sync has reached all copies, what heals a copy whose process was
restarted (reopen, send again), and when its disk is lost.  What a lost disk means for the log
(close the span, begin another) is `torus.volume.reseal`'s.

Implements docs/replication.md, "Appending", "Flushing" and "A copy fails".
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from torus import limits
from torus._fast.record import RecordBuilder
from torus.cluster.answers import ask_all, cancel, seen
from torus.cluster.chunks import DiskChunks, DiskWriter
from torus.cluster.replicated_ahead import FlushHabit, SyncsAhead
from torus.cluster.replicated_chunk import Copy, Kept, OpenChunk
from torus.cluster.replicated_soon import FINAL, sync_soon
from torus.errors import Corruption, Fenced, PoolFull, TimedOut, TorusError, Unavailable
from torus.ids import ChunkId
from torus.log import get_logger

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool

log = get_logger("torus.replicas")

_ATTEMPTS_MAX = 3  # of one append or sync on a disk that heals in between
_CONFIRM_S = limits.REPLICA_SILENCE_S / 2  # no machine loses power, is back and fenced in less
_PAUSE_FIRST_S = 0.02
_PAUSE_MAX_S = 1.0
# With so many chunks that are not durable everywhere, no other is begun.  Upkeep relies on it: a
# copy misses no chunk but the last `UPKEEP_TAIL_CHUNKS` of a span.
_UNSYNCED_CHUNKS_MAX = limits.UPKEEP_TAIL_CHUNKS // 2


class CopiesLost(Unavailable):
    """The open span cannot take another chunk: a disk of it is lost, or it has too few."""


class ReplicaWriter:
    """A `ChunkWriter` that writes to all copies."""

    __slots__ = ("_chunks", "_open")
    immediate = False

    def __init__(self, chunks: "OpenChunks", opened: OpenChunk) -> None:
        self._chunks = chunks
        self._open = opened

    def append_now(self, index: int, offset: int, record: RecordBuilder) -> bool:
        """Return False: other processes can only be reached by waiting."""
        return False

    async def append(self, index: int, offset: int, record: RecordBuilder) -> None:
        """Append a record to every copy whose disk is not lost.

        On return each copy has it or its disk is among the lost: see `OpenChunks.lost`.

        Raises: Fenced.
        """
        await self._chunks.append(self._open, index, offset, record)


class OpenChunks:
    """What is being written of one volume.  One append at a time, beside syncs."""

    def __init__(self, pool: "DiskPool", min_copies: int) -> None:
        self._pool = pool
        self.min_copies = min_copies
        self._healing: dict[str, asyncio.Lock] = {}
        self._heals: dict[str, int] = {}
        self._healed = 0  # of all disks
        self._newest: OpenChunk | None = None
        self._habit = FlushHabit()
        self._ahead: SyncsAhead | None = None  # of the newest record, where it went well
        self.chunks: dict[ChunkId, OpenChunk] = {}
        self.lost: dict[str, TorusError] = {}  # disks that miss something, and why
        self.stopping = False
        self.waiting = ""  # for people: why nothing is answered

    # --- opening ------------------------------------------------------------------------

    async def open(
        self, chunk: ChunkId, disks: Sequence[str], *, from_reserve: bool
    ) -> ReplicaWriter:
        """Open a chunk on all of ``disks``.

        Waits for a sync when too much is not durable everywhere.

        Raises: CopiesLost when a disk was lost on the way: nothing may be appended; PoolFull
            when too many of them are full, Fenced.
        """
        if len(self.chunks) >= _UNSYNCED_CHUNKS_MAX:  # a disk syncs more slowly than data come
            await self.sync(list(self.chunks))
            if self.lost:
                raise CopiesLost(f"disks {sorted(self.lost)} do not have all before chunk {chunk}")
        found = await ask_all(
            {disk: self._open_on(disk, chunk, from_reserve=from_reserve) for disk in disks},
            limits.REPLICA_SILENCE_S,
        )
        copies, full, gone = [], [], []
        for disk, answer in found.items():
            if not isinstance(answer, TorusError):
                copies.append(Copy(disk, answer))
            elif isinstance(answer, PoolFull):
                full.append((disk, answer))
            else:
                gone.append((disk, answer))
        if full and len(copies) < self.min_copies <= len(copies) + len(full):
            raise full[0][1]
        for disk, error in (*full, *gone):
            self.lose(disk, error)
        if self.lost:
            raise CopiesLost(f"chunk {chunk} cannot be opened on disks {sorted(self.lost)}")
        opened = self.chunks[chunk] = OpenChunk(chunk, copies, from_reserve=from_reserve)
        self._newest = opened
        self._forget_finished()
        return ReplicaWriter(self, opened)

    async def _open_on(self, disk_id: str, chunk: ChunkId, *, from_reserve: bool) -> DiskWriter:
        disk = await self._pool.get(disk_id)
        return await disk.open(chunk, from_reserve=from_reserve)

    # --- appending ----------------------------------------------------------------------

    async def append(
        self, opened: OpenChunk, index: int, offset: int, record: RecordBuilder
    ) -> None:
        """See `ReplicaWriter.append`."""
        loop = asyncio.get_running_loop()
        began_s, heals = loop.time(), self._healed
        kept = opened.keep(index, offset, record.tobytes())
        near, sent, slow, again = [], [], [], False
        self._ahead = None
        ahead = SyncsAhead(opened) if self._habit.appended() else None
        for copy in opened.copies.values():
            if copy.disk_id in self.lost:
                continue
            if copy.writer is None:
                slow.append(copy)
            elif copy.writer.immediate:
                near.append(copy)
            elif (answer := copy.writer.append_soon(*kept)) is not None:
                answer.add_done_callback(seen)
                sent.append((copy, answer))
                if ahead is not None:
                    ahead.send(copy)
            else:
                slow.append(copy)
        for copy in near:
            self._append_near(copy, kept, record)
        for copy, answer in sent:
            if not await self._arrived(copy, kept, answer):
                slow.append(copy)
                again = True
        if slow:
            far = {copy.disk_id: self._append_far(copy, kept) for copy in slow}
            for disk, outcome in (await ask_all(far, limits.REPLICA_SILENCE_S)).items():
                if isinstance(outcome, TorusError):
                    self.lose(disk, outcome)
        if again or self._healed != heals or loop.time() - began_s >= _CONFIRM_S:
            await self._confirm(opened)
        else:
            self._ahead = ahead
        opened.answered = max(opened.answered, index + 1)

    async def _arrived(self, copy: Copy, kept: Kept, answer: asyncio.Future[int]) -> bool:
        """Wait for the answer to a record that was sent, its connection bounds for how long; False
        when the copy may heal.

        Raises: Fenced.
        """
        assert copy.writer is not None
        boot_id = copy.writer.boot_id
        try:
            found = await answer
        except Fenced:
            raise
        except (TimedOut, *FINAL) as exc:
            self.lose(copy.disk_id, exc)
            return True
        except TorusError:
            return False
        if found != boot_id:
            return False
        copy.next_index = max(copy.next_index, kept.number + 1)
        return True

    def _append_near(self, copy: Copy, kept: Kept, record: RecordBuilder) -> None:
        assert copy.writer is not None
        try:
            copy.writer.append_now(kept.number, kept.offset, record)
        except Fenced:
            raise
        except TorusError as exc:
            self.lose(copy.disk_id, exc)
        else:
            copy.next_index = kept.number + 1

    async def _confirm(self, opened: OpenChunk) -> None:
        """Have every copy said to be there now, all at once: while one was waited for, a machine
        may have lost what it had answered for, and been taken over from.

        Raises: Fenced, since who takes over fences the disk that it reads.
        """
        for _ in range(_ATTEMPTS_MAX):
            heals, before = self._healed, dict(self._heals)
            jobs = {
                disk: self._same_opening(opened, copy)
                for disk, copy in opened.copies.items()
                if disk not in self.lost
            }
            for disk, answer in (await ask_all(jobs, limits.REPLICA_SILENCE_S)).items():
                if isinstance(answer, TorusError):
                    self.lose(disk, answer)
            if self._healed == heals:
                return
        for disk in opened.copies:
            if self._heals.get(disk) != before.get(disk):
                self.lose(disk, Unavailable(f"disk {disk} restarts again and again"))

    async def _same_opening(self, opened: OpenChunk, copy: Copy) -> None:
        """Return when a disk is the opening of it that has all records, which it may get here."""
        heals = self._heals.get(copy.disk_id, 0)
        disk = await self._pool.get(copy.disk_id)
        try:
            await disk.ping()
            assert copy.writer is not None
            if disk.boot_id == copy.writer.boot_id and copy.next_index == opened.next_index:
                return
            error: TorusError = Corruption(f"disk {copy.disk_id} was opened anew")
        except (Fenced, *FINAL):
            raise
        except TorusError as exc:
            error = exc
        await self._heal(copy.disk_id, heals, error)

    async def _append_far(self, copy: Copy, kept: Kept) -> None:
        for _ in range(_ATTEMPTS_MAX):
            heals = self._heals.get(copy.disk_id, 0)
            try:
                assert copy.writer is not None
                await copy.writer.append_bytes(*kept)
            except (Fenced, *FINAL):
                raise
            except TorusError as exc:
                await self._heal(copy.disk_id, heals, exc)
            else:
                copy.next_index = max(copy.next_index, kept.number + 1)
            if copy.next_index > kept.number:
                return
        raise Unavailable(f"disk {copy.disk_id} loses again and again what was appended")

    # --- syncing ------------------------------------------------------------------------

    def sync_now(self, chunks: Sequence[ChunkId]) -> bool:
        """Tell whether all that was answered of ``chunks`` is durable already on every copy, none
        of which is lost, because a sync went along with it."""
        [chunk] = chunks if len(chunks) == 1 else [None]
        opened = None if chunk is None else self.chunks.get(chunk)
        if opened is None or self._ahead is None or self.lost or not self._ahead.cover(opened):
            return False
        self._habit.synced()
        opened.forget(opened.answered)
        self._forget_finished()
        return True

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        """Make what was answered of ``chunks`` durable on every copy whose disk is not lost.

        On return each copy is durable or its disk is among the lost.

        Raises: Fenced.
        """
        marks = {
            opened: opened.answered
            for chunk in chunks
            if (opened := self.chunks.get(chunk)) is not None and opened.kept
        }
        jobs: dict[str, list[OpenChunk]] = {}
        for opened in marks:
            for disk in opened.copies:
                if disk not in self.lost:
                    jobs.setdefault(disk, []).append(opened)
        self._habit.synced()
        durable, failed = await sync_soon(self._pool, jobs, self._ahead)
        for disk, error in failed.items():
            self.lose(disk, error)
        slow = {
            disk: some
            for disk, some in jobs.items()
            if disk not in durable and disk not in self.lost
        }
        if slow:
            found = await ask_all(
                {disk: self._sync_patiently(disk, some) for disk, some in slow.items()},
                2 * limits.REPLICA_SYNC_S,
            )
            for disk, answer in found.items():
                if isinstance(answer, TorusError):
                    self.lose(disk, answer)
                else:
                    durable.add(disk)
        for opened, mark in marks.items():
            if durable.issuperset(opened.copies):
                opened.forget(mark)
        self._forget_finished()

    def _forget_finished(self) -> None:
        """Forget chunks that nothing is appended to and that every copy has durably."""
        for opened in list(self.chunks.values()):
            if not opened.kept and opened is not self._newest:
                del self.chunks[opened.chunk]

    async def _sync_patiently(self, disk_id: str, chunks: Sequence[OpenChunk]) -> None:
        """Sync a disk; one whose node answers may take its time."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + limits.REPLICA_SYNC_S
        task = asyncio.ensure_future(self._sync_disk(disk_id, chunks))
        try:
            while not await _ends(task, limits.REPLICA_SILENCE_S / 2):
                if loop.time() >= give_up_s:
                    raise TimedOut(f"disk {disk_id} did not sync in {limits.REPLICA_SYNC_S:g} s")
                ping = asyncio.ensure_future(self._ping(disk_id))
                try:
                    if not await _ends(ping, limits.REPLICA_SILENCE_S / 2) and not task.done():
                        raise TimedOut(
                            f"the node of disk {disk_id} is silent for "
                            f"{limits.REPLICA_SILENCE_S:g} s"
                        )
                finally:
                    await cancel(ping)
            task.result()
        finally:
            await cancel(task)

    async def _ping(self, disk_id: str) -> None:
        await (await self._pool.get(disk_id)).ping()

    async def _sync_disk(self, disk_id: str, chunks: Sequence[OpenChunk]) -> None:
        error: TorusError = Unavailable(f"disk {disk_id} restarts again and again")
        for _ in range(_ATTEMPTS_MAX):
            heals = self._heals.get(disk_id, 0)
            try:
                await self._sync_once(await self._pool.get(disk_id), chunks)
                return
            except (Fenced, *FINAL):
                raise
            except TorusError as exc:
                error = exc
                await self._heal(disk_id, heals, exc)
        raise error

    async def _sync_once(self, disk: DiskChunks, chunks: Sequence[OpenChunk]) -> None:
        """Sync once; the disk must be the same opening of it that had the appends.

        Raises: Corruption when it is not, or when a copy misses something.
        """
        before: dict[ChunkId, int] = {}
        for opened in chunks:
            copy = opened.copies[disk.disk_id]
            if not opened.is_whole(copy):
                raise Corruption(f"disk {disk.disk_id} has not all of chunk {opened.chunk}")
            assert copy.writer is not None
            before[opened.chunk] = copy.writer.boot_id
        await disk.sync(before)
        for chunk, boot_id in before.items():
            if boot_id != disk.boot_id:
                raise Corruption(
                    f"disk {disk.disk_id} was opened anew since the appends to chunk {chunk}"
                )

    # --- healing ------------------------------------------------------------------------

    async def _heal(self, disk_id: str, heals: int, error: TorusError) -> None:
        """Have a disk take up its open chunks again and send it what it misses.

        ``heals``: how often that was done when the caller began; nothing if it was done since.

        Raises: why it cannot be had; Fenced.
        """
        if isinstance(error, TimedOut):
            raise error
        lock = self._healing.setdefault(disk_id, asyncio.Lock())
        async with lock:
            if self._heals.get(disk_id, 0) != heals:
                return
            disk = await self._pool.get(disk_id)
            for opened in list(self.chunks.values()):
                copy = opened.copies.get(disk_id)
                if copy is not None:
                    await self._bring_up(disk, opened, copy)
            self._heals[disk_id] = heals + 1
            self._healed += 1
        log.info("replicas.disk.healed", disk=disk_id, reason=str(error))

    async def _bring_up(self, disk: DiskChunks, opened: OpenChunk, copy: Copy) -> None:
        found = await disk.reopen(opened.chunk, opened.chunk.epoch)
        have, end = (
            (0, limits.SLOT_HEADER_BYTES) if found is None else (found.next_index, found.end)
        )
        if have < opened.first_kept or have > opened.next_index:
            raise Corruption(
                f"disk {disk.disk_id} has {have} records of chunk {opened.chunk}: records "
                f"{opened.first_kept} to {opened.next_index} can be sent again"
            )
        due = opened.end
        if have < opened.next_index:
            due = opened.kept[have - opened.first_kept].offset
        if end != due:
            raise Corruption(
                f"disk {disk.disk_id} has other records of chunk {opened.chunk}: the first "
                f"{have} end at {end}, not {due}"
            )
        if found is None:
            copy.writer = await disk.open(opened.chunk, from_reserve=opened.from_reserve)
        else:  # a node that came back elsewhere is another connection: the old writer leads nowhere
            copy.writer = disk.writer(opened.chunk, found.boot_id)
        copy.next_index = have
        while copy.next_index < opened.next_index:
            index = copy.next_index
            if index < opened.first_kept:  # a sync has forgotten it: then this copy had it
                raise Corruption(f"disk {disk.disk_id} lost record {index} of {opened.chunk}")
            await copy.writer.append_bytes(*opened.kept[index - opened.first_kept])
            copy.next_index = max(copy.next_index, index + 1)

    def lose(self, disk_id: str, error: TorusError) -> None:
        """Go on without a disk: what it misses is nobody's promise any more."""
        if disk_id not in self.lost:
            self.lost[disk_id] = error
            log.warning("replicas.disk.lost", disk=disk_id, reason=str(error))

    # --- surviving ----------------------------------------------------------------------

    async def secure(self) -> None:
        """Make everything durable on at least the least number of copies of each chunk; waits,
        and tries the lost disks again, as long as there are fewer.

        Nobody may append meanwhile.

        Raises: Fenced; Unavailable when `stopping`.
        """
        pause_s = _PAUSE_FIRST_S
        while True:
            dirty = [opened for opened in self.chunks.values() if opened.kept]
            await self.sync([opened.chunk for opened in dirty])
            short = [opened for opened in dirty if self._survivors(opened) < self._least(opened)]
            if not short:
                self.waiting = ""
                return
            lost = {disk for opened in short for disk in opened.copies if disk in self.lost}
            self.waiting = f"{len(short)} chunks have too few copies without disks {sorted(lost)}"
            if not await self.retry(lost):
                await self.pause(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def retry(self, disks: Collection[str]) -> bool:
        """Try to heal lost disks; tell whether one is lost no longer.

        Raises: Fenced.
        """
        jobs = {
            disk: self._heal(disk, self._heals.get(disk, 0), Unavailable("it was lost"))
            for disk in disks
        }
        found = await ask_all(jobs, limits.REPLICA_SILENCE_S)
        back = [disk for disk, answer in found.items() if not isinstance(answer, TorusError)]
        for disk in back:
            self.lost.pop(disk, None)
        return bool(back)

    async def pause(self, seconds: float) -> None:
        """Wait a moment.  Raises: Unavailable when `stopping`."""
        if self.stopping:
            raise Unavailable(f"the volume is being closed while {self.waiting or 'it waits'}")
        await asyncio.sleep(seconds)

    def _survivors(self, opened: OpenChunk) -> int:
        return sum(
            1
            for disk, copy in opened.copies.items()
            if disk not in self.lost and copy.next_index == opened.next_index
        )

    def _least(self, opened: OpenChunk) -> int:
        return min(self.min_copies, len(opened.copies))

    def clear(self) -> None:
        """Forget all: the span is closed."""
        self.chunks.clear()
        self.lost.clear()


async def _ends(task: asyncio.Future[None], wait_s: float) -> bool:
    done, _ = await asyncio.wait([task], timeout=wait_s)
    return bool(done)
