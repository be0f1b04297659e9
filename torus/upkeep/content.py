"""What copies of a chunk are worth: how far one is whole, and the best of several.  Pure.

Decides that a copy is *damaged*, not short, when records of the chunk stand behind its valid
end, and that each record may be taken from whichever copy has it whole.  Implements
docs/upkeep.md, "Which copy is right".
"""

from collections.abc import Sequence
from typing import NamedTuple

from torus._fast.record import RecordReader
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


def assemble(chunk: ChunkId, copies: Sequence[Bytes]) -> bytes:
    """Return the longest run of whole records that ``copies`` have between them.

    Each copy is bytes of the chunk from its first record on.
    """
    end, index, salt = FIRST, 0, None
    content = bytearray()
    going_on = True
    while going_on:
        going_on = False
        for copy in copies:
            rest = memoryview(copy)[end - FIRST :]
            reader = RecordReader(rest, chunk, end, index, salt)
            whole = end
            while reader.advance() and reader.payload_ok:
                whole, index, salt = reader.end, reader.index + 1, reader.salt
            if whole > end:
                content += rest[: whole - end]
                end, going_on = whole, True
    return bytes(content)
