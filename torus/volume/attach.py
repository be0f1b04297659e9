"""Attach and detach: become a volume's only writer, recover it, serve it, give it back.

The order is design section 4, "Takeover": swap the epoch, fence and read the open span, make
what was found durable, swap the head, serve.  Detach: drain, checkpoint, flush, release.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torus import limits
from torus._fast.blockmap import BlockMap
from torus.clock import Clock
from torus.cluster.chunks import Chunks
from torus.errors import Corruption, PoolFull, TorusError
from torus.log import get_logger
from torus.metadata.schema import Head, Owner
from torus.volume.catalog_ask import Volume as Found
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.checkpoint import Checkpointer
from torus.volume.core import Core
from torus.volume.earlyflush import EarlyFlush
from torus.volume.log import Log, Position, head_payload
from torus.volume.reads import Reads
from torus.volume.recovery import Recovered, Recovery
from torus.volume.spans import Spans
from torus.volume.volume import Volume
from torus.volume.writes import WriteQueue

log = get_logger("torus.attach")


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How this process serves volumes."""

    map_cache_bytes: int = limits.MAP_CACHE_BYTES_DEFAULT
    checkpoint_interval_s: float = limits.CHECKPOINT_INTERVAL_S
    pause_when_full: bool = True
    observe_checkpoint: Callable[[int], None] = lambda _ns: None


class Attachment:
    """A volume that this process owns, until `detach` or until it is fenced."""

    def __init__(self, volume: Volume, holder: "_Holder") -> None:
        self.volume = volume
        self._holder = holder

    @property
    def epoch(self) -> int:
        """The epoch under which this process writes."""
        return self.volume.core.epoch

    async def resize(self, size_bytes: int) -> None:
        """Use a size that the operator set in the metadata; a shrink unmaps what is cut off.

        Raises: the volume's failure, Corruption, Unavailable.
        """
        core = self.volume.core
        old = core.spec.size_bytes
        if size_bytes == old:
            return
        if size_bytes < old:
            edge = -(-size_bytes // limits.BLOCK_BYTES) * limits.BLOCK_BYTES
            core.spec = replace(core.spec, size_bytes=size_bytes)
            if size_bytes < min(edge, old):
                await self.volume.trim(size_bytes, min(edge, old) - size_bytes, durable=False)
            if edge < old:
                await self.volume.trim(edge, old - edge, durable=False)
            # A later growth is durable at once: what was cut off must not come back then.
            await self.volume.flush()
        else:
            blocks = -(-size_bytes // limits.BLOCK_BYTES)
            if blocks > core.blocks.size_blocks:
                core.blocks.resize(blocks)
            core.spec = replace(core.spec, size_bytes=size_bytes)
        log.info("volume.resized", volume=core.spec.name, old=old, new=size_bytes)

    async def detach(self) -> None:
        """Make everything durable, checkpoint, and give the volume back; idempotent.

        A volume that was lost is only taken apart.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        await self._holder.detach(self.volume)


class _Holder:
    """The head of one attached volume in the metadata store, and its revision."""

    def __init__(self, catalog: AsyncCatalog, volume: int, revision: int) -> None:
        self._catalog = catalog
        self._volume = volume
        self._revision = revision
        self._detached = False

    async def publish(self, head: Head) -> None:
        self._revision = await self._catalog.publish(self._volume, head, self._revision)

    async def detach(self, volume: Volume) -> None:
        if self._detached:
            return
        self._detached = True
        core = volume.core
        try:
            await volume.queue.drain()
            await volume.checkpointer.stop()
            await volume.early_flush.stop()
            if core.failure is None:
                if core.dirty:
                    await self._last_checkpoint(volume)
                await core.journal.sync()
                await self._release(volume)
        finally:
            await volume.checkpointer.stop()
            await volume.queue.stop()
        if core.failure is None:
            log.info("volume.detached", volume=core.spec.name, epoch=core.epoch)

    async def _last_checkpoint(self, volume: Volume) -> None:
        try:
            await volume.checkpointer.write()
        except PoolFull as exc:  # the log has everything: the next attach replays it
            log.warning("volume.no_last_checkpoint", volume=volume.name, error=str(exc))

    async def _release(self, volume: Volume) -> None:
        core, head = volume.core, volume.checkpointer.head
        unused = core.journal.unused_chunk
        if unused is not None:
            await core.chunks.delete(core.spec.volume, core.epoch, [unused])
        core.spans = core.spans.close(*core.journal.closing)
        head = replace(head, spans=core.spans.to_tuple(), mapped_blocks=core.blocks.mapped_blocks)
        await self._catalog.release(self._volume, head, self._revision)


async def attach(
    found: Found,
    catalog: AsyncCatalog,
    chunks: Chunks,
    owner: Owner,
    clock: Clock,
    options: VolumeOptions,
    *,
    takeover: bool = False,
) -> Attachment:
    """Become the only writer of a volume and recover it.

    Raises: Busy, NotFound, Fenced, Corruption, Unavailable, DiskFailed, UnknownVersion.
    """
    began = clock.monotonic_ns()
    held = await catalog.acquire(found.spec.volume, owner, takeover=takeover)
    spec, epoch = held.spec, held.head.epoch
    holder = _Holder(catalog, spec.volume, held.head_revision)
    try:
        await chunks.fence(spec.volume, epoch)
        recovery = Recovery(chunks, spec, held.head, epoch, options.map_cache_bytes)
        recovered = await recovery.run()
        await chunks.sync(recovered.unsettled)
        spans = recovered.spans.open(epoch, recovered.spans.last_sequence + 1)
        head = replace(held.head, spans=spans.to_tuple())
        await holder.publish(head)
        await _count_chunks(chunks, spans, recovered.blocks, spec.volume, epoch)
    except TorusError:
        await _give_back(catalog, held)
        raise
    volume = _assemble(held, head, spans, recovered, chunks, options, holder, clock)
    attachment = Attachment(volume, holder)
    try:
        await _finish_shrink(volume, recovered)
    except TorusError as exc:
        volume.core.fail(exc)
        await attachment.detach()
        await _give_back(catalog, held)
        raise
    log.info(
        "volume.attached",
        volume=spec.name,
        epoch=epoch,
        records=recovered.records,
        damaged=len(recovered.damaged),
        milliseconds=(clock.monotonic_ns() - began) // 1_000_000,
    )
    return attachment


def _assemble(
    held: Found,
    head: Head,
    spans: Spans,
    recovered: Recovered,
    chunks: Chunks,
    options: VolumeOptions,
    holder: _Holder,
    clock: Clock,
) -> Volume:
    spec, epoch = held.spec, head.epoch
    start = Position(recovered.spans.last_sequence, 0, 0, recovered.end.lsn)
    journal = Log(chunks, spec.volume, epoch, start)
    journal.head_payload = head_payload(spec.to_bytes(), head.to_bytes())
    core = Core(spec, epoch, spans, recovered.blocks, journal, chunks, options.map_cache_bytes)
    if recovered.records:
        core.checkpoint_lsn = -1  # what was replayed wants a checkpoint of its own
    reads = Reads(core)
    early_flush = EarlyFlush(core)
    checkpointers: list[Checkpointer] = []

    def progress() -> None:
        early_flush.consider()
        checkpointers[0].consider()

    def full() -> None:
        checkpointers[0].request()

    queue = WriteQueue(
        core, reads.blocks, pause_when_full=options.pause_when_full,
        on_progress=progress, on_full=full,
    )  # fmt: skip
    checkpointer = Checkpointer(
        core, queue, head, holder.publish, clock,
        options.checkpoint_interval_s, options.observe_checkpoint,
    )  # fmt: skip
    checkpointers.append(checkpointer)
    return Volume(core, reads, queue, checkpointer, early_flush)


async def _finish_shrink(volume: Volume, recovered: Recovered) -> None:
    """Make a shrink durable that happened while nobody, or nobody who lived, had the volume.

    Otherwise what was cut off could come back in a volume that grows again.
    """
    size = volume.size_bytes
    if size % limits.BLOCK_BYTES:
        rest = limits.BLOCK_BYTES - size % limits.BLOCK_BYTES
        try:
            clean = not any(await volume.read(size, rest))
        except Corruption:
            clean = True  # nobody can read it later either
        if not clean:
            await volume.trim(size, rest, durable=True)
    if recovered.cut:
        await volume.checkpointer.write()


async def _give_back(catalog: AsyncCatalog, held: Found) -> None:
    """Let others try: without this the volume would look attached until this process ends."""
    try:
        current = await catalog.get_by_id(held.spec.volume)
        if current.head.epoch == held.head.epoch and current.head.owner == held.head.owner:
            await catalog.release(held.spec.volume, current.head, current.head_revision)
    except TorusError as exc:
        log.warning("volume.not_given_back", volume=held.spec.name, error=str(exc))


async def _count_chunks(
    chunks: Chunks, spans: Spans, blocks: BlockMap, volume: int, epoch: int
) -> None:
    """Count every chunk that is there, and free those of the log's cut-off ends.

    A chunk that holds nothing but a checkpoint's root is in no checkpoint's counts; uncounted it
    would never be freed.  A chunk that a superseded writer left behind the point where its log
    was cut is known to be garbage: the caller holds the newest epoch, the head it published
    names every chunk of the log, and older epochs are fenced.
    """
    strays = []
    for chunk in await chunks.list(volume):
        if chunk.epoch >= epoch:
            continue
        try:
            known = spans.chunk(chunk.sequence)
        except Corruption:
            known = None
        if known == chunk:
            blocks.open_sequence(chunk.sequence)
        elif not _before_first(spans, chunk.sequence):
            strays.append(chunk)
    if strays:
        count = await chunks.delete(volume, epoch, strays)
        log.info("volume.strays_freed", volume=volume, chunks=count)


def _before_first(spans: Spans, sequence: int) -> bool:
    """True for chunks older than everything in the head: trimmed there, deleted already or
    about to be; never decided here."""
    first = next(iter(spans), None)
    return first is not None and sequence < first.first
