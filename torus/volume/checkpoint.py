"""Checkpoints: the map's dirty pages into the log, then one compare-and-swap of the root.

Decides when one is due and in which order things become durable (pages, root, flush, publish).
A snapshot is a checkpoint whose root is kept under a name.  Which chunks are garbage afterwards
is `torus.volume.reclaim`'s; nothing is deleted before the head that does not name it is
published.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from torus import limits
from torus._fast.crc import checksum
from torus._fast.record import KIND_PAGES, KIND_ROOT
from torus.clock import Clock
from torus.errors import PoolFull, TorusError
from torus.format.root import RootPayload
from torus.log import get_logger
from torus.metadata.schema import THIS_RECORD, Head, RootRef, Snapshot
from torus.volume.core import Core
from torus.volume.holder import Holder, Publish
from torus.volume.items import Item
from torus.volume.leaves import UNIT
from torus.volume.log import Position
from torus.volume.quiet import Quiet
from torus.volume.reclaim import Reclaimer
from torus.volume.writes import WriteQueue

log = get_logger("torus.checkpoint")

_PAGES_BYTES = 512 * limits.KIB  # payload of one record of map pages, about
_RETRY_S = 5.0


class Checkpointer:
    """The checkpoints of one volume."""

    def __init__(
        self,
        core: Core,
        queue: WriteQueue,
        holder: Holder,
        clock: Clock,
        interval_s: float,
        observe: Callable[[int], None],
        delete_delay_s: float,
    ) -> None:
        self._core = core
        self._queue = queue
        self._holder = holder
        self._publish: Publish = holder.publish
        self._change: Callable[[Head], Head] = _unchanged
        self._clock = clock
        self._interval_s = interval_s
        self._observe = observe
        self._wake = asyncio.Event()
        self._stopping = False
        self._lock = asyncio.Lock()
        self._pages_bytes = min(_PAGES_BYTES, core.chunks.slot_bytes // 8)
        self.reclaimer = Reclaimer(core, clock, holder.head.root, delete_delay_s)
        self.count = 0
        self._urgent = False
        self.quiet = Quiet(core, self._wake.set)
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(self._ended)

    @property
    def head(self) -> Head:
        """Return the head as it was published last."""
        return self._holder.head

    # --- when ---------------------------------------------------------------------------

    def consider(self) -> None:
        """Wake the task when enough of the log or of the map's memory is dirty, or when chunks
        wait for a checkpoint and nothing is written any more."""
        core = self._core
        if (
            core.log_bytes >= limits.CHECKPOINT_LOG_BYTES
            or core.blocks.dirty_bytes > core.cache_bytes // 2
        ):
            self._wake.set()
        else:
            self.quiet.consider()

    def request(self) -> None:
        """Wake the task: space is short."""
        self._urgent = True
        self._wake.set()

    async def _run(self) -> None:
        last = self._clock.monotonic_ns()
        while True:
            due_s = self.reclaimer.next_due_s
            since_s = (self._clock.monotonic_ns() - last) / 1e9
            left_s = max(self._interval_s - since_s, 0)
            try:
                await asyncio.wait_for(
                    self._wake.wait(), left_s if due_s is None else min(left_s, due_s)
                )
            except TimeoutError:
                pass
            woken, urgent = self._wake.is_set(), self._urgent
            self._wake.clear()
            self._urgent = False
            if self._stopping or self._core.failure is not None:
                return
            try:
                await self.delete_due(at_once=urgent)
                if woken or self._clock.monotonic_ns() - last >= self._interval_s * 1e9:
                    last = self._clock.monotonic_ns()
                    if self._core.dirty:
                        await self.write(urgent=urgent)
            except PoolFull as exc:
                log.warning("checkpoint.no_space", volume=self._core.spec.name, error=str(exc))
                await asyncio.sleep(_RETRY_S)
            except TorusError as exc:
                self._core.fail(exc)
                return

    async def delete_due(self, *, at_once: bool = False) -> int:
        """Delete the chunks whose time has come; return how many.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        if self.reclaimer.waiting == 0:
            return 0
        async with self._lock:
            return await self.reclaimer.delete_due(at_once=at_once)

    async def reclaim(self) -> int:
        """Judge the dead chunks again, after snapshots went; return how many may go."""
        async with self._lock:
            return self.reclaimer.judge_again()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._core.fail(TorusError(f"the checkpoint task ended: {error!r}"))

    async def stop(self) -> None:
        """End the task, after a checkpoint under way; idempotent."""
        # Python 3.11's wait_for loses a cancellation that comes together with a wake-up.
        self._stopping = True
        self.quiet.stop()
        async with self._lock:
            self._task.cancel()
        await asyncio.wait([self._task])

    # --- what ---------------------------------------------------------------------------

    async def write(
        self, *, urgent: bool = False, prepare: Callable[[], object] = lambda: None
    ) -> None:
        """Write a checkpoint, publish it, judge what died.

        ``urgent``: space is short, dead chunks do not wait for their time.  ``prepare`` is
        called right before it begins, when no other is under way.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        async with self._lock:
            await self._write(None, urgent=urgent, prepare=prepare)

    async def snapshot(self, wanted: Snapshot) -> Snapshot:
        """Make a snapshot of this moment; its root, base, number and size are filled in.

        What is written while it is made is not part of it; nothing waits for it.

        Raises: AlreadyExists, Fenced, PoolFull, DiskFailed, Unavailable.
        """
        async with self._lock:
            core, head = self._core, self.head
            wanted = replace(
                wanted,
                number=head.newest_snapshot + 1,
                size_bytes=core.spec.size_bytes,
                base=head.base,
                mapped_blocks=core.blocks.mapped_blocks,
            )
            if core.dirty:
                root: RootRef | None = await self._write(wanted, urgent=False)
            else:  # the last checkpoint holds this very moment
                root = head.root
                await self._publish_head(_unchanged, replace(wanted, root=root))
            return replace(wanted, root=root)

    async def replace_head(self, make: Callable[[Head], Head], publish: Publish) -> None:
        """Swap the head for one that differs in something else than the checkpoint; see
        `Holder.swap`.

        Raises: Fenced; Unavailable when the volume is closed meanwhile.
        """
        async with self._lock:
            await self._holder.swap(make, publish)

    async def write_and_publish(self, make: Callable[[Head], Head], publish: Publish) -> None:
        """Write a checkpoint whose head is also changed by ``make``, and published so.

        Raises: as `write`; what ``publish`` raises.
        """
        async with self._lock:
            self._change, self._publish = make, publish
            try:
                await self._write(None, urgent=False)
            finally:
                self._change, self._publish = _unchanged, self._holder.publish

    async def _write(
        self,
        wanted: Snapshot | None,
        *,
        urgent: bool,
        prepare: Callable[[], object] = lambda: None,
    ) -> RootRef:
        began = self._clock.monotonic_ns()
        core, era = self._core, self.head.newest_snapshot
        # In turn: a seal waits between a record's place in the log and its entry into the map,
        # and replay must not begin behind a record that the map does not have.
        async with core.journal.turn:
            prepare()
            start, log_bytes = core.journal.position, core.journal.appended_bytes
            dead = self.reclaimer.candidates(start.sequence)
            leaves = core.blocks.begin_checkpoint()
        try:
            root = await self._write_log(leaves, start, wanted)
            await self._publish_root(root, None if wanted is None else replace(wanted, root=root))
        except BaseException:
            core.blocks.abort_checkpoint()
            raise
        core.blocks.end_checkpoint()
        core.checkpoint_lsn = start.lsn
        core.log_bytes_at_checkpoint = log_bytes
        self.count += 1
        core.shrink_cache()
        self.reclaimer.published(root)
        self.reclaimer.judge(dead, era)
        await self.reclaimer.delete_due(at_once=urgent)
        elapsed = self._clock.monotonic_ns() - began
        self._observe(elapsed)
        log.debug(
            "checkpoint.written",
            volume=core.spec.name,
            lsn=start.lsn,
            leaves=len(leaves),
            milliseconds=elapsed // 1_000_000,
        )
        return root

    async def _write_log(
        self, leaves: list[int], start: Position, wanted: Snapshot | None
    ) -> RootRef:
        """Write pages and root, make them durable."""
        core = self._core
        await self._write_pages(leaves)
        root = await self._write_root(start, wanted)
        await core.journal.sync()
        async with core.journal.turn:  # as at the beginning
            if core.last_data_lsn > start.lsn:
                return root
            # Nothing but this checkpoint came after: replay has nothing to read.
            end = core.journal.position
        return replace(
            root,
            lsn=end.lsn,
            replay_sequence=end.sequence,
            replay_offset=end.offset,
            replay_index=end.index,
        )

    async def _publish_root(self, root: RootRef, made: Snapshot | None) -> None:
        core = self._core

        def make(head: Head) -> Head:
            # The spans may have been changed since the checkpoint began.
            core.spans = core.spans.trim(min(root.replay_sequence, root.sequence), self._is_gone)
            spans, mapped = core.spans.to_tuple(), core.blocks.mapped_blocks
            return replace(self._change(head), root=root, spans=spans, mapped_blocks=mapped)

        await self._publish_head(make, made)

    async def _publish_head(self, make: Callable[[Head], Head], made: Snapshot | None) -> None:
        """Swap the head, with the snapshot that is made by it."""
        if made is None:
            await self._holder.swap(make, self._publish)
            return
        await self._holder.swap(
            lambda head: replace(make(head), newest_snapshot=made.number),
            lambda head: self._holder.publish_snapshot(head, made),
        )
        self._core.pins = self._core.pins.with_snapshot(made)

    async def _write_pages(self, leaves: list[int]) -> None:
        blocks = self._core.blocks
        await self._write_level(leaves, blocks.encode_leaf, blocks.leaf_written)
        await self._write_level(
            blocks.dirty_directories(), blocks.encode_directory, blocks.directory_written
        )
        await self._write_level(
            blocks.dirty_usage_pages(), blocks.encode_usage, blocks.usage_written
        )

    async def _write_level(
        self,
        indexes: list[int],
        encode: Callable[[int], bytes],
        written: Callable[[int, int, int, int, int], None],
    ) -> None:
        """Write the pages of one level, many to a record."""
        pages: list[tuple[int, bytes]] = []
        size = 0
        for index in indexes:
            page = encode(index)
            if not page:
                written(index, 0, 0, 0, 0)
                continue
            pages.append((index, page))
            size += len(page) + -len(page) % UNIT
            if size >= self._pages_bytes:
                await self._write_record(pages, written)
                pages, size = [], 0
        if pages:
            await self._write_record(pages, written)

    async def _write_record(
        self,
        pages: list[tuple[int, bytes]],
        written: Callable[[int, int, int, int, int], None],
    ) -> None:
        payload = b"".join(page + bytes(-len(page) % UNIT) for _, page in pages)
        sequence, offset, header_bytes = await self._append(KIND_PAGES, payload)
        offset += header_bytes
        for index, page in pages:
            written(index, sequence, offset // UNIT, len(page), checksum(page))
            offset += len(page) + -len(page) % UNIT

    async def _write_root(self, start: Position, wanted: Snapshot | None) -> RootRef:
        core, head = self._core, self._change(self.head)
        snapshots = core.pins.payload()
        if wanted is not None:
            head = replace(head, newest_snapshot=wanted.number)
            snapshots = core.pins.payload(replace(wanted, root=THIS_RECORD))
        payload = RootPayload(
            core.blocks.encode_root(), core.spec.to_bytes(), head.to_bytes(),
            start.lsn, start.sequence, start.offset, start.index, snapshots,
        ).pack()  # fmt: skip
        sequence, offset, header_bytes = await self._append(KIND_ROOT, payload)
        return RootRef(
            sequence, offset, header_bytes + len(payload), start.lsn,
            start.sequence, start.offset, start.index,
        )  # fmt: skip

    async def _append(self, kind: int, payload: bytes) -> tuple[int, int, int]:
        item = Item(kind, 0, len(payload), payload)
        await self._queue.put(item)
        return item.place

    def _is_gone(self, sequence: int) -> bool:
        return self._core.blocks.live(sequence) is None


def _unchanged(head: Head) -> Head:
    return head
