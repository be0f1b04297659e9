"""Giving copies up while disks disagree about the ring: copies never fall below what they should.

Each disk goes by a ring version of its own, which changes at any moment; every interleaving is
drawn from a seed.
"""

import asyncio
import random

import pytest

from tests.unit.upkeep.town import House, Town, ring_of, run
from torus.ids import ChunkId
from torus.store.content import FIRST
from torus.upkeep.content import Inspected
from torus.upkeep.peers import ABSENT, DAMAGED, GOOD, LEAVING, Copy
from torus.upkeep.plan import Surplus, may_drop

DISKS = [letter * 32 for letter in "abcd"]


async def _town(seed: int, copies: int) -> tuple[Town, ChunkId, bytes]:
    """Return a cluster of which every disk has one chunk, and rings that disagree about it."""
    town = Town(seed, DISKS, slots=60)
    town.slow_net = True
    volume = await town.volume(copies)
    [chunk, _] = await town.write(volume, 2, records=2)
    content = volume.chunks[chunk]
    for house in town.houses.values():
        if house.content(chunk) is None:
            house.write(chunk, content)
    # Rings in which different disks own the chunk: of each pair, or of each single disk.
    rng = random.Random(seed)
    for version in range(2, 8):
        members = rng.sample(DISKS, rng.randint(copies, len(DISKS) - 1))
        town.view.set_ring(ring_of(version, members))  # type: ignore[arg-type]
    return town, chunk, content


async def _disagree(town: Town, chunk: ChunkId, seed: int, copies: int) -> int:
    """Let every disk give up what it can, under rings of different versions; return the least
    number of copies that there ever was."""
    rng = random.Random(seed * 7 + 1)
    least = len(DISKS)

    async def live(house: House) -> None:
        nonlocal least
        for _ in range(6):
            house.view.version = rng.randint(1, 7)
            for _ in range(rng.randint(0, 12)):
                await asyncio.sleep(0)
            picture = await house.upkeep._picture(())
            if house.disk_id in picture.placement.owners(chunk, copies):
                continue
            giveup = house.upkeep._work.giveup
            await giveup.give_up([Surplus(chunk, None, copies)], picture.placement, lambda: True)
            least = min(least, sum(chunk in one.store.slots for one in town.houses.values()))

    await asyncio.gather(*(live(house) for house in town.houses.values()))
    return least


@pytest.mark.parametrize("copies", [1, 2])
def test_disks_that_disagree_never_drop_below_the_copies(copies: int) -> None:
    """Whatever versions they go by and however questions and drops fall together."""
    dropped = 0
    for seed in range(60):

        async def scenario(seed: int = seed) -> None:
            nonlocal dropped
            town, chunk, content = await _town(seed, copies)
            least = await _disagree(town, chunk, seed, copies)
            left = [one for one in town.houses.values() if one.content(chunk) == content]
            dropped += len(DISKS) - len(left)
            assert least >= copies, f"seed {seed}"
            assert len(left) >= copies, f"seed {seed}"

        run(scenario)
    assert dropped > 40, "they do drop"


def test_without_marks_a_copy_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The marks are what it takes: without them the same interleavings lose the last copy."""

    class Forgetful(set[ChunkId]):
        def update(self, *_: object) -> None:
            return

    lost = 0
    for seed in range(60):

        async def scenario(seed: int = seed) -> None:
            nonlocal lost
            town, chunk, _ = await _town(seed, 1)
            for house in town.houses.values():
                house.upkeep._work.giveup.leaving = Forgetful()
                house.chunks.drop = house.store.copies.drop  # type: ignore[method-assign]
            await _disagree(town, chunk, seed, 1)
            lost += not any(chunk in one.store.slots for one in town.houses.values())

        run(scenario)
    assert lost > 0


def test_confirm_says_what_may_be_counted_on() -> None:
    """Only a copy that is whole and stays is good."""

    async def scenario() -> None:
        town = Town(1, DISKS[:1])
        volume = await town.volume(1)
        good, leaving, rotten, cut = await town.write(volume, 4, records=4)
        house = town.houses[DISKS[0]]
        house.upkeep._work.giveup.leaving.add(leaving)
        house.rot(rotten, FIRST + 100)
        content = volume.chunks[cut]
        exact = FIRST + len(content) // 2
        absent = ChunkId(1, 1, 0, 99)
        answers = await house.upkeep.confirm(
            [Copy(good, None), Copy(leaving, None), Copy(rotten, None), Copy(cut, exact),
             Copy(absent, None)]
        )  # fmt: skip
        assert [one.state for one in answers] == [GOOD, LEAVING, DAMAGED, GOOD, ABSENT]
        assert answers[0].end == FIRST + len(volume.chunks[good])
        assert answers[3].end == exact

    run(scenario)


def test_may_drop_only_for_equal_good_copies() -> None:
    """All owners, all good, all equal, and nothing here that they have not."""
    own = Inspected(1000, 7, 0)
    assert may_drop(own, [(1000, 7), (1000, 7)], wanted=2)
    assert not may_drop(own, [(1000, 7)], wanted=2)
    assert not may_drop(own, [(1000, 7), None], wanted=2)
    assert not may_drop(own, [(1000, 7), (1000, 8)], wanted=2)
    assert not may_drop(own, [(1000, 8), (1000, 8)], wanted=2)
    assert not may_drop(own, [(900, 7), (900, 7)], wanted=2), "the owners are short"
    assert may_drop(own, [(1200, 9), (1200, 9)], wanted=2), "this one is short"
    assert not may_drop(Inspected(1000, 7, 1500), [(1000, 7), (1000, 7)], wanted=2)
    assert not may_drop(Inspected(1000, 7, 1500), [(1200, 9), (1200, 9)], wanted=2)
    assert may_drop(Inspected(600, 7, 1100), [(1200, 9), (1200, 9)], wanted=2)
    assert not may_drop(own, [], wanted=0)
