"""What the bodies of the peer protocol's messages are made of: checks, texts, lists.

Decides how a text and a list of chunks lie in a body, and what of them is refused.  Implements
docs/protocol.md, "Messages".
"""

import struct
from collections.abc import Sequence

from torus import limits
from torus.errors import LocalProtocolError
from torus.ids import CHUNK_ID_SIZE, ChunkId
from torus.wire.frames import Header
from torus.wire.messages import Buffer

CHUNK = struct.Struct("<QIHI")
COUNT = struct.Struct("<I")


class Malformed(Exception):
    """A body that is not what its type says."""


Packed = tuple[int, int, Sequence[Buffer]]  # volume and epoch of the token, the body's pieces


def check(right: bool, what: str) -> None:
    """Refuse a body that is not ``right``.  Raises: Malformed."""
    if not right:
        raise Malformed(what)


def exact(layout: struct.Struct, body: memoryview) -> tuple[int, ...]:
    """Return the fields of a body that has exactly their size.  Raises: Malformed."""
    check(len(body) == layout.size, f"{len(body)} bytes where {layout.size} are due")
    return layout.unpack(body)


def no_token(header: Header) -> None:
    """Refuse a fence token where none belongs.  Raises: Malformed."""
    check(not header.volume and not header.epoch, "it takes no fence token")


# --- texts and lists ----------------------------------------------------------------------


def text(text: str) -> bytes:
    """Return text as bytes, cut to the bound between two characters."""
    data = text.encode(errors="replace")[: limits.PEER_TEXT_BYTES_MAX]
    return data.decode(errors="ignore").encode()


def read_text(data: memoryview) -> str:
    """Return a text.  Raises: Malformed, UnicodeDecodeError."""
    check(len(data) <= limits.PEER_TEXT_BYTES_MAX, f"text of {len(data)} bytes")
    return bytes(data).decode()


def pack_chunks(chunks: Sequence[ChunkId]) -> bytes:
    """Return chunk ids as bytes.  Raises: LocalProtocolError."""
    if len(chunks) > limits.PEER_CHUNKS_MAX:
        raise LocalProtocolError(
            f"{len(chunks)} chunks in a message, the most is {limits.PEER_CHUNKS_MAX}"
        )
    return b"".join([CHUNK.pack(*chunk) for chunk in chunks])


def unpack_chunks(count: int, body: memoryview) -> tuple[ChunkId, ...]:
    """Return ``count`` chunk ids.  Raises: Malformed."""
    check(count <= limits.PEER_CHUNKS_MAX, f"{count} chunks")
    check(len(body) == count * CHUNK_ID_SIZE, f"{len(body)} bytes for {count} chunks")
    return tuple([ChunkId(*fields) for fields in CHUNK.iter_unpack(body)])


def pack_json(body: Buffer) -> Packed:
    """Return a body of JSON.  Raises: LocalProtocolError."""
    if len(body) > limits.PEER_REPORT_BYTES_MAX:
        raise LocalProtocolError(f"a report of {len(body)} bytes is too large")
    return 0, 0, [COUNT.pack(len(body)), body]


def read_json(header: Header, body: memoryview) -> bytes:
    """Return a body of JSON as it came.  Raises: Malformed."""
    no_token(header)
    (size,) = COUNT.unpack_from(body)
    rest = body[COUNT.size :]
    check(size == len(rest) <= limits.PEER_REPORT_BYTES_MAX, f"{len(rest)} bytes, not {size}")
    return bytes(rest)
