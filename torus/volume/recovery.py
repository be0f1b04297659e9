"""Recovery of a volume's map: the last checkpoint's root, then replay of the log behind it.

Decides where the log of a dead writer ends.  A record that is not whole ends the log only if
no later record proves that it had been made durable; where one does, it is corruption and
recovery says so instead of cutting flushed data off.  Records are applied in log order.

Implements docs/format.md, "Recovery".
"""

import asyncio
from dataclasses import dataclass, field

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.record import KIND_DATA, RecordReader
from torus.cluster.chunks import Chunks
from torus.errors import Corruption, Unavailable
from torus.format.logend import begins, committed_beyond, follows, goes_on, was_durable
from torus.format.record import HEADER, MAGIC, RecordHeader
from torus.ids import ChunkId
from torus.log import get_logger
from torus.metadata.schema import Head, RootRef, Span, VolumeSpec
from torus.volume.family import Family
from torus.volume.leaves import learn_family, load_leaves
from torus.volume.log import Position
from torus.volume.maproot import load_map, read_root
from torus.volume.origin import Origin
from torus.volume.spans import Spans

log = get_logger("torus.recovery")


@dataclass(slots=True)
class Recovered:
    """What recovery found."""

    blocks: BlockMap
    spans: Spans  # the open span closed where the log ends
    end: Position
    records: int = 0
    damaged: list[str] = field(default_factory=list)  # durable records with rotten payloads
    # Chunks that may not be durable yet, and where their records end.
    unsettled: dict[ChunkId, int] = field(default_factory=dict)
    cut: bool = False  # the map was larger than the volume is now


class Recovery:
    """One recovery.  ``epoch`` is the new owner's; it fences as it reads."""

    def __init__(
        self,
        chunks: Chunks,
        spec: VolumeSpec,
        head: Head,
        epoch: int,
        cache_bytes: int,
        origin: Origin | None = None,
    ) -> None:
        """``origin`` is that of ``head.base``."""
        self._chunks = chunks
        self._spec = spec
        self._head = head
        self._epoch = epoch
        self._cache_bytes = cache_bytes
        self._spans = Spans(spec.volume, head.spans)
        self._origin = origin or Origin()
        self._family = Family(self._spans, self._origin.ancestors)
        learn_family(chunks, self._family)
        self._committed = 0

    async def run(self) -> Recovered:
        """Rebuild the map.

        Raises: Corruption when durable data is gone or cannot be told from the end of the
            log; Fenced, Unavailable, DiskFailed, UnknownVersion.
        """
        root = self._head.root
        blocks = await self._load_map(root)
        size = -(-self._spec.size_bytes // limits.BLOCK_BYTES)
        if size > blocks.size_blocks:
            blocks.resize(size)
        found = Recovered(blocks, self._spans, self._start(root))
        if root is not None:
            self._committed = max(self._committed, root.lsn)
        for span in self._head.spans:
            await self._replay_span(span, found)
        found.spans = self._spans.close(*self._tail(found))
        await self._shrink(found, size)
        return found

    def _start(self, root: RootRef | None) -> Position:
        if root is None:
            first = self._head.spans[0].first if self._head.spans else 1
            return Position(first, limits.SLOT_HEADER_BYTES, 0, 0)
        return Position(root.replay_sequence, root.replay_offset, root.replay_index, root.lsn)

    def _tail(self, found: Recovered) -> tuple[int | None, int | None]:
        last = self._spans.last
        if last is None or last.last is not None or found.end.sequence < last.first:
            return None, None
        if found.end.offset == limits.SLOT_HEADER_BYTES:  # not begun: the one before is the end
            previous = found.end.sequence - 1
            return (previous, None) if previous >= last.first else (None, None)
        return found.end.sequence, found.end.offset

    async def _shrink(self, found: Recovered, size: int) -> None:
        """Apply a shrink that the last owner did not live to apply."""
        blocks = found.blocks
        found.cut = size < blocks.size_blocks
        if found.cut:
            await load_leaves(blocks, self._family, self._chunks, size, blocks.size_blocks - size)
            blocks.resize(size)

    # --- the checkpoint -----------------------------------------------------------------

    async def _load_map(self, root: RootRef | None) -> BlockMap:
        name = self._spec.name
        if root is not None:
            found = await read_root(self._chunks, self._family, root, 0, name)
            # The root was published after a flush: all up to its own record was durable.
            self._committed = found.lsn
            return await load_map(self._chunks, self._family, found, 0, self._cache_bytes)
        if self._origin.root is None:
            return BlockMap(-(-self._spec.size_bytes // limits.BLOCK_BYTES), self._cache_bytes)
        member = self._origin.member
        found = await read_root(self._chunks, self._family, self._origin.root, member, name)
        return await load_map(self._chunks, self._family, found, member, self._cache_bytes)

    # --- replay -------------------------------------------------------------------------

    async def _replay_span(self, span: Span, found: Recovered) -> None:
        sequence = max(span.first, found.end.sequence)
        if span.last is not None and sequence > span.last:
            return
        ahead = self._scan(span, sequence, found.end)
        while span.last is None or sequence <= span.last:
            data = await ahead
            if data is None:
                if span.last is None:
                    break
                raise self._lost(span, sequence, "is not there")
            chunk = ChunkId(self._spec.volume, span.epoch, span.tag, sequence)
            start = self._place(sequence, found.end)
            following = ChunkId(*chunk[:3], sequence + 1)
            if sequence != span.last:
                ahead = self._scan(span, sequence + 1, None)
            whole = await self._replay_chunk(chunk, data, start, span, found)
            closed_here = sequence == span.last
            if not (whole or closed_here):
                if await self._ends_here(chunk, data, found, ahead, following):
                    if span.last is not None:
                        raise self._lost(span, sequence, f"ends at {found.end.offset}")
                    break
            sequence += 1
        ahead.cancel()
        if span.last is None:
            await self._refuse_loss(span, found)
        else:
            found.end = Position(span.last + 1, limits.SLOT_HEADER_BYTES, 0, found.end.lsn)

    def _scan(
        self, span: Span, sequence: int, end: Position | None
    ) -> asyncio.Future[bytes | None]:
        """Begin to read a chunk, ahead of its use."""
        offset = limits.SLOT_HEADER_BYTES
        if end is not None and sequence == end.sequence:
            offset = end.offset
        chunk = ChunkId(self._spec.volume, span.epoch, span.tag, sequence)
        future = asyncio.ensure_future(self._chunks.scan(chunk, self._epoch, offset))
        future.add_done_callback(_consume)
        return future

    @staticmethod
    def _place(sequence: int, end: Position) -> Position:
        if sequence == end.sequence:
            return end
        return Position(sequence, limits.SLOT_HEADER_BYTES, 0, end.lsn)

    async def _replay_chunk(
        self, chunk: ChunkId, data: bytes, start: Position, span: Span, found: Recovered
    ) -> bool:
        """Apply a chunk's records; True when its bytes were records to the very end."""
        salt = await self._salt_of(chunk) if start.index else None
        reader = RecordReader(data, chunk, start.offset, start.index, salt)
        lsn = start.lsn
        exact = span.end if chunk.sequence == span.last else None
        stop = self._chunks.slot_bytes if exact is None else exact
        opened, end = False, start.offset
        while reader.end < stop:
            if not goes_on(reader, lsn):
                break
            self._committed = max(self._committed, reader.committed)
            if not reader.payload_ok and not self._accept_rotten(reader, chunk, data, span, found):
                break
            if not opened:
                found.blocks.open_sequence(chunk.sequence)
                opened = True
            lsn += 1
            found.records += 1
            if reader.kind == KIND_DATA:
                await self._apply(reader, found.blocks)
            end = found.unsettled[chunk] = reader.end
            found.end = Position(chunk.sequence, end, reader.next_index, lsn)
        if exact is not None and end != exact:
            raise self._lost(span, chunk.sequence, f"ends at {end}, not {exact}")
        return end >= stop

    async def _salt_of(self, chunk: ChunkId) -> int | None:
        """Return the salt of a chunk whose first record was replayed before; None when that
        record is damaged in every copy."""

        def right(_: int, data: bytes) -> bool:
            header = RecordHeader.unpack(data)
            return header.magic == MAGIC and header.chunk == chunk

        place = (chunk, limits.SLOT_HEADER_BYTES, HEADER.size)
        [data] = await self._chunks.read_checked([place], right)
        return RecordHeader.unpack(data).salt if right(0, data) else None

    async def _apply(self, reader: RecordReader, blocks: BlockMap) -> None:
        extents = reader.extent_list()
        end = max((block + count for block, count, _ in extents), default=0)
        if end > blocks.size_blocks:
            blocks.resize(end)  # written before the volume shrank
        if not reader.ready(blocks):
            for block, count, _ in extents:
                await load_leaves(blocks, self._family, self._chunks, block, count)
        reader.apply(blocks)
        if blocks.resident_bytes > 2 * self._cache_bytes:
            blocks.evict(self._cache_bytes)

    def _accept_rotten(
        self, reader: RecordReader, chunk: ChunkId, data: bytes, span: Span, found: Recovered
    ) -> bool:
        """Tell rot from a torn tail: a payload that was durable once is not the log's end."""
        lsn = reader.lsn
        durable = span.last is not None or was_durable(lsn, self._committed)
        if not durable:
            durable = was_durable(lsn, self._committed_after(chunk, data, reader.end))
        if durable:
            message = f"chunk {chunk}: record {reader.index} at {reader.offset} is damaged"
            found.damaged.append(message)
            log.error("recovery.record.damaged", volume=self._spec.name, reason=message)
        return durable

    async def _ends_here(
        self,
        chunk: ChunkId,
        data: bytes,
        found: Recovered,
        ahead: asyncio.Future[bytes | None],
        following: ChunkId,
    ) -> bool:
        """Decide whether the log ends in ``chunk``: True, or False when it goes on in the next.

        Raises: Corruption when a later record says that the missing one was durable.
        """
        next_data = await ahead
        lsn = found.end.lsn + 1
        if next_data is not None:
            first_lsn = begins(next_data, following)
            if first_lsn is not None and follows(found.end.lsn, first_lsn):
                return False
        begun = found.end.sequence == chunk.sequence
        beyond = self._committed_after(chunk, data, found.end.offset if begun else 0)
        committed = max(self._committed, beyond)
        if next_data is not None:
            committed = max(committed, self._committed_after(following, next_data, 0))
        if was_durable(lsn, committed):
            raise self._damaged(
                f"record lsn {lsn} is missing or damaged in chunk {chunk} at "
                f"{found.end.offset}, but it was durable (a later record says up to {committed})",
                chunk, following,
            )  # fmt: skip
        return True

    async def _refuse_loss(self, span: Span, found: Recovered) -> None:
        """Refuse to end the log before chunks of the same span that say it went on, durably.

        A chunk may be missing because its slot is damaged.
        """
        lsn = found.end.lsn + 1
        for chunk in await self._chunks.list(self._spec.volume):
            of_span = (chunk.epoch, chunk.tag) == (span.epoch, span.tag)
            if not of_span or chunk.sequence <= found.end.sequence:
                continue
            data = await self._chunks.scan(chunk, self._epoch, limits.SLOT_HEADER_BYTES)
            if data is None:
                continue
            committed = max(self._committed, self._committed_after(chunk, data, 0))
            if was_durable(lsn, committed):
                missing = ChunkId(*chunk[:3], found.end.sequence)
                raise self._damaged(
                    f"record lsn {lsn} is missing behind chunk number {found.end.sequence}, but "
                    f"it was durable (chunk {chunk} says up to {committed})",
                    missing, ChunkId(*chunk[:3], missing.sequence + 1),
                )  # fmt: skip

    def _committed_after(self, chunk: ChunkId, data: bytes, offset: int) -> int:
        """Return the highest committed lsn that any record of ``chunk`` from ``offset`` on
        names; ``data`` is the slot's end."""
        shift = self._chunks.slot_bytes - len(data)
        return committed_beyond(data, max(offset - shift, 0), chunk, shift)

    def _lost(self, span: Span, sequence: int, what: str) -> Corruption | Unavailable:
        chunk = ChunkId(self._spec.volume, span.epoch, span.tag, sequence)
        return self._damaged(f"chunk {chunk} {what}; its span is closed, so it was durable", chunk)

    def _damaged(self, what: str, *chunks: ChunkId) -> Corruption | Unavailable:
        """Return what it means that something durable is not there: damage only if every disk
        that should have ``chunks`` has answered."""
        message = f"volume {self._spec.name!r}: {what}"
        if not all(self._chunks.is_certain(chunk) for chunk in chunks):
            return Unavailable(
                f"{message}; disks that may have it do not answer",
                hint="start their nodes: see torus node list",
            )
        return Corruption(
            message, hint="run 'torus check' for what else is damaged; restore from a backup"
        )


def _consume(future: asyncio.Future[bytes | None]) -> None:
    if not future.cancelled():
        future.exception()
