"""Flattening: a clone gets blocks and map pages of its own for all that it still inherits.

Copies are ordinary records of data, made in the write queue, so a crash in the middle leaves a
clone that inherits less.  Only the last commit, after a checkpoint that names no ancestor any
more, lets the base go.
"""

from collections.abc import Callable
from dataclasses import replace

from torus import limits
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.errors import Corruption, LocalProtocolError, Unavailable
from torus.log import get_logger
from torus.volume.core import Core
from torus.volume.family import Family
from torus.volume.holder import Holder
from torus.volume.leaves import LEAF_BLOCKS
from torus.volume.volume import Volume
from torus.volume.writes import Work

log = get_logger("torus.flatten")

BLOCK = limits.BLOCK_BYTES
_STEP_BLOCKS = 256  # copied while the write queue is held: about a millisecond
_LEAVES = 64
_Run = tuple[int, int, int, int, int]  # block, blocks, sequence, offset, member


class Adoption(Work):
    """Writes runs of inherited blocks to the volume's own log, where they did not change."""

    __slots__ = ("_core", "_data", "_first", "_runs", "moved_blocks", "problem")

    def __init__(self, core: Core, first: int, data: bytearray, runs: list[_Run]) -> None:
        """``data``: the blocks from ``first`` on, as ``runs`` named them when they were read."""
        super().__init__()
        self._core = core
        self._first = first
        self._data = bytes(data)
        self._runs = runs
        self.moved_blocks = 0
        self.problem: Corruption | Unavailable | None = None  # a map page that cannot be read

    async def run(self) -> None:
        """Append what is still where it was read.  Raises: as `Work.run`."""
        core, journal = self._core, self._core.journal
        count = len(self._data) // BLOCK
        try:
            await core.load(self._first, count)
        except (Corruption, Unavailable) as exc:
            self.problem = exc
            return
        present = set(core.blocks.runs(self._first, count))
        record = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, limits.RECORD_EXTENTS_MAX)
        for block, blocks, *_ in [run for run in self._runs if run in present]:
            start = (block - self._first) * BLOCK
            stop = start + blocks * BLOCK
            while start < stop:
                room = record.room(0 if journal.reserved else journal.room)
                if room:
                    end = min(stop, start + room)
                    record.add_data(self._first + start // BLOCK, self._data, start, end)
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
        record.apply(core.blocks)
        core.last_data_lsn = core.journal.lsn
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
        for index in indexes:
            moved += await _adopt_leaf(volume, index)
            progress(min((index + 1) * LEAF_BLOCKS * BLOCK, volume.size_bytes), volume.size_bytes)
        leaf = indexes[-1] + 1
    await checkpointer.write(prepare=core.blocks.mark_inherited_dirty)
    if core.blocks.has_inherited_pages():
        raise LocalProtocolError(f"volume {core.name!r}: its map names ancestors after flattening")
    await checkpointer.replace_head(replace(checkpointer.head, base=None), holder.finish_flatten)
    core.family = Family(core.spans)
    log.info("volume.flattened", volume=core.name, bytes=moved * BLOCK)
    return moved * BLOCK


async def _adopt_leaf(volume: Volume, index: int) -> int:
    """Copy the inherited blocks of one leaf; return how many."""
    core, moved = volume.core, 0
    first = index * LEAF_BLOCKS
    stop = min(first + LEAF_BLOCKS, core.blocks.size_blocks)
    while first < stop:
        count = min(_STEP_BLOCKS, stop - first)
        await core.load(first, count)
        runs = [run for run in core.blocks.runs(first, count) if run[4]]
        if not runs:
            first += count
            continue
        data = await volume.reads.blocks(first, count)
        step = Adoption(core, first, data, runs)
        await volume.queue.put(step)
        if step.problem is not None:
            raise step.problem
        moved += step.moved_blocks
        await core.load(first, count)
        if not any(run[4] for run in core.blocks.runs(first, count)):
            first += count  # else a client wrote there meanwhile: once more
    return moved
