"""The compiled frame: what is a request, which are refused, what replies look like on the wire."""

import itertools
import random
import struct

import pytest

from torus._fast.frame import RUN_OTHER, RUN_READ, RUN_WRITE, RequestBatch
from torus._fast.reply import ReplyBuilder
from torus.errors import LocalProtocolError, RemoteProtocolError
from torus.limits import MIB, NBD_REQUEST_BYTES_MAX
from torus.nbd import constants as nbd
from torus.nbd.transmission import SessionTerms, validate_request
from torus.testing.nbd_client import request_bytes

SIZE = 64 * MIB


def make_batch(terms: SessionTerms) -> RequestBatch:
    return RequestBatch(
        NBD_REQUEST_BYTES_MAX,
        size_bytes=terms.size_bytes,
        read_only=terms.read_only,
        structured=terms.structured,
        extended=terms.extended,
        contexts=terms.contexts,
    )


def put(batch: RequestBatch, data: bytes) -> int:
    """Write into the buffer as a socket would, return how many requests came out."""
    room = memoryview(batch.get_buffer())
    taken = min(len(room), len(data))
    room[:taken] = data[:taken]
    room.release()
    return batch.received(taken)


def drain(batch: RequestBatch, data: bytes, pieces: random.Random | None = None) -> list[tuple]:
    """Feed ``data`` whole or in pieces; return every request with its payload."""
    found = []
    while data:
        limit = pieces.choice((1, 7, 28, 500, 70_000)) if pieces else len(data)
        room = len(batch.get_buffer())
        step = min(limit, room, len(data))
        count = put(batch, data[:step])
        data = data[step:]
        while count:
            for index in range(count):
                item = batch.request(index)
                has_payload = item[0] == nbd.NBD_CMD_WRITE and not item[5]
                found.append((*item, batch.payload(index) if has_payload else b""))
            count = batch.received(0)
    return found


@pytest.mark.slow
def test_judge_every_combination_agrees_with_the_table():
    """The compiled rules and the rules in Python refuse the same requests with the same error."""
    offsets = (0, 1, 512, 4096, SIZE - 4096, SIZE - 512, SIZE, SIZE + 512, 2**63, 2**64 - 512)
    lengths = (0, 1, 512, 4096, NBD_REQUEST_BYTES_MAX, NBD_REQUEST_BYTES_MAX + 512, 2**32 - 512)
    modes = ({}, {"structured": True}, {"structured": True, "extended": True})
    checked = 0
    for mode, read_only, contexts in itertools.product(modes, (False, True), (False, True)):
        terms = SessionTerms(SIZE, read_only=read_only, contexts=contexts, **mode)
        for command, flags in itertools.product((*range(10), 65535), (*range(64), 64, 32768)):
            payload = flags & 32 if terms.extended else command == nbd.NBD_CMD_WRITE
            for offset, length in itertools.product(offsets, lengths):
                if payload and length > 4096:
                    continue
                body = bytes(length) if payload else b""
                batch = make_batch(terms)
                request = request_bytes(
                    command, offset, length, flags=flags, payload=body, extended=terms.extended
                )
                assert put(batch, request) == 1
                expected, reason = validate_request(terms, command, flags, offset, length)

                assert batch.request(0)[5] == expected, (terms, command, flags, offset, length)
                assert bool(reason) == bool(expected)
                checked += 1
    assert checked > 300_000


@pytest.mark.parametrize("extended", [False, True])
def test_received_random_splits_give_the_same_requests(extended):
    """Where the stream is cut into reads does not matter."""
    chance = random.Random(20240611)
    terms = SessionTerms(SIZE, structured=True, extended=extended)
    for _ in range(30):
        stream = b""
        for cookie in range(chance.randrange(1, 60)):
            command = chance.choice((0, 0, 1, 1, 3, 4, 6, 99))
            length = chance.choice((0, 512, 4096, 4096, 65536, 200_000))
            body = chance.randbytes(length) if command == nbd.NBD_CMD_WRITE else b""
            flags = 32 if extended and command == nbd.NBD_CMD_WRITE else 0
            stream += request_bytes(
                command, chance.choice((0, 4096, SIZE)), length,
                flags=flags, cookie=cookie, payload=body, extended=extended,
            )  # fmt: skip

        whole = drain(make_batch(terms), stream)

        assert drain(make_batch(terms), stream, chance) == whole
        assert [item[2] for item in whole] == list(range(len(whole)))


def test_received_wrong_magic_raises():
    """What is no request ends the connection."""
    batch = make_batch(SessionTerms(SIZE))

    with pytest.raises(RemoteProtocolError, match="magic"):
        put(batch, b"\0" * 28)


@pytest.mark.parametrize(
    ("extended", "length", "survives"),
    [
        (False, NBD_REQUEST_BYTES_MAX + 512, True),
        (False, 2 * NBD_REQUEST_BYTES_MAX, True),
        (False, 2 * NBD_REQUEST_BYTES_MAX + 1, False),
        (False, 2**32 - 1, False),
        (True, NBD_REQUEST_BYTES_MAX, True),
        (True, NBD_REQUEST_BYTES_MAX + 1, False),
        (True, 2**64 - 1, False),
    ],
)
def test_received_oversized_payload_is_dropped_or_ends(extended, length, survives):
    """A payload that is too large is skipped without being kept, up to a limit."""
    batch = make_batch(SessionTerms(SIZE, extended=extended, structured=extended))
    header = request_bytes(1, 0, length, flags=32 if extended else 0, extended=extended)

    if not survives:
        with pytest.raises(RemoteProtocolError, match="too large"):
            put(batch, header)
        return
    if extended:
        assert put(batch, header) == 0
        return
    assert put(batch, header) == 0
    assert batch.dropping_bytes == length
    left = length
    count = 0
    while left:
        step = min(left, len(batch.get_buffer()))
        count = put(batch, bytes(step))
        left -= step
    assert count == 1
    assert batch.request(0)[5] == nbd.NBD_EINVAL
    assert batch.room_bytes <= 256 * 1024


def test_buffer_grows_for_one_request_and_relaxes():
    """The buffer holds a 32 MiB write in one piece and gives the memory back afterwards."""
    batch = make_batch(SessionTerms(SIZE))
    assert batch.room_bytes == 64 * 1024
    payload = random.Random(5).randbytes(1000) * (NBD_REQUEST_BYTES_MAX // 1000 + 1)
    payload = payload[:NBD_REQUEST_BYTES_MAX]

    (found,) = drain(batch, request_bytes(1, 0, len(payload), payload=payload))

    assert found[6] == payload
    assert batch.room_bytes > NBD_REQUEST_BYTES_MAX
    batch.get_buffer()
    assert batch.relax() == 64 * 1024


def test_get_buffer_while_exported_and_moving_raises():
    """The buffer does not move under somebody who still writes into it."""
    batch = make_batch(SessionTerms(SIZE))
    put(batch, request_bytes(1, 0, 1 << 20))
    view = memoryview(batch)

    with pytest.raises(BufferError):
        batch.get_buffer()

    view.release()
    batch.get_buffer()


def test_received_more_than_the_room_raises():
    """A count that cannot be true is a bug on this side."""
    batch = make_batch(SessionTerms(SIZE))
    with pytest.raises(LocalProtocolError):
        batch.received(64 * 1024 + 1)


def test_received_nothing_follows_a_disconnect():
    """Requests behind DISC are not served."""
    batch = make_batch(SessionTerms(SIZE))

    assert put(batch, request_bytes(2) + request_bytes(0, 0, 4096)) == 1
    assert batch.ended
    assert batch.received(0) == 0


def test_next_run_groups_by_kind_and_budget():
    """Runs end where the kind changes, and before the budget is exceeded."""
    batch = make_batch(SessionTerms(SIZE))
    block = bytes(4096)
    stream = b"".join(
        [
            *(request_bytes(0, 0, 4096) for _ in range(4)),
            *(request_bytes(1, 0, 4096, payload=block) for _ in range(2)),
            request_bytes(1, 0, 4096, payload=block, flags=1),  # FUA waits
            request_bytes(1, 512, 4096, payload=block),  # unaligned
            request_bytes(0, 0, 512),
            request_bytes(0, 1, 4096),  # refused
        ]
    )
    assert put(batch, stream) == 10

    assert batch.next_run(0, 1 << 20) == (RUN_READ, 4, 16384)
    assert batch.next_run(0, 8192) == (RUN_READ, 2, 8192)
    assert batch.next_run(0, 0) == (RUN_READ, 1, 4096)
    assert batch.next_run(4, 1 << 20) == (RUN_WRITE, 6, 8192)
    assert batch.next_run(6, 1 << 20)[:2] == (RUN_OTHER, 10)
    for bad in (-1, 10):
        with pytest.raises(IndexError):
            batch.next_run(bad, 1)


def test_copies_outside_the_target_are_refused():
    """The test doubles' fast path checks every span."""
    batch = make_batch(SessionTerms(SIZE))
    put(batch, request_bytes(0, 4096, 4096))

    with pytest.raises(LocalProtocolError):
        ReplyBuilder().reads_from(batch, 0, 1, bytes(8191))
    with pytest.raises(LocalProtocolError):
        batch.copy_writes(0, 1, bytearray(8192))
    with pytest.raises(IndexError):
        ReplyBuilder().expect(batch, 0, 2)


def test_replies_simple_are_the_protocols_bytes():
    """Golden bytes of simple replies."""
    replies = ReplyBuilder()
    replies.done(7)
    replies.error(8, 28, "unheard")
    replies.data(9, 4096, b"abc")
    replies.zeroes(10, 0, 2)

    assert replies.take().hex() == (
        "67446698" "00000000" "0000000000000007"
        "67446698" "0000001c" "0000000000000008"
        "67446698" "00000000" "0000000000000009" "616263"
        "67446698" "00000000" "000000000000000a" "0000"
    )  # fmt: skip
    assert replies.take() == b""


def test_replies_structured_are_the_protocols_bytes():
    """Golden bytes of structured replies."""
    replies = ReplyBuilder(structured=True)
    replies.done(7)
    replies.error(8, 28, "no")
    replies.data(9, 4096, b"abc", False)
    replies.zeroes(9, 4099, 2)
    replies.block_status(11, 0, 1, [(4096, 3), (512, 0)])

    assert replies.take().hex() == (
        "67446698" "00000000" "0000000000000007"
        "668e33ef" "0001" "8001" "0000000000000008" "00000008" "0000001c" "0002" "6e6f"
        "668e33ef" "0000" "0001" "0000000000000009" "0000000b" "0000000000001000" "616263"
        "668e33ef" "0001" "0002" "0000000000000009" "0000000c" "0000000000001003" "00000002"
        "668e33ef" "0001" "0005" "000000000000000b" "00000014" "00000001"
        "00001000" "00000003" "00000200" "00000000"
    )  # fmt: skip


def test_replies_extended_are_the_protocols_bytes():
    """Golden bytes of replies with extended headers."""
    replies = ReplyBuilder(extended=True)
    replies.done(7)
    replies.data(9, 4096, b"abc")
    replies.block_status(11, 512, 1, [(1 << 40, 3)])

    assert replies.take().hex() == (
        "6e8a278c" "0001" "0000" "0000000000000007" "0000000000000000" "0000000000000000"
        "6e8a278c" "0001" "0001" "0000000000000009" "0000000000001000" "000000000000000b"
        "0000000000001000" "616263"
        "6e8a278c" "0001" "0006" "000000000000000b" "0000000000000200" "0000000000000018"
        "00000001" "00000001" "0000010000000000" "0000000000000003"
    )  # fmt: skip


def test_replies_that_cannot_be_are_bugs():
    """A reply that the protocol forbids is never sent."""
    simple = ReplyBuilder()
    with pytest.raises(LocalProtocolError):
        simple.data(1, 0, b"x", False)
    with pytest.raises(LocalProtocolError):
        simple.block_status(1, 0, 1, [(1, 0)])
    with pytest.raises(LocalProtocolError):
        simple.error(1, 0)


def test_error_message_is_cut_at_a_character():
    """A message has at most 4096 bytes and stays UTF-8."""
    replies = ReplyBuilder(structured=True)
    replies.error(1, 5, "a" + "é" * 4000)
    found = replies.take()

    assert struct.unpack_from(">H", found, 24)[0] == 4095
    assert found[26:].decode().endswith("é")


def test_take_large_buffers_are_not_filled_while_somebody_reads_them():
    """Bytes that were handed out never change, however their memory is used again."""
    replies = ReplyBuilder()
    kept = []
    for number in range(40):
        replies.data(number, 0, bytes([number]) * 300_000)
        taken = replies.take()
        if number % 3 == 0:
            kept.append((number, taken))
        del taken

    for number, taken in kept:
        assert taken[16:] == bytes([number]) * 300_000
        assert len(taken) == 300_016
        assert hash(taken) == hash(bytes(bytearray(taken)))
