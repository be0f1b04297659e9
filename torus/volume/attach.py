"""Attach: become a volume's only writer, recover it, serve it.

The order is design section 4, "Takeover": swap the epoch, fence and read the open span, make
what was found durable, swap the head, serve.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from torus import limits
from torus._fast.blockmap import BlockMap
from torus.clock import Clock
from torus.cluster.chunks import Chunks
from torus.errors import Corruption, Fenced, TorusError
from torus.log import get_logger
from torus.metadata.schema import Head, Owner, VolumeSpec
from torus.volume.attachment import Attachment
from torus.volume.catalog_ask import Volume as Found
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.checkpoint import Checkpointer
from torus.volume.collector import Collector
from torus.volume.core import Core
from torus.volume.earlyflush import EarlyFlush
from torus.volume.family import Family
from torus.volume.holder import Holder
from torus.volume.log import Log, Position, head_payload
from torus.volume.origin import Origin, find_origin
from torus.volume.pins import Pins
from torus.volume.reads import Reads
from torus.volume.recovery import Recovered, Recovery
from torus.volume.reseal import Resealer
from torus.volume.spans import Spans
from torus.volume.volume import Volume
from torus.volume.writes import WriteQueue

log = get_logger("torus.attach")


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How this process serves volumes."""

    map_cache_bytes: int = limits.MAP_CACHE_BYTES_DEFAULT
    checkpoint_interval_s: float = limits.CHECKPOINT_INTERVAL_S
    delete_delay_s: float = limits.DELETE_DELAY_S
    pause_when_full: bool = True
    gc_rate_bytes: int = limits.GC_RATE_BYTES_DEFAULT  # per second; 0: only on demand
    early_flush_s: float | None = None  # what was written so long ago is flushed; None: may wait
    observe_checkpoint: Callable[[int], None] = lambda _ns: None


@dataclass(frozen=True, slots=True)
class Taken:
    """A volume whose epoch this process holds and whose log it has read."""

    held: Found
    head: Head  # as published: with the open span of this epoch
    spans: Spans
    recovered: Recovered
    origin: Origin
    pins: Pins
    holder: Holder


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

    ``chunks`` is the volume's from now on: it is stopped by `Attachment.detach`, or here when the
    volume cannot be attached.

    Raises: Busy, NotFound, Fenced, Corruption, Unavailable, DiskFailed, UnknownVersion.
    """
    began = clock.monotonic_ns()
    try:
        taken = await take(found, catalog, chunks, owner, options, takeover=takeover)
    except BaseException:
        await chunks.stop()
        raise
    recovered, spec = taken.recovered, shrunk(taken.held.spec)
    family = Family(taken.spans, taken.origin.ancestors)
    volume = assemble(taken, spec, family, recovered.blocks, chunks, options, clock)
    attachment = Attachment(volume, taken.holder)
    try:
        await _finish_shrink(volume, recovered)
        await attachment.follow_size()
    except TorusError as exc:
        volume.core.fail(exc)
        await attachment.detach()
        await give_back(catalog, taken.held)
        raise
    log.info(
        "volume.attached",
        volume=volume.name,
        epoch=volume.core.epoch,
        records=recovered.records,
        damaged=len(recovered.damaged),
        milliseconds=(clock.monotonic_ns() - began) // 1_000_000,
    )
    return attachment


async def take(
    found: Found,
    catalog: AsyncCatalog,
    chunks: Chunks,
    owner: Owner,
    options: VolumeOptions,
    *,
    takeover: bool = False,
) -> Taken:
    """Raise the epoch, fence the older ones, read the log to its end, open a span.

    Raises: as `attach`; the volume is given back then.
    """
    held = await catalog.acquire(found.spec.volume, owner, takeover=takeover)
    spec, epoch = held.spec, held.head.epoch
    holder = Holder(catalog, spec.volume, held.head, held.head_revision)
    # Only now: an earlier owner can make no more.
    reading = asyncio.ensure_future(_read_pins(catalog, held))
    reading.add_done_callback(_consume)
    try:
        await chunks.fence(spec.volume, epoch)
        origin = await find_origin(catalog, held.head.base)
        recovery = Recovery(chunks, shrunk(spec), held.head, epoch, options.map_cache_bytes, origin)
        recovered = await recovery.run()
        await chunks.settle(recovered.unsettled)
        first = recovered.spans.last_sequence + 1
        place = chunks.new_span()
        spans = recovered.spans.short(chunks.missing.difference(place[1]))
        spans = spans.open(epoch, first, place=place)
        head = await holder.swap(lambda head: replace(head, spans=spans.to_tuple()), patient=False)
        chunks.learn(spec.volume, spans)
        chunks.begin_span()
        pins = await reading
        await _count_chunks(chunks, spans, recovered.blocks, pins, spec.volume, epoch)
    except TorusError as exc:
        if await give_back(catalog, held) and isinstance(exc, Corruption):
            # What is not there any more was deleted by whoever has the volume now.
            raise Fenced(
                f"volume {spec.name!r} was taken over by another process while it was attached",
                hint="attach it again if this process shall have it",
            ) from exc
        raise
    finally:
        reading.cancel()
    return Taken(held, head, spans, recovered, origin, pins, holder)


async def _read_pins(catalog: AsyncCatalog, held: Found) -> Pins:
    if held.head.newest_snapshot == 0:
        return Pins()
    values = await catalog.snapshot_values(held.spec.volume)
    return Pins.read(values, f"snapshots of volume {held.spec.name!r}")


def _consume(reading: asyncio.Future[Pins]) -> None:
    if not reading.cancelled():
        reading.exception()


def assemble(
    taken: Taken,
    spec: VolumeSpec,
    family: Family,
    blocks: BlockMap,
    chunks: Chunks,
    options: VolumeOptions,
    clock: Clock,
) -> Volume:
    """Put an attached volume together from its parts; it writes under the epoch of ``taken``."""
    head, recovered = taken.head, taken.recovered
    start = Position(recovered.spans.last_sequence, 0, 0, recovered.end.lsn)
    journal = Log(chunks, spec.volume, head.epoch, start)
    core = Core(
        spec, head.epoch, family, blocks, journal, chunks, options.map_cache_bytes, taken.pins
    )
    if recovered.records:
        core.checkpoint_lsn = -1  # what was replayed wants a checkpoint of its own
    reads = Reads(core)
    early_flush = EarlyFlush(core, options.early_flush_s)

    def progress() -> None:
        early_flush.consider()
        checkpointer.consider()
        collector.consider()

    def full() -> None:
        checkpointer.request()
        collector.request()

    def first_payload() -> bytes:
        return head_payload(
            taken.held.spec.to_bytes(), taken.holder.head.to_bytes(), core.pins.payload()
        )

    queue = WriteQueue(
        core, reads.blocks, pause_when_full=options.pause_when_full,
        on_progress=progress, on_full=full,
    )  # fmt: skip
    checkpointer = Checkpointer(
        core, queue, taken.holder, clock,
        options.checkpoint_interval_s, options.observe_checkpoint, options.delete_delay_s,
    )  # fmt: skip
    collector = Collector(core, queue, checkpointer, clock, rate_bytes=options.gc_rate_bytes)
    journal.head_payload = first_payload
    resealer = Resealer(core, taken.holder, first_payload)
    return Volume(core, reads, queue, checkpointer, early_flush, collector, resealer)


def shrunk(spec: VolumeSpec) -> VolumeSpec:
    """Return a specification with the smallest size that the volume's map must be cut to."""
    return replace(spec, size_bytes=min(spec.size_bytes, spec.cut_bytes or spec.size_bytes))


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


async def give_back(catalog: AsyncCatalog, held: Found) -> bool:
    """Let others try: without this the volume would look attached until this process ends.

    Returns: whether it has a later epoch by now.
    """
    try:
        current = await catalog.get_by_id(held.spec.volume)
        if current.head.epoch == held.head.epoch and current.head.owner == held.head.owner:
            await catalog.release(held.spec.volume, current.head, current.head_revision)
    except TorusError as exc:
        log.warning("volume.not_given_back", volume=held.spec.name, error=str(exc))
        return False
    return current.head.epoch > held.head.epoch


async def _count_chunks(
    chunks: Chunks, spans: Spans, blocks: BlockMap, pins: Pins, volume: int, epoch: int
) -> None:
    """Count every chunk that is there and no other, and free those of the log's cut-off ends.

    A chunk that holds nothing but a checkpoint's root is in no checkpoint's counts; uncounted it
    would never be freed.  A chunk that a superseded writer left behind the point where its log
    was cut is known to be garbage: the caller holds the newest epoch, the head it published
    names every chunk of the log, and older epochs are fenced.
    """
    strays = []
    there, all_of_them = await chunks.survey(volume)
    if all_of_them:  # what is not known to be gone stays counted
        _forget_deleted(spans, blocks, pins, {chunk.sequence for chunk in there})
    for chunk in there:
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


def _forget_deleted(spans: Spans, blocks: BlockMap, pins: Pins, there: set[int]) -> None:
    """Count chunks no more that were deleted since the checkpoint which counted them."""
    named = blocks.pinned_sequences()
    for span in spans:
        if span.last is None:
            continue
        for sequence in blocks.dead(span.first, span.last):
            era = blocks.era(sequence)
            needed = sequence in named or (era and pins.pinned(sequence, era))
            if sequence not in there and not needed:
                blocks.drop_sequence(sequence)


def _before_first(spans: Spans, sequence: int) -> bool:
    """True for chunks older than everything in the head: trimmed there, deleted already or
    about to be; never decided here."""
    first = next(iter(spans), None)
    return first is not None and sequence < first.first
