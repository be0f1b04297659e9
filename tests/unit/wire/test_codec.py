"""Frames and bodies: what goes in comes out, and nothing else is let in."""

import struct

import pytest

from tests.unit.wire.samples import MESSAGES, header_of
from torus import limits
from torus._fast.crc import checksum
from torus.errors import LocalProtocolError, RemoteProtocolError, TorusError, UnknownVersion
from torus.ids import ChunkId
from torus.wire import codec, failures, frames
from torus.wire import messages as m

CHUNK = ChunkId(5, 2, 1, 3)


def frame(message: m.Message, request: int = 7) -> bytes:
    """Return a frame's bytes in one piece."""
    return b"".join(codec.encode(message, request))


def decode(data: bytes) -> m.Message:
    """Return the message of one frame."""
    header = frames.parse_header(data)
    assert header.body_bytes == len(data) - frames.HEADER_BYTES
    return codec.decode(header, data[frames.HEADER_BYTES :])


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_survives_the_wire(message: m.Message) -> None:
    """Every message comes back as it was, under the same request."""
    data = frame(message, request=(1 << 64) - 1)

    assert decode(data) == message
    assert frames.parse_header(data).request == (1 << 64) - 1
    assert b"".join(codec.encode(decode(data), (1 << 64) - 1)) == data


def test_every_message_has_a_sample() -> None:
    """The parametrised tests miss no message, and each type number is used once."""
    assert {codec.type_of(message) for message in MESSAGES} == set(m.MessageType)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_flipped_bit_is_found(message: m.Message) -> None:
    """No single bit of a frame can change without being noticed."""
    data = frame(message)
    for bit in range(min(len(data), 300) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            decode(bytes(broken))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_no_other_body_size_is_taken(message: m.Message) -> None:
    """A body that is longer or shorter, with right checksums, is still no such message."""
    header, *pieces = codec.encode(message, 7)
    body = b"".join(pieces)
    least = {m.Append: 33, m.Install: 24, m.Scanned: 8 if body[:1] == b"\1" else 99}.get(
        type(message), 1 << 30
    )
    for other in [body[:-1], body + b"\0", b""]:
        if other == body or len(other) >= least:
            continue
        with pytest.raises(RemoteProtocolError, match="malformed"):
            codec.decode(header_of(header, other), other)


def test_fence_token_must_be_the_chunks() -> None:
    """A record under another epoch than its chunk's would pass a fence."""
    for message in (m.Open(CHUNK, False), m.Append(CHUNK, 0, 512, b"x")):
        header, *pieces = codec.encode(message, 7)
        body = b"".join(pieces)
        for change in ({"epoch": 3}, {"volume": 6}):
            with pytest.raises(RemoteProtocolError, match="fence token"):
                codec.decode(header_of(header, body)._replace(**change), body)


@pytest.mark.parametrize(
    ("message", "at", "value"),
    [
        (m.Open(CHUNK, False), 18, 2),  # a flag that is neither yes nor no
        (m.Open(CHUNK, False), 19, 1),
        (m.Append(CHUNK, 0, 512, b"x"), 18, 1),
        (m.Append(CHUNK, 0, 512, b"x"), 28, 1),
        (m.Scan(CHUNK, 2, 0), 19, 1),
        (m.Reopen(CHUNK, 2), 19, 1),
        (m.Install(CHUNK, 2, 600, b"x"), 18, 1),
        (m.Examine((CHUNK,), False), 4, 2),
        (m.Reopened(7, False, 0, 0, 0), 8, 1),  # a record of what is not there
        (m.Reopened(7, True, 1, 1, 1), 24, 2),
        (m.Examined(((1, 512, 0, 0),)), 4, 3),
        (m.Examined(((1, 512, 0, 0),)), 4, 0),  # an end of what is not there
        (m.List(5, CHUNK, 9), 4, 2),
        (m.List(5, CHUNK, 9), 26, 1),
        (m.List(5, None, 9), 8, 1),  # a place to go on from that does not count
        (m.List(5, None, 9), 0, 0),  # a page of nothing
        (m.Scanned(b"x"), 0, 2),
        (m.Scanned(b"x"), 0, 0),  # bytes of what was not found
        (m.Scanned(b"x"), 4, 1),
        (m.Listed((CHUNK,), True), 4, 2),
        (m.Listed((), False), 4, 1),  # more, behind nothing
    ],
)
def test_body_fields_hold_what_they_may(message: m.Message, at: int, value: int) -> None:
    """Reserved bytes, yes and no, and what contradicts itself, under right checksums."""
    header, *pieces = codec.encode(message, 7)
    body = bytearray(b"".join(pieces))
    body[at] = value
    with pytest.raises(RemoteProtocolError, match="malformed"):
        codec.decode(header_of(header, bytes(body)), bytes(body))


def test_other_version_is_told_from_damage() -> None:
    """Only a whole header of another version is one; the rest is damage."""
    data = bytearray(codec.encode(m.Space(), 1)[0])
    data[4] = 9
    with pytest.raises(RemoteProtocolError, match="damaged"):
        frames.parse_header(data)
    data[-4:] = checksum(bytes(data[:-4])).to_bytes(4, "little")

    with pytest.raises(UnknownVersion, match="version 9 of the protocol, this torus version 2"):
        frames.parse_header(data)


def test_too_large_a_frame_is_refused_on_both_sides() -> None:
    """The bound holds before memory is taken for the body."""
    record = bytes(limits.PEER_FRAME_BYTES_MAX)
    with pytest.raises(LocalProtocolError, match="a frame takes"):
        codec.encode(m.Append(CHUNK, 0, 0, record), 1)
    with pytest.raises(LocalProtocolError, match="the most is"):
        codec.encode(m.Read([(CHUNK, 0, limits.PEER_READ_BYTES_MAX + 1)]), 1)
    with pytest.raises(LocalProtocolError, match="the most is"):
        codec.encode(m.Sync([CHUNK] * (limits.PEER_CHUNKS_MAX + 1)), 1)
    with pytest.raises(LocalProtocolError, match="too large"):
        codec.encode(m.List(1, None, limits.PEER_CHUNKS_MAX + 1), 1)
    with pytest.raises(LocalProtocolError, match="out of its range"):
        codec.encode(m.Append(CHUNK, -1, 0, b"x"), 1)
    header = frames.Header(17, frames.BODY_BYTES_MAX + 1, 1, 5, 2, 0)
    with pytest.raises(RemoteProtocolError, match="the most is"):
        frames.parse_header(frames.pack_header(header))


def test_read_of_too_much_is_refused() -> None:
    """A small request for a huge answer is caught when it is decoded."""
    body = struct.pack("<I", 2) + struct.pack("<QIHIII", *CHUNK, 0, 3 << 20) * 2
    with pytest.raises(RemoteProtocolError, match="asks for 6291456 bytes"):
        codec.decode(header_of(codec.encode(m.Read([]), 7)[0], body), body)


def test_unknown_type_is_refused() -> None:
    """A message of a later version under this version's number is a broken peer."""
    header = frames.Header(99, 0, 1, 0, 0, 0)
    with pytest.raises(RemoteProtocolError, match="type 99"):
        codec.decode(header, b"")


def test_every_error_class_survives_the_wire() -> None:
    """The other side raises the same class, with message and hint."""
    for code, kind in failures._CLASSES.items():
        sent = kind("what, which", hint="do this")
        message = decode(frame(failures.to_message(sent)))
        assert isinstance(message, m.Error)
        found = failures.from_message(message)

        assert (type(found), found.wire_code) == (kind, code)
        assert (found.message, found.hint) == (sent.message, sent.hint)


def test_unknown_error_code_is_a_plain_error() -> None:
    """A later version's error class is still an error."""
    found = failures.from_message(m.Error(999, "later", None))

    assert type(found) is TorusError
    assert (found.message, found.hint) == ("later", None)


def test_long_texts_are_cut_between_characters() -> None:
    """An error's text is bounded, and what is left of it is still text."""
    found = decode(frame(m.Error(1, "é" * limits.PEER_TEXT_BYTES_MAX + "\udc80", "x" * 9000)))

    assert isinstance(found, m.Error)
    assert found.message == "é" * (limits.PEER_TEXT_BYTES_MAX // 2)
    assert found.hint == "x" * limits.PEER_TEXT_BYTES_MAX


def test_records_stay_aligned() -> None:
    """The record reader reads 64-bit fields: its bytes begin at a multiple of 8 of the body."""
    assert sum(len(piece) for piece in codec.encode(m.Append(CHUNK, 0, 0, b"x"), 1)[1:-1]) % 8 == 0
