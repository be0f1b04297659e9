"""Garbage where records should be: never a crash, never a byte beyond the end, never a record
whose header has a flipped bit.

TORUS_FUZZ_INPUTS sets how many inputs there are (100,000 by default, shared by all).
"""

import ctypes
import mmap
import os
import random

import pytest

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum
from torus._fast.record import KIND_DATA, KIND_PAGES, RecordBuilder, RecordReader, find_header

INPUTS = int(os.environ.get("TORUS_FUZZ_INPUTS", "100000"))
CHUNK = (7, 3, 1, 42)
START = 512
PAGE = mmap.PAGESIZE

pytestmark = pytest.mark.fuzz


def some_log(rng: random.Random) -> bytes:
    """Return one to four records of any shape."""
    builder, log = RecordBuilder(limits.MIB, 8), b""
    for index in range(rng.randint(1, 4)):
        builder.clear()
        kind = rng.choice([KIND_DATA, KIND_DATA, KIND_DATA, KIND_PAGES])
        if kind == KIND_PAGES:
            builder.set_payload(rng.randbytes(512 * rng.randint(1, 6)))
        for _ in range(rng.randint(1, 4) if kind == KIND_DATA else 0):
            if rng.randrange(2):
                builder.add_zero(rng.randrange(900), rng.randint(1, 50))
            else:
                builder.add_data(rng.randrange(900), rng.randbytes(4096))
        builder.finish(kind, CHUNK, index, 10 + index, index, START + len(log))
        log += builder.tobytes()
    return log


def walk(data: bytes | memoryview) -> int:
    """Read all that the reader and the search find; return how many records that was."""
    reader = RecordReader(data, CHUNK, START, 0)
    count = 0
    blocks = BlockMap(1000, limits.MIB)
    blocks.open_sequence(CHUNK[3])
    while reader.advance():
        count += 1
        assert START <= reader.offset < reader.end <= START + len(data)
        assert len(reader.payload()) == reader.payload_bytes
        covered = sum(n for _, n, is_zero in reader.extent_list() if not is_zero)
        if reader.kind == KIND_DATA:
            assert covered * limits.BLOCK_BYTES == reader.payload_bytes
        try:
            if reader.ready(blocks):
                reader.apply(blocks)
        except ValueError:
            pass  # blocks beyond the volume
    assert reader.problem
    at = 0
    while (found := find_header(data, at)) is not None:
        assert at <= found[0] <= len(data) - 512
        at = found[0] + 512
    return count


def test_a_flipped_bit_ends_the_log_there(rng: random.Random) -> None:
    """In a header the record is refused, in a payload it is flagged; those before it stay."""
    logs = [some_log(rng) for _ in range(50)]
    for _ in range(INPUTS // 2):
        log = rng.choice(logs)
        spans = []
        reader = RecordReader(log, CHUNK, START, 0)
        while reader.advance(check_payload=False):
            spans.append((reader.offset - START, reader.header_bytes, reader.end - START))
        at, header_bytes, end = spans[hit := rng.randrange(len(spans))]
        in_header = rng.randrange(4) > 0 or end == at + header_bytes
        where = at + (
            rng.randrange(header_bytes) if in_header else rng.randrange(header_bytes, end - at)
        )
        broken = bytearray(log)
        broken[where] ^= 1 << rng.randrange(8)
        reader = RecordReader(broken, CHUNK, START, 0)
        for _ in range(hit):
            assert reader.advance()
            assert reader.payload_ok
        assert reader.advance() is not in_header, (hit, where)
        if in_header:
            assert find_header(broken, at) != find_header(log, at)
        else:
            assert not reader.payload_ok


def test_changed_headers_under_right_checksums_stay_inside(rng: random.Random) -> None:
    """What a bug or an attacker seals: sizes, counts and extents may lie, the reader may not."""
    logs = [some_log(rng) for _ in range(50)]
    accepted = 0
    for _ in range(INPUTS * 3 // 10):
        log = bytearray(rng.choice(logs))
        header_bytes = int.from_bytes(log[52:56], "little")
        for _ in range(rng.randint(1, 3)):
            at = rng.choice([rng.randrange(4, 68), rng.randrange(72, 72 + 64)])
            log[at] = rng.choice([0, 1, 2, 0x7F, 0xFF, rng.randrange(256)])
        log[68:72] = bytes(4)
        log[68:72] = checksum(log[:header_bytes]).to_bytes(4, "little")
        accepted += walk(log[: rng.choice([len(log), len(log), rng.randrange(len(log) + 1)])]) > 0

    assert accepted > INPUTS // 100


def test_noise_is_no_record(rng: random.Random) -> None:
    """With and without a magic number in front."""
    for _ in range(INPUTS // 10):
        data = rng.randbytes(rng.randrange(700))
        if rng.randrange(2):
            data = b"TREC\x01\x00" + data
        assert walk(data) == 0


def test_nothing_is_read_behind_the_end(rng: random.Random) -> None:
    """The bytes end where a page ends that is followed by one that may not be read.

    A read beyond it would end this process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    pages = 8
    area = mmap.mmap(-1, (pages + 1) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    last = ctypes.c_void_p(address + pages * PAGE)
    assert libc.mprotect(last, ctypes.c_size_t(PAGE), 0) == 0
    try:
        view = memoryview(area)[: pages * PAGE]
        for _ in range(INPUTS // 10):
            log = bytearray(some_log(rng)[: pages * PAGE])
            del log[rng.randrange(len(log) + 1) :]
            if rng.randrange(2) and len(log) >= 136:
                header_bytes = int.from_bytes(log[52:56], "little")
                log[rng.randrange(52, 136)] = rng.randrange(256)
                log[68:72] = bytes(4)
                log[68:72] = checksum(log[:header_bytes]).to_bytes(4, "little")
            piece = view[len(view) - len(log) :]
            piece[:] = log
            walk(piece)
            piece.release()
        view.release()
    finally:
        libc.mprotect(last, ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)
