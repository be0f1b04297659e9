"""The scrub of disks in a town: what is told of each kind of damage, and that it is repaired."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from tests.rot import DAMAGES, HEADERS, Damage, flip, records_of, swap_slots, zero_header
from tests.unit.upkeep.town import UNLIMITED, House, Street, Town, Volume, run, slot_of
from torus.ids import ChunkId
from torus.metadata.schema import Head, RootRef, ScrubPause, Span, VolumeSpec
from torus.store.content import FIRST
from torus.upkeep.budget import Budget
from torus.upkeep.mend import Mender
from torus.upkeep.pace import Pace
from torus.upkeep.scrub import DiskScrub
from torus.upkeep.scrub_logs import VolumeLog, read_logs
from torus.upkeep.scrub_state import LOST, REPAIRED, WAITING, Done, ScrubState, Tour
from torus.upkeep.scrub_times import ScrubTimes, due, rate_of, read_state

DISKS = [letter * 32 for letter in "abcd"]
SEED = 5
DAY_NS = 24 * 3600 * 10**9


def pace(town: Town) -> Pace:
    """Return a pace that never waits."""
    return Pace(Budget(UNLIMITED, UNLIMITED), town.clock)


def scrub_of(house: House, state: ScrubState | None = None, *, alone: bool = False) -> DiskScrub:
    """Return the scrub of a disk; ``alone``: on a machine without others."""
    town = house.town
    mender = Mender(
        house.store, house.chunks, house.view,  # type: ignore[arg-type]
        Street(town, house.disk_id), pace(town), house.upkeep, slot_of,
    )  # fmt: skip
    return DiskScrub(
        house.store,
        lambda: read_logs(town.metadata),  # type: ignore[arg-type]
        town.clock,
        ScrubState() if state is None else state,
        None if alone else mender,
    )


async def tour(
    scrub: DiskScrub, town: Town, *, deep: bool = True, volumes: tuple[int, ...] = ()
) -> Tour:
    """Make one tour to its end."""
    made = Tour(deep, True, volumes, town.clock.wall_ns())
    scrub.state.tours.append(made)
    assert await scrub.tour(made, pace(town), lambda: True)
    scrub.ended(made)
    return made


@dataclass
class Scene:
    """A town whose disks have written and restarted."""

    town: Town
    volume: Volume
    house: House
    chunk: ChunkId
    other: ChunkId


async def scene(copies: int, *, disks: int = 3) -> Scene:
    """Return a town with a closed span, and two chunks of one disk."""
    town = Town(SEED, DISKS[:disks])
    volume = await town.volume(copies)
    await town.write(volume, 12)
    for house in town.houses.values():
        house.restart()
    await town.rounds()
    house = town.houses[DISKS[0]]
    chunk, other = sorted(house.store.chunks())[2:4]
    return Scene(town, volume, house, chunk, other)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_damage_is_told_and_repaired_from_another_copy(damage: Damage) -> None:
    """One copy is spoiled: a deep tour tells as what, and has it whole again."""

    async def scenario() -> None:
        at = await scene(3)
        kind = damage(at.house.store, at.house.disk, at.chunk, at.other)
        scrub = scrub_of(at.house)
        await tour(scrub, at.town)
        told = {one.part: one for one in [*scrub.state.closed, *scrub.state.open.values()]}
        assert at.chunk in told
        assert (told[at.chunk].kind, told[at.chunk].state) == (kind, REPAIRED), told[at.chunk]
        assert scrub.state.open == {}
        spoiled = {at.chunk, at.other} if damage is swap_slots else {at.chunk}
        assert set(told) == spoiled
        at.house.restart()
        for chunk, content in at.volume.chunks.items():
            if chunk in at.house.store.slots:
                assert at.house.content(chunk) == content
        again = scrub_of(at.house)
        assert (await tour(again, at.town)).found == 0

    run(scenario)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_single_machine_tells_everything_and_restores_headers(damage: Damage) -> None:
    """Without other copies a lost header comes back from memory; the rest is beyond repair."""

    async def scenario() -> None:
        at = await scene(1, disks=1)
        kind = damage(at.house.store, at.house.disk, at.chunk, at.other)
        scrub = scrub_of(at.house, alone=True)
        await tour(scrub, at.town)
        if damage in HEADERS:
            (found,) = scrub.state.closed
            assert (found.part, found.kind, found.state) == (at.chunk, kind, REPAIRED)
            at.house.restart()
            assert at.house.content(at.chunk) == at.volume.chunks[at.chunk]
        else:
            found = scrub.state.open[at.chunk]
            assert (found.kind, found.state) == (kind, LOST), found
            assert found.name == "v1"

    run(scenario)


def test_what_nobody_has_whole_is_lost_and_a_silent_disk_is_waited_for() -> None:
    """Two of three copies rot at the same place while the third is away: not lost yet; when it
    is back both are repaired; when all three rot it is lost, and the others are not touched."""

    async def scenario() -> None:
        at = await scene(3)
        houses = at.town.houses
        for disk in DISKS[:2]:
            flip(houses[disk].store, houses[disk].disk, at.chunk, FIRST + 600)
        at.town.view.set_down(DISKS[2])
        first, second = scrub_of(houses[DISKS[0]]), scrub_of(houses[DISKS[1]])
        await tour(first, at.town)
        await tour(second, at.town)
        assert [one.state for one in first.state.open.values()] == [WAITING]
        assert [one.state for one in second.state.open.values()] == [WAITING]
        houses[DISKS[2]].open()
        await first.recheck()
        await second.recheck()
        assert not first.state.open
        assert not second.state.open
        assert at.town.holders(at.chunk) == sorted(DISKS[:3])

        for house in houses.values():
            flip(house.store, house.disk, at.other, FIRST + 600)
        for house in houses.values():
            scrub = scrub_of(house)
            await tour(scrub, at.town)
            (found,) = scrub.state.open.values()
            assert (found.part, found.state, found.name) == (at.other, LOST, "v1")
            assert "of the volume" in found.what
        for chunk in set(at.volume.chunks) - {at.other}:
            assert at.town.holders(chunk) == sorted(DISKS[:3])

    run(scenario)


def test_copies_damaged_in_different_places_make_each_other_whole() -> None:
    """Each copy lost another record: the scrub of each puts it together."""

    async def scenario() -> None:
        at = await scene(3)
        houses = list(at.town.houses.values())
        records = records_of(houses[0].store, houses[0].disk, at.chunk)
        for house, (offset, _) in zip(houses, records, strict=True):
            flip(house.store, house.disk, at.chunk, offset + 600)
        for house in houses:
            scrub = scrub_of(house)
            await tour(scrub, at.town)
            assert [one.state for one in scrub.state.closed] == [REPAIRED]
        assert at.town.holders(at.chunk) == sorted(DISKS[:3])

    run(scenario)


def test_light_tour_restores_headers_and_reads_no_payload() -> None:
    """A lost header comes back, a rotten payload is left to the deep tour; few bytes are read."""

    async def scenario() -> None:
        at = await scene(3)
        zero_header(at.house.store, at.house.disk, at.chunk, at.other)
        flip(at.house.store, at.house.disk, at.other, FIRST + 600)
        scrub = scrub_of(at.house)
        made = await tour(scrub, at.town, deep=False)
        assert [one.part for one in scrub.state.closed] == [at.chunk]
        assert made.bytes == made.chunks * 1536
        assert scrub.state.last.keys() == {"light"}
        await tour(scrub, at.town)
        assert [one.part for one in scrub.state.closed] == [at.chunk, at.other]
        assert scrub.state.last.keys() == {"light", "deep"}

    run(scenario)


def test_what_lacks_is_found_and_closed_when_it_is_back() -> None:
    """What upkeep says should be here and is not is missing until it lacks no more."""

    async def scenario() -> None:
        at = await scene(3)
        lacking = at.chunk._replace(sequence=100)
        at.house.upkeep._work.lacking = (lacking,)
        scrub = scrub_of(at.house)
        await tour(scrub, at.town, deep=False)
        await scrub.recheck()
        assert [(one.part, one.kind) for one in scrub.state.open.values()] == [(lacking, "missing")]
        at.house.upkeep._work.lacking = ()
        await scrub.recheck()
        assert scrub.state.open == {}
        assert [one.state for one in scrub.state.closed] == ["gone"]

    run(scenario)


def test_tour_goes_on_where_a_restart_ended_it() -> None:
    """What is remembered is read again from the file; no part is looked at twice, none left out."""

    async def scenario() -> None:
        at = await scene(3)
        flip(at.house.store, at.house.disk, at.chunk, FIRST + 600)
        looked: list[ChunkId] = []

        def watched(state: ScrubState) -> DiskScrub:
            scrub = scrub_of(at.house, state)
            look = scrub.look

            async def noting(part: ChunkId, *, deep: bool) -> None:
                looked.append(part)
                await look(part, deep=deep)

            scrub.look = noting  # type: ignore[method-assign]
            return scrub

        scrub = watched(ScrubState())
        made = Tour(True, False, (), 7)
        scrub.state.tours.append(made)
        assert not await scrub.tour(made, pace(at.town), lambda: len(looked) < 5)
        times = ScrubTimes(scrub, at.town.clock)
        await times.save()
        at.house.restart()
        state = read_state(at.house.store)
        assert state == scrub.state
        scrub = watched(state)
        (again,) = state.tours
        assert await scrub.tour(again, pace(at.town), lambda: True)
        scrub.ended(again)
        assert looked == sorted(at.house.store.chunks())
        assert state.last["deep"].chunks == len(looked)
        assert state.last["deep"].found == 1

    run(scenario)


def test_memory_that_cannot_be_read_is_begun_anew() -> None:
    """Bytes that are no such file, or one of another version, cost what is remembered."""

    async def scenario() -> None:
        at = await scene(1, disks=1)
        for data in (b"", b"{}", b"[]", b'{"version": 99}', bytes(100)):
            at.house.disk.replace_file("scrub.json", data)
            assert read_state(at.house.store) == ScrubState()

    run(scenario)


def test_when_tours_are_due() -> None:
    """Light every day, also while a deep one goes on; deep every week; what was asked for first."""
    state, now = ScrubState(), 1000 * DAY_NS
    light = due(state, now)
    assert light is not None
    assert light.depth == "light"
    state.tours.remove(light)
    state.last["light"] = Done(now, now, 1, 1, 0)
    deep = due(state, now)
    assert deep is not None
    assert deep.depth == "deep"
    assert due(state, now + DAY_NS // 2) is deep
    again = due(state, now + DAY_NS)
    assert again is not None
    assert again.depth == "light"
    state.tours.append(Tour(True, True, (3,), now))
    assert due(state, now + DAY_NS) is state.tours[-1]
    state.tours = []
    state.last["deep"] = Done(now, now, 1, 1, 0)
    state.last["light"] = Done(now + 7 * DAY_NS - 1, now, 1, 1, 0)
    assert due(state, now + 7 * DAY_NS - 1) is None
    assert due(state, now + 7 * DAY_NS) is not None


def test_a_clock_that_is_set_back_puts_no_tour_off() -> None:
    """A host that began with a clock years ahead would not look at its disks for years."""
    state, now = ScrubState(), 1000 * DAY_NS
    state.last = {depth: Done(now + 1, now + 2, 1, 1, 0) for depth in ("light", "deep")}

    found = due(state, now)

    assert found is not None
    assert found.depth == "light"


def test_rate_ends_a_deep_tour_within_a_week() -> None:
    """As much as it takes, not less than the least; more when somebody waits; what was set."""
    own, asked = Tour(True, False, (), 0), Tour(True, True, (), 0)
    assert rate_of(8 << 40, own, None) >= (8 << 40) / (7 * 24 * 3600) - 1
    assert rate_of(0, own, None) == 1 << 20
    assert rate_of(0, asked, None) == 128 << 20
    assert rate_of(8 << 40, own, 5) == rate_of(0, asked, 5) == 5


def test_orders_of_people() -> None:
    """Pausing ends a step, resuming goes on; the same order twice is one; deep beats light."""

    async def scenario() -> None:
        at = await scene(3)
        times = ScrubTimes(scrub_of(at.house), at.town.clock, rate_bytes=0)
        await times.step()
        assert times.state.last == {}, "with rate none only what is asked for"
        times.begin([], deep=False)
        times.begin([], deep=False)
        assert len(times.state.tours) == 1
        times.begin([], deep=True)
        (tour_asked,) = [one for one in times.state.tours if one.asked]
        assert tour_asked.deep
        times.obey(ScrubPause(5, "somebody@here"))
        await times.step()
        assert times.state.last == {}
        times.begin([], deep=True)
        await times.step()
        assert times.state.last == {}, "only the metadata ends a pause"
        times.obey(None)
        await times.step()
        assert times.state.last.keys() == {"light", "deep"}
        times.begin([99], deep=True)
        await times.step()
        assert not any(one.asked for one in times.state.tours)
        assert times.state.last["deep"].chunks == len(at.house.store.chunks())

    run(scenario)


def test_chunks_of_the_open_span_come_to_rest_before_the_replay_point() -> None:
    """Closed spans, and the open one's chunks that no attach reads again; nothing else."""
    spans = (Span(1, 0, 1, 4, 900, 1), Span(2, 0, 5, None, None, 1))
    spec = VolumeSpec(7, "vm", 1 << 30, "replica:3", 0)
    root = RootRef(8, 512, 100, 1, 8, 512, 3)
    log = VolumeLog(SimpleNamespace(spec=spec, head=Head(2, None, spans, root)))  # type: ignore[arg-type]

    def settled(epoch: int, sequence: int) -> object:
        found = log.settled(ChunkId(7, epoch, 0, sequence))
        return None if found is None else found.exact or "all"

    assert [settled(1, number) for number in range(6)] == [None, "all", "all", "all", 900, None]
    assert [settled(2, number) for number in (4, 5, 7, 8, 9)] == [None, "all", "all", None, None]
    assert settled(3, 1) is None
