"""A ring as bytes, and back.

Decides the bytes: equal rings have equal ones, from every builder on every machine.  Little
endian; the table has as few bits for each owner as the members' number needs.

Implements docs/ring.md, "Bytes".
"""

import struct

from torus._fast.crc import checksum
from torus._fast.ring import pack_numbers, unpack_numbers
from torus.errors import Corruption, UnknownVersion
from torus.ring.member import RingMember
from torus.ring.table import COLUMNS, SLOTS, Ring

MAGIC = b"TORUSRNG"
FORMAT = 1
_HEAD = struct.Struct("<8sBBBxI")  # magic, format, columns, bits, version of the ring
_COUNT = struct.Struct("<H")
_MEMBER = struct.Struct("<HI")  # node, weight
_CHECK = struct.Struct("<I")


def pack(ring: Ring) -> bytes:
    """Return the ring's bytes."""
    bits = len(ring.members).bit_length()  # all ones stand for nobody
    zones = list(dict.fromkeys(member.zone for member in ring.members))
    nodes = list(dict.fromkeys((member.node_id, member.zone) for member in ring.members))
    zone_of = {zone: number for number, zone in enumerate(zones)}
    node_of = {node: number for number, (node, _) in enumerate(nodes)}
    parts = [_HEAD.pack(MAGIC, FORMAT, COLUMNS, bits, ring.version), _text(ring.hashing)]
    parts.append(_COUNT.pack(len(zones)))
    parts += [_text(zone) for zone in zones]
    parts.append(_COUNT.pack(len(nodes)))
    parts += [_text(node) + _COUNT.pack(zone_of[zone]) for node, zone in nodes]
    parts.append(_COUNT.pack(len(ring.members)))
    parts += [
        _text(member.disk_id) + _MEMBER.pack(node_of[member.node_id], member.weight)
        for member in ring.members
    ]
    parts.append(pack_numbers(memoryview(ring.table).cast("H"), bits))
    body = b"".join(parts)
    return body + _CHECK.pack(checksum(body))


def unpack(data: bytes) -> Ring:
    """Return the ring that `pack` made these bytes of.

    Raises: Corruption when it made no such bytes, UnknownVersion for another format.
    """
    if len(data) < _HEAD.size + _CHECK.size or data[: len(MAGIC)] != MAGIC:
        raise Corruption(f"these {len(data)} bytes are no ring: {data[:16]!r}")
    if data[len(MAGIC)] != FORMAT:
        raise UnknownVersion(
            f"a ring of format {data[len(MAGIC)]} is stored, this torus knows {FORMAT}",
            hint="use the torus release that wrote it, or a newer one",
        )
    body = data[: -_CHECK.size]
    expected, found = _CHECK.unpack_from(data, len(body))[0], checksum(body)
    if expected != found:
        raise Corruption(f"a ring's checksum is {found:08x}, {expected:08x} is stored with it")
    try:
        return _unpack_body(body)
    except (ValueError, IndexError, struct.error) as exc:
        raise Corruption(f"a ring's {len(data)} bytes cannot be: {exc}") from exc


def _unpack_body(body: bytes) -> Ring:
    _, _, columns, bits, version = _HEAD.unpack_from(body)
    reader = _Reader(body, _HEAD.size)
    hashing = reader.text()
    zones = [reader.text() for _ in range(reader.count())]
    nodes = [(reader.text(), zones[reader.count()]) for _ in range(reader.count())]
    members = []
    for _ in range(reader.count()):
        disk_id = reader.text()
        node, weight = _MEMBER.unpack_from(body, reader.skip(_MEMBER.size))
        node_id, zone = nodes[node]
        members.append(RingMember(disk_id, node_id, zone, weight))
    if columns != COLUMNS or bits != len(members).bit_length():
        raise ValueError(f"{columns} columns of {bits} bits for {len(members)} members")
    table = unpack_numbers(body[reader.at :], bits, SLOTS * COLUMNS)
    return Ring(version, tuple(members), hashing, table)


class _Reader:
    """Walks through the part that has no fixed places."""

    def __init__(self, body: bytes, at: int) -> None:
        self.body = body
        self.at = at

    def skip(self, size: int) -> int:
        """Return the present place and step over ``size`` bytes."""
        place = self.at
        if place + size > len(self.body):
            raise ValueError(f"it ends inside of what begins at {place}")
        self.at += size
        return place

    def count(self) -> int:
        """Read a number."""
        found: int = _COUNT.unpack_from(self.body, self.skip(_COUNT.size))[0]
        return found

    def text(self) -> str:
        """Read a name."""
        size = self.body[self.skip(1)]
        place = self.skip(size)
        return self.body[place : place + size].decode()


def _text(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw)]) + raw
