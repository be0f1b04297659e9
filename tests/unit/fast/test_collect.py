"""Candidates and survivors of a collection, without a volume."""

import random
import struct

import pytest

from torus._fast.blockmap import BlockMap
from torus._fast.collect import Candidates, Survivors
from torus._fast.crc import checksum
from torus._fast.record import KIND_DATA, RecordBuilder

CHUNK = (7, 1, 0, 3)
BLOCK = 4096
START = 512


def _chunk(blocks: BlockMap, writes: list[tuple[int, bytes]]) -> bytes:
    """Return the bytes of a chunk with a record for each write; they are in the map."""
    data = b""
    blocks.open_sequence(CHUNK[3])
    for index, (block, payload) in enumerate(writes):
        record = RecordBuilder(1 << 20, 16)
        record.add_data(block, payload)
        record.finish(KIND_DATA, CHUNK, index, index + 1, 0, START + len(data), 9)
        record.apply(blocks)
        data += record.tobytes()
    return data + bytes(8192)


def _pieces(data: bytes, runs: list[tuple[int, int, int, int, bytes]]) -> list[bytes]:
    return [data[at * 512 - START :][: count * BLOCK] for _, count, _, at, _ in runs]


def test_only_the_newest_copies_come_in_the_order_of_addresses() -> None:
    """Older copies of a block in the same chunk are passed over; neighbours are one run."""
    rng, blocks = random.Random(2), BlockMap(4096, 1 << 20)
    writes = [(5000 % 4096, rng.randbytes(BLOCK)), (10, rng.randbytes(3 * BLOCK))]
    writes += [(11, rng.randbytes(BLOCK)), (3, rng.randbytes(BLOCK))]
    data = _chunk(blocks, writes)
    candidates = Candidates()
    end, why = candidates.add_chunk(data, CHUNK, START)
    assert (end - START, why) == (len(data) - 8192, "no record")
    assert len(candidates) == 6
    candidates.sort()
    runs = candidates.window(blocks, 100, 100)
    assert [run[:2] for run in runs] == [(3, 1), (10, 1), (11, 1), (12, 1), (904, 1)]
    assert candidates.left == 0
    wanted = [writes[3][1], writes[1][1][:BLOCK], writes[2][1], writes[1][1][2 * BLOCK :]]
    assert _pieces(data, runs) == [*wanted, writes[0][1]]
    assert runs[2][4] == struct.pack("=I", checksum(writes[2][1]))


def test_survivors_that_changed_or_rotted_meanwhile_are_left_out() -> None:
    """Each block of a run is judged for itself; a record takes what it has room for."""
    rng, blocks = random.Random(3), BlockMap(4096, 1 << 20)
    payload = rng.randbytes(8 * BLOCK)
    data = _chunk(blocks, [(100, payload)])
    candidates = Candidates()
    candidates.add_chunk(data, CHUNK, START)
    candidates.sort()
    runs = candidates.window(blocks, 100, 100)
    assert [run[:2] for run in runs] == [(100, 8)]
    pieces = _pieces(data, runs)
    rotten = bytearray(pieces[0])
    rotten[5 * BLOCK + 7] ^= 1
    survivors = Survivors(runs, [bytes(rotten)])
    assert survivors.rotten == [105]
    assert survivors.blocks == 7
    blocks.clear(102, 1)
    record = RecordBuilder(1 << 20, 16)
    assert survivors.fill(blocks, record, 1 << 20, 3 * BLOCK) == 3
    assert record.extent_list() == [(100, 2, False), (103, 1, False)]
    record.clear()
    assert survivors.fill(blocks, record, 1 << 20, 100 * BLOCK) == 3
    assert record.extent_list() == [(104, 1, False), (106, 2, False)]
    assert survivors.done
    with pytest.raises(ValueError, match="4096 bytes for 8 blocks"):
        Survivors(runs, [bytes(BLOCK)])


def test_large_addresses_are_sorted() -> None:
    """All sixteen-bit digits of a block number count."""
    rng, blocks = random.Random(4), BlockMap(1 << 30, 1 << 20)
    places = [rng.randrange(1 << 30) for _ in range(300)]
    data = _chunk(blocks, [(block, bytes(BLOCK)) for block in places])
    candidates = Candidates()
    candidates.add_chunk(data, CHUNK, START)
    candidates.sort()
    found = [run[0] for run in candidates.window(blocks, 1000, 1000)]
    assert found == sorted(places)
