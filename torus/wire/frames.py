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
VERSION = 2
# magic, version, type, body bytes, body CRC, request, volume, epoch, capability, header CRC
_HEADER = struct.Struct("<4sHHIIQQIQI")
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
    capability: int = 0


def parse_header(data: Buffer, offset: int = 0, most: int = BODY_BYTES_MAX) -> Header:
    """Read the 48 bytes at ``offset``, of a frame whose body has at most ``most`` bytes.

    Magic, version and the header's checksum lie where they lie in every version, so that an
    unknown one is told from damage.

    Raises: RemoteProtocolError, UnknownVersion.
    """
    magic, version, kind, body_bytes, body_crc, request, volume, epoch, capability, crc = (
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
    if body_bytes > most:
        raise RemoteProtocolError(f"frame of {body_bytes} bytes, the most is {most}")
    return Header(kind, body_bytes, request, volume, epoch, body_crc, capability)


def pack_header(header: Header) -> bytes:
    """Return the 48 bytes of ``header``.

    Raises: struct.error when a field is out of its range.
    """
    kind, body_bytes, request, volume, epoch, body_crc, capability = header
    data = _HEADER.pack(
        MAGIC, VERSION, kind, body_bytes, body_crc, request, volume, epoch, capability, 0
    )[: -_CRC.size]
    return data + _CRC.pack(checksum(data))
