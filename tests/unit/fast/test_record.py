"""Records: what the builder makes the reader walks, and nothing else (docs/format.md)."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.crc import block_checksums, checksum
from torus._fast.record import (
    KIND_DATA,
    KIND_HEAD,
    KIND_PAGES,
    RecordBuilder,
    RecordReader,
    find_header,
)

BLOCK = limits.BLOCK_BYTES
CHUNK = (7, 3, 1, 42)
PLACE = (CHUNK, 5, 100, 90, 1024)  # chunk, index, lsn, committed, offset


def finished(builder: RecordBuilder, kind: int = KIND_DATA) -> bytes:
    builder.finish(kind, *PLACE)
    return builder.tobytes()


def reader_of(data: bytes, chunk: tuple[int, int, int, int] = CHUNK) -> RecordReader:
    return RecordReader(data, chunk, 1024, 5)


def sample(rng: random.Random) -> bytes:
    """Return a record of three blocks and a zero extent."""
    builder = RecordBuilder(limits.MIB, 8)
    builder.add_data(10, rng.randbytes(2 * BLOCK))
    builder.add_zero(99, 5)
    builder.add_data(1, rng.randbytes(BLOCK))
    return finished(builder)


def resealed(record: bytes, at: int, form: str, value: int) -> bytes:
    """Return ``record`` with a field changed and its header checksum right again."""
    header_bytes = struct.unpack_from("<I", record, 52)[0]
    changed = bytearray(record)
    struct.pack_into(form, changed, at, value)
    struct.pack_into("<I", changed, 68, 0)
    struct.pack_into("<I", changed, 68, checksum(changed[:header_bytes]))
    return bytes(changed)


# --- the builder ------------------------------------------------------------------------


@given(st.data())
def test_what_has_room_fits(data: st.DataObject) -> None:
    """Taking all that room() offers, again and again, never overfills chunk, payload or extents."""
    chunk_room = data.draw(st.integers(0, 40 * BLOCK), "chunk_room")
    payload_max = data.draw(st.integers(0, 12), "blocks") * BLOCK
    extents_max = data.draw(st.integers(1, 40), "extents_max")
    builder = RecordBuilder(payload_max, extents_max)
    while room := builder.room(chunk_room):
        assert room % BLOCK == 0
        if data.draw(st.integers(0, 3), "zero") == 0:
            builder.add_zero(1, 1)
        else:
            count = data.draw(st.integers(1, room // BLOCK), "count")
            builder.add_data(0, bytes(count * BLOCK))
        size = builder.finish(KIND_DATA, CHUNK, 0, 1, 0, 512)
        assert size <= chunk_room
        assert size % limits.RECORD_ALIGN_BYTES == 0
        assert builder.payload_size <= payload_max
    if not builder.empty:
        assert RecordReader(builder.tobytes(), CHUNK, 512, 0).advance()


@pytest.mark.parametrize("zeroes", [0, 1, 7, 26, 27, 28, 60])
def test_all_the_room_at_once_fits_in_every_chunk(zeroes: int) -> None:
    """Where the header grows by a sector, too: by extents, and by checksums."""
    builder = RecordBuilder(200 * BLOCK, 100)
    payload = memoryview(bytes(200 * BLOCK))
    for chunk_room in range(0, 130 * BLOCK, 512):
        builder.clear()
        for number in range(zeroes):
            if builder.room(chunk_room):
                builder.add_zero(number, 1)
        room = builder.room(chunk_room)
        if room:
            builder.add_data(0, payload[:room])
            size = builder.finish(KIND_DATA, CHUNK, 0, 1, 0, 512)

            assert size <= chunk_room, (zeroes, chunk_room)
            assert builder.room(chunk_room) < BLOCK * 2


def test_an_empty_chunk_has_room_for_nearly_all_of_itself() -> None:
    """room() may be careful, not stingy: less than two blocks and the header are left over."""
    builder = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, limits.RECORD_EXTENTS_MAX)
    for chunk_room in range(BLOCK + 512, 100 * BLOCK, 512):
        left = chunk_room - builder.room(chunk_room)

        assert left <= BLOCK + 1024, chunk_room
    assert builder.room(512) == builder.room(0) == 0


def test_extents_are_bounded() -> None:
    """The bound holds for every kind of extent, and nothing is half added."""
    builder = RecordBuilder(limits.MIB, 3)
    builder.add_zero(1, 2)
    builder.add_data(5, bytes(BLOCK))
    builder.add_zero(9, 1)

    assert builder.room(limits.MIB) == 0
    with pytest.raises(ValueError, match="full"):
        builder.add_data(6, bytes(BLOCK))
    with pytest.raises(ValueError, match="full"):
        builder.add_zero(6, 1)
    assert builder.extent_list() == [(1, 2, True), (5, 1, False), (9, 1, True)]
    assert reader_of(finished(builder)).advance()


def test_the_payload_is_bounded() -> None:
    """At exactly the bound it is taken."""
    builder = RecordBuilder(2 * BLOCK, 8)
    builder.add_data(0, bytes(BLOCK))
    with pytest.raises(ValueError, match="full"):
        builder.add_data(0, bytes(2 * BLOCK))
    builder.add_data(1, bytes(BLOCK))

    assert builder.payload_size == 2 * BLOCK
    assert builder.room(limits.MIB) == 0


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, 0), (1, BLOCK), (-BLOCK, BLOCK), (0, 4 * BLOCK), (BLOCK, 0)]
)
def test_parts_of_blocks_are_refused(start: int, stop: int) -> None:
    """And what lies outside the buffer."""
    builder = RecordBuilder(limits.MIB, 8)
    with pytest.raises(ValueError, match="not whole blocks"):
        builder.add_data(0, bytes(3 * BLOCK), start, stop)

    assert builder.empty


def test_what_the_format_lacks_is_refused() -> None:
    """No empty extents; extents or a bare payload, never both; whole sectors of it."""
    builder = RecordBuilder(4 * BLOCK, 8)
    for wrong in (bytes(511), bytes(5 * BLOCK)):
        with pytest.raises(ValueError, match="record"):
            builder.set_payload(wrong)
    with pytest.raises(ValueError, match="no blocks"):
        builder.add_zero(1, 0)
    builder.set_payload(bytes(512))
    for add in (
        lambda: builder.add_data(0, bytes(BLOCK)),
        lambda: builder.add_zero(0, 1),
        lambda: builder.set_payload(bytes(512)),
    ):
        with pytest.raises(ValueError, match="record"):
            add()
    for payload_max, extents_max in ((limits.MIB, 0), (limits.MIB, 65536), (2**31, 8)):
        with pytest.raises(ValueError, match="16 bits"):
            RecordBuilder(payload_max, extents_max)


def test_an_unfinished_record_has_no_bytes() -> None:
    """Neither before finish() nor after more was added: its header would be of another one."""
    builder = RecordBuilder(limits.MIB, 8)
    blocks = BlockMap(100, limits.MIB)
    for add in (
        lambda: None,
        lambda: builder.add_zero(3, 1),
        lambda: builder.add_data(3, bytes(BLOCK)),
    ):
        add()
        assert builder.size == 0
        with pytest.raises(ValueError, match="not finished"):
            builder.tobytes()
        with pytest.raises(ValueError, match="not finished"):
            builder.apply(blocks)
        builder.finish(KIND_DATA, *PLACE)
    builder.clear()
    with pytest.raises(ValueError, match="not finished"):
        builder.tobytes()


def test_a_builder_is_used_again() -> None:
    """Nothing of the last record is in the next, and borrowed buffers are let go."""
    builder = RecordBuilder(limits.MIB, 8)
    held = bytearray(b"x" * BLOCK)
    builder.add_data(1, held)
    finished(builder)
    builder.clear()
    held.append(0)  # BufferError while it is exported
    builder.add_zero(7, 2)
    fresh = RecordBuilder(limits.MIB, 8)
    fresh.add_zero(7, 2)

    assert finished(builder) == finished(fresh)


# --- there and back ---------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 4), st.booleans()), max_size=20))
def test_the_reader_walks_what_the_builder_made(
    extents: list[tuple[int, int, bool]],
) -> None:
    """Splits of any shape over several records come back in order, with their payload."""
    builder, log, index, expected = RecordBuilder(6 * BLOCK, 3), b"", 0, []

    def close() -> None:
        nonlocal log, index
        if builder.empty:
            return
        payload = b"".join(
            bytes([block % 251]) * (count * BLOCK)
            for block, count, zero in builder.extent_list() if not zero
        )  # fmt: skip
        builder.finish(KIND_DATA, CHUNK, index, 10 + index, index, 512 + len(log))
        log += builder.tobytes()
        expected.append((index, 10 + index, index, builder.extent_list(), payload))
        builder.clear()
        index += 1

    for block, count, zero in extents:
        if builder.room(limits.MIB) < count * BLOCK:
            close()
        if zero:
            builder.add_zero(block, count)
        else:
            builder.add_data(block, bytes([block % 251]) * (count * BLOCK))
    close()
    found = []
    reader = RecordReader(log + bytes(512), CHUNK, 512, 0)
    while reader.advance():
        assert reader.payload_ok
        found.append(
            (reader.index, reader.lsn, reader.committed, reader.extent_list(), reader.payload())
        )

    assert found == expected
    assert (reader.problem, reader.end) == ("no record", 512 + len(log))


def test_builder_and_reader_apply_the_same(rng: random.Random) -> None:
    """A map that is replayed is the map that was written, places and checksums too."""
    builder = RecordBuilder(limits.MIB, 8)
    data = rng.randbytes(3 * BLOCK)
    builder.add_data(10, data[: 2 * BLOCK])
    builder.add_zero(11, 1)
    builder.add_data(20, data, 2 * BLOCK, 3 * BLOCK)
    record = finished(builder)
    maps = [BlockMap(5000, limits.MIB) for _ in range(2)]
    for blocks in maps:
        blocks.open_sequence(42)
    reader = reader_of(record)
    builder.apply(maps[0])
    assert reader.advance()
    assert reader.ready(maps[1])
    reader.apply(maps[1])
    unit = (1024 + reader.header_bytes) // 512
    crcs = struct.unpack("<3I", block_checksums(data))
    expected = {10: (42, unit, 0, crcs[0]), 11: None, 20: (42, unit + 16, 0, crcs[2])}

    for blocks in maps:
        assert {block: blocks.get(block) for block in expected} == expected


def test_pages_and_heads_have_no_extents(rng: random.Random) -> None:
    """Their payload is whole sectors; the last checksum covers what is left of a block."""
    for size in (0, 512, BLOCK, BLOCK + 512, 3 * BLOCK - 512):
        payload = rng.randbytes(size)
        builder = RecordBuilder(limits.MIB, 8)
        builder.set_payload(payload)
        record = finished(builder, KIND_HEAD)
        reader = reader_of(record)
        assert reader.advance()

        assert (reader.kind, reader.payload(), reader.extent_list()) == (KIND_HEAD, payload, [])
        if size:
            broken = reader_of(record[:-1] + bytes([record[-1] ^ 1]))
            assert broken.advance()
            assert not broken.payload_ok


# --- what is not the next record --------------------------------------------------------


def problem_of(data: bytes, chunk: tuple[int, int, int, int] = CHUNK) -> str:
    reader = reader_of(data, chunk)
    assert not reader.advance()
    assert reader.end == 1024
    assert reader.problem is not None
    return reader.problem


@pytest.mark.parametrize("part", range(4))
def test_a_record_of_another_chunk_is_refused(part: int, rng: random.Random) -> None:
    """Volume, epoch, tag and sequence number each count."""
    other = tuple(value + (number == part) for number, value in enumerate(CHUNK))

    assert problem_of(sample(rng), other) == "record of another chunk"  # type: ignore[arg-type]


def test_a_record_of_another_place_is_refused(rng: random.Random) -> None:
    """Offset and index are part of its identity."""
    record = sample(rng)

    moved = RecordReader(record, CHUNK, 1536, 5)
    assert not moved.advance()
    assert moved.problem == "record written for offset 1024"
    for due in (0, 4, 6):
        other = RecordReader(record, CHUNK, 1024, due)
        assert not other.advance()
        assert other.problem == f"record index 5 where {due} is due"


def test_a_truncated_record_is_refused(rng: random.Random) -> None:
    """At whatever byte it is cut."""
    record = sample(rng)
    for size in {*range(0, 600, 7), len(record) - 1, *range(0, len(record), 512)}:
        cut = problem_of(record[:size])

        assert cut == ("end of data" if size < 72 else "record sizes are impossible"), size


def test_every_bit_of_the_header_counts(rng: random.Random) -> None:
    """Fields, extents, checksums and padding alike: no flip is read as a record."""
    record = bytearray(sample(rng))
    header_bytes = struct.unpack_from("<I", record, 52)[0]
    for at in range(header_bytes):
        for bit in (0, 3, 7) if at >= 72 else range(8):
            record[at] ^= 1 << bit
            reader = reader_of(bytes(record[: header_bytes + 3 * BLOCK]))
            assert not reader.advance(), (at, bit)
            assert find_header(record, 0) is None, (at, bit)
            record[at] ^= 1 << bit
    assert reader_of(bytes(record)).advance()


def test_damaged_payload_is_flagged_and_passed(rng: random.Random) -> None:
    """The record's neighbours can still be reached."""
    builder = RecordBuilder(limits.MIB, 8)
    first = sample(rng)
    builder.add_zero(3, 1)
    builder.finish(KIND_DATA, CHUNK, 6, 101, 90, 1024 + len(first))
    log = bytearray(first + builder.tobytes())
    header_bytes = struct.unpack_from("<I", first, 52)[0]
    for at in [header_bytes, len(first) - 1, *rng.sample(range(header_bytes, len(first)), 60)]:
        log[at] ^= 1 << rng.randrange(8)
        reader = reader_of(bytes(log))
        assert reader.advance()
        assert not reader.payload_ok, at
        assert reader.advance()
        assert reader.payload_ok
        assert (reader.index, reader.problem) == (6, None)
        unchecked = reader_of(bytes(log))
        assert unchecked.advance(check_payload=False)
        assert unchecked.payload_ok  # the caller asked not to look
        log[at] = first[at]


def test_zeroes_and_garbage_are_told_apart() -> None:
    """The end of a chunk that was never used further, and one that was."""
    assert problem_of(bytes(4096)) == "no record"
    assert problem_of(b"\xff" * 4096) == "bad magic"
    assert problem_of(b"") == "end of data"


@pytest.mark.parametrize(
    ("at", "form", "value", "problem"),
    [
        (4, "<H", 2, "record version 2 is unknown"),
        (6, "<H", KIND_PAGES, "record kind 2 with 3 extents"),
        (52, "<I", 1024, "record sizes are impossible"),
        (56, "<I", BLOCK, "extents do not cover the payload"),
        (56, "<I", 3 * BLOCK + 1, "record sizes are impossible"),
        (56, "<I", 0xFFFFFE00, "record sizes are impossible"),
        (60, "<H", 0, "record kind 1 with 0 extents"),
        (80, "<I", 3, "extents do not cover the payload"),
        (80, "<I", 0xFFFFFFFF, "extents do not cover the payload"),
        (80, "<I", 0, "extent 0 is of an unknown kind or empty"),
        (84, "<I", 2, "extent 0 is of an unknown kind or empty"),
        (84, "<I", 1, "extents do not cover the payload"),
        (96, "<I", 0, "extent 1 is of an unknown kind or empty"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    at: int, form: str, value: int, problem: str, rng: random.Random
) -> None:
    """Under a checksum that is right: written by a bug, and never applied."""
    assert problem_of(resealed(sample(rng), at, form, value)) == problem


def test_a_reader_without_a_record_says_so(rng: random.Random) -> None:
    """Before the first advance() and after the last."""
    reader = reader_of(sample(rng))
    blocks = BlockMap(100, limits.MIB)
    for _ in range(2):
        for ask in (
            lambda: reader.kind,
            lambda: reader.lsn,
            lambda: reader.committed,
            lambda: reader.index,
            lambda: reader.offset,
            lambda: reader.header_bytes,
            lambda: reader.payload_bytes,
            reader.payload,
            reader.extent_list,
            lambda: reader.ready(blocks),
            lambda: reader.apply(blocks),
        ):
            with pytest.raises(ValueError, match="no record"):
                ask()
        while reader.advance():
            pass


# --- offline search ---------------------------------------------------------------------


def test_find_header_finds_the_first_whole_one(rng: random.Random) -> None:
    """At multiples of 512 from where the search begins."""
    record = sample(rng)
    data = rng.randbytes(1536) + record + bytes(512) + record
    second = 1536 + len(record) + 512

    assert find_header(data, 0) == find_header(data, 1536) == (1536, (*CHUNK, 100, 90))
    assert find_header(data, 2048) == (second, (*CHUNK, 100, 90))
    assert find_header(data, second + 512) is None
    assert find_header(data, len(data) + 4096) is None
    assert find_header(data, 1) is None  # out of step
    assert find_header(data[: 1536 + 100], 0) is None
    with pytest.raises(ValueError, match="before the data"):
        find_header(data, -512)
