"""What differs between two maps, against a comparison block by block."""

import random
import struct

import pytest

from tests.contract.log_blockmap import PageLog, load_all, new_log
from tests.contract.oracles_blockmap import Entry, MapOracle
from torus._fast.blockmap import BlockMap
from torus._fast.mapdiff import diff_leaf, differing_leaves
from torus.errors import Corruption

BLOCKS = 4096
DATA, HOLE = 1, 0


def differing(
    a: dict[int, Entry], b: dict[int, Entry], members: list[int] | None = None
) -> dict[int, int]:
    """{block: kind} of the blocks that differ."""
    found = {}
    for block in a.keys() | b.keys():
        before = a.get(block)
        if before is not None and members is not None:
            sequence, offset, base, crc = before
            base = members[base] if base < len(members) else 0xFFFF
            before = None if base == 0xFFFF else (sequence, offset, base, crc)
            if before is None and block not in b:
                found[block] = HOLE
        if before != b.get(block):
            found[block] = DATA if block in b else HOLE
    return found


def diff_all(a: BlockMap, b: BlockMap, members: bytes | None = None) -> dict[int, int]:
    """{block: kind} of all leaves that may differ; runs are checked to be whole."""
    found: dict[int, int] = {}
    for index in differing_leaves(a, b, 0, 1 << 30, members):
        last = (-1, -1)
        for block, count, kind in diff_leaf(a, b, index, members):
            assert index * 1024 <= block < block + count <= (index + 1) * 1024
            assert (block, kind) != last
            last = (block + count, kind)
            found |= dict.fromkeys(range(block, block + count), kind)
    return found


def opened(log: PageLog, root: bytes, base: int = 0) -> BlockMap:
    """The map of a root, with all of its leaves."""
    found = log.reopen(root, base=base)
    load_all(found, {(at + base, *place): page for (at, *place), page in log.pages().items()})
    return found


def random_writes(log: PageLog, rng: random.Random) -> None:
    """A few writes and trims; some leaves stay as they are."""
    for _ in range(rng.randrange(5)):
        block = rng.choice([rng.randrange(40), 1000 + rng.randrange(60), 3070 + rng.randrange(9)])
        block = min(block, log.oracle.size_blocks - 20)
        if rng.randrange(3):
            log.set(block, [rng.randrange(1 << 32) for _ in range(rng.randint(1, 20))])
        else:
            log.clear(block, rng.randint(1, 20))


@pytest.mark.parametrize("seed", range(30))
def test_two_snapshots_of_a_volume(seed: int) -> None:
    """Every block that differs, and no other; equal leaves are not looked at."""
    rng = random.Random(seed)
    log = new_log(BLOCKS)
    random_writes(log, rng)
    before, old = log.checkpoint(), log.oracle.copy()
    for _ in range(rng.randrange(3)):
        random_writes(log, rng)
        log.checkpoint()
    size = rng.choice([BLOCKS, BLOCKS, 3080, 1024, 6000])
    log.load(0, log.oracle.size_blocks)
    log.map.resize(size)
    log.oracle.resize(size)
    random_writes(log, rng)
    a, b = opened(log, before), opened(log, log.checkpoint())
    there = differing(old.entries, log.oracle.entries)

    assert diff_all(a, b) == there
    assert diff_all(b, a) == differing(log.oracle.entries, old.entries)
    assert diff_all(a, log.map) == there
    assert diff_all(a, a) == diff_all(b, log.map) == {}
    assert differing_leaves(b, log.map, 0, 99) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_clone_and_its_origin(seed: int) -> None:
    """Members of the origin's map are those of the clone's, one further; both ways."""
    rng = random.Random(seed)
    log = new_log(BLOCKS)
    random_writes(log, rng)
    root = log.checkpoint()
    family = MapOracle(BLOCKS, {b: (s, o, 1, c) for b, (s, o, _, c) in log.oracle.entries.items()})
    clone = PageLog(log.reopen(root, base=1), family)
    clone.ancestors = {(1, *place): page for place, page in log.stored.items()}
    clone.load(0, BLOCKS)
    to_clone, to_origin = [1], [0xFFFF, 0]
    packed = [struct.pack(f"={len(names)}H", *names) for names in (to_clone, to_origin)]
    assert diff_all(log.map, clone.map, packed[0]) == {}
    assert diff_all(clone.map, log.map, packed[1]) == {}

    random_writes(clone, rng)
    if seed % 2:
        clone.checkpoint()
        random_writes(log, rng)
    clone.load(0, BLOCKS)
    mine, origin = clone.oracle.entries, log.oracle.entries

    assert diff_all(log.map, clone.map, packed[0]) == differing(origin, mine, to_clone)
    assert diff_all(clone.map, log.map, packed[1]) == differing(mine, origin, to_origin)


def test_without_members_equal_numbers_mean_equal_logs() -> None:
    """The same place in an ancestor's log and in the own one is not the same block."""
    log = new_log(BLOCKS)
    log.set(0, [1, 2])
    root = log.checkpoint()
    a, b = opened(log, root), opened(log, root, 1)

    assert differing_leaves(a, b, 0, 9) == [0]
    assert diff_leaf(a, b, 0) == [(0, 2, DATA)]
    assert diff_all(a, b, struct.pack("=H", 1)) == {}
    assert diff_all(a, b, b"") == dict.fromkeys(range(2), DATA)


def test_runs_end_where_the_kind_changes() -> None:
    """Data beside a hole, and equal blocks between them."""
    log = new_log(BLOCKS)
    log.set(0, list(range(1, 101)))
    a = opened(log, log.checkpoint())
    log.clear(10, 10)
    log.set(20, [1, 2, 3])
    log.set(1023, [4, 5])

    assert diff_leaf(a, log.map, 0) == [(10, 10, HOLE), (20, 3, DATA), (1023, 1, DATA)]
    assert diff_leaf(a, log.map, 1) == [(1024, 1, DATA)]
    assert diff_leaf(log.map, a, 0) == [(10, 13, DATA), (1023, 1, HOLE)]
    assert diff_leaf(a, log.map, 2) == diff_leaf(a, log.map, 1 << 40) == []


def test_leaves_are_named_in_parts() -> None:
    """At most so many, from a leaf on."""
    log = new_log(1 << 21)
    a = opened(log, log.checkpoint())
    for leaf in (0, 3, 1023, 1024, 2047):
        log.set(leaf * 1024, [1])

    assert differing_leaves(a, log.map, 0, 99) == [0, 3, 1023, 1024, 2047]
    assert differing_leaves(a, log.map, 1, 2) == [3, 1023]
    assert differing_leaves(log.map, a, 1024, 2) == [1024, 2047]
    assert differing_leaves(a, log.map, 2048, 2) == differing_leaves(a, log.map, 0, 0) == []


def test_cold_and_unloaded_maps_are_not_guessed_about() -> None:
    """Differing leaves are told from references; their blocks only from pages."""
    log = new_log(BLOCKS)
    log.set(0, [1])
    root = log.checkpoint()
    log.set(0, [2])
    cold = log.reopen(root)

    assert differing_leaves(cold, log.map, 0, 9) == [0]
    for a, b in ((cold, log.map), (log.map, cold)):
        with pytest.raises(LookupError, match="map leaf 0"):
            diff_leaf(a, b, 0)
    unloaded = BlockMap.from_root(root, 1 << 20)
    with pytest.raises(LookupError, match="not loaded"):
        differing_leaves(unloaded, log.map, 0, 9)
    with pytest.raises(LookupError, match="not loaded"):
        diff_leaf(log.map, unloaded, 0)
    with pytest.raises(ValueError, match="16-bit"):
        diff_leaf(log.map, log.map, 0, b"abc")
    with pytest.raises(Corruption):
        cold.load_leaf(0, b"", 1, 9)
