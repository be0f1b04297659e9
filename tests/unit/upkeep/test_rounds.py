"""Rounds of several disks: copies come back, move, and go, and none is lost on the way."""

import asyncio
import random
from dataclasses import replace

import pytest

from tests.unit.upkeep.town import House, Town, Volume, run
from torus.ids import ChunkId
from torus.metadata.schema import RingHead
from torus.store.content import FIRST
from torus.testing.simdisk import SMALL, PowerLoss
from torus.upkeep.disk import Times

DISKS = [letter * 32 for letter in "abcdef"]


def test_settled_cluster_pulls_nothing() -> None:
    """Where everything lies right nothing is read from others."""

    async def scenario() -> None:
        town = Town(1, DISKS[:4])
        await town.write(await town.volume(2), 40)
        await town.rounds()
        assert town.traffic.read_bytes == 0
        assert all(house.upkeep.settled() for house in town.houses.values())
        lists = town.traffic.lists
        await town.rounds()
        assert town.traffic.lists == lists, "a second round asks nobody"

    run(scenario)


def test_lost_disk_copies_come_back_and_nothing_else_moves() -> None:
    """After a disk is lost and put out, every chunk has its copies again."""

    async def scenario() -> None:
        town = Town(1, DISKS[:4])
        volume = await town.volume(2)
        await town.write(volume, 40)
        await town.rounds()
        lost = DISKS[0]
        mine = [chunk for chunk in volume.chunks if lost in town.holders(chunk)]
        town.view.set_down(lost)
        await town.rounds()
        houses = [house for disk, house in town.houses.items() if disk != lost]
        degraded = [house.upkeep.progress.degraded_bytes for house in houses]
        assert sum(one.get(1, 0) for one in degraded) == len(mine) * houses[0].chunks.slot_bytes
        town.set_ring(DISKS[1:4])
        await town.rounds()
        del town.houses[lost]
        assert town.misplaced() == []
        pulled = sum(house.upkeep.progress.pulled_chunks for house in town.houses.values())
        assert pulled == len(mine) > 0
        assert all(house.upkeep.settled() for house in town.houses.values())

    run(scenario)


def test_rarest_chunks_come_first() -> None:
    """Chunks with one copy left are pulled before those with two."""

    async def scenario() -> None:
        town = Town(3, DISKS[:5])
        volume = await town.volume(3)
        await town.write(volume, 60)
        town.view.set_down(DISKS[0], DISKS[1])
        town.set_ring(DISKS[2:5])
        house = town.houses[DISKS[2]]
        before = {c: [d for d in town.holders(c) if d not in DISKS[:2]] for c in volume.chunks}
        order: list[ChunkId] = []
        install = house.chunks.install

        async def watched(chunk: ChunkId, epoch: int, end: int, content: bytes) -> None:
            order.append(chunk)
            await install(chunk, epoch, end, content)

        house.chunks.install = watched  # type: ignore[method-assign]
        await house.upkeep.round()
        counts = [len(before[chunk]) for chunk in order]
        assert {1, 2} <= set(counts)
        # Four are pulled side by side, so the order is that of their beginnings.
        first_of_two = counts.index(2)
        assert 1 not in counts[first_of_two + 4 :]

    run(scenario)


async def _away(town: Town, volume: Volume, away: str, *, got: int) -> tuple[int, list[ChunkId]]:
    """A disk fails in the middle of a span and misses the next one; return the bytes missed."""
    await town.write(
        volume, 8, missed=lambda disk, sequence: got if disk == away and sequence >= 47 else None
    )
    town.view.set_down(away)
    await town.write(volume, 30, excluded=[away])
    missed, chunks = 0, []
    for chunk, content in volume.chunks.items():
        have = town.houses[away].content(chunk) or b""
        if away in town.owners(chunk, volume.copies) and len(have) < len(content):
            missed += len(content) - len(have)
            chunks.append(chunk)
    return missed, chunks


@pytest.mark.parametrize("got", [0, 2])
@pytest.mark.parametrize("restarted", [False, True])
def test_returned_disk_pulls_only_what_was_written_meanwhile(got: int, restarted: bool) -> None:
    """A disk that was away gets the chunks it missed and the ends that it lacks, no more."""

    async def scenario() -> None:
        town = Town(5, DISKS[:4])
        volume = await town.volume(2)
        await town.write(volume, 40)
        away = DISKS[1]
        missed, chunks = await _away(town, volume, away, got=got)
        house = town.houses[away]
        if restarted:
            house.restart()
        else:
            house.open()
        await town.rounds()
        assert town.misplaced() == []
        assert len(chunks) > 5
        # Of chunks whose end is not in the metadata the rest of the slot is read as well.
        rest = house.chunks.slot_bytes - FIRST
        assert missed <= house.upkeep.progress.pulled_bytes <= len(chunks) * rest
        assert house.upkeep.progress.pulled_chunks == len(chunks)
        others = [one for disk, one in town.houses.items() if disk != away]
        assert sum(one.upkeep.progress.pulled_bytes for one in others) == 0

    run(scenario)


def test_new_disk_moves_no_more_than_its_share() -> None:
    """After a ring change what is pulled is what the ring moves, and all else stays."""

    async def scenario() -> None:
        town = Town(7, DISKS[:4])
        volume = await town.volume(2)
        await town.write(volume, 80)
        await town.rounds()
        before = {chunk: set(town.holders(chunk)) for chunk in volume.chunks}
        town.add(DISKS[4])
        town.set_ring(DISKS[:5])
        due = sum(len(set(town.owners(c, 2)) - before[c]) for c in volume.chunks)
        await town.rounds()
        assert town.misplaced() == []
        houses = town.houses.values()
        assert sum(house.upkeep.progress.pulled_chunks for house in houses) == due > 0
        assert sum(house.upkeep.progress.dropped_chunks for house in houses) == due
        assert town.strangers() == set()

    run(scenario)


def test_surplus_copies_are_asked_for_only_when_all_owners_have_theirs() -> None:
    """While a new disk still pulls the others' rounds make nobody read what it has to have."""

    async def scenario() -> None:
        town = Town(7, DISKS[:4])
        volume = await town.volume(2)
        await town.write(volume, 80)
        await town.rounds()
        new = town.add(DISKS[4])
        town.set_ring(DISKS[:5])
        due = [chunk for chunk in volume.chunks if new.disk_id in town.owners(chunk, 2)]
        asked = town.traffic.asked
        for _ in range(3):
            for disk in DISKS[:4]:
                assert await town.houses[disk].upkeep.round() is False
        assert town.traffic.asked == asked

        await new.upkeep.round()  # which pulls all of it
        first = town.houses[DISKS[0]].upkeep
        await first.round()
        assert town.traffic.asked > asked
        assert first.progress.surplus_bytes == 0
        await town.rounds()
        houses = town.houses.values()
        assert sum(house.upkeep.progress.dropped_chunks for house in houses) == len(due) > 0
        assert town.misplaced() == []

    run(scenario)


def test_drained_disk_ends_up_empty() -> None:
    """A disk that is put out but up gives everything away, and only then has nothing."""

    async def scenario() -> None:
        town = Town(8, DISKS[:4])
        volume = await town.volume(3)
        await town.write(volume, 50)
        house = town.houses[DISKS[2]]
        assert house.upkeep.needs() > 0
        town.set_ring([disk for disk in DISKS[:4] if disk != DISKS[2]])
        await town.rounds()
        assert town.misplaced() == []
        assert house.upkeep.needs() == 0

    run(scenario)


def test_drain_where_copies_fit_nowhere_keeps_them() -> None:
    """With fewer nodes left than copies wanted a disk that is drained keeps what it has."""

    async def scenario() -> None:
        town = Town(9, DISKS[:2])
        volume = await town.volume(2)
        await town.write(volume, 10)
        town.set_ring(DISKS[:1])
        await town.rounds()
        house = town.houses[DISKS[1]]
        assert len(house.store.chunks()) == 10
        assert house.upkeep.progress.surplus_bytes == 10 * house.chunks.slot_bytes

    run(scenario)


def test_open_span_and_deleting_volume_are_left_alone() -> None:
    """What a writer works on is not touched, whatever the ring says."""

    async def scenario() -> None:
        town = Town(10, DISKS[:3])
        volume = await town.volume(2)
        await town.write(volume, 10)
        span = volume.spans[0]
        volume.spans[0] = type(span)(span.epoch, span.tag, span.first, ring=span.ring)
        await town.publish(volume)
        town.add(DISKS[3])
        town.set_ring(DISKS[1:4])
        before = town.state()
        await town.rounds()
        assert town.state() == before

    run(scenario)


# --- deleted chunks -------------------------------------------------------------------------


async def _deleted_while_away(town: Town, volume: Volume, away: str) -> list[ChunkId]:
    await town.write(volume, 200)
    await town.rounds()
    town.view.set_down(away)
    gone = [chunk for chunk in volume.chunks if chunk.sequence <= 40]
    zombies = [chunk for chunk in gone if away in town.holders(chunk)]
    await town.delete(gone)
    town.houses[away].open()
    return zombies


def test_chunk_deleted_while_a_disk_was_away_is_not_copied() -> None:
    """What comes back with a disk stays on it; its volume's owner deletes it at its attach."""

    async def scenario() -> None:
        town = Town(11, DISKS[:4], slots=600)
        volume = await town.volume(3)
        zombies = await _deleted_while_away(town, volume, DISKS[1])
        await town.rounds()
        assert town.strangers() == set(zombies) != set()
        assert all(house.upkeep.progress.pulled_chunks == 0 for house in town.houses.values())
        holders = {disk for disk, house in town.houses.items() if zombies[0] in house.store.slots}
        assert holders == {DISKS[1]}

    run(scenario)


def test_chunk_deleted_is_not_copied_to_a_disk_that_is_new() -> None:
    """A new owner is no witness itself; it asks those that are."""

    async def scenario() -> None:
        town = Town(12, DISKS[:4], slots=600)
        volume = await town.volume(2)
        zombies = await _deleted_while_away(town, volume, DISKS[1])
        town.add(DISKS[4])
        town.set_ring(DISKS[:5])
        await town.rounds()
        kept = [
            chunk
            for chunk in zombies
            if any(one != DISKS[1] and one != DISKS[4] for one in town.owners(chunk, 2))
        ]
        for chunk in kept:
            having = [disk for disk, house in town.houses.items() if chunk in house.store.slots]
            stayed = set(town.owners(chunk, 2)) - {DISKS[1], DISKS[4]}
            witness = [disk for disk in stayed if disk in _first_owners(town, chunk)]
            if witness:
                assert having == [DISKS[1]]
        assert town.houses[DISKS[4]].upkeep.progress.suspect_chunks > 0
        assert town.misplaced() == []

    run(scenario)


def _first_owners(town: Town, chunk: ChunkId) -> list[str]:
    from tests.unit.upkeep.town import slot_of

    return [one.disk_id for one in town.view.ring_at(1).order(slot_of(chunk), 2)]


def test_chunk_that_only_a_returned_disk_has_is_copied_when_the_others_are_lost() -> None:
    """Without a witness a chunk is taken for a living one."""

    async def scenario() -> None:
        town = Town(13, DISKS[:5])
        volume = await town.volume(2)
        await town.write(volume, 60)
        away = DISKS[1]
        town.view.set_down(away)
        lost = [disk for disk in DISKS[:3] if disk != away]
        town.view.set_down(*lost)
        town.set_ring(DISKS[3:5])
        await town.rounds(check=False)
        town.houses[away].open()
        alive = [c for c in volume.chunks if set(town.holders(c)) - set(lost)]
        for disk in lost:
            del town.houses[disk]
        await town.rounds(check=False)
        for chunk in alive:
            assert sorted(town.owners(chunk, 2)) == sorted(
                set(town.holders(chunk)) & set(DISKS[3:5])
            )

    run(scenario)


def test_suspect_is_copied_after_an_attach_that_did_not_delete_it() -> None:
    """Who attached the volume would have deleted it: something needs it."""

    async def scenario() -> None:
        town = Town(14, DISKS[:4], slots=600)
        volume = await town.volume(2)
        zombies = await _deleted_while_away(town, volume, DISKS[1])
        town.add(DISKS[4])
        town.set_ring(DISKS[:5])
        await town.rounds()
        house = town.houses[DISKS[4]]
        mine = [c for c in zombies if DISKS[4] in town.owners(c, 2) and c not in house.store.slots]
        assert mine
        volume.epoch += 1
        await town.publish(volume)
        await town.rounds()
        assert all(chunk in house.store.slots for chunk in mine)

    run(scenario)


def test_short_copy_of_a_deleted_chunk_is_no_damage() -> None:
    """A disk that failed in the middle of a chunk which was deleted meanwhile: the others, which
    had all of it, are witnesses, also at the end of a span."""

    async def scenario() -> None:
        town = Town(25, DISKS[:4])
        volume = await town.volume(2)
        away = DISKS[1]
        chunks = await town.write(
            volume, 30, missed=lambda disk, n: 1 if disk == away and n >= 28 else None
        )
        town.view.set_down(away)
        await town.write(volume, 4, excluded=[away])
        gone = [chunk for chunk in chunks if chunk.sequence >= 25]
        zombies = [chunk for chunk in gone if chunk in town.houses[away].store.slots]
        await town.delete(gone)
        town.houses[away].open()
        await town.rounds()
        assert town.strangers() == set(zombies) != set()
        for house in town.houses.values():
            assert house.upkeep.progress.damaged_chunks == 0
            assert house.upkeep.progress.errors == 0
        assert town.misplaced() == []

    run(scenario)


def test_a_disk_that_missed_the_end_of_a_span_is_no_witness_against_it() -> None:
    """It is in the next span all the same, where there were too few others: the span notes it."""

    async def scenario() -> None:
        town = Town(26, DISKS[:2])
        volume = await town.volume(2)
        short = DISKS[1]
        chunks = await town.write(
            volume, 30, missed=lambda disk, n: 0 if disk == short and n >= 28 else None
        )
        volume.spans[-1] = replace(volume.spans[-1], short=(short,))
        await town.write(volume, 4)
        await town.rounds()
        assert all(set(town.holders(chunk)) == set(DISKS[:2]) for chunk in chunks)
        assert town.misplaced() == []

    run(scenario)


# --- rot --------------------------------------------------------------------------------------


def test_rot_is_not_copied_and_is_repaired_from_another() -> None:
    """A copy that rotted is passed over; another one has the bytes."""

    async def scenario() -> None:
        town = Town(15, DISKS[:4])
        volume = await town.volume(3)
        await town.write(volume, 30)
        rng = random.Random(15)
        for chunk, content in volume.chunks.items():
            victim = rng.choice(town.holders(chunk))
            if victim != DISKS[0]:
                town.houses[victim].rot(chunk, FIRST + rng.randrange(len(content)))
        town.view.set_down(DISKS[0])
        town.set_ring(DISKS[1:4])
        await town.rounds(check=False)
        fresh = {
            chunk
            for chunk in volume.chunks
            for disk in DISKS[1:4]
            if chunk in town.houses[disk].store.slots
            and town.houses[disk].upkeep.progress.pulled_chunks
        }
        assert fresh
        for chunk, content in volume.chunks.items():
            good = [d for d in DISKS[1:4] if town.houses[d].content(chunk) == content]
            assert len(good) >= 2, f"{chunk}: {good}"

    run(scenario)


def test_two_copies_rotten_in_different_places_make_a_whole_one() -> None:
    """Each record is taken from the copy that has it."""

    async def scenario() -> None:
        town = Town(16, DISKS[:3])
        volume = await town.volume(2)
        [chunk, _] = await town.write(volume, 2, records=5)
        content = volume.chunks[chunk]
        one, two = (town.houses[disk] for disk in town.holders(chunk))
        one.rot(chunk, FIRST + len(content) // 5 + 100)
        two.rot(chunk, FIRST + len(content) // 5 * 3 + 100)
        third = next(disk for disk in DISKS[:3] if disk not in (one.disk_id, two.disk_id))
        town.set_ring([third])
        await town.houses[third].upkeep.round()
        assert town.houses[third].content(chunk) == content

    run(scenario)


def test_only_copy_that_rotted_is_neither_copied_nor_given_up() -> None:
    """What lies behind the damage can still be read where it is."""

    async def scenario() -> None:
        town = Town(17, DISKS[:2])
        volume = await town.volume(1)
        [chunk, _] = await town.write(volume, 2, records=5)
        [holder] = town.holders(chunk)
        town.houses[holder].rot(chunk, FIRST + 100)
        other = next(disk for disk in DISKS[:2] if disk != holder)
        town.set_ring([other])
        await town.rounds(check=False)
        assert chunk in town.houses[holder].store.slots
        assert chunk not in town.houses[other].store.slots
        assert town.houses[other].upkeep.progress.damaged_chunks == 1
        assert town.houses[other].upkeep.progress.errors > 0

    run(scenario)


def test_owner_whose_copy_rotted_repairs_it_when_a_surplus_copy_asks() -> None:
    """A copy is not given up for a rotten one; the rotten one is repaired first."""

    async def scenario() -> None:
        town = Town(18, DISKS[:3])
        volume = await town.volume(2)
        [chunk, *_] = await town.write(volume, 3, records=5)
        await town.write(volume, 3)  # under the same epoch: nobody failed in the first span
        stranger = next(disk for disk in DISKS[:3] if disk not in town.holders(chunk))
        town.houses[stranger].write(chunk, volume.chunks[chunk])
        owner = town.owners(chunk, 2)[0]
        town.houses[owner].rot(chunk, FIRST + 100)
        await town.rounds(check=False)
        assert town.misplaced() == []

    run(scenario)


def test_copy_short_of_its_span_s_end_is_not_taken_for_the_chunk() -> None:
    """Where nobody has all that the metadata says was written nothing is installed."""

    async def scenario() -> None:
        town = Town(20, DISKS[:3])
        volume = await town.volume(1)
        [chunk] = await town.write(volume, 1, missed=lambda *_: 2, records=3)
        [owner] = town.owners(chunk, 1)
        other = next(disk for disk in DISKS[:3] if disk != owner)
        town.set_ring([other])
        await town.rounds(check=False)
        assert chunk not in town.houses[other].store.slots
        assert chunk in town.houses[owner].store.slots
        assert town.houses[other].upkeep.progress.damaged_chunks == 1

    run(scenario)


# --- power cuts -------------------------------------------------------------------------------


def test_power_cut_of_the_puller_at_any_moment_costs_nothing() -> None:
    """Whatever a power cut leaves of a copy that was being installed, it is made whole."""

    async def prepare() -> tuple[Town, str]:
        town = Town(19, DISKS[:2], slots=60)
        volume = await town.volume(2)
        puller = DISKS[1]
        await town.write(volume, 3, missed=lambda disk, n: n % 3 if disk == puller else None)
        return town, puller

    async def history() -> int:
        town, puller = await prepare()
        began = len(town.houses[puller].disk.history)
        await town.houses[puller].upkeep.round()
        return len(town.houses[puller].disk.history) - began

    steps: list[int] = []

    async def count() -> None:
        steps.append(await history())

    run(count)
    assert steps[0] > 10
    for step in range(steps[0] + 1):

        async def scenario(step: int = step) -> None:
            town, puller = await prepare()
            house = town.houses[puller]
            loss = PowerLoss(SMALL)
            began = len(house.disk.history)
            await house.upkeep.round()
            for event in house.disk.history[: began + step]:
                loss.step(event)
            house.restart(loss.cut(random.Random(step)))
            await town.rounds()
            assert town.misplaced() == []

        run(scenario)


# --- life -------------------------------------------------------------------------------------


def test_upkeep_that_is_closed_while_something_changes_ends() -> None:
    """The change does not swallow the end."""

    async def scenario() -> None:
        town = Town(21, DISKS[:2])
        house = town.houses[DISKS[0]]
        house.upkeep.start()
        for _ in range(20):
            await asyncio.sleep(0)
        house.upkeep.poke()
        await asyncio.wait_for(house.upkeep.close(), 5)
        await house.upkeep.close()
        assert town.view.on_change == []

    run(scenario)


def test_running_upkeep_follows_the_ring_until_it_is_settled() -> None:
    """Nobody has to ask for rounds."""

    async def scenario() -> None:
        town = Town(22, DISKS[:3])
        volume = await town.volume(2)
        await town.write(volume, 12)
        ended = asyncio.Event()

        def told(house: House) -> None:
            whole = house.upkeep.round

            async def watched() -> bool:
                done = await whole()
                ended.set()
                return done

            house.upkeep.round = watched  # type: ignore[method-assign]

        for house in town.houses.values():
            told(house)
            house.upkeep._times = Times(0.001, 0.01, 5.0)
            house.view.on_change = town.view.on_change
            house.upkeep.start()
        town.set_ring(DISKS[1:3])
        async with asyncio.timeout(60):
            while town.misplaced() or not all(h.upkeep.settled() for h in town.houses.values()):
                ended.clear()
                await ended.wait()
        assert town.misplaced() == []
        for house in town.houses.values():
            await house.upkeep.close()

    run(scenario)


def test_pause_stops_pulls_and_drops_and_resuming_goes_on() -> None:
    """What is to be done is still known while nothing is done."""

    async def scenario() -> None:
        town = Town(23, DISKS[:3])
        volume = await town.volume(2)
        await town.write(volume, 12)
        ring = town.set_ring(DISKS[1:3])
        town.view.set_head(RingHead(ring.version, paused=True))
        before = town.state()
        await town.rounds()
        assert town.state() == before
        waiting = [house.upkeep.progress.pending_bytes for house in town.houses.values()]
        assert sum(waiting) > 0
        assert town.houses[DISKS[0]].upkeep.progress.state == "paused"
        town.view.set_head(RingHead(ring.version))
        await town.rounds()
        assert town.misplaced() == []

    run(scenario)


def test_copy_that_no_owner_has_any_more_stays_and_is_waited_for_by_nobody() -> None:
    """It was deleted, or its owners have yet to pull it: they say so themselves."""

    async def scenario() -> None:
        town = Town(24, DISKS[:3])
        volume = await town.volume(2)
        [chunk, *_] = await town.write(volume, 200)
        stranger = next(disk for disk in DISKS[:3] if disk not in town.holders(chunk))
        house = town.houses[stranger]
        house.write(chunk, volume.chunks[chunk])
        for disk in town.owners(chunk, 2):
            await town.houses[disk].chunks.delete(volume.number, 1, [chunk])
        assert await house.upkeep.round()
        assert chunk in house.store.slots
        assert house.upkeep.progress.suspect_chunks == 1
        assert house.upkeep.progress.surplus_bytes == 0

    run(scenario)


def test_crashed_upkeep_is_logged_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """An error that is none of torus's own costs a round; it neither ends the upkeep nor hides."""

    async def scenario() -> None:
        town = Town(1, DISKS[:3])
        upkeep = town.houses[DISKS[0]].upkeep
        upkeep._times = Times(settle_s=0, retry_s=0)
        rounds, done = upkeep.round, asyncio.Event()

        async def crash_once() -> bool:
            upkeep.round = finish  # type: ignore[method-assign]
            raise ZeroDivisionError("a mistake")

        async def finish() -> bool:
            done.set()
            return await rounds()

        upkeep.round = crash_once  # type: ignore[method-assign]
        upkeep.start()
        async with asyncio.timeout(10):
            await done.wait()
        await upkeep.close()

    run(scenario)
    assert "upkeep.crashed" in caplog.text
