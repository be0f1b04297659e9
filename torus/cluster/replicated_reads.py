"""Reads of chunks that have copies on several disks.

Decides which copy is asked first, when a second one is asked beside it, when a chunk is looked for
in shards (`torus.cluster.sharded_reads`), and what no right answer means.  Whether bytes are right
is decided by the caller's check, against the map's checksums.

Implements docs/replication.md, "Reading".
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from torus import limits
from torus.cluster.answers import cancel
from torus.cluster.chunks import Check
from torus.cluster.placement import Placement
from torus.cluster.shard_places import ShardPlaces
from torus.cluster.sharded_reads import ShardReads
from torus.errors import Corruption, TorusError, Unavailable
from torus.ids import ChunkId
from torus.log import get_logger

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool
    from torus.cluster.replicated_writes import OpenChunks

log = get_logger("torus.replicas")

Read = tuple[ChunkId, int, int]

_HEDGE_FIRST_S, _HEDGE_MIN_S, _HEDGE_MAX_S = 0.05, 0.005, 0.25
_HEDGE_TIMES = 4  # the median
_HEDGE_BYTES_S = 100e6  # more time for larger reads
_SAMPLES = 64
_SAMPLES_EVERY = 16  # before the median is taken anew
_AVOID_S = 1.0  # a disk that did not answer is asked last so long
_SEEN_MAX = 65536  # chunks whose answering disk is remembered
_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0


class _Batch:
    """Pieces that lie on the same disks, and what has come of them."""

    def __init__(self, reads: Sequence[Read], check: Check | None) -> None:
        self.reads = reads
        self.check = check
        self.found: dict[int, bytes] = {}
        self.wrong: dict[int, bytes] = {}  # the first that came and is not right
        self.bad: dict[int, list[str]] = {}  # disks whose bytes are not right
        self.silent: dict[int, frozenset[str]] = {}  # disks that could not be asked for shards
        self.lost: dict[int, Corruption] = {}  # why shards that are there are of no use
        self.absent: dict[int, set[str]] = {}  # disks that do not have the chunk, or cannot read it

    def take(self, number: int, disk_id: str, data: bytes) -> None:
        """Judge an answer."""
        if number in self.found:
            return
        if self.check is None or self.check(number, data):
            self.found[number] = data
        else:
            self.wrong.setdefault(number, data)
            self.bad.setdefault(number, []).append(disk_id)


class CopyReads:
    """The reads of one volume and its ancestors."""

    def __init__(
        self,
        pool: "DiskPool",
        placement: Placement,
        opened: "OpenChunks",
        volume: int,
        slot_bytes: int,
    ) -> None:
        self._pool = pool
        self.shards = ShardReads(pool, ShardPlaces(pool, placement, volume), self, slot_bytes)
        self._placement = placement
        self._open = opened
        self._seen: OrderedDict[ChunkId, str] = OrderedDict()
        self._avoid: dict[str, float] = {}
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._sampled = 0
        self._hedge_s = _HEDGE_FIRST_S
        self.hedges = 0
        self.on_bad_copy: Callable[[ChunkId, str, str], None] = lambda _chunk, _bad, _good: None

    async def read(self, reads: Sequence[Read], check: Check | None) -> list[bytes]:
        """Return the pieces, each from a copy that is right; waits a while for disks that are
        away.

        Raises: Corruption when no disk that must have a chunk has it; Unavailable when one that
            may have it cannot be asked.
        """
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + limits.REPLICA_READ_S
        pause_s = _PAUSE_FIRST_S
        while True:
            try:
                return await self._read(reads, check)
            except Unavailable:
                if loop.time() + pause_s >= give_up_s or self._open.stopping:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _read(self, reads: Sequence[Read], check: Check | None) -> list[bytes]:
        batch = _Batch(reads, check)
        groups: dict[tuple[str, ...], list[int]] = {}
        cut = await self._from_shards(batch, range(len(reads)))
        for number, (chunk, _, _) in enumerate(reads):
            if number not in batch.found:
                groups.setdefault(tuple(self._order(chunk)), []).append(number)
        if len(groups) == 1:
            [(order, numbers)] = groups.items()
            await self._chain(batch, numbers, order)
        else:
            await asyncio.gather(*[self._chain(batch, some, to) for to, some in groups.items()])
        for number in cut:
            if number in batch.found:
                self.shards.places.note_whole(reads[number][0])
        await self._search(batch)
        return [self._result(batch, number) for number in range(len(reads))]

    # --- who is asked -------------------------------------------------------------------

    def _order(self, chunk: ChunkId) -> list[str]:
        """Return the disks that should have a chunk and can be asked, best first."""
        owners = [disk for disk in self._owners(chunk) if self._pool.is_up(disk)]
        now_s = asyncio.get_running_loop().time()
        seen = self._seen.get(chunk)
        behind = self._open.chunks.get(chunk)

        def rank(disk_id: str) -> tuple[bool, bool, bool, int]:
            copy = None if behind is None else behind.copies.get(disk_id)
            short = behind is not None and (
                disk_id in self._open.lost or copy is None or copy.next_index < behind.answered
            )
            avoided = self._avoid.get(disk_id, 0.0) > now_s
            return short, avoided, disk_id != seen, self._pool.distance(disk_id)

        return sorted(owners, key=rank)

    def best(self, chunk: ChunkId) -> str | None:
        """Return the disk whose copy is asked first; None when none can be, or shards are."""
        if self.shards.places.expected(chunk):
            return None
        return next(iter(self._order(chunk)), None)

    def is_open(self, chunk: ChunkId) -> bool:
        """Tell whether a chunk is being written: which copy is best may change at any time."""
        return chunk in self._open.chunks

    @property
    def hedge_s(self) -> float:
        """Return how long a small read may take before a second disk is asked."""
        return self._hedge_s

    def avoided(self, disk_id: str) -> bool:
        """Tell whether a disk did not answer in time a moment ago."""
        return self._avoid.get(disk_id, 0.0) > asyncio.get_running_loop().time()

    def late(self, disk_id: str) -> None:
        """Ask a disk last for a while, because an answer takes long."""
        self.hedges += 1
        self._avoid[disk_id] = asyncio.get_running_loop().time() + _AVOID_S

    def sample(self, took_s: float) -> None:
        """Learn how long small reads take."""
        self._sample(took_s)

    def _owners(self, chunk: ChunkId) -> list[str]:
        return self._placement.owners(chunk)

    def _others(self, order: Sequence[str]) -> list[str]:
        """Return who else is up: a chunk may lie where no ring that is known here has it."""
        others = set(self._pool.view.disks()) | set(self._pool.local)
        left = [disk for disk in others.difference(order) if self._pool.is_up(disk)]
        return sorted(left, key=lambda disk: (self._pool.distance(disk), disk))

    # --- shards -------------------------------------------------------------------------

    async def _from_shards(self, batch: _Batch, numbers: Sequence[int]) -> list[int]:
        """Read what is expected to lie in shards; return what of that was not found."""
        places = self.shards.places
        cut = [number for number in numbers if places.expected(batch.reads[number][0])]
        if cut:
            await asyncio.gather(*[self._from_shard(batch, number) for number in cut])
        return [number for number in cut if number not in batch.found]

    async def _from_shard(self, batch: _Batch, number: int) -> None:
        check = batch.check
        right = None if check is None else partial(check, number)
        data = await self.shards.read(batch.reads[number], right)
        if data is not None:
            batch.found[number] = data

    async def _search(self, batch: _Batch) -> None:
        """Ask everybody for shards of what was found nowhere else."""
        places = self.shards.places
        left: dict[ChunkId, list[int]] = {}
        for number, (chunk, _, _) in enumerate(batch.reads):
            if number not in batch.found and places.possible(chunk) and not self.is_open(chunk):
                left.setdefault(chunk, []).append(number)
        for chunk, numbers in left.items():
            places.forget(chunk)
            shards, silent = await places.search(chunk)
            for number in numbers:
                batch.silent[number] = silent
                if shards is None:
                    continue
                right = None if batch.check is None else partial(batch.check, number)
                try:
                    read = batch.reads[number]
                    batch.found[number] = await self.shards.put_together(read, shards, right)
                except Corruption as exc:
                    batch.lost[number] = exc
                except TorusError:
                    batch.silent[number] |= frozenset(shards.disks.values())

    # --- asking -------------------------------------------------------------------------

    async def _chain(self, batch: _Batch, numbers: Sequence[int], order: Sequence[str]) -> None:
        """Ask one disk after the other until every piece is right; ask the next beside one that
        takes long."""
        await self._ask_in_turn(batch, numbers, order)
        left = [number for number in numbers if number not in batch.found]
        if left:
            await self._ask_in_turn(batch, left, self._others(order))

    async def _ask_in_turn(
        self, batch: _Batch, numbers: Sequence[int], order: Sequence[str]
    ) -> None:
        size = sum(batch.reads[number][2] for number in numbers)
        hedge_s = self._hedge_s + size / _HEDGE_BYTES_S
        tasks: dict[asyncio.Task[None], str] = {}
        pending: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        index = 0
        try:
            while True:
                if index < len(order):
                    left = [number for number in numbers if number not in batch.found]
                    task = loop.create_task(self._ask(batch, left, order[index]))
                    tasks[task] = order[index]
                    pending.add(task)
                    index += 1
                if not pending:
                    return
                wait_s = hedge_s if index < len(order) else None
                done, pending = await asyncio.wait(
                    pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
                if all(number in batch.found for number in numbers):
                    self._remember(batch, numbers, [tasks[task] for task in done][-1], order[0])
                    return
                if not done:
                    self.hedges += 1
                    for task in pending:
                        self._avoid[tasks[task]] = loop.time() + _AVOID_S
        finally:
            await cancel(*tasks)

    async def _ask(self, batch: _Batch, numbers: Sequence[int], disk_id: str) -> None:
        """Read pieces from one disk; what it cannot give is not an error."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            disk = await self._pool.get(disk_id)
            wanted = [batch.reads[number] for number in numbers]
            try:
                pieces = await disk.read(wanted)
            except Corruption:
                if len(numbers) == 1:
                    raise
                for number in numbers:
                    await self._ask(batch, [number], disk_id)
                return
        except Corruption:
            batch.absent.setdefault(numbers[0], set()).add(disk_id)
            return
        except TorusError as exc:
            self._avoid[disk_id] = loop.time() + _AVOID_S
            log.debug("replicas.read.failed", disk=disk_id, error=str(exc))
            return
        for number, piece in zip(numbers, pieces, strict=True):
            batch.take(number, disk_id, piece)
        if sum(read[2] for read in wanted) <= limits.MIB:
            self._sample(loop.time() - began_s)

    def _sample(self, took_s: float) -> None:
        self._samples.append(took_s)
        self._sampled += 1
        if self._sampled % _SAMPLES_EVERY == 0:
            usual_s = median(self._samples)
            self._hedge_s = min(max(_HEDGE_TIMES * usual_s, _HEDGE_MIN_S), _HEDGE_MAX_S)

    # --- what came ----------------------------------------------------------------------

    def _remember(self, batch: _Batch, numbers: Sequence[int], good: str, first: str) -> None:
        for number in numbers:
            chunk = batch.reads[number][0]
            if good != first:
                self._seen[chunk] = good
                if len(self._seen) > _SEEN_MAX:
                    self._seen.popitem(last=False)
            for bad in batch.bad.get(number, ()):
                self.on_bad_copy(chunk, bad, good)
            for bad in batch.absent.get(number, ()):
                self.on_bad_copy(chunk, bad, good)

    def _result(self, batch: _Batch, number: int) -> bytes:
        data = batch.found.get(number)
        if data is not None:
            return data
        chunk, offset, size = batch.reads[number]
        opened = self._open.chunks.get(chunk)
        held = None if opened is None else opened.held(offset, size)
        if held is not None:  # every copy lost it with its disk's power, and will get it again
            return held
        answered = {*batch.absent.get(number, ()), *batch.bad.get(number, ())}
        unknown = [disk for disk in self._owners(chunk) if disk not in answered]
        unknown += sorted(batch.silent.get(number, frozenset()).difference(unknown))
        if unknown or not answered:
            raise Unavailable(
                f"chunk {chunk} cannot be read: disks {unknown} cannot be asked"
                if unknown
                else f"chunk {chunk} cannot be read: where it lies is not known here",
                hint="see: torus node list",
            )
        if number in batch.lost:
            raise batch.lost[number]
        wrong = batch.wrong.get(number)
        if wrong is not None:
            return wrong
        raise Corruption(
            f"chunk {chunk} is on none of its disks: {sorted(answered)}", hint="run 'torus check'"
        )

    def forget(self, chunks: Sequence[ChunkId]) -> None:
        """Forget where chunks were found: they are deleted."""
        for chunk in chunks:
            self._seen.pop(chunk, None)
            self.shards.places.forget(chunk)
