"""Chunks that become shards: every owner makes its own, whole copies go when all are there."""

import pytest

from tests.unit.upkeep.town import Town, Volume, run
from torus.ids import ChunkId, is_shard, shard_id
from torus.redundancy.scheme import Scheme, erasure, replica
from torus.store.content import FIRST
from torus.testing.simdisk import SMALL

DISKS = [letter * 32 for letter in "01234567"]
SCHEME = erasure(4, 2)


def check_shards(town: Town, volume: Volume) -> None:
    """Every chunk has all its shards, each on another owner, and nothing else."""
    scheme = volume.scheme
    for chunk in volume.chunks:
        shards = town.shards(chunk, scheme)
        owners = town.owners(chunk, scheme.shards)
        assert sorted(shards) == sorted(owners), f"chunk {chunk}"
        assert sorted(n for some in shards.values() for n in some) == list(range(scheme.shards))
        assert town.holders(chunk) == []
    parts = [one for house in town.houses.values() for one in house.store.chunks()]
    assert len(parts) == scheme.shards * len(volume.chunks)


def check_made(town: Town, volume: Volume) -> None:
    """Every chunk that lives has all its shards and no whole copy."""
    for chunk in volume.chunks:
        made = [n for some in town.shards(chunk, volume.scheme).values() for n in some]
        assert sorted(made) == list(range(volume.scheme.shards))
        assert town.holders(chunk) == []


def check_settled(town: Town) -> None:
    """Nobody has anything to do."""
    for house in town.houses.values():
        if house.up:
            assert house.upkeep.settled(), house.upkeep.progress
            assert house.upkeep.progress.surplus_bytes == 0
            assert house.upkeep.progress.encoding_bytes == 0
            assert house.upkeep.progress.unfinished == {}


@pytest.mark.parametrize("scheme", [erasure(4, 2), erasure(2, 1), erasure(3, 3)])
@pytest.mark.parametrize("disks", [6, 8])
def test_closed_span_becomes_shards(scheme: Scheme, disks: int) -> None:
    """Whole copies are gone in the end, and every shard is where the ring wants it."""

    async def scenario() -> None:
        town = Town(1, DISKS[:disks])
        volume = await town.volume(0, scheme)
        await town.write(volume, 8, records=2)
        await town.rounds(20)
        check_shards(town, volume)
        check_settled(town)
        lists = town.traffic.lists
        await town.rounds()
        assert town.traffic.lists == lists, "a second round asks nobody"

    run(scenario)


def test_open_span_becomes_shards_up_to_where_a_takeover_reads() -> None:
    """What is behind that is not touched."""

    async def scenario() -> None:
        town = Town(1, DISKS[:6])
        volume = await town.volume(0, SCHEME)
        chunks = await town.write(volume, 20, closed=False)
        await town.rounds()
        assert not any(map(is_shard, _parts(town)))
        volume.replay = chunks[12].sequence
        await town.publish(volume)
        await town.rounds(20)
        for chunk in chunks:
            made = {n for some in town.shards(chunk, SCHEME).values() for n in some}
            assert len(made) == (6 if chunk.sequence < volume.replay else 0)
            assert len(town.holders(chunk)) == (0 if chunk.sequence < volume.replay else 3)

    run(scenario)


def _parts(town: Town) -> list[ChunkId]:
    return [one for house in town.houses.values() for one in house.store.chunks()]


def test_lost_disk_its_shards_are_made_again_and_nothing_else_moves() -> None:
    """One part of each chunk, of K others."""

    async def scenario() -> None:
        town = Town(2, DISKS[:7])
        volume = await town.volume(0, SCHEME)
        await town.write(volume, 8)
        await town.rounds(20)
        lost = DISKS[0]
        mine = [one for one in town.houses[lost].store.chunks() if is_shard(one)]
        town.view.set_down(lost)
        await town.rounds()
        up = [house for house in town.houses.values() if house.up]
        degraded = sum(one.upkeep.progress.degraded_bytes.get(2, 0) for one in up)
        assert degraded == len(mine) * SMALL.slot_bytes
        town.set_ring(DISKS[1:7])
        before = sum(house.upkeep.progress.pulled_chunks for house in up)
        await town.rounds(20)
        del town.houses[lost]
        check_shards(town, volume)
        check_settled(town)
        made = sum(house.upkeep.progress.pulled_chunks for house in up) - before
        assert made == len(mine) > 0

    run(scenario)


def test_two_disks_lost_before_they_had_shards() -> None:
    """One whole copy is enough to make them all."""

    async def scenario() -> None:
        town = Town(3, DISKS)
        volume = await town.volume(0, SCHEME)
        await town.write(volume, 8)
        town.view.set_down(*DISKS[:2])
        await town.rounds()
        town.set_ring(DISKS[2:])
        await town.rounds(20)
        for disk in DISKS[:2]:
            del town.houses[disk]
        check_shards(town, volume)
        check_settled(town)

    run(scenario)


def test_disk_that_was_away_comes_back_to_its_shards() -> None:
    """Its old shards are used again, and what is too much goes."""

    async def scenario() -> None:
        town = Town(4, DISKS[:7])
        volume = await town.volume(0, SCHEME)
        await town.write(volume, 8)
        await town.rounds(20)
        town.view.set_down(DISKS[0])
        town.set_ring(DISKS[1:7])
        await town.rounds(20)
        town.houses[DISKS[0]].restart()
        town.set_ring(DISKS[:7])
        await town.rounds(30)
        check_shards(town, volume)
        check_settled(town)

    run(scenario)


def test_chunks_are_deleted_while_a_disk_is_away() -> None:
    """What it still has is not made into shards again."""

    async def scenario() -> None:
        town = Town(5, DISKS[:6])
        volume = await town.volume(0, SCHEME)
        chunks = await town.write(volume, 150, records=1)
        gone = DISKS[0]
        town.view.set_down(gone)
        await town.delete(chunks[:10])
        town.houses[gone].restart()
        await town.rounds(20)
        left = [one for one in chunks[:10] if gone in town.owners(one, SCHEME.copies)]
        assert town.strangers() == set(left)
        assert set(town.houses[gone].store.chunks()) >= set(left)
        assert not any(map(is_shard, town.strangers()))
        suspects = max(one.upkeep.progress.suspect_chunks for one in town.houses.values())
        assert suspects == len(left) > 0
        check_made(town, volume)

    run(scenario)


def test_rotten_shard_is_made_again() -> None:
    """The table of a shard finds it out when somebody asks, and others are enough to mend it."""

    async def scenario() -> None:
        town = Town(6, DISKS[:6])
        volume = await town.volume(0, SCHEME)
        [chunk, *_] = await town.write(volume, 3)
        await town.rounds(20)
        owner = town.owners(chunk, 6)[1]
        [number] = town.shards(chunk, SCHEME)[owner]
        shard = shard_id(chunk, number)
        house = town.houses[owner]
        house.rot(shard, FIRST + 3584 + 100)
        assert owner not in town.shards(chunk, SCHEME)
        house.upkeep.doubt(shard)
        await town.rounds(20)
        check_shards(town, volume)
        check_settled(town)

    run(scenario)


def test_shard_of_rotten_bytes_does_not_let_whole_copies_go() -> None:
    """A data shard is made of its own range: rot there is found by whoever has the whole."""

    async def scenario() -> None:
        town = Town(7, DISKS[:6])
        volume = await town.volume(0, SCHEME)
        [chunk, *_] = await town.write(volume, 3)
        taker = town.owners(chunk, 6)[3]
        houses = {disk: house for disk, house in town.houses.items() if disk == taker}
        assert town.houses[taker].content(chunk) is None
        # It is read right for the checksum, and rotten for the shard.
        read = town.houses[taker].upkeep._work.shard_puller._read
        spoilt = []

        async def rotten(disk: str, part: ChunkId, offset: int, size: int, pulled: object):  # type: ignore[no-untyped-def]
            [piece] = await read(disk, part, offset, size, pulled)  # type: ignore[arg-type]
            if part == chunk and not spoilt:
                spoilt.append(part)
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            return [piece]

        houses[taker].upkeep._work.shard_puller._read = rotten  # type: ignore[method-assign]
        await town.rounds(30)
        assert spoilt
        check_shards(town, volume)
        check_settled(town)

    run(scenario)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (replica(3), erasure(4, 2)),
        (erasure(4, 2), replica(3)),
        (replica(1), erasure(2, 2)),
        (erasure(2, 1), replica(1)),
        (replica(1), replica(3)),
        (erasure(4, 2), erasure(2, 1)),
        (erasure(2, 1), erasure(4, 2)),
        (erasure(4, 2), erasure(4, 3)),
    ],
)
def test_volume_is_converted(first: Scheme, second: Scheme) -> None:
    """By upkeep alone, without a step in which a chunk bears fewer losses than the lesser."""

    async def scenario() -> None:
        town = Town(8, DISKS)
        volume = await town.volume(0, first)
        await town.write(volume, 12)
        await town.rounds(20)
        await town.convert(volume, second)
        least = min(first.copies, second.copies)
        for _ in range(40):
            await town.rounds(1)
            assert all(town.good(chunk) >= least for chunk in volume.chunks)
        if second.erasure:
            check_shards(town, volume)
        else:
            assert town.misplaced() == []
            assert not any(map(is_shard, _parts(town)))
        check_settled(town)

    run(scenario)


def test_chunk_that_is_too_long_for_shards_stays_in_copies() -> None:
    """It was written before chunks left room."""

    async def scenario() -> None:
        town = Town(9, DISKS[:6])
        volume = await town.volume(3)
        long = await town.write(volume, 4, records=6)
        await town.rounds(20)
        await town.convert(volume, SCHEME)
        await town.rounds(20)
        for chunk in long:
            assert town.holders(chunk) == sorted(town.owners(chunk, 3))
        assert not any(map(is_shard, _parts(town)))
        check_settled(town)
        town.view.set_down(DISKS[0])
        town.set_ring(DISKS[1:6])
        await town.rounds(20)
        assert all(town.good(chunk) >= 3 for chunk in long), "they are copied on"

    run(scenario)


def test_long_chunks_of_a_converted_volume_leave_who_is_to_have_no_part() -> None:
    """A disk that is to have no shard never tries to make one: it finds out by its own copy."""

    async def scenario() -> None:
        town = Town(5, DISKS[:6])
        volume = await town.volume(3)
        await town.write(volume, 12, records=7)  # more than two shards of a small slot hold
        await town.rounds()

        town.set_ring(DISKS[2:6])
        await town.convert(volume, erasure(2, 1))
        await town.rounds(30)

        assert town.misplaced() == []

    run(scenario)
