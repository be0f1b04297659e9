"""Which blocks of a map cannot be read: exactly those, whatever lies beside them."""

import random

from tests.crash.test_bit_rot import attach_to
from tests.rot import place_of
from tests.unit.cluster.replicas import BLOCK, Replicas, SimNode, run
from torus import limits
from torus.ids import ChunkId
from torus.volume.readable import Bad, MapReader
from torus.volume.snapshot_map import SnapshotMap, open_snapshot

SEED = 12
COUNT = 10  # blocks of one write


def flip(node: SimNode, chunk: ChunkId, block: bytes) -> None:
    """Flip a bit of a block, wherever it lies in a chunk's slot."""
    data, at = place_of(node.store, node.disk, chunk)
    found = bytes(data).find(block, at)
    assert found >= 0
    data[found + 99] ^= 4


def blocks_of(bad: list[Bad]) -> list[tuple[int, int, bool]]:
    """Return what is told of where."""
    return [(one.block, one.count, one.known) for one in bad]


def test_bad_blocks_are_told_from_their_neighbours_and_shared_by_snapshots() -> None:
    """A run of blocks in one record: those that rot in all copies are listed, joined, for each
    side that has them at the same place; those that one copy has right are not."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3)
        one = await attach_to(replicas, "one", 1)
        data = random.Random(SEED).randbytes(COUNT * BLOCK)
        await one.volume.write(0, data, durable=True)
        chunk = one.volume.core.journal.chunk
        older = await one.snapshot("older", 0)
        await one.volume.write(7 * BLOCK, random.Random(1).randbytes(BLOCK), durable=True)
        newer = await one.snapshot("newer", 0)
        nodes = list(replicas.nodes.values())
        for number in (3, 4, 7):
            for node in nodes:
                flip(node, chunk, data[number * BLOCK : (number + 1) * BLOCK])
        for number, node in enumerate(nodes):  # each has lost another one
            flip(node, chunk, data[number * BLOCK : (number + 1) * BLOCK])
        spec = (await replicas.catalog.get("one")).spec
        views: list[SnapshotMap] = []
        for snapshot in (newer, older):
            chunks = replicas.pool().chunks_of(spec)
            views.append(await open_snapshot(replicas.catalog, chunks, snapshot, limits.MIB))
        read: list[int] = []
        reader = MapReader(read.append)
        first = await reader.read(views[0], None, ())
        assert blocks_of(first.bad) == [(3, 2, True)]
        assert first.mapped_blocks == COUNT
        second = await reader.read(views[1], views[0], first.bad)
        assert blocks_of(second.bad) == [(3, 2, True), (7, 1, True)]
        assert second.mapped_blocks == 1, "what both have at the same place is read once"
        assert sum(read) == (COUNT + 1) * BLOCK
        for node in nodes:
            node.kill()
            replicas.view.set_down(node.disk_id)
        alone = await MapReader(read.append).read(views[1], None, ())
        assert blocks_of(alone.bad) == [(0, COUNT, False)], "silent disks: not known, not lost"

    run(SEED, scenario, nodes="abc")
