"""One chunk out of several damaged copies: each record from a copy in which it is whole.  Pure.

Decides that records of a chunk are the same in every copy that has them whole, so that they may
be taken from any.  Upkeep makes copies of it, a takeover reads a log through it.  Implements
docs/upkeep.md, "Which copy is right".
"""

from collections.abc import Sequence

from torus import limits
from torus._fast.record import RecordReader
from torus.ids import ChunkId

FIRST = limits.SLOT_HEADER_BYTES


def assemble(chunk: ChunkId, copies: Sequence[bytes | bytearray | memoryview]) -> bytes:
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
