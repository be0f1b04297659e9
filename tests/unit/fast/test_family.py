"""Maps whose pages and blocks lie in the logs of other members of the family."""

import pytest

from tests.contract import oracles_blockmap as oracle
from tests.contract.log_blockmap import PageLog, clone_of, load_all, new_log
from torus._fast import mappages
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum
from torus.errors import Corruption


def origin() -> tuple[PageLog, bytes]:
    """A volume whose leaves 0, 2 and 1024 hold a few blocks, and its root."""
    log = new_log((1 << 20) + 1024)
    log.set(10, [1, 2, 3])
    log.set(2048, [4])
    log.set(1 << 20, [5])
    return log, log.checkpoint()


def test_a_clone_reads_its_origin_and_counts_nothing_of_it() -> None:
    """Entries and references are said `base` members further; no chunk is counted or pinned."""
    log, root = origin()
    made = clone_of(log, root, 2)

    assert [place[5] for place in made.map.missing(0, made.map.size_blocks)] == [2, 2, 2]
    made.load(0, made.map.size_blocks)
    assert made.map.runs(0, 3000) == [(10, 3, 1, 1, 2), (2048, 1, 1, 25, 2)]
    assert made.map.get(1 << 20) == (1, 33, 2, 5)
    assert made.map.mapped_blocks == 5
    assert (made.map.live_units(), made.map.pinned_sequences()) == (0, set())
    assert made.map.dead(0, 99) == []
    made.map.verify()


def test_unloaded_pages_of_an_origin_name_it() -> None:
    """Usage pages are not asked for."""
    _, root = origin()
    opened = BlockMap.from_root(root, 1 << 20, 3)

    assert [(level, index, base) for level, index, *_, base in opened.unloaded()] == [
        ("directory", 0, 3),
        ("directory", 1, 3),
    ]
    assert [ref[6] for ref in BlockMap.from_root(root, 1 << 20).unloaded()] == [0, 0, 0]


def test_an_empty_origin_is_usable_at_once() -> None:
    """Nothing is loaded for a root without directories, whatever its usage."""
    log = new_log(4096)
    log.set(0, [1])
    log.clear(0, 1)
    opened = BlockMap.from_root(log.checkpoint(), 1 << 20, 1)

    assert opened.unloaded() == []
    assert opened.extents(0, 4096, 9) == ([(4096, False)], 4096)


def test_written_leaves_become_the_clones_own() -> None:
    """With the entries that they inherit; other leaves and directories stay where they are."""
    log, root = origin()
    made = clone_of(log, root)
    made.set(11, [77])

    own_root = made.checkpoint()
    size, mapped, directories, usage = mappages.read_root(own_root)

    assert (size, mapped) == ((1 << 20) + 1024, 5)
    assert [(ref[0], ref[5]) for ref in directories] == [(0, 0), (1, 1)]
    assert [ref[5] for ref in usage] == [0]
    page = made.stored[directories[0][1], directories[0][2]]
    assert [(ref[0], ref[5]) for ref in mappages.read_directory(page, 0)] == [(0, 0), (2, 1)]
    assert made.map.live_units() == 8 + 1 + 1
    made.compare()


def test_a_clone_comes_back_from_its_own_root() -> None:
    """Pages and blocks of both logs are found."""
    log, root = origin()
    made = clone_of(log, root)
    made.set(11, [77])
    own_root = made.checkpoint()

    opened = made.reopen(own_root)
    assert opened.live_units() == 10
    load_all(opened, made.pages())

    assert opened.runs(0, 3000) == [
        (10, 1, 1, 1, 1),
        (11, 1, 1, 1, 0),
        (12, 1, 1, 17, 1),
        (2048, 1, 1, 25, 1),
    ]
    opened.verify()


def test_a_clone_of_a_clone_adds_up() -> None:
    """What lies one member away for the origin lies two away for its clone."""
    log, root = origin()
    middle = clone_of(log, root)
    middle.set(11, [77])
    last = clone_of(middle, middle.checkpoint())

    last.compare()
    assert [last.map.get(at)[2] for at in (10, 11, 2048, 1 << 20)] == [2, 1, 2, 2]  # type: ignore[index]
    last.set(12, [78])
    root = last.checkpoint()
    again = last.reopen(root)
    load_all(again, last.pages())
    assert [again.get(at)[2] for at in (10, 11, 12, 2048)] == [2, 1, 0, 2]  # type: ignore[index]


def test_discarding_what_is_inherited_counts_nothing() -> None:
    """The origin's chunks are not this volume's to count."""
    log, root = origin()
    made = clone_of(log, root)
    made.clear(0, made.map.size_blocks)
    own_root = made.checkpoint()

    assert made.map.usage.faults == 0
    assert (made.map.mapped_blocks, made.map.live_units()) == (0, 0)
    assert mappages.read_root(own_root)[2] == []


def test_the_member_is_part_of_a_pages_place() -> None:
    """A page that was read from another member's log is not taken for the wanted one."""
    log, root = origin()
    made = clone_of(log, root)
    index, sequence, offset, _, _, base = made.map.missing(0, 1)[0]
    page = log.stored[sequence, offset]

    assert not made.map.load_leaf(index, page, sequence, offset)
    assert not made.map.load_leaf(index, page, sequence, offset, base + 1)
    assert made.map.load_leaf(index, page, sequence, offset, base)


def crafted(leaf_base: int, entry_base: int, directory_base: int) -> tuple[bytes, bytes, bytes]:
    """A root whose directory, leaf and block lie so many members away."""
    leaf = oracle.encode_leaf(0, {5: (3, 0, entry_base, 9)})
    directory = oracle.encode_directory(0, {0: (3, 8, len(leaf), checksum(leaf), leaf_base)})
    place = (3, 16, len(directory), checksum(directory), directory_base)
    return oracle.encode_root(1024, 1, {0: place}, {}), directory, leaf


@pytest.mark.parametrize(
    ("leaf_base", "entry_base", "directory_base", "base"),
    [(0, 0, 1, 0xFFFF), (1, 0, 0xFFFF, 0), (0, 1, 0, 0xFFFF), (0x8000, 0x8000, 0, 0)],
)
def test_members_beyond_the_longest_family_are_corrupt(
    leaf_base: int, entry_base: int, directory_base: int, base: int
) -> None:
    """The sum is kept in 16 bits; it never wraps around to another member."""
    root, directory, leaf = crafted(leaf_base, entry_base, directory_base)
    with pytest.raises(Corruption, match="beyond the longest family"):  # noqa: PT012
        opened = BlockMap.from_root(root, 1 << 20, base)
        opened.load_directory(0, directory)
        opened.load_leaf(0, leaf)


def test_the_longest_family_is_read() -> None:
    """65,535 members away and no further."""
    root, directory, leaf = crafted(1, 2, 3)
    opened = BlockMap.from_root(root, 1 << 20, 0xFFFF - 6)
    opened.load_directory(0, directory)
    opened.load_leaf(0, leaf)
    assert opened.get(5) == (3, 0, 0xFFFF, 9)


def test_usage_pages_of_another_volume_are_corrupt() -> None:
    """A volume keeps its own counts."""
    root = oracle.encode_root(1024, 0, {}, {0: (3, 8, 600, 0, 1)})
    with pytest.raises(Corruption, match="another volume"):
        BlockMap.from_root(root, 1 << 20)


# --- pages to be written anew -----------------------------------------------------------


def spread_out() -> PageLog:
    """Every leaf (0, 2 and 1024), directory and usage page has a chunk of its own."""
    log = new_log((1 << 20) + 1024)
    for block in (10, 2048, 1 << 20):
        log.set(block, [block])
    plain_put = log.put

    def put(page: bytes) -> oracle.Ref:
        log.offset = 8192
        return plain_put(page)

    for index in log.map.begin_checkpoint():
        log.leaf_written(index, put(log.map.encode_leaf(index)))
    for index in log.map.dirty_directories():
        ref = put(log.map.encode_directory(index))
        log.map.directory_written(index, *ref)
        log.oracle.pages["directory", index] = ref
    log.map.usage_written(0, *put(log.map.encode_usage(0)))
    log.map.encode_root()
    log.map.end_checkpoint()
    log.map.evict(0)
    return log


def place_of(log: PageLog, level: str, index: int) -> int:
    """The chunk of a stored leaf or directory."""
    return log.oracle.pages[level, index][0]


@pytest.mark.parametrize("level", ["leaf", "directory", "usage"])
def test_pages_of_a_chunk_are_written_anew(level: str) -> None:
    """Its chunk is empty after the next checkpoint; other pages stay where they are."""
    log = spread_out()
    index = 1024 if level == "leaf" else 1 if level == "directory" else 0
    victim = min(log.map.pinned_sequences()) if level == "usage" else place_of(log, level, index)
    before = dict(log.oracle.pages)

    leaves = log.map.mark_pages_dirty({victim, 77})
    log.load(0, log.map.size_blocks)
    for leaf in leaves:
        log.map.touch_leaf(leaf)
    log.offset = 8192
    log.checkpoint()

    assert leaves == ([1024] if level == "leaf" else [])
    moved = {page for page, ref in log.oracle.pages.items() if ref != before[page]}
    expected = {"leaf": {("leaf", 1024), ("directory", 1)}, "directory": {("directory", 1)}}
    assert moved == expected.get(level, set())
    assert log.map.live(victim) == 0
    assert victim not in log.map.pinned_sequences()
    log.map.drop_sequence(victim)
    log.oracle.chunks.discard(victim)
    log.compare()


def test_all_chunks_at_once() -> None:
    """Everything is named and written; marking alone changes no content."""
    log = spread_out()
    leaves = log.map.mark_pages_dirty(set(range(1, log.sequence + 1)))
    assert leaves == [0, 2, 1024]
    assert log.map.dirty_directories() == [0, 1]
    log.load(0, log.map.size_blocks)
    for leaf in leaves:
        log.map.touch_leaf(leaf)

    log.offset = 8192
    first = log.sequence + 1
    log.checkpoint()

    assert {ref[0] for ref in log.oracle.pages.values()} == {first}
    assert log.map.pinned_sequences() == {first}
    log.compare()


def test_leaves_that_are_dirty_already_are_not_named() -> None:
    """They will be written anyway; clean ones in memory are named."""
    log = spread_out()
    log.load(0, log.map.size_blocks)
    log.set(11, [1])
    assert log.map.mark_pages_dirty(set(range(99))) == [2, 1024]


def test_no_chunks_no_pages() -> None:
    """Nor for chunks that hold none, nor for the equally numbered chunks of an ancestor."""
    log, root = origin()
    made = clone_of(log, root)
    for found in (log.map, made.map):
        assert found.mark_pages_dirty(set()) == []
        assert found.mark_pages_dirty({50, 60}) == []
        assert (found.dirty_directories(), found.dirty_usage_pages()) == ([], [])
    assert made.map.mark_pages_dirty({1}) == []
    assert made.map.dirty_directories() == []
    assert log.map.mark_pages_dirty({1}) == [0, 2, 1024]
    assert (log.map.dirty_directories(), log.map.dirty_usage_pages()) == ([0, 1], [0])


def test_marking_is_refused_at_the_wrong_time() -> None:
    """During a checkpoint, or before the map is whole."""
    log, root = origin()
    with pytest.raises(LookupError, match="not in memory"):
        clone_of(log, root).map.touch_leaf(0)
    with pytest.raises(LookupError, match="not in memory"):
        log.map.touch_leaf(77)
    unloaded = BlockMap.from_root(root, 1 << 20)
    log.map.begin_checkpoint()
    for found in (log.map, unloaded):
        with pytest.raises(LookupError):
            found.mark_pages_dirty({1})
        with pytest.raises(LookupError):
            found.mark_inherited_dirty()
    with pytest.raises(LookupError):
        unloaded.has_inherited_pages()
    with pytest.raises(LookupError):
        unloaded.inherited_leaves(0, 9)


def test_touching_a_frozen_leaf_keeps_the_checkpoint() -> None:
    """It is written with what it held, and is dirty again afterwards."""
    log = new_log(4096)
    log.set(0, [1])
    log.map.begin_checkpoint()
    log.map.touch_leaf(0)
    log.set(1, [2])
    log.write_leaf(0)
    root = log.finish_checkpoint()
    log.map.end_checkpoint()

    assert log.map.oldest_dirty(9) == [0]
    opened = log.reopen(root)
    load_all(opened, log.pages())
    assert [opened.get(at) is None for at in (0, 1)] == [False, True]


# --- flattening -------------------------------------------------------------------------


def test_inherited_leaves_in_memory_are_exact_and_cold_ones_all_named() -> None:
    """Only the page can tell whether a cold leaf inherits."""
    log, root = origin()
    made = clone_of(log, root)
    made.set(5000, [9])
    assert made.map.inherited_leaves(0, 99) == [0, 2, 1024]
    assert made.map.inherited_leaves(1, 99) == [2, 1024]
    assert made.map.inherited_leaves(0, 2) == [0, 2]
    assert made.map.inherited_leaves(1025, 99) == made.map.inherited_leaves(1 << 40, 9) == []

    made.set(2048, [4])  # the only inherited block of leaf 2
    made.set(11, [7])
    assert made.map.inherited_leaves(0, 99) == [0, 1024]
    made.checkpoint()
    made.map.evict(0)
    assert made.map.inherited_leaves(0, 99) == [0, 2, 4, 1024]
    made.load(0, made.map.size_blocks)
    assert made.map.inherited_leaves(0, 99) == [0, 1024]


def test_flattening_leaves_nothing_inherited() -> None:
    """Blocks and pages written anew: the map is the volume's own."""
    log, root = origin()
    made = clone_of(log, root)
    assert made.map.has_inherited_pages()
    made.load(0, made.map.size_blocks)
    for block, crcs in ((10, [1, 2, 3]), (2048, [4]), (1 << 20, [5])):
        made.set(block, crcs)
    assert made.map.inherited_leaves(0, 99) == []

    assert made.map.mark_inherited_dirty() == 2
    own_root = made.checkpoint()

    assert made.map.mark_inherited_dirty() == 0
    assert not made.map.has_inherited_pages()
    made.ancestors.clear()
    load_all(made.reopen(own_root), made.pages())
    made.compare()


def test_directories_are_written_anew_without_their_leaves() -> None:
    """The directory is the volume's own then, its leaves are not."""
    log, root = origin()
    made = clone_of(log, root)
    assert made.map.mark_inherited_dirty() == 2

    own_root = made.checkpoint()

    assert [ref[5] for ref in mappages.read_root(own_root)[2]] == [0, 0]
    assert made.map.has_inherited_pages()
    assert [place[5] for place in made.map.missing(0, made.map.size_blocks)] == [1, 1, 1]
    made.compare()


# --- depths -----------------------------------------------------------------------------


def three_members() -> PageLog:
    """Blocks of the volume, of its origin, and of the origin's origin, in leaves 0, 2, 1024."""
    log, root = origin()
    middle = clone_of(log, root)
    middle.set(11, [77])
    last = clone_of(middle, middle.checkpoint())
    last.set(12, [78])
    last.set(1022, [1, 2, 3])
    return last


def test_depths_tell_the_member_of_each_block() -> None:
    """0 unmapped, 1 own, 2 the origin's, 3 its origin's."""
    found = three_members()
    found.load(0, found.map.size_blocks)

    extents, end = found.map.depths(0, found.map.size_blocks, 99)

    assert end == found.map.size_blocks
    assert extents == [
        (10, 0), (1, 3), (1, 2), (1, 1), (1009, 0), (3, 1), (1023, 0), (1, 3),
        ((1 << 20) - 2049, 0), (1, 3), (1023, 0),
    ]  # fmt: skip
    assert sum(count for count, _ in extents) == end


def test_depths_in_parts_are_the_whole() -> None:
    """At any limit and place; extents of equal depth are joined."""
    found = three_members()
    found.load(0, 4096)
    whole, _ = found.map.depths(5, 3000, 99)
    for limit in (1, 2, 3):
        pieces, block = [], 5
        while block < 3005:
            part, block = found.map.depths(block, 3005 - block, limit)
            assert len(part) <= limit
            pieces += part
        assert pieces == whole
    assert found.map.depths(5, 3000, 0) == ([], 5)


def test_depths_stop_at_a_cold_leaf() -> None:
    """As extents do."""
    found = three_members()
    assert found.map.depths(0, 5000, 99)[1] == 2048
    found.load(2048, 1)
    assert found.map.depths(0, 5000, 99)[1] == 5000
    with pytest.raises(ValueError, match="outside"):
        found.map.depths(0, 1 << 30, 9)
