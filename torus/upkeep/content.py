"""What a copy of a chunk is worth: how far it is whole.  Pure.

Decides that a copy is *damaged*, not short, when records of the chunk stand behind its valid
end.  What several damaged ones are worth is `torus.format.assembled`'s.  Implements
docs/upkeep.md, "Which copy is right".
"""

from typing import NamedTuple

from torus.format.logend import headers_beyond
from torus.ids import ChunkId
from torus.store.content import FIRST, Bytes, walk


class Inspected(NamedTuple):
    """What one copy holds; offsets in bytes of its slot."""

    end: int  # of its valid records
    crc: int  # CRC-32C of the bytes from the first record to ``end``
    furthest: int  # where the last record header behind ``end`` stands; 0: there is none

    @property
    def damaged(self) -> bool:
        """Say whether records are missing before others that are there."""
        return self.furthest > 0


def inspect(data: Bytes, chunk: ChunkId, exact: int | None) -> Inspected:
    """Return what a copy holds; ``data`` is its bytes from the first record to the slot's end.

    ``exact``: where the chunk ends, if that is known; what stands behind it does not count.
    """
    if exact is not None:
        data = memoryview(data)[: exact - FIRST]
    found = walk(data, chunk)
    if found.end == exact:
        return Inspected(found.end, found.crc, 0)
    whole = bytes(data)
    beyond = [at for at, _, _ in headers_beyond(whole, found.end - FIRST, chunk, FIRST)]
    return Inspected(found.end, found.crc, max(beyond, default=0))
