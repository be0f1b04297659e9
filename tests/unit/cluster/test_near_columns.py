"""Lost columns that are made of files of this host: right ones, or none."""

import random
from typing import Any, cast

import pytest

from tests.unit.cluster.replicas import Replicas, SimNode, block, run
from tests.unit.cluster.test_replicated import read_back
from tests.unit.cluster.test_sharded_reads import (
    NODES,
    blocks_of,
    place_of,
    settled,
    shard_reads,
)
from torus import limits
from torus.cluster.near_columns import NearColumns
from torus.cluster.shard_places import Content, Shards
from torus.format.shard import DESCRIPTOR_BYTES, PAYLOAD_OFFSET, content_max, payload_bytes
from torus.ids import ChunkId, shard_id
from torus.redundancy.scheme import erasure
from torus.redundancy.stripe import Stripe
from torus.store.content import FIRST
from torus.testing.simdisk import SMALL
from torus.upkeep.shard_content import make_shard

SCHEME = erasure(4, 2)
CHUNK = ChunkId(5, 2, 0, 7)
EACH = payload_bytes(SCHEME.data, SMALL.slot_bytes)
STRIPE = Stripe(SCHEME.data, SCHEME.parity, EACH)
BLOCK = limits.BLOCK_BYTES


class Host:
    """The shards of one chunk in files; stale bytes lie where nothing is stored."""

    def __init__(self, size: int, *, known: bool = True) -> None:
        rng = random.Random(size)
        self.content = rng.randbytes(size)
        self.disks = {number: f"disk{number}" for number in range(SCHEME.shards)}
        self.cells: dict[ChunkId, bytearray] = {}
        for number in self.disks:
            shard = make_shard(CHUNK, self.content, SCHEME, number, SMALL.slot_bytes)
            payload = shard[DESCRIPTOR_BYTES:]
            payload += rng.randbytes(EACH - len(payload))
            self.cells[shard_id(CHUNK, number)] = bytearray(bytes(PAYLOAD_OFFSET) + payload)
        self.order = list(self.cells)
        self.asked: list[ChunkId] = []
        self.reads = 0
        content = Content(FIRST + size, 0) if known else None
        self.shards = Shards(SCHEME, self.disks, content)
        self.near = NearColumns(self, self.address, cast("Any", self))

    def get(self, _chunk: ChunkId) -> Shards:
        """Return what is known of the chunk."""
        return self.shards

    def address(self, part: ChunkId, disk: str) -> int | None:
        """Return where a cell begins; a place is given out as often as it is asked for."""
        assert self.disks[self.order.index(part)] == disk
        self.asked.append(part)
        return self.order.index(part) << 32 if part in self.cells else None

    def read(self, address: int, size: int) -> bytes | None:
        """Read a file."""
        self.reads += 1
        number, at = divmod(address, 1 << 32)
        return bytes(self.cells[self.order[number]][at : at + size])

    def piece(self, at: int, size: int, *, without: tuple[int, ...]) -> bytes | None:
        """Return a piece of the content that was made without the disks of these shards."""
        up = {number: disk for number, disk in self.disks.items() if number not in without}
        wanted = self.content[at : at + size].ljust(size, b"\0")
        return self.near.read((CHUNK, FIRST + at, size), (STRIPE, up), wanted.__eq__)


@pytest.mark.parametrize("lost", [(0,), (2,), (0, 1), (3, 5), (4, 5)])
def test_every_piece_is_made_without_any_two_shards(lost: tuple[int, ...]) -> None:
    """Also pieces that cross shards, and those of which no shard is lost."""
    host = Host(content_max(SCHEME.data, SMALL.slot_bytes))
    for at in (0, 512, EACH - 2048, EACH, 2 * EACH - 4096, 3 * EACH + 512):
        assert host.piece(at, BLOCK, without=lost) == host.content[at : at + BLOCK]
    assert host.piece(EACH - 512, EACH + 1024, without=lost) is not None


def test_too_few_shards_make_nothing() -> None:
    """K - 1 do not."""
    host = Host(4 * EACH)
    assert host.piece(0, BLOCK, without=(0, 1, 2)) is None


def test_places_are_asked_for_once_and_others_are_taken_meanwhile() -> None:
    """A shard whose place is not known yet is one that cannot be had."""
    host = Host(4 * EACH)
    away = host.cells.pop(host.order[1])
    assert host.piece(0, BLOCK, without=(0,)) == host.content[:BLOCK]
    assert host.order[1] in host.asked
    host.cells[host.order[1]] = away
    host.asked.clear()
    assert host.piece(0, BLOCK, without=(0,)) == host.content[:BLOCK]
    assert host.piece(BLOCK, BLOCK, without=(0,)) == host.content[BLOCK : 2 * BLOCK]
    assert host.asked == [host.order[1]]


@pytest.mark.parametrize("size", [EACH // 2, EACH + 700, 3 * EACH - 5000])
def test_what_is_stored_nowhere_is_zeroes(size: int) -> None:
    """Whatever lies there: bytes of a shard that had the cell before."""
    host = Host(size)
    for at in range(0, size - 512, 512 * 3):
        wanted = min(BLOCK, size - at)
        for lost in (0, 1, 2):
            assert host.piece(at, wanted, without=(lost,)) is not None, (at, lost)


def test_wrong_bytes_are_none_and_places_are_forgotten() -> None:
    """The cell has another shard by now, or rotted: the check of the map tells."""
    host = Host(4 * EACH)
    assert host.piece(0, BLOCK, without=(0,)) is not None
    host.cells[host.order[2]][PAYLOAD_OFFSET + 7] ^= 1
    host.asked.clear()
    assert host.piece(0, BLOCK, without=(0,)) is None
    assert not host.asked
    host.cells[host.order[2]][PAYLOAD_OFFSET + 7] ^= 1
    assert host.piece(0, BLOCK, without=(0,)) is not None
    assert len(host.asked) == SCHEME.data


def test_a_short_chunk_of_which_nothing_is_known_is_read_the_long_way() -> None:
    """Stale bytes would be taken for columns; the check tells."""
    assert Host(EACH // 2, known=False).piece(0, BLOCK, without=(0,)) is None


def test_a_piece_that_is_in_no_shard_is_none() -> None:
    """Before the records, or behind what shards hold."""
    host = Host(4 * EACH)
    assert host.near.read((CHUNK, 0, BLOCK), (STRIPE, host.disks), lambda _: True) is None
    behind = FIRST + 4 * EACH - 512
    assert host.near.read((CHUNK, behind, 1024), (STRIPE, host.disks), lambda _: True) is None


def test_a_volume_is_read_without_a_node_and_without_asking_anybody() -> None:
    """What is read of a lost disk comes from the others' files, at once."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, nodes = await settled(replicas)
        reads = shard_reads(attachment)
        by_disk = {node.disk_id: node for node in replicas.nodes.values()}
        places: list[tuple[SimNode, int]] = []

        class Files:
            def read(self, address: int, size: int) -> bytes | None:
                node, at = places[address >> 32]
                found: bytes = node.disk.read(at + (address & 0xFFFFFFFF), size)
                return found

        def address(part: ChunkId, disk: str) -> int | None:
            cell = by_disk[disk].store.find(part)
            if cell is None:
                return None
            places.append((by_disk[disk], cell.address))
            return len(places) - 1 << 32

        reads.near = NearColumns(Files(), address, reads.places)
        [number, *_] = blocks_of(attachment, chunks[0])
        shard, _ = place_of(attachment, number)
        nodes[chunks[0]][shard].kill()
        replicas.view.set_down(nodes[chunks[0]][shard].disk_id)
        await read_back(attachment.volume, number)  # the map's pages, maybe
        for node in replicas.nodes.values():
            node.asked.clear()
        before = reads.degraded
        future = attachment.volume.read_soon(number * BLOCK, BLOCK)
        assert future is not None
        assert future.done()
        assert future.result() == block(number)
        assert reads.degraded == before + 1
        assert [kind for node in replicas.nodes.values() for kind in node.asked] == []

    run(3, scenario, nodes=NODES)
