"""The scrub of disks in a town: what is told of each kind of damage, and that it is repaired."""

import errno
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.unit.upkeep.town import UNLIMITED, House, Street, Town, Volume, run, slot_of
from torus.format.segment import FREED_SLOT
from torus.ids import ChunkId
from torus.store.content import FIRST
from torus.testing.simdisk import SMALL
from torus.upkeep.budget import Budget
from torus.upkeep.mend import Mender
from torus.upkeep.pace import Pace
from torus.upkeep.scrub import DiskScrub
from torus.upkeep.scrub_judge import Kind
from torus.upkeep.scrub_logs import read_logs
from torus.upkeep.scrub_state import LOST, REPAIRED, ScrubState, Tour

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


def bytes_of(house: House, chunk: ChunkId) -> tuple[bytearray, int]:
    """Return the segment that a chunk lies in, and where its slot begins there."""
    slot = house.store.find(chunk)
    assert slot is not None
    segment, at = divmod(slot.address, SMALL.segment_bytes)
    return house.disk.image.segments[segment], at


# --- the kinds of damage: each spoils one chunk's slot, and says as what it must be told -----


def flip_header(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    data[at + 9] ^= 1
    return Kind.ROTTEN


def zero_header(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    data[at : at + FIRST] = bytes(FIRST)
    return Kind.TORN


def freed_header(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    data[at : at + FIRST] = FREED_SLOT
    return Kind.STALE


def flip_record_header(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    data[at + FIRST + 40] ^= 1
    return Kind.ROTTEN


def flip_payload(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    data[at + FIRST + 600] ^= 1
    return Kind.ROTTEN


def flip_last_record(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    content = house.town.volumes[chunk.volume].chunks[chunk]
    data[at + FIRST + len(content) - 5000] ^= 1
    return Kind.ROTTEN


def tear_record(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    size = len(house.town.volumes[chunk.volume].chunks[chunk])
    data[at + FIRST + size - 2048 : at + FIRST + size] = bytes(2048)
    return Kind.TORN


def lose_sector(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    data[at + FIRST : at + FIRST + 512] = bytes(512)
    return Kind.TORN


def misdirect(house: House, chunk: ChunkId, other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    source, there = bytes_of(house, other)
    data[at + FIRST : at + FIRST + 9000] = bytes(source[there + FIRST : there + FIRST + 9000])
    return Kind.MISPLACED


def swap_slots(house: House, chunk: ChunkId, other: ChunkId) -> Kind:
    data, at = bytes_of(house, chunk)
    there, other_at = bytes_of(house, other)
    one, two = (
        bytes(data[at : at + SMALL.slot_bytes]),
        bytes(there[other_at : other_at + SMALL.slot_bytes]),
    )
    data[at : at + SMALL.slot_bytes], there[other_at : other_at + SMALL.slot_bytes] = two, one
    return Kind.MISPLACED


def shorten(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    """Put back what the chunk was before its last record was written."""
    data, at = bytes_of(house, chunk)
    size = len(house.town.volumes[chunk.volume].chunks[chunk])
    third = size // 3
    data[at + FIRST + 2 * third : at + SMALL.slot_bytes] = bytes(
        SMALL.slot_bytes - FIRST - 2 * third
    )
    return Kind.STALE


def unreadable(house: House, chunk: ChunkId, _other: ChunkId) -> Kind:
    """Let the medium refuse a part of the slot."""
    slot = house.store.find(chunk)
    assert slot is not None
    first, end, read = slot.address + 1500, slot.address + SMALL.slot_bytes, house.disk.read

    def refuse(address: int, size: int) -> bytes:
        if address < end and address + size > first:
            raise OSError(errno.EIO, "medium error")
        return read(address, size)

    house.disk.read = refuse  # type: ignore[method-assign]
    return Kind.MISSING


DAMAGES: tuple[Callable[[House, ChunkId, ChunkId], Kind], ...] = (
    flip_header, zero_header, freed_header, flip_record_header, flip_payload, flip_last_record,
    tear_record, lose_sector, misdirect, swap_slots, shorten, unreadable,
)  # fmt: skip
HEADERS = (flip_header, zero_header, freed_header)


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
def test_damage_is_told_and_repaired_from_another_copy(
    damage: Callable[[House, ChunkId, ChunkId], Kind],
) -> None:
    """One copy is spoiled: a deep tour tells as what, and has it whole again."""

    async def scenario() -> None:
        at = await scene(3)
        kind = damage(at.house, at.chunk, at.other)
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
def test_single_machine_tells_everything_and_restores_headers(
    damage: Callable[[House, ChunkId, ChunkId], Kind],
) -> None:
    """Without other copies a lost header comes back from memory; the rest is beyond repair."""

    async def scenario() -> None:
        at = await scene(1, disks=1)
        kind = damage(at.house, at.chunk, at.other)
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
