"""The compiled frames of the peer protocol against torus.wire, which says what they are."""

import random

import pytest

from tests.fuzz.test_wire import mutate
from torus import limits
from torus._fast import peerframe
from torus._fast.blockio import PythonIo
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.errors import TorusError
from torus.ids import ChunkId
from torus.wire import codec, frames
from torus.wire import messages as m

CAPABILITY = 0xF1F2F3F4F5F6F7F8
REQUEST = 0x0102030405060708
MOST = frames.BODY_BYTES_MAX


def chunk_of(rng: random.Random) -> ChunkId:
    """Return any chunk."""
    return ChunkId(
        rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(16), rng.getrandbits(32)
    )


def frequent(rng: random.Random) -> m.Message:
    """Return one of the frequent messages, of any content."""
    chunks = [chunk_of(rng) for _ in range(rng.randrange(4))]
    kind = rng.randrange(6)
    if kind == 0:
        record = rng.randbytes(rng.randint(1, 300))
        return m.Append(chunk_of(rng), rng.getrandbits(32), rng.getrandbits(32), record)
    if kind == 1:
        return m.Sync(tuple(chunks))
    if kind == 2:
        return m.Read(tuple((one, rng.getrandbits(32), rng.randrange(9999)) for one in chunks))
    if kind == 3:
        return m.Appended(rng.getrandbits(64))
    if kind == 4:
        return m.Synced(rng.getrandbits(64))
    return m.ReadDone(tuple(rng.randbytes(rng.randrange(99)) for _ in chunks))


def made(message: m.Message) -> bytes:
    """Return the frame that the kernel makes of a message."""
    match message:
        case m.Append():
            return peerframe.append_frame(
                REQUEST, CAPABILITY, message.chunk, message.index, message.offset, message.record
            )
        case m.Sync():
            return peerframe.sync_frame(REQUEST, CAPABILITY, message.chunks)
        case m.Read():
            return peerframe.read_frame(REQUEST, CAPABILITY, message.reads)
        case m.Appended():
            return peerframe.boot_frame(peerframe.APPENDED, REQUEST, message.boot_id)
        case m.Synced():
            return peerframe.boot_frame(peerframe.SYNCED, REQUEST, message.boot_id)
        case m.ReadDone():
            data = b"".join([bytes(piece) for piece in message.pieces])
            places, at = [], 0
            for piece in message.pieces:
                places.append((at, len(piece)))
                at += len(piece)
            frame = peerframe.read_done_now(REQUEST, PythonIo(Memory(data)), places)
            assert frame is not None
            return frame
    raise AssertionError


class Memory:
    """Bytes that lie on a disk; ``cold``: not in the page cache."""

    def __init__(self, data: bytes, *, cold: bool = False) -> None:
        self.data = data
        self.cold = cold

    def read_now(self, address: int, size: int) -> bytes | None:
        return None if self.cold else self.data[address : address + size]

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError


def encoded(message: m.Message) -> bytes:
    """Return the frame that torus.wire makes of a message."""
    answer = isinstance(message, m.Appended | m.Synced | m.ReadDone)
    pieces = codec.encode(message, REQUEST, lambda _v, _e: 0 if answer else CAPABILITY)
    return b"".join([bytes(piece) for piece in pieces])


def meant(found: tuple[int, int, int, int, int, int, object], data: bytes) -> m.Message:
    """Return the message that the kernel found in ``data``."""
    kind, stop, _, _, _, _, said = found
    match kind:
        case peerframe.APPEND:
            chunk, index, offset, at = said  # type: ignore[misc]
            return m.Append(ChunkId(*chunk), index, offset, data[at:stop])
        case peerframe.SYNC:
            return m.Sync(tuple([ChunkId(*chunk) for chunk in said]))  # type: ignore[attr-defined]
        case peerframe.READ:
            return m.Read(tuple([(ChunkId(*c), at, size) for c, at, size in said]))  # type: ignore[attr-defined]
        case peerframe.APPENDED:
            return m.Appended(said)  # type: ignore[arg-type]
        case peerframe.SYNCED:
            return m.Synced(said)  # type: ignore[arg-type]
    return m.ReadDone(tuple(said))  # type: ignore[arg-type]


def test_frames_are_those_of_the_codec(rng: random.Random) -> None:
    """Byte for byte, and back."""
    for _ in range(3000):
        message = frequent(rng)
        data = made(message)
        assert data == encoded(message)
        around = rng.randbytes(rng.randrange(30)) + data
        start = len(around) - len(data)
        found = peerframe.next_frame(around + b"more", start, len(around), MOST)
        assert found is not None
        assert found[1] == len(around)
        assert found[2] == REQUEST
        assert meant(found, around) == message


def test_record_builder_is_gathered() -> None:
    """A record that was never one piece gives the same frame as its bytes."""
    chunk = ChunkId(5, 2, 1, 3)
    builder = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, 4)
    builder.add_data(7, bytes([1]) * 8192)
    builder.add_data(99, bytes([2]) * 4096)
    with pytest.raises(ValueError, match="not finished"):
        peerframe.append_frame(1, 2, chunk, 3, 512, builder)
    builder.finish(KIND_DATA, chunk, 3, 4, 0, 512)

    found = peerframe.append_frame(1, 2, chunk, 3, 512, builder)

    assert found == peerframe.append_frame(1, 2, chunk, 3, 512, builder.tobytes())


def test_every_byte_counts(rng: random.Random) -> None:
    """A frame with a flipped bit, or cut short, is left to the codec, which refuses it."""
    for _ in range(40):
        data = bytearray(made(frequent(rng)))
        for at in range(len(data)):
            bit = 1 << rng.randrange(8)
            data[at] ^= bit
            assert peerframe.next_frame(data, 0, len(data), MOST) is None, at
            data[at] ^= bit
        for stop in range(len(data)):
            assert peerframe.next_frame(data, 0, stop, MOST) is None


def test_what_is_taken_the_codec_takes_too(rng: random.Random) -> None:
    """Bodies of any bytes under right checksums: never more than the codec accepts."""
    taken = 0
    for _ in range(20_000):
        data = encoded(frequent(rng))
        header = frames.parse_header(data)
        body = mutate(data[frames.HEADER_BYTES :], rng)
        header = header._replace(body_bytes=len(body), body_crc=codec.checksum(body))
        if rng.randrange(4) == 0:
            header = header._replace(type=rng.choice(list(m.MessageType)))
        if rng.randrange(8) == 0:
            header = header._replace(epoch=rng.getrandbits(32))
        whole = frames.pack_header(header) + body
        found = peerframe.next_frame(whole, 0, len(whole), MOST)
        try:
            expected: m.Message | None = codec.decode(header, body)
        except TorusError:
            expected = None
        if found is None:
            kinds = m.Append | m.Sync | m.Read | m.Appended | m.Synced | m.ReadDone
            assert expected is None or not isinstance(expected, kinds)
            continue
        taken += 1
        if expected is None:  # a bound that the session checks
            assert found[0] == peerframe.READ
        else:
            assert meant(found, whole) == expected
    assert taken > 1000


def test_bounds() -> None:
    """Too large a body is not looked at; fields out of their range are not made."""
    data = made(m.Appended(5))
    assert peerframe.next_frame(data, 0, len(data), 8) is not None
    assert peerframe.next_frame(data, 0, len(data), 7) is None
    assert peerframe.next_frame(data, 0, len(data) + 1, 99) is None
    assert peerframe.next_frame(data, 9, 8, 99) is None
    with pytest.raises(OverflowError):
        peerframe.append_frame(1, 1, (1, 2, 3, 4), 1 << 32, 0, b"x")
    with pytest.raises(OverflowError):
        peerframe.append_frame(1, 1, (1 << 64, 2, 3, 4), 0, 0, b"x")


def test_cold_read_is_not_waited_for() -> None:
    """What is not in the page cache is for a thread."""
    assert peerframe.read_done_now(1, PythonIo(Memory(b"x" * 99, cold=True)), [(0, 5)]) is None
