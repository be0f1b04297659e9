"""The chunks of one volume, each with copies on several disks: a `Chunks` for its log.

Joins the parts: what is being written (`replicated_writes`), reads (`replicated_reads`), takeover
(`quorum`), which disks a new span leaves out (`next_span`), deletions and repairs
(`replicated_care`).  Decides when another span is better.

Implements docs/replication.md.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torus import limits
from torus._fast.blockio import BlockIo
from torus.cluster.answers import ask_all, ready
from torus.cluster.chunks import Check, ChunkWriter, DiskChunks
from torus.cluster.everybody import fence, survey
from torus.cluster.file_places import FilePlaces
from torus.cluster.membership import FIRST_RING
from torus.cluster.next_span import NextSpan
from torus.cluster.placement import Placement
from torus.cluster.quorum import Takeover
from torus.cluster.replicated_care import Care
from torus.cluster.replicated_reads import CopyReads
from torus.cluster.replicated_soon import GatheredReads
from torus.cluster.replicated_writes import CopiesLost, OpenChunks
from torus.cluster.shard_making import remake_shard
from torus.errors import PoolFull, TorusError
from torus.format.shard import content_max
from torus.ids import ChunkId, shard_id
from torus.log import get_logger
from torus.metadata.schema import Span, VolumeSpec
from torus.redundancy.scheme import parse

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool

log = get_logger("torus.replicas")

_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0
_LOOK_S = 1.0  # between two looks for disks that are back


class VolumeChunks:
    """A `Chunks` for one writer or reader of a volume; `stop` it."""

    replicated = True
    in_thread = None

    def __init__(self, pool: "DiskPool", spec: VolumeSpec) -> None:
        self._pool = pool
        self._volume = spec.volume
        self._min_copies = min_copies = spec.min_copies
        self._epoch = 0  # of the writer that this is; 0: a reader
        former = [parse(one) for one in spec.former]
        self._placement = Placement(pool.view, parse(spec.redundancy), former)
        self._open = OpenChunks(pool, min_copies)
        near = next(iter(pool.local.values()), None)
        self.slot_bytes = pool.slot_bytes if near is None else near.slot_bytes
        self._reads = CopyReads(pool, self._placement, self._open, spec.volume, self.slot_bytes)
        self._soon = GatheredReads(pool, self._reads)
        self.read_soon = self._soon.read
        self._takeover = Takeover(pool, self._placement)
        self._next = NextSpan(pool, self._placement, self._open, self._takeover, min_copies)
        self._care = Care(pool, self._placement)
        self._reads.on_bad_copy = self._on_bad_copy
        self._reads.shards.on_bad_shard = self._on_bad_shard
        self._takeover.shards = self._reads.shards
        self._few = False  # the open span has too few disks
        self._span: tuple[int, frozenset[str]] = (0, frozenset())
        self._scheme = self._next_scheme = self._placement.scheme  # of the open span, and the next
        self._changed = asyncio.Event()
        pool.view.on_change.append(self._changed.set)
        self._near = near
        files = FilePlaces(pool, self._reads, self._open, near=near is not None)
        self.io: BlockIo | None = files.io
        self.place = files.place

    @property
    def chunk_bytes(self) -> int:
        """Return what nearly every scheme has room for in its shards, so that the volume can have
        another one later; less where its own has less."""
        data = self._placement.scheme.data
        most = limits.CHUNK_BYTES_MAX
        if data:
            most = min(most, limits.SLOT_HEADER_BYTES + content_max(data, self.slot_bytes))
        return min(self.slot_bytes, most)

    # --- writing ------------------------------------------------------------------------

    def _alone(self, chunk: ChunkId) -> DiskChunks | None:
        """Return the one disk of a chunk if that is in this process: it needs none of this."""
        if self._placement.copies_of(chunk) != 1:
            return None
        disks = self._placement.written_to(chunk)
        return self._pool.near(disks[0]) if len(disks) == 1 else None

    def open_now(self, chunk: ChunkId, *, from_reserve: bool) -> ChunkWriter | None:
        """Open a new chunk without waiting; None when that takes waiting.

        Raises: Fenced, PoolFull, DiskFailed.
        """
        alone = self._alone(chunk)
        return None if alone is None else alone.open_now(chunk, from_reserve=from_reserve)

    async def open(self, chunk: ChunkId, *, from_reserve: bool) -> ChunkWriter:
        """Open a new chunk on all disks of its placement.

        Raises: CopiesLost when another span is needed first: `secure`; PoolFull, Fenced.
        """
        alone = self._alone(chunk)
        if alone is not None:
            return await alone.open(chunk, from_reserve=from_reserve)
        disks = self._placement.written_to(chunk)
        if len(disks) < self._min_copies:
            self._few = True
            raise CopiesLost(f"chunk {chunk} has {len(disks)} disks, {self._min_copies} are needed")
        return await self._open.open(chunk, disks, from_reserve=from_reserve)

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        """Make all that was answered durable, on every copy whose disk is not lost.

        Raises: Fenced, DiskFailed.
        """
        wanted = list(chunks)
        alone: dict[str, list[ChunkId]] = {}
        for chunk in wanted:
            if (disk := self._alone(chunk)) is not None:
                alone.setdefault(disk.disk_id, []).append(chunk)
        if alone:
            waits = [self._pool.local[disk].sync(some) for disk, some in alone.items()]
            await asyncio.gather(*waits)
        await self._open.sync(wanted)

    def sync_soon(self, chunks: Iterable[ChunkId]) -> asyncio.Future[None] | None:
        """Return the future of `sync` where one disk of this process has all, or that is done
        already, else None."""
        wanted = list(chunks)
        if self._open.sync_now(wanted):
            return ready(None)
        disks = {None if (disk := self._alone(chunk)) is None else disk.disk_id for chunk in wanted}
        [disk_id] = disks if len(disks) == 1 else [None]
        return None if disk_id is None else self._pool.local[disk_id].sync_soon(wanted)

    @property
    def lost(self) -> bool:
        """Tell whether the open span cannot go on as it is."""
        return self._few or bool(self._open.lost)

    @property
    def waiting(self) -> str:
        """Return why nothing is answered, for people; empty: it is."""
        return self._open.waiting

    @property
    def left_out(self) -> frozenset[str]:
        """Return the disks that the open span leaves out."""
        return self._span[1]

    # --- spans --------------------------------------------------------------------------

    async def secure(self) -> bool:
        """Make all that was appended durable on enough disks, wait for disks for another span.

        Returns: whether another span is needed.
        Raises: Fenced; Unavailable after `stop`.
        """
        if not self.lost:
            return False
        await self._open.secure()
        await self._call_back()
        pause_s = _PAUSE_FIRST_S
        while self._next.excluded() is None:
            self._open.waiting = f"fewer than {self._next.least} disks can take new chunks"
            # A disk that no open chunk needs is healed by nothing: it has to answer.
            back = [disk for disk in self._open.lost if await self._answers(disk)]
            if await self._open.retry(back):
                await self._open.secure()  # what they were sent again is not durable yet
            for disk in back:
                if not isinstance(self._open.lost.get(disk), PoolFull | None):
                    self._next.usable.add(disk)
            await self._call_back()
            if self._next.excluded() is None:
                await self._open.pause(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        self._open.waiting = ""
        return self._few or bool(self._open.lost)

    async def _call_back(self) -> None:
        """Let disks that rest and answer be used, where a new span had too few copies without; one
        without room only where no span can be without it."""
        resting, room = self._next.missed(), self._next.excluded() is not None
        answers = await asyncio.gather(*[self._answers(disk, room=room) for disk in resting])
        for disk, back in zip(resting, answers, strict=True):
            if back:
                self._next.call_back(disk)

    def new_span(self) -> tuple[int, tuple[str, ...], int]:
        """Return the ring version that a new span is written under, whom it leaves out, and how
        many copies its chunks have."""
        self._next_scheme = self._placement.scheme
        return *self._next.place(), self._next_scheme.copies

    @property
    def missing(self) -> frozenset[str]:
        """Return the disks that may have less than others of the span that is being closed."""
        return frozenset(self._open.lost).union(self._takeover.unreachable)

    def learn(self, volume: int, spans: Iterable[Span]) -> None:
        """Learn where the chunks of a log were written."""
        known = list(spans)
        own = volume == self._volume
        self._placement.learn(volume, known, writing=own and self._epoch > 0)
        if own and known and known[-1].last is None:
            self._span = known[-1].ring, frozenset(known[-1].excluded)

    def follow(self, spec: VolumeSpec) -> None:
        """Learn how the volume is to be kept: what is written next goes into another span."""
        self._placement.follow(parse(spec.redundancy))
        self._min_copies = self._open.min_copies = self._next.min_copies = spec.min_copies
        self._changed.set()

    def begin_span(self) -> None:
        """Learn that the log goes on in another span."""
        self._scheme = self._next_scheme
        self._next.begun(self._span[1])
        self._open.clear()
        self._changed.set()
        self._takeover.unreachable.clear()
        self._few = False

    async def better_span(self) -> None:
        """Return when the ring changed, or a disk that the span leaves out is back."""
        while True:
            enough = self._next.excluded() is not None
            if self._is_outdated and enough:
                return
            wait_s: float | None = _LOOK_S if self._is_outdated else None
            for disk in self._span[1]:
                rest_s = self._next.rest_s(disk)
                if rest_s <= 0 and enough and await self._answers(disk, room=True):
                    self._next.answers(disk)
                    return
                wait_s = min(rest_s if rest_s > 0 else _LOOK_S, wait_s or _LOOK_S)
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):  # wait_for may swallow a cancellation
                    await self._changed.wait()
            except TimeoutError:
                continue

    @property
    def _is_outdated(self) -> bool:
        """Tell whether a new span would have another ring, or another redundancy: what is closed
        then can be converted at once."""
        view = self._pool.view
        if not view.has_ring:
            return False
        ring = max(self._span[0], FIRST_RING)
        return view.ring.version != ring or self._placement.scheme != self._scheme

    async def _answers(self, disk_id: str, *, room: bool = False) -> bool:
        """Tell whether a disk can take new chunks, as far as that can be told; with ``room``, not
        just the next one."""
        if not self._pool.is_up(disk_id):
            return False

        async def ping() -> None:
            disk = await self._pool.get(disk_id)
            await disk.ping()
            await disk.examine([ChunkId(self._volume, max(self._epoch, 1), 0, 0)])
            if room:
                free, slots = await disk.room()
                if free < min(limits.REPLICA_RETURN_SLOTS, max(slots // 16, 1)):
                    raise PoolFull(f"disk {disk_id} has room for {free} chunks")

        found = await ask_all({disk_id: ping()}, limits.REPLICA_SILENCE_S)
        return not isinstance(found[disk_id], TorusError)

    # --- reading ------------------------------------------------------------------------

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        """Return the bytes of each (chunk, offset, size) as one copy has them, unverified.

        Raises: Corruption when no disk that must have a chunk has it; Unavailable.
        """
        return await self._reads.read(reads, None)

    async def read_checked(
        self, reads: Sequence[tuple[ChunkId, int, int]], check: Check
    ) -> list[bytes]:
        """Return what passes the check of each (chunk, offset, size); raises as `read`."""
        return await self._reads.read(reads, check)

    def _on_bad_copy(self, chunk: ChunkId, bad: str, good: str) -> None:
        if chunk.volume == self._volume and chunk not in self._open.chunks:
            self._care.repair(chunk, bad, good, self._epoch)

    def _on_bad_shard(self, chunk: ChunkId, number: int, bad: str) -> None:
        if chunk.volume == self._volume:
            remake = partial(remake_shard, self._reads.shards, chunk, number)
            self._care.repair_shard(shard_id(chunk, number), bad, remake, self._epoch)

    # --- taking over --------------------------------------------------------------------

    async def fence(self, volume: int, epoch: int) -> None:
        """Refuse older epochs on every disk that can be reached.

        Raises: Fenced, Unavailable when none can be.
        """
        if volume == self._volume:
            self._epoch = max(self._epoch, epoch)
        await fence(self._pool, volume, epoch)

    async def scan(self, chunk: ChunkId, epoch: int, offset: int) -> bytes | None:
        """Fence and read in one step; see `Takeover.scan`."""
        return await self._takeover.scan(chunk, epoch, offset)

    def is_certain(self, chunk: ChunkId) -> bool:
        """Tell whether every disk that should have a scanned chunk answered."""
        return self._takeover.is_certain(chunk)

    async def settle(self, ends: Mapping[ChunkId, int]) -> None:
        """Make what was scanned durable; see `Takeover.settle`."""
        await self._takeover.settle(ends, self._epoch)

    # --- deleting, listing --------------------------------------------------------------

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        """Free chunks on every disk that may have them; those that cannot be reached are told
        later, as long as this lives.

        Raises: Fenced.
        """
        wanted = list(chunks)
        self._reads.forget(wanted)
        return await self._care.delete(volume, epoch, wanted)

    async def list(self, volume: int) -> Sequence[ChunkId]:
        """Return the chunks that are known to exist."""
        return (await self.survey(volume))[0]

    async def survey(self, volume: int) -> tuple[Sequence[ChunkId], bool]:
        """Return the chunks on all disks that can be reached, and whether those are all disks."""
        return await survey(self._pool, volume)

    # --- space, end ---------------------------------------------------------------------

    def space(self) -> tuple[int, int] | None:
        """Return the least of the disks' when all are in this process, else None."""
        if not self._pool.view.has_ring:
            return None
        found = []
        for member in self._pool.view.ring.members:
            near = self._pool.near(member.disk_id)
            usage = None if near is None else near.space()
            if usage is None:
                return None
            found.append(usage)
        return min(found, default=None)

    async def wait_for_space(self) -> None:
        """Return when slots may have become free, or after about a second."""
        if self._near is not None:
            await self._near.wait_for_space()
        else:
            await asyncio.sleep(_LOOK_S)

    def stop_waiting(self) -> None:
        """Let what waits for disks end with Unavailable, now and later."""
        self._open.stopping = self._takeover.stopping = True

    async def stop(self) -> None:
        """End what works in the background and what waits; idempotent."""
        self.stop_waiting()
        self._soon.stop()
        if self._changed.set in self._pool.view.on_change:
            self._pool.view.on_change.remove(self._changed.set)
        await self._care.stop()
