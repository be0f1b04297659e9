"""The frame of the peer protocol: the 48 bytes in front of every message.

Decides where magic, version, sizes, the fence token and the checksums lie.  What a body means is
decided in `torus.wire.bodies`.  Implements docs/protocol.md, "Frames".
"""

import struct
from typing import NamedTuple

from torus import limits
from torus._fast.crc import checksum
from torus.errors import RemoteProtocolError, UnknownVersion
from torus.wire.messages import Buffer

MAGIC = b"TPFR"
VERSION = 1
# magic, version, type, flags, body bytes, request, volume, epoch, body CRC, reserved, header CRC
_HEADER = struct.Struct("<4sHHIIQQIIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
BODY_BYTES_MAX = limits.PEER_FRAME_BYTES_MAX - HEADER_BYTES
assert HEADER_BYTES == 48


class Header(NamedTuple):
    """A frame's header, its own checksum and version checked already."""

    type: int
    body_bytes: int
    request: int
    volume: int
    epoch: int
    body_crc: int


def parse_header(data: Buffer, offset: int = 0) -> Header:
    """Read the 48 bytes at ``offset``.

    Magic, version and the header's checksum lie where they lie in every version, so that an
    unknown one is told from damage.

    Raises: RemoteProtocolError, UnknownVersion.
    """
    magic, version, kind, flags, body_bytes, request, volume, epoch, body_crc, reserved, crc = (
        _HEADER.unpack_from(data, offset)
    )
    if magic != MAGIC:
        raise RemoteProtocolError(f"frame begins with {magic!r}, not with {MAGIC!r}")
    found = checksum(memoryview(data)[offset : offset + HEADER_BYTES - _CRC.size])
    if found != crc:
        raise RemoteProtocolError(
            f"frame header is damaged (checksum {crc:08x} sent, {found:08x} found)"
        )
    if version != VERSION:
        raise UnknownVersion(
            f"the peer speaks version {version} of the protocol, this torus version {VERSION}",
            hint="update the older of the two",
        )
    if flags or reserved:
        raise RemoteProtocolError(f"frame has unknown flags {flags:#x} or {reserved:#x}")
    if body_bytes > BODY_BYTES_MAX:
        raise RemoteProtocolError(f"frame of {body_bytes} bytes, the most is {BODY_BYTES_MAX}")
    return Header(kind, body_bytes, request, volume, epoch, body_crc)


def pack_header(header: Header) -> bytes:
    """Return the 48 bytes of ``header``.

    Raises: struct.error when a field is out of its range.
    """
    kind, body_bytes, request, volume, epoch, body_crc = header
    data = _HEADER.pack(
        MAGIC, VERSION, kind, 0, body_bytes, request, volume, epoch, body_crc, 0, 0
    )[: -_CRC.size]
    return data + _CRC.pack(checksum(data))
