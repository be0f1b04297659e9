"""Reads that wait: leaves to load, blocks not in the page cache, chunks elsewhere.

Every block is checked against the map's checksum before it is handed out.  A block that moved
while it was being read is read again; one that stays wrong is `Corruption`, never data.
"""

import asyncio
from collections.abc import Sequence

from torus import limits
from torus._fast.datapath import first_wrong
from torus.errors import Corruption
from torus.volume.leaves import LEAF_BLOCKS, UNIT
from torus.volume.read_ahead import ReadAhead
from torus.volume.view import View

BLOCK = limits.BLOCK_BYTES
_ATTEMPTS = 4
_STATUS_LEAVES = 64  # leaves that one block status request may load at once
HOLE, ZERO = 1, 2  # NBD_STATE_HOLE, NBD_STATE_ZERO


class Reads:
    """The slow read path of one volume or snapshot."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._ahead = ReadAhead(view)

    async def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes at ``offset``; multiples of 512, within the volume.

        Raises: Corruption, Unavailable, the volume's failure.
        """
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        count = last - first + 1
        self._view.check_reads()
        await self._ahead.load(first, count)
        later = self._from_files(first, count)
        data = None if later is None else await later
        whole = await self.blocks(first, count) if data is None else data
        self._view.shrink_cache()
        start = offset - first * BLOCK
        return bytes(whole if length == len(whole) else memoryview(whole)[start : start + length])

    async def blocks(self, block: int, count: int) -> bytearray:
        """Return whole blocks."""
        view = self._view
        for _ in range(_ATTEMPTS):
            view.check_reads()
            await self._ahead.load(block, count)
            # Where each block lies now and its checksum there: a block that is overwritten
            # while we read may come out old, which is right, but never wrong.
            runs = view.blocks.runs(block, count)
            crcs = view.blocks.entries_crc(block, count)
            data = bytearray(count * BLOCK)
            try:
                await self._fill(data, block, runs, crcs)
            except Corruption:
                # The chunk may have been collected after its blocks moved.
                if not view.blocks.missing(block, count) and view.blocks.runs(block, count) == runs:
                    raise
                continue
            bad = self._wrong(data, block, runs, crcs)
            if bad < 0:
                view.shrink_cache()
                return data
            await view.load(block, count)
            if view.blocks.runs(block, count) == runs:
                raise self._damaged(block + bad)
        raise self._damaged(block)

    def soon(self, block: int, count: int) -> asyncio.Future[bytes | None] | None:
        """Return the future of a read that takes no task: of this process's files in a thread,
        or of adjacent blocks of one chunk of another process; None when it is no such read, or
        has holes, which clients are to be told of; None as its result when it has to be made
        again: `blocks`."""
        view = self._view
        if view.chunks.in_thread is not None:
            return self._from_files(block, count, holes=False)
        try:
            runs = view.blocks.runs(block, count)
        except LookupError:
            return None
        if len(runs) != 1 or runs[0][1] != count:
            return None
        _, _, sequence, offset, base = runs[0]
        view.note_place(sequence, base)
        crcs = view.blocks.entries_crc(block, count)

        def check(piece: bytes) -> bool:
            return first_wrong(piece, 0, crcs, count) < 0

        return view.chunks.read_soon(
            (view.chunk(sequence, base), offset * UNIT, count * BLOCK), check
        )

    def _from_files(
        self, block: int, count: int, *, holes: bool = True
    ) -> asyncio.Future[bytes | None] | None:
        """Return the future of a read of this process's files; None, and as `soon`."""
        view = self._view
        in_thread = view.chunks.in_thread
        if in_thread is None or view.path is None or count == 0:
            return None
        try:
            runs = view.blocks.runs(block, count)
        except LookupError:
            return None
        if not holes and sum(run[1] for run in runs) < count:
            return None
        for _, _, sequence, _, base in runs:
            view.note_place(sequence, base)
        later = view.path.later(block, count)
        return None if later is None else in_thread(later.run)

    @staticmethod
    def _wrong(data: bytearray, block: int, runs: Sequence[tuple[int, ...]], crcs: bytes) -> int:
        for first, count, *_ in runs:
            bad = first_wrong(data, first - block, crcs, count)
            if bad >= 0:
                return bad
        return -1

    async def _fill(
        self, data: bytearray, block: int, runs: Sequence[tuple[int, ...]], crcs: bytes
    ) -> None:
        view = self._view
        reads = []
        for _, blocks, sequence, offset, base in runs:
            view.note_place(sequence, base)
            reads.append((view.chunk(sequence, base), offset * UNIT, blocks * BLOCK))
        if not reads:
            return

        def check(number: int, piece: bytes) -> bool:
            first, count = runs[number][0] - block, runs[number][1]
            return first_wrong(piece, 0, crcs[4 * first : 4 * (first + count)], count) < 0

        for run, piece in zip(runs, await view.chunks.read_checked(reads, check), strict=True):
            start = (run[0] - block) * BLOCK
            data[start : start + len(piece)] = piece

    def _damaged(self, block: int) -> Corruption:
        entry = self._view.blocks.get(block)
        place = "unmapped"
        if entry is not None:
            place = f"chunk {self._view.chunk(entry[0], entry[2])} at {entry[1] * UNIT}"
        return Corruption(
            f"volume {self._view.name!r}: block at byte {block * BLOCK} ({place}) does not "
            "have the checksum it was written with",
            hint="restore it from a backup; 'torus check' lists every damaged block",
        )

    async def cache(self, offset: int, length: int) -> None:
        """Read a range into the page cache."""
        for at in range(offset, offset + length, limits.MIB):
            await self.read(at, min(limits.MIB, offset + length - at))

    async def sparse(self, offset: int, length: int) -> list[tuple[int, bytes | None]]:
        """Return the range as adjacent pieces of (bytes, data or None for zeroes)."""
        pieces: list[tuple[int, bytes | None]] = []
        at, end = offset, offset + length
        for size, flags in await self.status(offset, length, 1 << 20):
            size = min(size, end - at)
            pieces.append((size, None if flags else await self.read(at, size)))
            at += size
        return pieces

    async def status(self, offset: int, length: int, limit: int) -> list[tuple[int, int]]:
        """Return (bytes, base:allocation flags) from ``offset`` on, at most ``limit`` extents.

        Covers the whole range unless ``limit`` or the leaves that may be loaded run out.
        """
        view = self._view
        view.check_reads()
        block, stop = offset // BLOCK, -(-(offset + length) // BLOCK)
        found: list[tuple[int, int]] = []
        loads = _STATUS_LEAVES
        while block < stop and len(found) <= limit:
            extents, reached = view.blocks.extents(block, stop - block, limit + 1)
            for count, mapped in extents:
                _merge(found, count * BLOCK, 0 if mapped else HOLE | ZERO)
            block = reached
            if block < stop and view.blocks.missing(block, 1):
                if loads == 0 and found:
                    break
                loads = max(loads - 1, 0)
                await self._ahead.load(block, min(stop - block, LEAF_BLOCKS))
        view.shrink_cache()
        return _clip(found, offset, length)[:limit]


def _merge(extents: list[tuple[int, int]], size: int, flags: int) -> None:
    if extents and extents[-1][1] == flags:
        extents[-1] = (extents[-1][0] + size, flags)
    else:
        extents.append((size, flags))


def _clip(extents: list[tuple[int, int]], offset: int, length: int) -> list[tuple[int, int]]:
    """Cut whole blocks down to the range asked for."""
    if not extents:
        return extents
    size, flags = extents[0]
    extents[0] = (size - offset % BLOCK, flags)
    total = sum(size for size, _ in extents)
    if total > length:
        size, flags = extents[-1]
        extents[-1] = (size - (total - length), flags)
    return extents
