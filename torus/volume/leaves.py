"""Map leaves brought back from the log, checked."""

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum
from torus.cluster.chunks import Chunks
from torus.errors import Corruption
from torus.volume.spans import Spans

LEAF_BLOCKS = limits.LEAF_ENTRIES
UNIT = limits.RECORD_ALIGN_BYTES
_LOAD_LEAVES = 64  # map pages read at once: 800 KiB


async def load_leaves(
    blocks: BlockMap, spans: Spans, chunks: Chunks, block: int, count: int
) -> None:
    """Bring the leaves of a range into memory.

    Raises: Corruption, Unavailable.
    """
    while missing := blocks.missing(block, count, _LOAD_LEAVES):
        reads = [(spans.chunk(place[1]), place[2] * UNIT, place[3]) for place in missing]
        for place, page in zip(missing, await chunks.read(reads), strict=True):
            index, sequence, offset, _, crc = place
            if checksum(page) != crc:
                raise Corruption(
                    f"map page {index} in chunk {spans.chunk(sequence)} at {offset * UNIT} is "
                    "damaged",
                    hint="run 'torus check'",
                )
            blocks.load_leaf(index, page, sequence, offset)
