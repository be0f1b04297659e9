"""Frozen frames of the peer protocol, version 2.  Never regenerated: a new version adds a file.

A line of version-2.txt is a message's type, its header and its body in hexadecimal, in the order
of tests/unit/wire/samples.py.
"""

from pathlib import Path

from tests.unit.wire.samples import MESSAGES
from torus._fast.crc import checksum
from torus.ids import ChunkId
from torus.wire import codec, frames
from torus.wire.messages import Scan

LINES = (Path(__file__).parent / "wire/version-2.txt").read_text().splitlines()
FIRST_REQUEST = 0x0102030405060700

# One frame by hand: SCAN 5:2.1:3 from offset 512 under epoch 4, request 9.
SCAN = bytes.fromhex(
    "54504652 0200 1500 18000000"  # TPFR, version 2, SCAN, 24 bytes
)
REQUEST = bytes.fromhex(
    "0900000000000000"  # request
    "0500000000000000 04000000"  # fence token
    "f1f2f3f4f5f6f7f8"  # capability
)


def capability(volume: int, _epoch: int) -> int:
    """Return the capability that the frozen requests carry."""
    return 0x1112131415161718 if volume else 0


def _frozen() -> list[tuple[str, bytes, bytes]]:
    found = []
    for line in LINES:
        name, header, body = line.split()
        found.append((name, bytes.fromhex(header), b"" if body == "-" else bytes.fromhex(body)))
    return found


def test_messages_give_the_frozen_bytes() -> None:
    """What this torus sends is what version 2 has always sent."""
    made = []
    for number, message in enumerate(MESSAGES):
        header, *pieces = codec.encode(message, FIRST_REQUEST + number, capability)
        made.append((codec.type_of(message).name, header, b"".join(pieces)))

    assert made == _frozen()


def test_frozen_bytes_give_the_messages() -> None:
    """What version 2 has always sent is understood as it was meant."""
    found = []
    for number, (_, data, body) in enumerate(_frozen()):
        header = frames.parse_header(data)
        assert header.request == FIRST_REQUEST + number
        found.append(codec.decode(header, body))

    assert tuple(found) == MESSAGES


def test_header_written_by_hand() -> None:
    """The layout of docs/protocol.md, field by field."""
    body = bytes.fromhex("0500000000000000 02000000 0100 03000000 0000 00020000")
    header = SCAN + checksum(body).to_bytes(4, "little") + REQUEST
    header += checksum(header).to_bytes(4, "little")

    message = codec.decode(frames.parse_header(header), body)

    assert message == Scan(ChunkId(5, 2, 1, 3), 4, 512)
