"""The hot path against a model: what it answers is right, what it cannot answer it leaves over."""

import errno
import random
from collections.abc import Sequence

import pytest

from torus import limits
from torus._fast.blockio import PythonIo
from torus._fast.blockmap import BlockMap
from torus._fast.crc import block_checksums, checksum
from torus._fast.datapath import Datapath, first_wrong
from torus._fast.frame import RequestBatch
from torus._fast.record import KIND_DATA, RecordBuilder, RecordReader
from torus._fast.reply import ReplyBuilder
from torus.testing.nbd_client import request_bytes

BLOCK = limits.BLOCK_BYTES
READ, WRITE = 0, 1
BLOCKS = 3000  # three leaves
SEQUENCES = (3, 4, 9)
SLOT = 64 * BLOCK


class Machine:
    """A map, a disk of three chunks, the data path over both, and what a volume would hold."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.content = bytearray(BLOCKS * BLOCK)
        self.disk = bytearray(rng.randbytes(len(SEQUENCES) * SLOT))
        self.cold: set[int] = set()  # addresses of blocks outside the page cache
        self.error: OSError | None = None
        self.reads = 0
        self.blocks = BlockMap(BLOCKS, limits.MIB)
        self.places: dict[int, int | tuple[int | None, ...]] = {}
        self.slots = {sequence: number * SLOT for number, sequence in enumerate(SEQUENCES)}
        for number, sequence in enumerate(SEQUENCES):
            self.blocks.open_sequence(sequence)
            self.places[sequence] = number * SLOT
        self.path = Datapath(self.blocks, PythonIo(self), self.places)

    def read_now(self, address: int, size: int) -> bytes | None:
        self.reads += 1
        if self.error is not None:
            raise self.error
        if any(address <= cold < address + size for cold in self.cold):
            return None
        return bytes(self.disk[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError("nothing is written here")

    def put(self, block: int, count: int, sequence: int, unit: int) -> None:
        """Map blocks to what already lies in a chunk."""
        at = self.slots[sequence] + unit * 512
        data = self.disk[at : at + count * BLOCK]
        self.blocks.set(block, block_checksums(data), sequence, unit)
        self.content[block * BLOCK : (block + count) * BLOCK] = data

    def clear(self, block: int, count: int) -> None:
        self.blocks.clear(block, count)
        self.content[block * BLOCK : (block + count) * BLOCK] = bytes(count * BLOCK)

    def ask(self, *ranges: tuple[int, int]) -> tuple[Sequence[int], bytes]:
        """READ the ranges (offset, length) in one batch."""
        batch = batch_of(
            *(request_bytes(READ, at, n, cookie=i) for i, (at, n) in enumerate(ranges))
        )
        replies = ReplyBuilder()
        left = self.path.read_now(batch, 0, len(ranges), replies)
        return left, replies.take()

    def expected(self, left: Sequence[int], *ranges: tuple[int, int]) -> bytes:
        """Return the simple replies to those that are not ``left``."""
        return b"".join(
            0x67446698.to_bytes(4, "big") + bytes(4) + i.to_bytes(8, "big")
            + self.content[at : at + n]
            for i, (at, n) in enumerate(ranges) if i not in left
        )  # fmt: skip


def batch_of(*requests: bytes) -> RequestBatch:
    batch = RequestBatch(32 * limits.MIB, size_bytes=BLOCKS * BLOCK)
    data = b"".join(requests)
    count = 0
    while data:
        taken = batch.feed(data)
        count = batch.received(taken)
        data = data[taken:]
    assert count == len(requests)
    return batch


@pytest.fixture
def machine(rng: random.Random) -> Machine:
    return Machine(rng)


# --- reads ------------------------------------------------------------------------------


def test_random_maps_and_reads_agree_with_the_model(machine: Machine) -> None:
    """Absent, mapped and mixed ranges, aligned and not, over chunks, runs and leaves."""
    rng = machine.rng
    for _ in range(300):
        for _ in range(rng.randrange(6)):
            count = rng.choice([1, 1, 2, 5, 20])
            block = rng.choice([rng.randrange(40), 1020 + rng.randrange(8), 2048])
            if rng.randrange(4) == 0:
                machine.clear(block, count)
            else:
                unit = rng.randrange((SLOT // BLOCK - count) * 8)
                machine.put(block, count, rng.choice(SEQUENCES), unit)
        ranges = []
        for _ in range(rng.randint(1, 8)):
            start = rng.choice([0, 1015 * BLOCK, 2040 * BLOCK]) + 512 * rng.randrange(300)
            ranges.append((start, 512 * rng.randint(1, 200)))
        left, answer = machine.ask(*ranges)

        assert list(left) == []
        assert answer == machine.expected(left, *ranges)
    assert machine.path.reads_deferred == machine.path.mismatches == 0


@pytest.mark.parametrize("shard_bytes", [BLOCK, 5 * BLOCK, 20 * BLOCK])
def test_shards_are_read_where_they_lie(machine: Machine, shard_bytes: int) -> None:
    """Blocks within one and over the edge of two; without one of them what lies there is left."""
    content = bytes(machine.disk[machine.slots[9] + limits.SLOT_HEADER_BYTES :])
    cut = [content[at : at + shard_bytes] for at in range(0, len(content), shard_bytes)]
    addresses: list[int | None] = []
    for piece in reversed(cut):
        addresses.insert(0, len(machine.disk))
        machine.disk += piece + machine.rng.randbytes(512)
    machine.put(0, 40, 9, 1)  # aligned with the shards
    machine.put(50, 10, 9, 4)  # each fifth block, at least, lies in two
    ranges = [(block * BLOCK, BLOCK) for block in [*range(40), *range(50, 60)]]
    ranges += [(0, 40 * BLOCK), (50 * BLOCK + 512, 9 * BLOCK)]
    machine.places[9] = (shard_bytes, *addresses)
    left, answer = machine.ask(*ranges)
    assert (list(left), answer) == ([], machine.expected((), *ranges))

    missing = 1
    addresses[missing] = None
    machine.places[9] = (shard_bytes, *addresses)
    left, answer = machine.ask(*ranges)
    assert answer == machine.expected(left, *ranges)
    units = [*range(0, 320, 8), *(3 + 8 * number for number in range(10))]
    there = [
        number
        for number, unit in enumerate(units)
        if missing in (unit * 512 // shard_bytes, (unit * 512 + BLOCK - 1) // shard_bytes)
    ]
    assert there
    assert list(left)[: len(there)] == there

    machine.places[9] = (shard_bytes, *addresses[:missing])  # nor is anything behind them
    left, answer = machine.ask(*ranges)
    assert answer == machine.expected(left, *ranges)
    assert set(there) <= set(left)
    machine.places[9] = machine.slots[9]


def test_adjacent_blocks_are_one_read(machine: Machine) -> None:
    """A run in address and chunk costs one call of the disk, however it came to be."""
    for number in range(10):
        machine.put(number, 1, 4, 100 + number * 8)
    machine.put(10, 5, 9, 0)

    left, answer = machine.ask((0, 15 * BLOCK))
    assert answer == machine.expected(left, (0, 15 * BLOCK))
    assert machine.reads == 2


def test_absent_blocks_cost_no_read(machine: Machine) -> None:
    """Also beside mapped ones."""
    machine.ask((0, 100 * BLOCK))
    assert machine.reads == 0
    machine.put(50, 1, 3, 0)

    left, answer = machine.ask((0, 100 * BLOCK))
    assert answer == machine.expected(left, (0, 100 * BLOCK))
    assert machine.reads == 1


@pytest.mark.parametrize("where", ["first", "middle", "last", "unaligned"])
def test_a_wrong_checksum_is_never_handed_out(machine: Machine, where: str) -> None:
    """The request is left over, nothing of it is in the reply, and its neighbours are served."""
    machine.put(0, 10, 3, 0)
    machine.put(20, 1, 4, 0)
    block = {"first": 0, "middle": 5, "last": 9, "unaligned": 9}[where]
    machine.disk[block * BLOCK + machine.rng.randrange(BLOCK)] ^= 1 << machine.rng.randrange(8)
    ranges = [(20 * BLOCK, BLOCK), (0, 10 * BLOCK), (100 * BLOCK, 512), (20 * BLOCK, 512)]
    if where == "unaligned":
        ranges[1] = (9 * BLOCK + 512, 512)
    left, answer = machine.ask(*ranges)

    assert list(left) == [1]
    assert answer == machine.expected(left, *ranges)
    assert machine.path.mismatches == 1
    assert (machine.path.reads_served, machine.path.reads_deferred) == (3, 1)


def test_any_flipped_bit_is_noticed(machine: Machine) -> None:
    """In any byte of any block that is read."""
    machine.put(0, 4, 3, 0)
    for _ in range(200):
        at, bit = machine.rng.randrange(4 * BLOCK), 1 << machine.rng.randrange(8)
        machine.disk[at] ^= bit
        assert list(machine.ask((0, 4 * BLOCK))[0]) == [0], at
        machine.disk[at] ^= bit


def test_a_chunk_without_a_place_is_left_over(machine: Machine) -> None:
    """The slow path learns where it is; then reads are fast."""
    machine.put(0, 2, 3, 0)
    machine.put(1, 1, 4, 0)
    place = machine.places.pop(4)
    left, answer = machine.ask((0, BLOCK), (0, 2 * BLOCK), (BLOCK, 512))
    assert list(left) == [1, 2]
    assert answer == machine.expected(left, (0, BLOCK))
    machine.places[4] = place

    assert list(machine.ask((0, 2 * BLOCK))[0]) == []


def test_what_is_not_in_memory_is_left_over(machine: Machine) -> None:
    """Blocks outside the page cache, and an error that the slow path will tell."""
    machine.put(0, 8, 3, 0)
    machine.cold.add(5 * BLOCK)
    left, answer = machine.ask((0, 8 * BLOCK), (0, 5 * BLOCK))
    assert (list(left), answer) == ([0], machine.expected([0], (0, 0), (0, 5 * BLOCK)))
    machine.error = OSError(errno.EIO, "planned")

    left, answer = machine.ask((0, BLOCK), (100 * BLOCK, BLOCK), (BLOCK, 512))
    assert list(left) == [0, 2]
    assert answer == machine.expected(left, (0, BLOCK), (100 * BLOCK, BLOCK), (BLOCK, 512))


def test_large_reads_are_left_over(machine: Machine) -> None:
    """2 MiB is served at once, a block more would hold up the others."""
    blocks = 512
    assert list(machine.ask((0, blocks * BLOCK))[0]) == []
    assert list(machine.ask((0, blocks * BLOCK + 512))[0]) == [0]
    assert list(machine.ask((512, blocks * BLOCK))[0]) == [0]


def cold_machine(rng: random.Random) -> Machine:
    """Return a machine whose middle leaf is stored and not in memory."""
    machine = Machine(rng)
    machine.put(1030, 1, 3, 0)
    blocks = machine.blocks
    blocks.begin_checkpoint()
    page = blocks.encode_leaf(1)
    assert page is not None
    blocks.leaf_written(1, 9, 8000, len(page), checksum(page))
    blocks.evict(0)
    assert [place[0] for place in blocks.missing(0, BLOCKS)] == [1]
    return machine


def test_leaves_that_are_not_in_memory_are_left_over(rng: random.Random) -> None:
    """Also when only the last block of a read is in one."""
    machine = cold_machine(rng)
    left, _ = machine.ask((1030 * BLOCK, BLOCK), (1023 * BLOCK, 2 * BLOCK), (1023 * BLOCK, BLOCK))

    assert list(left) == [0, 1]


def test_requests_outside_the_batch_are_refused(machine: Machine) -> None:
    """Memory behind it is not looked at."""
    batch = batch_of(request_bytes(READ, 0, 512))
    record = RecordBuilder(limits.MIB, 8)
    for first, stop in ((0, 2), (-1, 1)):
        with pytest.raises(ValueError, match="of 1"):
            machine.path.read_now(batch, first, stop, ReplyBuilder())
        with pytest.raises(ValueError, match="of 1"):
            machine.path.take_writes(batch, first, stop, 0, record, limits.MIB)


# --- writes -----------------------------------------------------------------------------


def writes(machine: Machine, *ranges: tuple[int, int]) -> tuple[RequestBatch, bytes]:
    """Return a batch of WRITEs of whole blocks (block, count), and all their bytes."""
    payloads = [machine.rng.randbytes(count * BLOCK) for _, count in ranges]
    requests = [
        request_bytes(WRITE, block * BLOCK, count * BLOCK, payload=payload)
        for (block, count), payload in zip(ranges, payloads, strict=True)
    ]
    return batch_of(*requests), b"".join(payloads)


def test_a_batch_becomes_one_record(machine: Machine) -> None:
    """In the order in which it arrived, without a copy of the payloads."""
    ranges = [(5, 2), (100, 1), (5, 1), (1023, 3)]
    batch, data = writes(machine, *ranges)
    record = RecordBuilder(limits.MIB, 8)

    assert machine.path.take_writes(batch, 0, 4, 0, record, limits.MIB) == (4, 0)
    assert record.extent_list() == [(block, count, False) for block, count in ranges]
    record.finish(KIND_DATA, (1, 1, 0, 1), 0, 1, 0, 512)
    assert record.tobytes()[record.header_bytes :] == data


@pytest.mark.parametrize("chunk_room", [BLOCK + 512, 4 * BLOCK, 5 * BLOCK - 512, 20 * BLOCK])
@pytest.mark.parametrize("extents", [1, 2, 8])
def test_writes_are_split_over_records(machine: Machine, chunk_room: int, extents: int) -> None:
    """Every byte is taken once, in order, whatever the chunks and records have room for."""
    ranges = [(0, 1), (10, 5), (40, 2), (50, 1), (60, 4)]
    batch, data = writes(machine, *ranges)
    record = RecordBuilder(16 * BLOCK, extents)
    index = skip = 0
    taken, places = b"", []
    while index < len(ranges):
        record.clear()
        index, skip = machine.path.take_writes(batch, index, len(ranges), skip, record, chunk_room)
        size = record.finish(KIND_DATA, (1, 1, 0, 1), 0, 1, 0, 512)
        assert size <= chunk_room
        reader = RecordReader(record.tobytes(), (1, 1, 0, 1), 512, 0)
        assert reader.advance()
        taken += reader.payload()
        places += [block + n for block, count, _ in reader.extent_list() for n in range(count)]

    assert skip == 0
    assert taken == data
    assert places == [block + n for block, count in ranges for n in range(count)]


def test_a_full_chunk_takes_nothing(machine: Machine) -> None:
    """The record stays empty: the volume begins another chunk."""
    batch, _ = writes(machine, (0, 1))
    record = RecordBuilder(limits.MIB, 8)

    assert machine.path.take_writes(batch, 0, 1, 0, record, BLOCK) == (0, 0)
    assert record.empty


def test_a_leaf_that_is_not_in_memory_stops_writes(rng: random.Random) -> None:
    """Those before it are taken; it is the next one's turn on the slow path."""
    machine = cold_machine(rng)
    for ranges, taken in (
        ([(0, 1), (1024, 1), (0, 1)], 1),
        ([(1023, 2), (0, 1)], 0),
        ([(1020, 4), (2048, 1), (2047, 1)], 2),
    ):
        batch, _ = writes(machine, *ranges)
        record = RecordBuilder(limits.MIB, 8)

        assert machine.path.take_writes(batch, 0, len(ranges), 0, record, limits.MIB) == (taken, 0)
        assert record.extent_list() == [(block, n, False) for block, n in ranges[:taken]]


# --- checking what the slow path read -----------------------------------------------------


def test_first_wrong_names_the_block(rng: random.Random) -> None:
    """Within the range that is asked for only."""
    data = bytearray(rng.randbytes(6 * BLOCK))
    crcs = block_checksums(data)
    assert first_wrong(data, 0, crcs, 6) == -1
    data[3 * BLOCK + 17] ^= 4
    data[5 * BLOCK] ^= 1

    found = [first_wrong(data, *span) for span in ((0, crcs, 6), (0, crcs, 3), (4, crcs, 2))]
    assert found == [3, -1, 5]
    assert first_wrong(data, 6, crcs, 0) == -1


@pytest.mark.parametrize(
    ("first", "count"), [(-1, 1), (0, 7), (6, 1), (7, 0), (0, -1), (2**62, 2**62), (1, 2**63 - 1)]
)
def test_first_wrong_stays_inside(first: int, count: int) -> None:
    """Numbers that wrap around included."""
    with pytest.raises(ValueError, match="CRCs"):
        first_wrong(bytes(6 * BLOCK), first, bytes(24), count)
    with pytest.raises(ValueError, match="CRCs"):
        first_wrong(bytes(6 * BLOCK), 0, bytes(20), 6)
