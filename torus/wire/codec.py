"""Messages to frames and back.

Decides what is checked around a body: its checksum, its size, that its type is known.
Implements docs/protocol.md, "Frames".
"""

import struct
from collections.abc import Callable

from torus._fast.crc import checksum
from torus.errors import LocalProtocolError, RemoteProtocolError
from torus.wire.bodies import DECODERS, ENCODERS
from torus.wire.fields import Malformed
from torus.wire.frames import BODY_BYTES_MAX, Header, pack_header
from torus.wire.messages import Buffer, Message, MessageType


def _none(_volume: int, _epoch: int) -> int:
    return 0


def encode(
    message: Message, request: int, capability: Callable[[int, int], int] = _none
) -> list[Buffer]:
    """Return a frame as buffers to be sent one after the other.

    ``capability(volume, epoch)`` is that of the message's fence token.

    Large payloads are not copied: the caller keeps them unchanged until they are sent.

    Raises: LocalProtocolError when the message exceeds a bound of the protocol.
    """
    kind, pack = ENCODERS[type(message)]
    try:
        volume, epoch, pieces = pack(message)
        size = crc = 0
        for piece in pieces:
            size += len(piece)
            crc = checksum(piece, crc)
        if size > BODY_BYTES_MAX:
            raise LocalProtocolError(f"{kind.name} of {size} bytes, a frame takes {BODY_BYTES_MAX}")
        allowed = capability(volume, epoch)
        header = pack_header(Header(kind, size, request, volume, epoch, crc, allowed))
    except struct.error as exc:
        raise LocalProtocolError(f"{kind.name} has a field out of its range: {exc}") from exc
    return [header, *pieces]


def decode(header: Header, body: Buffer) -> Message:
    """Return the message of a frame; a record or pieces in it are views of ``body``.

    Raises: RemoteProtocolError.
    """
    found = checksum(body)
    if found != header.body_crc:
        raise RemoteProtocolError(
            f"frame body is damaged (checksum {header.body_crc:08x} sent, {found:08x} found)"
        )
    entry = DECODERS.get(header.type)
    if entry is None:
        raise RemoteProtocolError(f"message type {header.type} is not known")
    name, unpack = entry
    try:
        return unpack(header, memoryview(body))
    except (struct.error, Malformed, UnicodeDecodeError) as exc:
        raise RemoteProtocolError(f"{name} is malformed: {exc}") from exc


def type_of(message: Message) -> MessageType:
    """Return the type that a message's frame carries."""
    return ENCODERS[type(message)][0]
