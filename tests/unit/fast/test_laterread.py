"""Reads planned by the data path and carried out in a thread: right bytes, or none at all."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from torus import limits
from torus._fast.blockio import FileIo, ManyIo, PythonIo
from torus._fast.blockmap import BlockMap
from torus._fast.crc import block_checksums
from torus._fast.datapath import Datapath

BLOCK = limits.BLOCK_BYTES
HEADER = 4096
CHUNK_BLOCKS = 32
SEGMENT = 2 * CHUNK_BLOCKS * BLOCK
BLOCKS = 2500


class Machine:
    """Two segment files of two chunks each, a map over them, and what a volume would hold."""

    def __init__(self, folder: Path) -> None:
        self.rng = random.Random(7)
        self.content = bytearray(BLOCKS * BLOCK)
        self.blocks = BlockMap(BLOCKS, limits.MIB)
        self.io = FileIo(SEGMENT, HEADER)
        self.fds: list[int] = []
        self.places: dict[int, int | tuple[int | None, ...]] = {}
        for number in range(2):
            fd = os.open(folder / str(number), os.O_RDWR | os.O_CREAT)
            os.write(fd, self.rng.randbytes(HEADER + SEGMENT))
            self.io.set_file(number, fd)
            self.fds.append(fd)
        for sequence in range(1, 5):
            self.blocks.open_sequence(sequence)
            self.places[sequence] = (sequence - 1) * CHUNK_BLOCKS * BLOCK
        self.path = Datapath(self.blocks, self.io, self.places)

    def put(self, block: int, count: int, sequence: int, at: int) -> None:
        """Map blocks to the ``at``-th block of a chunk and what follows."""
        segment, within = divmod((sequence - 1) * CHUNK_BLOCKS + at, 2 * CHUNK_BLOCKS)
        data = os.pread(self.fds[segment], count * BLOCK, HEADER + within * BLOCK)
        self.blocks.set(block, block_checksums(data), sequence, at * 8)
        self.content[block * BLOCK : (block + count) * BLOCK] = data

    def read(self, block: int, count: int) -> bytes | None:
        later = self.path.later(block, count)
        assert later is not None
        return later.run()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for fd in machine.fds:
        os.close(fd)


def test_random_maps_agree_with_the_model(machine: Machine) -> None:
    """Runs, holes, chunks, segments and leaves, in whatever order."""
    rng = machine.rng
    for _ in range(200):
        for _ in range(rng.randrange(5)):
            count = rng.choice([1, 1, 2, 7, CHUNK_BLOCKS])
            block = rng.choice([rng.randrange(60), 1020 + rng.randrange(8), 2040])
            machine.put(block, count, rng.randint(1, 4), rng.randrange(CHUNK_BLOCKS - count + 1))
        block, count = rng.choice([0, 1000, 2030]), rng.randint(1, 120)
        expected = machine.content[block * BLOCK : (block + count) * BLOCK]

        assert machine.read(block, count) == expected


def test_adjacent_runs_of_one_file_are_one_piece_and_all_of_it_is_checked(
    machine: Machine,
) -> None:
    """A wrong byte in any block of a long read makes all of it be read again elsewhere."""
    machine.put(0, CHUNK_BLOCKS, 1, 0)
    machine.put(CHUNK_BLOCKS, CHUNK_BLOCKS, 2, 0)
    for block in (0, 1, CHUNK_BLOCKS - 1, CHUNK_BLOCKS, 2 * CHUNK_BLOCKS - 1):
        at = HEADER + block * BLOCK + machine.rng.randrange(BLOCK)
        [byte] = os.pread(machine.fds[0], 1, at)
        os.pwrite(machine.fds[0], bytes([byte ^ 1]), at)

        assert machine.read(0, 2 * CHUNK_BLOCKS) is None, block
        os.pwrite(machine.fds[0], bytes([byte]), at)
    assert machine.read(0, 2 * CHUNK_BLOCKS) == machine.content[: 2 * CHUNK_BLOCKS * BLOCK]


def test_a_file_that_ends_early_or_is_no_file_is_left_to_the_long_way(machine: Machine) -> None:
    """Nobody is told an error here: the long way meets it, and knows what it means."""
    machine.put(0, 2, 1, 0)
    later = machine.path.later(0, 2)
    assert later is not None
    os.ftruncate(machine.fds[0], HEADER + 2 * BLOCK - 1)
    assert later.run() is None
    machine.fds.append(os.open("/", os.O_RDONLY))
    machine.io.set_file(0, machine.fds[-1])  # reading a folder is an error

    assert machine.read(0, 2) is None


def test_what_cannot_be_planned_is_said_at_once(machine: Machine) -> None:
    """A place that is not known, in shards or in no file; a range that is none."""
    machine.put(0, 2, 1, 0)
    machine.put(2, 2, 3, 0)
    assert machine.path.later(0, 4) is not None
    machine.io.set_file(1, -1)
    assert machine.path.later(0, 4) is None
    assert machine.path.later(0, 2) is not None
    machine.places[1] = (4 * BLOCK, 0, BLOCK)
    assert machine.path.later(0, 2) is None
    del machine.places[1]
    assert machine.path.later(0, 2) is None
    machine.places[1] = 9 * SEGMENT
    assert machine.path.later(0, 2) is None
    assert Datapath(machine.blocks, PythonIo(machine), {1: 0}).later(0, 2) is None
    for count in (0, -1):
        with pytest.raises(ValueError, match="a read of"):
            machine.path.later(0, count)
    assert machine.path.later(BLOCKS - 1, 2) is None


def test_several_disks_are_told_apart(machine: Machine) -> None:
    """The top byte of an address says which."""
    many = ManyIo()
    many.set_part(0, PythonIo(machine))
    many.set_part(1, machine.io)
    machine.put(5, 3, 4, 2)
    path = Datapath(machine.blocks, many, {4: 1 << 56 | 3 * CHUNK_BLOCKS * BLOCK})

    later = path.later(4, 5)
    assert later is not None
    assert later.run() == machine.content[4 * BLOCK : 9 * BLOCK]
    assert Datapath(machine.blocks, many, {4: 0}).later(5, 1) is None
    assert Datapath(machine.blocks, many, {4: 2 << 56}).later(5, 1) is None
