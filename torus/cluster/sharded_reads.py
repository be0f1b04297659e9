"""Reads of chunks that lie in shards on several disks.

Decides what is read when the shard that has the bytes is away, late or wrong: the same columns of
as many others as the scheme takes, each checked against its own table.  What was put together is
checked by the caller, as everything that is read.

Implements docs/replication.md, "Reading shards".
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from torus.cluster.answers import cancel
from torus.cluster.near_columns import NearColumns
from torus.cluster.shard_places import Content, Placed, Read, ShardPlaces, Shards, parts_of
from torus.errors import Corruption, TorusError, Unavailable
from torus.format.shard import (
    COLUMN_BYTES,
    DESCRIPTOR_BYTES,
    PAYLOAD_OFFSET,
    PLACE_BYTES,
    Descriptor,
    payload_bytes,
)
from torus.ids import ChunkId, shard_id, split_part
from torus.log import get_logger
from torus.redundancy.codec import codec
from torus.redundancy.scheme import erasure
from torus.redundancy.stripe import Piece, Stripe
from torus.store.content import FIRST

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool

log = get_logger("torus.shards")
T = TypeVar("T")

Check = Callable[[bytes], bool]
_HEDGE_BYTES_S = 100e6  # more time for larger reads
_SLOW_MAX = 16.0
_SLOW_LESS = 0.95  # with each read that comes in time
_NONE: frozenset[int] = frozenset()


class Direct(NamedTuple):
    """What came of asking just those disks that should have the bytes."""

    data: bytes | None  # None: not all came, or they are not right
    absent: bool = False  # a disk that should have a shard says that it has not
    failed: frozenset[int] = frozenset()  # shards whose disks did not answer


class Patience(Protocol):
    """How long disks are waited for."""

    @property
    def hedge_s(self) -> float:
        """Return how long a small read may take before others are asked."""

    def late(self, disk_id: str) -> None:
        """Learn that a disk takes long."""

    def avoided(self, disk_id: str) -> bool:
        """Tell whether a disk took long a moment ago."""


class ShardReads:
    """The shards of one volume's chunks, and of its ancestors'."""

    def __init__(
        self, pool: "DiskPool", places: ShardPlaces, patience: Patience, slot_bytes: int
    ) -> None:
        self._pool = pool
        self._patience = patience
        self.slot_bytes = slot_bytes
        self.places = places
        self.near: NearColumns | None = None  # where shards lie in files of this host
        self.degraded = 0  # pieces that were put together from other shards
        # How much longer than copies shards are waited for.  Not waiting costs K reads instead
        # of one: where all disks are busy that makes them busier still.
        self._slow = 1.0
        self.on_bad_shard: Callable[[ChunkId, int, str], None] = lambda _chunk, _number, _disk: None

    def stripe(self, shards: Shards) -> Stripe:
        """Return how content is cut."""
        scheme = shards.scheme
        return Stripe(scheme.data, scheme.parity, payload_bytes(scheme.data, self.slot_bytes))

    def placed(self, chunk: ChunkId) -> Placed | None:
        """Return how a chunk is cut, and who has its shards, of those that can be asked now; None
        when nobody knows."""
        shards = self.places.get(chunk)
        if shards is None:
            return None
        disks = {
            number: disk
            for number, disk in shards.disks.items()
            if self._pool.is_up(disk) and not self._patience.avoided(disk)
        }
        return self.stripe(shards), disks

    async def read(self, read: Read, check: Check | None) -> bytes | None:
        """Return a piece that is right; None when that takes knowing better who has its shards."""
        shards = self.places.get(read[0])
        if shards is None:
            return None
        parts = None if check is None else parts_of(read, self.placed(read[0]))
        if parts is None or check is None:
            return await self._try(read, shards, check)
        direct: asyncio.Future[Direct] = asyncio.ensure_future(self._direct(parts, check))
        try:
            done, _ = await asyncio.wait([direct], timeout=self.wait_s(read[2]))
            if not done:
                return await self._race(direct, parts, read, shards, check)
            self._slow = max(1.0, self._slow * _SLOW_LESS)
            found = direct.result()
            if found.data is None and not (found.absent and shards.content is None):
                return await self._try(read, shards, check, skip=found.failed)
            return found.data
        finally:
            await cancel(direct)

    def wait_s(self, size_bytes: int) -> float:
        """Return how long the shard that has the bytes is waited for."""
        return self._patience.hedge_s * self._slow + size_bytes / _HEDGE_BYTES_S

    async def _race(
        self,
        direct: "asyncio.Future[Direct]",
        parts: Sequence[tuple[str, Read]],
        read: Read,
        shards: Shards,
        check: Check,
    ) -> bytes | None:
        """Return what comes first of a read that takes long, and of putting it together.

        Where that is the former the disks were not waited for long enough, else they are late.
        """
        numbers = {split_part(part[0])[1] for _, part in parts}
        late = frozenset(number for number in numbers if number is not None)
        together = asyncio.ensure_future(self._try(read, shards, check, skip=late))
        try:
            both: set[asyncio.Future[Any]] = {direct, together}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if direct.done() and direct.result().data is not None:
                self._slow = min(2 * self._slow, _SLOW_MAX)
                return direct.result().data
            data = await together
            if data is not None and not direct.done():
                for disk, _ in parts:
                    self._patience.late(disk)
            return (await direct).data if data is None else data
        finally:
            await cancel(together)

    async def _direct(self, parts: Sequence[tuple[str, Read]], check: Check) -> Direct:
        """Read the shards that hold a piece."""
        answers = await asyncio.gather(
            *[self._read(disk, [part]) for disk, part in parts], return_exceptions=True
        )
        pieces: list[bytes] = []
        failed = set()
        absent = False
        for (_, part), answer in zip(parts, answers, strict=True):
            if isinstance(answer, TorusError):
                absent |= isinstance(answer, Corruption)
                failed.add(split_part(part[0])[1])
            elif isinstance(answer, BaseException):
                raise answer
            else:
                pieces += answer
        data = b"".join(pieces)
        if not failed and check(data):
            return Direct(data)
        return Direct(None, absent, frozenset(one for one in failed if one is not None))

    async def _read(self, disk_id: str, reads: Sequence[Read]) -> list[bytes]:
        return await (await self._pool.get(disk_id)).read(reads)

    # --- putting together ---------------------------------------------------------------

    async def put_together(
        self, read: Read, shards: Shards, check: Check | None, *, skip: frozenset[int] = _NONE
    ) -> bytes:
        """Return a piece that was read with tables: what is wrong is found, what is missing is
        rebuilt.

        ``skip``: shards that are not asked for what they have.

        Raises: Corruption when it cannot be had from the disks where shards are thought to be;
            Unavailable when these cannot be asked.
        """
        chunk, _, size = read
        found = await self.described(chunk, shards)
        data = await self._cut(read, found, skip)
        data += bytes(size - len(data))
        if check is not None and not check(data):
            raise Corruption(f"the shards of chunk {chunk} fit each other, and not the map")
        self.places.note(chunk, found)
        return data

    async def _try(
        self, read: Read, shards: Shards, check: Check | None, *, skip: frozenset[int] = _NONE
    ) -> bytes | None:
        try:
            return await self.put_together(read, shards, check, skip=skip)
        except TorusError as exc:
            log.debug("shards.read.failed", chunk=str(read[0]), reason=str(exc))
            return None

    async def _cut(self, read: Read, shards: Shards, skip: frozenset[int]) -> bytes:
        """Return what shards hold of a piece: nothing behind the end of the content.

        Raises: Corruption, Unavailable.
        """
        chunk, offset, size = read
        assert shards.content is not None
        stop = min(offset + size, shards.content.end)
        pieces = []
        for piece in self.stripe(shards).locate(offset - FIRST, max(stop - offset, 0)):
            first = piece.offset // COLUMN_BYTES * COLUMN_BYTES
            last = -(-(piece.offset + piece.size_bytes) // COLUMN_BYTES) * COLUMN_BYTES
            whole = Piece(piece.shard, first, last - first)
            there = await self.columns(chunk, shards, whole, own=piece.shard not in skip)
            start = piece.offset - first
            pieces.append(there[start : start + piece.size_bytes])
        return b"".join(pieces)

    async def described(self, chunk: ChunkId, shards: Shards) -> Shards:
        """Return shards whose content is known: what one of them says that can be read.

        Raises: Corruption, Unavailable.
        """
        if shards.content is not None:
            return shards
        order = sorted(shards.disks, key=lambda number: self._rank(number, shards))
        jobs = {number: partial(self._describe, chunk, shards, number) for number in order}
        found = await self._enough(shards, jobs, 1, 0)
        if not found:
            raise Unavailable(f"chunk {chunk} is cut into shards that nobody has")
        return next(iter(found.values()))

    async def _describe(self, chunk: ChunkId, shards: Shards, number: int) -> Shards:
        part, disk_id = shard_id(chunk, number), shards.disks[number]
        [head] = await self._read(disk_id, [(part, PLACE_BYTES, DESCRIPTOR_BYTES)])
        one = Descriptor.unpack(head, f"shard {part} on disk {disk_id}")
        scheme = erasure(one.data, one.parity)
        known = shards if scheme == shards.scheme else self.places.guess(chunk, scheme)
        if one.shard != part or known is None:
            raise Corruption(f"disk {disk_id} has shard {one.shard} in the place of {part}")
        return known._replace(content=Content(one.content_end, one.content_crc))

    async def columns(
        self, chunk: ChunkId, shards: Shards, wanted: Piece, *, own: bool = True
    ) -> bytes:
        """Return columns of a shard: as its disk has them, or rebuilt.

        Raises: Corruption when too few shards are right; Unavailable when too few can be asked.
        """
        disk = shards.disks.get(wanted.shard)
        own = own and disk is not None and self._pool.is_up(disk)
        if own and disk is not None and not self._patience.avoided(disk):
            own = False
            try:
                return await self._verified(chunk, shards, wanted)
            except TorusError as exc:
                log.debug("shards.own.failed", chunk=str(chunk), reason=str(exc))
        try:
            others = await self._others(chunk, shards, wanted)
        except TorusError:
            if not own:
                raise
            return await self._verified(chunk, shards, wanted)  # slow, but there
        self.degraded += 1
        numbers = list(others)[: shards.scheme.data]
        made = bytearray(wanted.size_bytes)
        pieces = [others[number] for number in numbers]
        codec(shards.scheme).rebuild(numbers, pieces, [wanted.shard], [made])
        return bytes(made)

    async def _others(self, chunk: ChunkId, shards: Shards, wanted: Piece) -> dict[int, bytes]:
        """Return the same columns of K other shards.

        Raises: as `_columns`.
        """
        assert shards.content is not None
        stripe, content_bytes = self.stripe(shards), shards.content.end - FIRST
        have: dict[int, bytes] = {}
        for number in range(stripe.shards):  # what is nothing but zeroes needs no disk
            stored = stripe.stored_bytes(number, content_bytes)
            if stored <= wanted.offset and number != wanted.shard and len(have) < stripe.data:
                have[number] = bytes(wanted.size_bytes)
        order = sorted(shards.disks, key=lambda one: self._rank(one, shards))
        pieces = {
            number: Piece(number, wanted.offset, wanted.size_bytes)
            for number in order
            if number not in have and number != wanted.shard
        }
        jobs = {
            number: partial(self._verified, chunk, shards, piece)
            for number, piece in pieces.items()
        }
        missing = stripe.data - len(have)
        return have | await self._enough(shards, jobs, missing, wanted.size_bytes)

    async def _enough(
        self,
        shards: Shards,
        jobs: Mapping[int, Callable[[], Coroutine[Any, Any, T]]],
        count: int,
        size_bytes: int,
    ) -> dict[int, T]:
        """Return ``count`` results of jobs, which ask the disks of these shards in that order: as
        many at once as are wanted, the next for each that fails, and beside one that takes long.

        Raises: Corruption when too few disks have what is asked for; Unavailable when more may.
        """
        found: dict[int, T] = {}
        errors: list[TorusError] = []
        left, pending, more = list(jobs), dict[asyncio.Future[T], int](), count
        overtaken: set[int] = set()  # others were asked instead of them
        try:
            while len(found) < count:
                for number in left[:more]:
                    pending[asyncio.ensure_future(jobs[number]())] = number
                del left[:more]
                if not pending:
                    raise _too_few(len(found), count, errors)
                done, _ = await asyncio.wait(
                    pending,
                    timeout=self.wait_s(size_bytes) if left else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                more = 0 if done else 1
                for task in done:
                    number = pending.pop(task)
                    error = task.exception()
                    if error is None:
                        found[number] = task.result()
                    elif isinstance(error, TorusError):
                        errors.append(error)
                        more += 1
                    else:
                        raise error
                if not done:
                    overtaken.update(pending.values())
            for number in overtaken.intersection(pending.values()):
                self._patience.late(shards.disks[number])
        finally:
            await cancel(*pending)
        return found

    def _rank(self, number: int, shards: Shards) -> tuple[bool, bool, int, int]:
        disk = shards.disks[number]
        away = not self._pool.is_up(disk)
        return away, self._patience.avoided(disk), self._pool.distance(disk), number

    async def _verified(self, chunk: ChunkId, shards: Shards, wanted: Piece) -> bytes:
        """Read columns of one shard, with its table; with the zeroes that nobody stores.

        Raises: Corruption when it is not there, not of that content, or damaged; Unavailable.
        """
        number, disk_id = wanted.shard, shards.disks[wanted.shard]
        part = shard_id(chunk, number)
        head, columns = await self._read(
            disk_id,
            [
                (part, PLACE_BYTES, DESCRIPTOR_BYTES),
                (part, PAYLOAD_OFFSET + wanted.offset, wanted.size_bytes),
            ],
        )
        where = f"shard {part} on disk {disk_id}"
        found = Descriptor.unpack(head, where)
        same = (found.data, found.parity) == (shards.scheme.data, shards.scheme.parity)
        content = Content(found.content_end, found.content_crc)
        if found.shard != part or not same or content != shards.content:
            raise Corruption(f"{where} is of other content, or another shard")
        stored = columns[: max(0, found.payload_bytes - wanted.offset)]
        if found.bad_column(stored, wanted.offset // COLUMN_BYTES) is not None:
            self.on_bad_shard(chunk, number, disk_id)
            raise Corruption(f"{where} is damaged")
        return stored + bytes(wanted.size_bytes - len(stored))


def _too_few(found: int, count: int, errors: Sequence[TorusError]) -> TorusError:
    reasons = "; ".join(dict.fromkeys(error.message for error in errors)) or "nobody has more"
    message = f"{found} shards can be read, {count} are needed: {reasons}"
    if all(isinstance(error, Corruption) for error in errors):
        return Corruption(message, hint="run 'torus check'")
    return Unavailable(message, hint="see: torus node list")
