"""The scrub of shards: every kind of damage to a shard is told, and upkeep builds it anew."""

from collections.abc import Callable

import pytest

from tests.unit.upkeep.test_scrub import scrub_of, tour
from tests.unit.upkeep.town import House, Town, Volume, run
from torus.format.segment import FREED_SLOT
from torus.format.shard import PAYLOAD_OFFSET
from torus.ids import ChunkId, shard_id
from torus.redundancy.scheme import erasure
from torus.store.shelves import Cell
from torus.testing.simdisk import SMALL
from torus.upkeep.scrub_judge import Kind
from torus.upkeep.scrub_state import LOST, REPAIRED, WAITING

DISKS = [letter * 32 for letter in "abcdef"]
SCHEME = erasure(4, 2)
SEED = 8


def cell_of(house: House, shard: ChunkId) -> tuple[bytearray, int, Cell]:
    """Return the segment that a shard lies in, where its cell begins there, and the cell."""
    cell = house.store.find(shard)
    assert isinstance(cell, Cell)
    segment, at = divmod(cell.address, SMALL.segment_bytes)
    return house.disk.image.segments[segment], at, cell


def flip_cell_header(house: House, shard: ChunkId, _other: ChunkId) -> Kind:
    """Rot in the cell's header."""
    data, at, _ = cell_of(house, shard)
    data[at + 9] ^= 1
    return Kind.ROTTEN


def zero_cell_header(house: House, shard: ChunkId, _other: ChunkId) -> Kind:
    """The cell's header never arrived."""
    data, at, _ = cell_of(house, shard)
    data[at : at + 512] = bytes(512)
    return Kind.TORN


def free_cell_header(house: House, shard: ChunkId, _other: ChunkId) -> Kind:
    """The header from before the shard is back."""
    data, at, _ = cell_of(house, shard)
    data[at : at + 512] = FREED_SLOT
    return Kind.STALE


def flip_shelf_header(house: House, shard: ChunkId, _other: ChunkId) -> Kind:
    """Rot in the header of the slot that the cells are in."""
    data, _, cell = cell_of(house, shard)
    data[cell.shelf.slot.address % SMALL.segment_bytes + 9] ^= 1
    return Kind.ROTTEN


def flip_descriptor(house: House, shard: ChunkId, _other: ChunkId) -> Kind:
    """Rot in what describes the shard."""
    data, at, _ = cell_of(house, shard)
    data[at + 512 + 20] ^= 1
    return Kind.ROTTEN


def zero_descriptor(house: House, shard: ChunkId, _other: ChunkId) -> Kind:
    """What describes the shard never arrived."""
    data, at, _ = cell_of(house, shard)
    data[at + 512 : at + PAYLOAD_OFFSET] = bytes(PAYLOAD_OFFSET - 512)
    return Kind.TORN


def flip_column(house: House, shard: ChunkId, _other: ChunkId) -> Kind:
    """Rot in the payload."""
    data, at, _ = cell_of(house, shard)
    data[at + PAYLOAD_OFFSET + 100] ^= 1
    return Kind.ROTTEN


def tear_column(house: House, shard: ChunkId, _other: ChunkId) -> Kind:
    """The end of a column never arrived."""
    data, at, _ = cell_of(house, shard)
    data[at + PAYLOAD_OFFSET + 2048 : at + PAYLOAD_OFFSET + 4096] = bytes(2048)
    return Kind.TORN


def swap_shards(house: House, shard: ChunkId, other: ChunkId) -> Kind:
    """Two cells have each other's shards, headers and all."""
    data, at, cell = cell_of(house, shard)
    there, other_at, _ = cell_of(house, other)
    one, two = bytes(data[at : at + cell.room]), bytes(there[other_at : other_at + cell.room])
    data[at : at + cell.room], there[other_at : other_at + cell.room] = two, one
    return Kind.MISPLACED


HEADERS = (flip_cell_header, zero_cell_header, free_cell_header, flip_shelf_header)
CONTENTS = (flip_descriptor, zero_descriptor, flip_column, tear_column, swap_shards)


async def encoded() -> tuple[Town, Volume, list[ChunkId]]:
    """Return a town whose chunks lie in shards."""
    town = Town(SEED, DISKS)
    volume = await town.volume(0, SCHEME)
    chunks = await town.write(volume, 6)
    await town.rounds(20)
    return town, volume, chunks


def shard_on(town: Town, disk: str, chunk: ChunkId) -> ChunkId:
    """Return the shard of a chunk that lies on a disk."""
    [number] = town.shards(chunk, SCHEME)[disk]
    return shard_id(chunk, number)


@pytest.mark.parametrize("damage", HEADERS + CONTENTS, ids=lambda one: one.__name__)
def test_damaged_shard_is_told_and_repaired(
    damage: Callable[[House, ChunkId, ChunkId], Kind],
) -> None:
    """Headers come back from memory at once, shards from K others when upkeep has its turn."""

    async def scenario() -> None:
        town, _, chunks = await encoded()
        house = town.houses[DISKS[0]]
        shard, other = (shard_on(town, DISKS[0], chunk) for chunk in chunks[:2])
        kind = damage(house, shard, other)
        scrub = scrub_of(house)
        await tour(scrub, town)
        if damage in HEADERS:
            told = {one.part: (one.kind, one.state) for one in scrub.state.closed}
            assert not scrub.state.open
            shelved = {one for one in told if told[one] == (kind, REPAIRED)}
            assert shelved, told
        else:
            assert (scrub.state.open[shard].kind, scrub.state.open[shard].state) == (kind, WAITING)
            await town.rounds(20)
            await scrub.recheck()
            assert not scrub.state.open
            assert shard in {one.part for one in scrub.state.closed}
        house.restart()
        for chunk in chunks:
            assert DISKS[0] in town.shards(chunk, SCHEME)
        assert (await tour(scrub_of(house), town)).found == 0

    run(scenario)


def test_light_tour_restores_headers_of_shards() -> None:
    """Headers alone are read; rot behind them is left to the deep tour."""

    async def scenario() -> None:
        town, _, chunks = await encoded()
        house = town.houses[DISKS[0]]
        first, second = (shard_on(town, DISKS[0], chunk) for chunk in chunks[:2])
        zero_cell_header(house, first, second)
        flip_column(house, second, first)
        scrub = scrub_of(house)
        await tour(scrub, town, deep=False)
        assert [one.part for one in scrub.state.closed] == [first]
        assert not scrub.state.open
        await tour(scrub, town)
        assert list(scrub.state.open) == [second]

    run(scenario)


def test_more_shards_than_parity_is_lost_and_fewer_never() -> None:
    """M + 1 shards of a chunk rot: each disk says that it is lost; of another M rot: repaired."""

    async def scenario() -> None:
        town, _, chunks = await encoded()
        for number, chunk in ((3, chunks[0]), (2, chunks[1])):
            for disk in DISKS[:number]:
                flip_column(town.houses[disk], shard_on(town, disk, chunk), chunk)
        scrubs = [scrub_of(town.houses[disk]) for disk in DISKS[:3]]
        for scrub in scrubs:
            await tour(scrub, town)
        await town.rounds(20, check=False)
        for scrub in scrubs:
            await scrub.recheck()
        states = [{one.part.sequence: one.state for one in s.state.open.values()} for s in scrubs]
        assert states == [{chunks[0].sequence: LOST}] * 3
        assert len(town.shards(chunks[1], SCHEME)) == 6

    run(scenario)


def test_shards_of_silent_disks_are_waited_for() -> None:
    """M + 1 shards rot while a disk is down that has a good one: too few, and yet not lost."""

    async def scenario() -> None:
        town, _, chunks = await encoded()
        for disk in DISKS[:2]:
            flip_column(town.houses[disk], shard_on(town, disk, chunks[0]), chunks[0])
        town.view.set_down(DISKS[5])
        scrub = scrub_of(town.houses[DISKS[0]])
        await tour(scrub, town)
        other = scrub_of(town.houses[DISKS[1]])
        await tour(other, town)
        await scrub.recheck()
        assert [one.state for one in scrub.state.open.values()] == [WAITING]
        town.houses[DISKS[5]].open()
        await town.rounds(20)
        await scrub.recheck()
        assert scrub.state.open == {}

    run(scenario)
