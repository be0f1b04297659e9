"""Map pages brought back from the log, checked."""

from collections.abc import Sequence

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum
from torus.cluster.chunks import Chunks
from torus.errors import Corruption
from torus.ids import ChunkId
from torus.volume.family import Family

LEAF_BLOCKS = limits.LEAF_ENTRIES
UNIT = limits.RECORD_ALIGN_BYTES
_LOAD_PAGES = 64  # map pages read at once: 800 KiB


def learn_family(chunks: Chunks, family: Family) -> None:
    """Tell the chunks where those of a map were written."""
    for spans in (family.own, *family.ancestors):
        chunks.learn(spans.volume, spans)


async def load_leaves(
    blocks: BlockMap, family: Family, chunks: Chunks, block: int, count: int
) -> None:
    """Bring the leaves of a range into memory.

    Raises: Corruption, Unavailable.
    """
    while missing := blocks.missing(block, count, _LOAD_PAGES):
        reads = [
            (family.chunk(sequence, base), offset * UNIT, size)
            for _, sequence, offset, size, _, base in missing
        ]
        pages = await _read_pages(chunks, reads, [place[4] for place in missing])
        for place, page in zip(missing, pages, strict=True):
            index, sequence, offset, _, crc, base = place
            if checksum(page) != crc:
                raise _damaged("leaf", index, family.chunk(sequence, base), offset)
            blocks.load_leaf(index, page, sequence, offset, base)


async def load_upper(blocks: BlockMap, family: Family, chunks: Chunks) -> None:
    """Bring in the directory and usage pages that a root names.

    Raises: Corruption, Unavailable, UnknownVersion.
    """
    while waiting := blocks.unloaded()[:_LOAD_PAGES]:
        reads = [
            (family.chunk(sequence, base), offset * UNIT, size)
            for _, _, sequence, offset, size, _, base in waiting
        ]
        pages = await _read_pages(chunks, reads, [place[5] for place in waiting])
        for place, page in zip(waiting, pages, strict=True):
            level, index, sequence, offset, _, crc, base = place
            if checksum(page) != crc:
                raise _damaged(level, index, family.chunk(sequence, base), offset)
            if level == "directory":
                blocks.load_directory(index, page)
            else:
                blocks.load_usage(index, page)


async def _read_pages(
    chunks: Chunks, reads: Sequence[tuple[ChunkId, int, int]], crcs: Sequence[int]
) -> list[bytes]:
    return await chunks.read_checked(reads, lambda number, page: checksum(page) == crcs[number])


def _damaged(level: str, index: int, chunk: object, offset: int) -> Corruption:
    return Corruption(
        f"map {level} page {index} in chunk {chunk} at {offset * UNIT} is damaged",
        hint="run 'torus check'",
    )
