"""Damaged backup streams: Corruption or UnknownVersion, and never a frame that is not right."""

import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torus._fast.crc import checksum
from torus.errors import Corruption, UnknownVersion
from torus.format import diffstream
from torus.format.diffstream import Decoder, Encoder, Frame, SnapshotName, StreamHeader

INPUTS = int(os.environ.get("TORUS_FUZZ_INPUTS", "100000"))
SECTORS = 1 << 16
HEADER = StreamHeader(
    "disk", "ab" * 16, SECTORS * 512, 7, SnapshotName("a", "01"), SnapshotName("b", "02")
)

pytestmark = pytest.mark.fuzz


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[object]]:
    """A right stream and the items before its trailer."""
    encoder, at = Encoder(HEADER), 0
    parts, items = [encoder.begin()], [HEADER]
    for gap, length, fill in draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(1, 4), st.none() | st.binary(max_size=3)),
            max_size=6,
        )
    ):
        data = None if fill is None else (fill + bytes(length * 512))[: length * 512]
        frame = Frame((at + gap) * 512, length * 512, data)
        parts += [encoder.frame(frame.offset, frame.length, data), data or b""]
        items.append(frame)  # type: ignore[arg-type]
        at += gap + length
    return b"".join([*parts, encoder.end()]), list(items)


def read(stream: bytes) -> tuple[list[object], bool]:
    """What was believed, and whether it came to an end."""
    found: list[object] = []
    try:
        for item in diffstream.items(Decoder("stream"), io.BytesIO(stream).read):
            found.append(item)
    except (Corruption, UnknownVersion):
        return found, False
    return found, True


@given(streams(), st.data())
@settings(max_examples=max(INPUTS // 40, 100))
def test_damage_is_found(made: tuple[bytes, list[object]], data: st.DataObject) -> None:
    """Bytes changed, cut out, put in, doubled: what came out before the damage is right."""
    stream, items = made
    at = data.draw(st.integers(0, len(stream) - 1))
    size = data.draw(st.integers(0, 40))
    there = data.draw(st.binary(max_size=40) | st.just(stream[at : at + size] * 2))
    changed = stream[:at] + there + stream[at + size :]
    found, ended = read(changed)

    if changed == stream:
        assert ended
        return
    assert not ended
    assert found == items[: len(found)]


@given(streams(), st.binary(max_size=200), st.integers(0, 4))
@settings(max_examples=max(INPUTS // 40, 100))
def test_garbage_with_right_checksums(
    made: tuple[bytes, list[object]], garbage: bytes, frames: int
) -> None:
    """Frames that a bad writer sealed: ranges come out ascending and inside, or not at all."""
    header = HEADER.pack()
    chain, stream = int.from_bytes(header[-4:], "little"), header
    for number in range(frames):
        head = (garbage[number * 24 :] + bytes(24))[:24]
        chain = checksum(head, chain)
        stream += head + chain.to_bytes(4, "little")
    found, ended = read(stream + garbage)

    assert not ended
    reached = 0
    for item in found[1:]:
        assert isinstance(item, Frame)
        assert reached <= item.offset < item.offset + item.length <= HEADER.size_bytes
        reached = item.offset + item.length


@given(st.binary(max_size=4096))
@settings(max_examples=max(INPUTS // 40, 100))
def test_garbage(garbage: bytes) -> None:
    """Nothing comes out, also behind a magic."""
    assert read(garbage) == ([], False)
    assert read(diffstream.MAGIC + b"\1\0\0\0" + garbage) == ([], False)
