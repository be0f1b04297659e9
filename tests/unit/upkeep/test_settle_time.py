"""How long full chunks take to become shards, in virtual time, and how often disks look."""

import random

from tests.unit.cluster.replicas import let_pass
from tests.unit.upkeep.town import Town, Volume
from torus import limits
from torus.redundancy.scheme import erasure
from torus.testing.simdisk import SMALL
from torus.testing.simloop import SimClock, SimLoop

DISKS = [letter * 32 for letter in "0123456"]
CHUNKS = 60
SEED = 11
# What limits.REPAIR_RATE_BYTES_DEFAULT is for slots of 4 MiB.
RATE_BYTES = limits.REPAIR_RATE_BYTES_DEFAULT // (4 * limits.MIB) * SMALL.slot_bytes


def in_shards(town: Town, volume: Volume) -> int:
    """Return how many chunks have all their shards and no whole copy."""
    lies = {one for house in town.houses.values() for one in house.store.chunks()}
    made = [
        chunk not in lies and len(town.shards(chunk, volume.scheme)) == volume.scheme.shards
        for chunk in volume.chunks
    ]
    return sum(made)


async def settle(loop: SimLoop, *, hears: list[float]) -> tuple[float, int]:
    """Publish a checkpoint that settles chunks, of which each disk hears so many seconds later;
    return how long after the last it took, and how many rounds the busiest disk made."""
    town = Town(SEED, DISKS, clock=SimClock(loop), rate_bytes=RATE_BYTES)
    houses = list(town.houses.values())
    for house in houses:
        house.upkeep.start()
    volume = await town.volume(0, erasure(4, 2))
    await town.write(volume, CHUNKS + 1, closed=False)
    await let_pass(20)  # all have looked at what is there, and found nothing to do
    before = [house.upkeep.progress.rounds for house in houses]
    volume.replay = CHUNKS + 1
    pokes = [house.upkeep.poke for house in houses]
    for house in houses:
        house.upkeep.poke = lambda: None  # type: ignore[method-assign]
    await town.publish(volume)
    for poke, after_s in zip(pokes, hears, strict=True):
        loop.call_later(after_s, poke)
    began = loop.time() + max(hears)
    while in_shards(town, volume) < CHUNKS:
        await let_pass(0.25)
        assert loop.time() - began < 600, f"{in_shards(town, volume)} of {CHUNKS} chunks"
    took_s = loop.time() - began
    rounds = [house.upkeep.progress.rounds for house in houses]
    for house in houses:
        await house.upkeep.close()
    return took_s, max(now - old for now, old in zip(rounds, before, strict=True))


def run_settle(hears: list[float]) -> tuple[float, int]:
    """Run `settle` in virtual time."""
    loop = SimLoop(random.Random(SEED))
    try:
        result: tuple[float, int] = loop.run_until_complete(
            loop.outside.run(settle(loop, hears=hears))
        )
        assert loop.errors == []
        return result
    finally:
        loop.close()


def test_chunks_are_in_shards_as_soon_as_the_rate_allows() -> None:
    """Each whole copy is read twice, at the disk's rate; beyond that there are some seconds in
    which disks wait for each other, and a handful of rounds, whatever the number of chunks."""
    took_s, rounds = run_settle([0.1 * number for number in range(len(DISKS))])
    read_bytes = CHUNKS * 3 * 2 * SMALL.slot_bytes / len(DISKS)
    assert took_s <= 2 * read_bytes / RATE_BYTES + 5, rounds
    assert rounds <= 8, took_s


def test_disks_that_waited_for_the_last_one_go_on_soon_after_it() -> None:
    """One hears of the checkpoint twelve seconds after the others, who cannot give up what its
    shards belong to: they look again every few seconds, and need no long time when it is done."""
    took_s, rounds = run_settle([0.0] * (len(DISKS) - 1) + [12.0])
    read_bytes = CHUNKS * 3 * 2 * SMALL.slot_bytes / len(DISKS)
    assert took_s <= 2 * read_bytes / RATE_BYTES + 5 + limits.UPKEEP_RETRY_S, rounds
    assert rounds <= 12, took_s
