"""Which disk has which shard: everybody comes to the same result, and shards stay in place."""

import random

from torus.redundancy.assignment import assign

OWNERS = list("abcdef")


def test_assign_fresh_chunk_goes_by_position() -> None:
    """Nobody has anything: the owner at position p gets number p."""
    assert assign(OWNERS, {}) == {disk: number for number, disk in enumerate(OWNERS)}


def test_assign_owner_that_left_is_replaced_and_nothing_else_moves() -> None:
    """Who moved up keeps its shard; who is new takes the one that is missing."""
    holdings = {disk: {number} for number, disk in enumerate(OWNERS)}
    owners = ["a", "c", "d", "e", "f", "g"]
    assert assign(owners, holdings) == {"a": 0, "c": 2, "d": 3, "e": 4, "f": 5, "g": 1}


def test_assign_two_with_the_same_number_leave_it_to_its_position_else_to_the_first() -> None:
    """The one that loses it takes what is missing."""
    assert assign("abc", {"a": {1}, "b": {1}, "c": {2}}) == {"b": 1, "c": 2, "a": 0}
    assert assign("abc", {"a": {2}, "b": {2}}) == {"a": 2, "b": 1, "c": 0}


def test_assign_gives_each_owner_one_number_and_every_number_once() -> None:
    """Whatever lies where, also with fewer owners than shards; a second look changes nothing."""
    rng = random.Random(20261122)
    for _ in range(3000):
        shards = rng.randint(3, 22)
        disks = [str(number) for number in range(rng.randint(shards, 30))]
        owners = rng.sample(disks, rng.randint(1, shards))
        holdings = {
            disk: set(rng.sample(range(shards), rng.choice([0, 1, 1, 2])))
            for disk in disks
            if rng.random() < 0.7
        }
        found = assign(owners, holdings)
        assert set(found) == set(owners)
        assert len(set(found.values())) == len(owners)
        assert set(found.values()) <= set(range(shards))
        after = {disk: {number} for disk, number in found.items()}
        assert assign(owners, after) == found
        moved = [disk for disk in owners if found[disk] not in holdings.get(disk, ())]
        kept = {found[disk] for disk in owners} - {found[disk] for disk in moved}
        able = [disk for disk in moved if holdings.get(disk, set()) - kept]
        assert not able, "who has a number that nobody else keeps builds none"
