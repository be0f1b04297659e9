"""Checkpoints: the map's dirty pages into the log, then one compare-and-swap of the root.

Decides when one is due, in which order things become durable (pages, root, flush, publish),
and which chunks are garbage afterwards: those without a live block that replay no longer
needs.  Nothing is deleted before the head that does not name it is published.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from torus import limits
from torus._fast.crc import checksum
from torus._fast.record import KIND_PAGES, KIND_ROOT
from torus.clock import Clock
from torus.errors import PoolFull, TorusError, Unavailable
from torus.format.root import RootPayload
from torus.ids import ChunkId
from torus.log import get_logger
from torus.metadata.schema import Head, RootRef
from torus.volume.core import Core
from torus.volume.leaves import UNIT
from torus.volume.log import Position
from torus.volume.writes import Item, WriteQueue

log = get_logger("torus.checkpoint")

_PAGES_BYTES = 512 * limits.KIB  # payload of one record of map pages, about
_RETRY_S = 5.0
Publish = Callable[[Head], Awaitable[None]]


class Checkpointer:
    """The checkpoints of one volume."""

    def __init__(
        self,
        core: Core,
        queue: WriteQueue,
        head: Head,
        publish: Publish,
        clock: Clock,
        interval_s: float,
        observe: Callable[[int], None],
    ) -> None:
        """``publish(head)`` swaps the head in the metadata store or raises Fenced."""
        self._core = core
        self._queue = queue
        self._publish = publish
        self._clock = clock
        self._interval_s = interval_s
        self._observe = observe
        self._wake = asyncio.Event()
        self._stopping = False
        self._lock = asyncio.Lock()
        self._pages_bytes = min(_PAGES_BYTES, core.chunks.slot_bytes // 8)
        self.head = head
        self.count = 0
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(self._ended)

    # --- when ---------------------------------------------------------------------------

    def consider(self) -> None:
        """Wake the task when enough of the log or of the map's memory is dirty."""
        core = self._core
        if (
            core.log_bytes >= limits.CHECKPOINT_LOG_BYTES
            or core.blocks.dirty_bytes > core.cache_bytes // 2
        ):
            self._wake.set()

    def request(self) -> None:
        """Wake the task: space is short."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), self._interval_s)
            except TimeoutError:
                pass
            self._wake.clear()
            if self._stopping or self._core.failure is not None:
                return
            if not self._core.dirty:
                continue
            try:
                await self.write()
            except PoolFull as exc:
                log.warning("checkpoint.no_space", volume=self._core.spec.name, error=str(exc))
                await asyncio.sleep(_RETRY_S)
            except TorusError as exc:
                self._core.fail(exc)
                return

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._core.fail(TorusError(f"the checkpoint task ended: {error!r}"))

    async def stop(self) -> None:
        """End the task, after a checkpoint under way; idempotent."""
        # Python 3.11's wait_for loses a cancellation that comes together with a wake-up.
        self._stopping = True
        async with self._lock:
            self._task.cancel()
        await asyncio.wait([self._task])

    # --- what ---------------------------------------------------------------------------

    async def write(self) -> None:
        """Write a checkpoint, publish it, free dead chunks.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        async with self._lock:
            began = self._clock.monotonic_ns()
            core = self._core
            start, log_bytes = core.journal.position, core.journal.appended_bytes
            # What dies while the checkpoint is written may still be named by it: its death is
            # in records that a power cut can take.  It goes with the next checkpoint.
            dead = self._dead(start.sequence)
            leaves = core.blocks.begin_checkpoint()
            try:
                root = await self._write_log(leaves, start)
                await self._publish_root(root)
            except BaseException:
                core.blocks.abort_checkpoint()
                raise
            core.blocks.end_checkpoint()
            core.checkpoint_lsn = start.lsn
            core.log_bytes_at_checkpoint = log_bytes
            self.count += 1
            core.shrink_cache()
            await self._free(dead, root)
            elapsed = self._clock.monotonic_ns() - began
            self._observe(elapsed)
            log.debug(
                "checkpoint.written",
                volume=core.spec.name,
                lsn=start.lsn,
                leaves=len(leaves),
                milliseconds=elapsed // 1_000_000,
            )

    async def _write_log(self, leaves: list[int], start: Position) -> RootRef:
        """Write pages and root, make them durable."""
        core = self._core
        await self._write_pages(leaves)
        root = await self._write_root(start)
        await core.journal.sync()
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

    async def _publish_root(self, root: RootRef) -> None:
        core = self._core
        core.spans = core.spans.trim(min(root.replay_sequence, root.sequence), self._is_gone)
        spans, mapped = core.spans.to_tuple(), core.blocks.mapped_blocks
        head = replace(self.head, root=root, spans=spans, mapped_blocks=mapped)
        while True:
            try:
                await self.publish(head)
                return
            except Unavailable as exc:
                # The log goes on; the same head again does no harm if it was written already.
                if self._stopping:
                    raise
                log.warning("checkpoint.not_published", volume=core.spec.name, error=str(exc))
                await asyncio.sleep(_RETRY_S)

    async def publish(self, head: Head) -> None:
        """Swap the head in the metadata store.

        Raises: Fenced, Unavailable.
        """
        await self._publish(head)
        self.head = head

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

    async def _write_root(self, start: Position) -> RootRef:
        core = self._core
        payload = RootPayload(
            core.blocks.encode_root(), core.spec.to_bytes(), self.head.to_bytes(),
            start.lsn, start.sequence, start.offset, start.index,
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

    # --- garbage ------------------------------------------------------------------------

    def _is_gone(self, sequence: int) -> bool:
        return self._core.blocks.live(sequence) is None

    def _dead(self, before: int) -> list[int]:
        """Return the chunks older than ``before`` without a live block or page."""
        dead: list[int] = []
        for span in self._core.spans:
            last = before - 1 if span.last is None else min(span.last, before - 1)
            if span.first <= last:
                dead += self._core.blocks.dead(span.first, last)
        return dead

    async def _free(self, dead: list[int], root: RootRef) -> None:
        """Delete the chunks that neither the published checkpoint nor replay needs."""
        core = self._core
        keep = {root.sequence, *core.blocks.pinned_sequences()}
        chunks: list[ChunkId] = []
        freed: list[int] = []
        for sequence in dead:
            if sequence not in keep and core.blocks.live(sequence) == 0:
                freed.append(sequence)
                chunks.append(core.chunk(sequence))
                core.places.pop(sequence, None)
        if chunks:
            await core.chunks.delete(core.spec.volume, core.epoch, chunks)
            for sequence in freed:
                core.blocks.drop_sequence(sequence)
