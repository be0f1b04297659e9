"""Backup streams: what was put in comes out, and whatever does not fit is refused."""

import io
import random
from dataclasses import replace

import pytest

from torus import limits
from torus._fast.crc import checksum
from torus.errors import Corruption, UnknownVersion
from torus.format import diffstream
from torus.format.diffstream import Decoder, Encoder, Frame, SnapshotName, StreamHeader, Trailer
from torus.limits import GIB, MIB

HEADER = StreamHeader(
    "disk", "ab" * 16, GIB, 1_700_000_000_000_000_000,
    SnapshotName("monday", "01" * 16), SnapshotName("tuesday", "02" * 16),
)  # fmt: skip


def encoded(header: StreamHeader, frames: list[Frame]) -> bytes:
    encoder = Encoder(header)
    parts = [encoder.begin()]
    for frame in frames:
        parts += [encoder.frame(frame.offset, frame.length, frame.data), frame.data or b""]
    return b"".join([*parts, encoder.end()])


def decoded(stream: bytes) -> list[object]:
    decoder, file = Decoder("stream"), io.BytesIO(stream)
    found: list[object] = []
    for item in diffstream.items(decoder, file.read):
        found.append(item)
        assert decoder.position <= file.tell()
    return found


def some_frames(rng: random.Random, count: int, size_bytes: int) -> list[Frame]:
    frames, at = [], 0
    for _ in range(count):
        at += rng.choice([0, 0, 512, 4096, 70_000 * 512])
        length = rng.choice([512, 4096, 5 * 512, 64 * 1024])
        if at + length > size_bytes:
            break
        frames.append(Frame(at, length, rng.randbytes(length) if rng.random() < 0.7 else None))
        at += length
    return frames


def forged(stream: bytes, at: int, kind: int, zero: int, size: int, offset: int, length: int,
           chain: int, payload: bytes = b"") -> bytes:  # fmt: skip
    """Put a frame with a right checksum behind ``at`` bytes of a stream."""
    head = diffstream.FRAME.pack(kind, zero, size, offset, length, 0)[:24]
    crc = checksum(payload, checksum(head, chain))
    return stream[:at] + head + crc.to_bytes(4, "little") + payload


def test_what_goes_in_comes_out(rng: random.Random) -> None:
    """Header, every frame, and the counts."""
    for base in (None, HEADER.base):
        header = replace(HEADER, base=base)
        frames = some_frames(rng, 60, header.size_bytes)
        items = decoded(encoded(header, frames))
        data = sum(frame.length for frame in frames if frame.data is not None)
        zero = sum(frame.length for frame in frames if frame.data is None)

        assert items == [header, *frames, Trailer(len(frames), data, zero)]


def test_an_empty_stream_has_a_header_and_a_trailer() -> None:
    """Two snapshots with nothing between them."""
    assert decoded(encoded(HEADER, [])) == [HEADER, Trailer(0, 0, 0)]


def test_the_longest_frame_and_range() -> None:
    """1 MiB of data; zeroes as long as the volume."""
    frames = [Frame(0, MIB, bytes(MIB))]
    assert decoded(encoded(HEADER, frames))[1] == frames[0]
    assert decoded(encoded(HEADER, [Frame(0, GIB, None)]))[1] == Frame(0, GIB, None)


@pytest.mark.parametrize(
    ("offset", "length", "data", "problem"),
    [
        (0, MIB + 512, bytes(MIB + 512), "cannot have 1049088 bytes"),
        (0, 0, None, "cannot have 0 bytes"),
        (0, 512, bytes(513), "513 bytes for a range of 512"),
        (1, 512, None, "no whole sectors"),
        (0, 513, None, "no whole sectors"),
        (GIB, 512, None, "outside"),
        (GIB - 512, 1024, None, "outside"),
        (4096, 512, None, "follows one that ends at 8192"),
    ],
)
def test_an_encoder_refuses_what_a_decoder_would(
    offset: int, length: int, data: bytes | None, problem: str
) -> None:
    """Nothing is written that cannot be read."""
    encoder = Encoder(HEADER)
    encoder.begin()
    if "follows" in problem:
        encoder.frame(0, 8192, None)
    with pytest.raises(ValueError, match=problem):
        encoder.frame(offset, length, data)


@pytest.mark.parametrize(
    ("kind", "zero", "size", "offset", "length", "payload", "problem"),
    [
        (1, 0, MIB + 512, 0, MIB + 512, b"", "cannot have 1049088 bytes"),
        (1, 0, 2**32 - 512, 0, 2**32 - 512, b"", "cannot have"),
        (1, 0, 1024, 0, 512, b"", "kind 1 with 1024 bytes for 512"),
        (2, 0, 512, 0, 512, b"", "kind 2 with 512 bytes"),
        (2, 0, 0, 0, 2 * GIB, b"", "cannot have"),
        (2, 0, 0, 2**64 - 512, 512, b"", "outside"),
        (2, 1, 0, 0, 512, b"", "kind 2"),
        (3, 0, 24, 0, 0, bytes(24), "a trailer for 0 bytes"),
        (3, 0, 24, GIB, 512, bytes(24), "a trailer for"),
        (3, 0, 24, GIB, 0, bytes(23) + b"\1", "its trailer says"),
        (3, 0, 0, GIB, 0, b"", "kind 3 with 0 bytes"),
        (4, 0, 0, 0, 512, b"", "kind 4"),
        (0, 0, 0, 0, 0, b"", "kind 0"),
    ],
)
def test_a_forged_frame_is_bounded(
    kind: int, zero: int, size: int, offset: int, length: int, payload: bytes, problem: str
) -> None:
    """A right checksum does not make a length right."""
    head = HEADER.pack()
    chain = int.from_bytes(head[-4:], "little")
    stream = forged(head, len(head), kind, zero, size, offset, length, chain, payload)
    with pytest.raises(Corruption, match=problem):
        decoded(stream + bytes(MIB))


def test_every_cut_is_found(rng: random.Random) -> None:
    """Also one exactly between two frames, and one before the trailer."""
    stream = encoded(HEADER, [Frame(0, 512, rng.randbytes(512)), Frame(4096, 4096, None)])
    for end in range(len(stream)):
        with pytest.raises(Corruption, match="is cut off"):
            decoded(stream[:end])


def test_every_flipped_bit_is_found(rng: random.Random) -> None:
    """Anywhere, and no frame comes out that did not go in."""
    frames = [Frame(0, 512, rng.randbytes(512)), Frame(4096, 4096, None)]
    stream = encoded(HEADER, frames)
    for bit in range(len(stream) * 8):
        changed = bytearray(stream)
        changed[bit // 8] ^= 1 << bit % 8
        seen: list[object] = []
        with pytest.raises((Corruption, UnknownVersion)):
            seen.extend(diffstream.items(Decoder("stream"), io.BytesIO(changed).read))
        assert seen == [HEADER, *frames][: len(seen)]


def test_frames_may_not_be_left_out_doubled_or_moved(rng: random.Random) -> None:
    """Each has a right place only behind the frame that it was written behind."""
    frames = [Frame(at * 4096, 4096, rng.randbytes(4096)) for at in range(3)]
    stream = encoded(HEADER, frames)
    start = len(HEADER.pack())
    size = diffstream.FRAME.size + 4096
    first, second, third = (stream[start + at * size : start + (at + 1) * size] for at in range(3))
    head, tail = stream[:start], stream[start + 3 * size :]
    assert decoded(head + first + second + third + tail)
    for middle in (
        first + third, second + third, first + second, first + second + second + third,
        second + first + third, b"",
    ):  # fmt: skip
        with pytest.raises(Corruption):
            decoded(head + middle + tail)


def test_a_frame_of_another_stream_does_not_fit(rng: random.Random) -> None:
    """Two streams to the same snapshot from different bases."""
    frames = [Frame(0, 4096, rng.randbytes(4096))]
    other = replace(HEADER, base=SnapshotName("sunday", "07" * 16))
    mixed = HEADER.pack() + encoded(other, frames)[len(other.pack()) :]
    with pytest.raises(Corruption, match="does not follow"):
        decoded(mixed)


def test_nothing_may_follow() -> None:
    """Two streams in one file are not one stream."""
    stream = encoded(HEADER, [])
    with pytest.raises(Corruption, match="bytes behind its end"):
        decoded(stream + b"\0")


def test_the_version_is_looked_at_first() -> None:
    """A later torus may have other checksums."""
    stream = encoded(HEADER, [])
    with pytest.raises(UnknownVersion, match="format 2, this torus knows 1"):
        decoded(stream[:8] + b"\2\0" + stream[10:16])


def test_another_file_is_named_so() -> None:
    """The hint says what takes it."""
    with pytest.raises(Corruption, match="not a torus backup stream") as caught:
        decoded(bytes(4096))
    assert "torus volume import" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"volume":"disk"', b'"volume":"../.."'),
        (b'"volume":"disk"', b'"volume":7'),
        (b'"name":"tuesday"', b'"name":"a@b"'),
        (b'"name":"tuesday"', b'"name": "tuesday"'),
        (b'"size_bytes":1073741824', b'"size_bytes":1073741825'),
        (b'"size_bytes":1073741824', b'"size_bytes":0'),
        (b'"size_bytes":1073741824', b'"size_bytes":1e9'),
        (b'"size_bytes":1073741824', b'"size_bytes":true'),
        (b'"size_bytes":1073741824', b'"size_bytes":99999999999999999999'),
        (b'"created_ns":1700000000000000000', b'"created_ns":-1'),
        (b'"volume":"disk"', b'"volume":"disk","x":1'),
        (b'"volume":"disk"', b'"volume":"disk","volume":"disk"'),
        (b'"from":{', b'"from":{"x":1,'),
        (b'"uid":"' + b"01" * 16 + b'"', b'"uid":"\xff"'),
        (b'{"cluster"', b'[{"cluster"'),
    ],
)
def test_a_header_must_be_what_torus_writes(old: bytes, new: bytes) -> None:
    """With a right checksum; a reader that guesses would guess differently from another one."""
    body = HEADER.pack()[16:-4]
    assert old in body
    body = body.replace(old, new)
    head = diffstream.PREAMBLE.pack(diffstream.MAGIC, 1, 0, len(body)) + body
    with pytest.raises(Corruption, match="says what it cannot"):
        decoded(head + checksum(head).to_bytes(4, "little"))


@pytest.mark.parametrize("size", [0, limits.BACKUP_HEADER_BYTES_MAX + 1, 2**32 - 1])
def test_a_headers_size_is_bounded(size: int) -> None:
    """Before anything is read."""
    decoder = Decoder("stream")
    with pytest.raises(Corruption, match=f"cannot have {size} bytes"):
        decoder.take(diffstream.PREAMBLE.pack(diffstream.MAGIC, 1, 0, size))


def test_a_resumed_stream_is_the_same_stream(rng: random.Random) -> None:
    """Wherever it was cut: the whole frames are kept, the rest is encoded again."""
    frames = some_frames(rng, 12, HEADER.size_bytes)
    stream = encoded(HEADER, frames)
    for _ in range(200):
        cut = rng.randrange(len(HEADER.pack()), len(stream))
        decoder = Decoder("stream")
        seen: list[object] = []
        with pytest.raises(Corruption, match="is cut off"):
            seen.extend(diffstream.items(decoder, io.BytesIO(stream[:cut]).read))
        encoder = Encoder.after(decoder)
        again = stream[: decoder.position]
        for frame in frames[len(seen) - 1 :]:
            again += encoder.frame(frame.offset, frame.length, frame.data) + (frame.data or b"")

        assert again + encoder.end() == stream
