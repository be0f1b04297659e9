"""What lives in the victims of a collection, read from the log.

Decides nothing about which chunks are victims.  What damage hides here stays where it is: a
block that is not found is not moved, so its chunk keeps something live.
"""

import asyncio
from collections.abc import Callable

from torus import limits
from torus._fast.collect import Candidates, Survivors
from torus._fast.datapath import first_wrong
from torus.cluster.chunks import Check
from torus.errors import Corruption
from torus.format.logend import begins
from torus.ids import ChunkId
from torus.log import get_logger
from torus.volume.core import Core
from torus.volume.leaves import UNIT

log = get_logger("torus.collect")

BLOCK = limits.BLOCK_BYTES
_JUDGED = 16384  # candidates looked up in the map at a time
_SORT_APART = 1 << 18  # more candidates than this are sorted beside the event loop
_COLD_MAX = 64  # map leaves brought back for one read
_BLOCKS_BESIDE = 256  # read and checked at a time beside clients: well below a millisecond
_RUNS_MAX = 1024  # pieces of one read: limits.PEER_READS_MAX
_READABLE_END = ("no record", "end of data", "record of another chunk")


class VictimReader:
    """Reads the victims of one attached volume."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._rotten: set[int] = set()  # bytes of the volume that were reported

    async def candidates(
        self, victims: tuple[int, ...], stopping: Callable[[], bool]
    ) -> Candidates:
        """Gather the blocks that the victims' records hold, in the order of addresses."""
        core, candidates = self._core, Candidates()
        start = limits.SLOT_HEADER_BYTES
        for sequence in victims:
            if stopping():
                return Candidates()
            chunk = core.chunk(sequence)
            try:
                [data] = await core.chunks.read_checked(
                    [(chunk, start, core.chunks.slot_bytes - start)],
                    lambda _, data, chunk=chunk: begins(data, chunk) is not None,  # type: ignore[misc]
                )
            except Corruption as exc:
                log.error("collect.chunk.unreadable", volume=core.name, error=str(exc))
                continue
            end, why = candidates.add_chunk(data, chunk, start)
            if why is not None and why not in _READABLE_END:
                log.debug("collect.records_end", chunk=str(chunk), offset=end, reason=why)
        if len(candidates) > _SORT_APART:
            await asyncio.to_thread(candidates.sort)
        else:
            candidates.sort()
        return candidates

    async def survivors(self, candidates: Candidates, *, alone: bool) -> Survivors:
        """Read the next candidates that live, as many as a chunk holds at most."""
        core = self._core
        most = core.chunks.chunk_bytes // BLOCK - 1
        if not alone:
            most = min(most, _BLOCKS_BESIDE)
        while True:
            # The first last: what other work may evict meanwhile is not what comes next.
            for block in reversed(candidates.cold(core.blocks, _JUDGED)[:_COLD_MAX]):
                await core.load(block, 1)
            if candidates.cold(core.blocks, 1):
                continue  # it was in memory, and went while the others came
            runs = candidates.window(core.blocks, _JUDGED, min(most, _RUNS_MAX))
            if runs or not candidates.left:
                break
            core.shrink_cache()
        reads = [(core.chunk(run[2]), run[3] * UNIT, run[1] * BLOCK) for run in runs]
        crcs = [core.blocks.entries_crc(run[0], run[1]) for run in runs]

        def check(number: int, piece: bytes) -> bool:
            return first_wrong(piece, 0, crcs[number], runs[number][1]) < 0

        survivors = Survivors(runs, await self._read(reads, check))
        core.shrink_cache()
        for block in survivors.rotten:
            if block * BLOCK not in self._rotten:
                self._rotten.add(block * BLOCK)
                log.error("collect.block.rotten", volume=core.name, byte=block * BLOCK)
        return survivors

    async def _read(self, reads: list[tuple[ChunkId, int, int]], check: Check) -> list[bytes]:
        """Return the pieces; zeroes for one that the disk cannot read, which its checksums
        will refuse like any other rot."""
        try:
            return await self._core.chunks.read_checked(reads, check) if reads else []
        except Corruption:
            pieces = []
            for number, read in enumerate(reads):
                try:
                    pieces += await self._core.chunks.read_checked(
                        [read],
                        lambda _, piece, number=number: check(number, piece),  # type: ignore[misc]
                    )
                except Corruption:
                    pieces.append(bytes(read[2]))
            return pieces
