"""Reads of many pieces: the disk gets them all at once."""

import asyncio
import random
from collections.abc import Sequence

from torus.testing.simdisk import SimDisk
from torus.testing.world import World


class Expecting(SimDisk):
    """Notes what is expected, and that nothing was read before."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[tuple[int, int]] = []

    def expect(self, reads: Sequence[tuple[int, int]]) -> None:
        self.expected += reads


def test_many_pieces_are_expected_before_they_are_read() -> None:
    async def scenario() -> None:
        disk = Expecting()
        world = World(random.Random(1), disk=disk)
        world.store.open()
        disk.make_segment(0, b"", 4 * disk.geometry.slot_bytes)
        disk.open_segment(0)
        reads = [(0, 512), (disk.geometry.slot_bytes, 4096)]

        found = await world.store.read(reads)

        assert [len(piece) for piece in found] == [512, 4096]
        assert disk.expected == reads
        await world.store.read(reads[:1])
        assert disk.expected == reads, "one piece needs no advice"
        await world.store.close()

    asyncio.run(scenario())
