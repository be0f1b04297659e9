"""Flattening: a clone gets blocks and map pages of its own for all that it still inherits.

Copies are ordinary records of data, made in the write queue, so a crash in the middle leaves a
clone that inherits less.  Only the last commit, after a checkpoint that names no ancestor any
more, lets the base go.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from torus import limits
from torus._fast.datapath import first_wrong
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.errors import Corruption, LocalProtocolError, Unavailable
from torus.log import get_logger
from torus.volume.core import Core
from torus.volume.family import Family
from torus.volume.holder import Holder
from torus.volume.items import Work
from torus.volume.leaves import LEAF_BLOCKS, UNIT
from torus.volume.volume import Volume

log = get_logger("torus.flatten")

BLOCK = limits.BLOCK_BYTES
_UNITS = BLOCK // UNIT
_STEP_BLOCKS = 256  # copied while the write queue is held: about a millisecond
_LEAVES = 64


class Inherited(NamedTuple):
    """Neighbouring blocks that lie together in an ancestor's log; offset in 512-byte units."""

    block: int
    blocks: int
    sequence: int
    offset: int
    member: int


class Adoption(Work):
    """Writes inherited blocks to the volume's own log, where they did not change."""

    __slots__ = ("_core", "_pieces", "_runs", "moved_blocks", "problem")

    def __init__(self, core: Core, runs: Sequence[Inherited], pieces: Sequence[bytes]) -> None:
        """``pieces``: the content of each of ``runs``."""
        super().__init__()
        self._core = core
        self._runs = runs
        self._pieces = pieces
        self.moved_blocks = 0
        self.problem: Corruption | Unavailable | None = None  # a map page that cannot be read

    async def run(self) -> None:
        """Append what is still where it was read.  Raises: as `Work.run`."""
        core, journal = self._core, self._core.journal
        try:
            for run in self._runs:
                await core.load(run.block, run.blocks)
        except (Corruption, Unavailable) as exc:
            self.problem = exc
            return
        record = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, limits.RECORD_EXTENTS_MAX)
        for run, piece in zip(self._runs, self._pieces, strict=True):
            if core.blocks.runs(run.block, run.blocks) != [run]:
                continue  # a client wrote there meanwhile
            start = 0
            while start < len(piece):
                room = record.room(0 if journal.reserved else journal.room)
                if room:
                    end = min(len(piece), start + room)
                    record.add_data(run.block + start // BLOCK, piece, start, end)
                    self.moved_blocks += (end - start) // BLOCK
                    start = end
                elif record.empty:
                    await journal.next_chunk(from_reserve=False)
                else:
                    await self._append(record)
        if not record.empty:
            await self._append(record)

    async def _append(self, record: RecordBuilder) -> None:
        core = self._core
        await core.journal.append(record, KIND_DATA)
        core.enter(record)
        record.clear()


async def flatten(volume: Volume, holder: Holder, progress: Callable[[int, int], None]) -> int:
    """Copy what an attached clone inherits, then let its base go; return how many bytes.

    ``progress(done, total)`` is called with bytes of the volume's addresses.

    Raises: Corruption when something cannot be read; PoolFull; the volume's failure;
        Unavailable.  What was copied until then stays.
    """
    core, checkpointer = volume.core, volume.checkpointer
    if checkpointer.head.base is None:
        return 0
    leaf, moved = 0, 0
    while indexes := core.blocks.inherited_leaves(leaf, _LEAVES):
        moved += await _adopt(volume, indexes)
        core.shrink_cache()
        # What a client split by writing into it meanwhile is found again.
        if not await _inherited(core, indexes):
            leaf = indexes[-1] + 1
            progress(min(leaf * LEAF_BLOCKS * BLOCK, volume.size_bytes), volume.size_bytes)
    await checkpointer.write(prepare=core.blocks.mark_inherited_dirty)
    if core.blocks.has_inherited_pages():
        raise LocalProtocolError(f"volume {core.name!r}: its map names ancestors after flattening")
    await checkpointer.replace_head(lambda head: replace(head, base=None), holder.finish_flatten)
    core.family = Family(core.spans)
    log.info("volume.flattened", volume=core.name, bytes=moved * BLOCK)
    return moved * BLOCK


async def _inherited(core: Core, leaves: list[int]) -> list[Inherited]:
    """Return the runs of inherited blocks in some leaves, none longer than a step."""
    found = []
    for index in leaves:
        first = index * LEAF_BLOCKS
        count = min(LEAF_BLOCKS, core.blocks.size_blocks - first)
        if core.blocks.missing(first, count, 1):
            behind = min((leaves[-1] + 1) * LEAF_BLOCKS, core.blocks.size_blocks)
            await core.load(first, behind - first)  # the others, too: in one read
        for block, length, sequence, offset, member in core.blocks.runs(first, count):
            for at in range(0, length if member else 0, _STEP_BLOCKS):
                size = min(_STEP_BLOCKS, length - at)
                found.append(Inherited(block + at, size, sequence, offset + at * _UNITS, member))
    return found


async def _adopt(volume: Volume, leaves: list[int]) -> int:
    """Copy the inherited blocks of some leaves; return how many blocks."""
    runs, moved = deque(await _inherited(volume.core, leaves)), 0
    while runs:
        step = [runs.popleft()]
        blocks = step[0].blocks
        while runs and blocks + runs[0].blocks <= _STEP_BLOCKS:
            step.append(runs.popleft())
            blocks += step[-1].blocks
        moved += await _copy(volume, step)
    return moved


async def _copy(volume: Volume, runs: list[Inherited]) -> int:
    """Copy some runs, checked; return how many blocks."""
    core = volume.core
    for run in runs:
        await core.load(run.block, run.blocks)
    # What a client has written over meanwhile needs no copy.
    runs = [run for run in runs if core.blocks.runs(run.block, run.blocks) == [run]]
    crcs = [core.blocks.entries_crc(run.block, run.blocks) for run in runs]
    pieces = await core.chunks.read_checked(
        [(core.chunk(run.sequence, run.member), run.offset * UNIT, run.blocks * BLOCK)
         for run in runs],
        lambda number, piece: first_wrong(piece, 0, crcs[number], runs[number].blocks) < 0,
    )  # fmt: skip
    for run, piece, crc in zip(runs, pieces, crcs, strict=True):
        if (bad := first_wrong(piece, 0, crc, run.blocks)) >= 0:
            raise Corruption(
                f"volume {core.name!r}: block at byte {(run.block + bad) * BLOCK}, which it "
                f"inherits from chunk {core.chunk(run.sequence, run.member)}, does not have the "
                "checksum it was written with",
                hint="overwrite or trim it in the clone, then flatten again",
            )
    step = Adoption(core, runs, pieces)
    await volume.queue.put(step)
    if step.problem is not None:
        raise step.problem
    return step.moved_blocks
