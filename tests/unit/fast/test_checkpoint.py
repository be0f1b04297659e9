"""Checkpoints, live units and opening a map from its root."""

from collections.abc import Callable

import pytest

from tests.contract import oracles_blockmap as oracle
from tests.contract.log_blockmap import PageLog, assert_same, load_all, new_log
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum
from torus.errors import Corruption

SPANS = [(0, 4096)]


def two_leaves() -> PageLog:
    """Leaves 0 and 2 are dirty."""
    log = new_log(4096)
    log.set(10, [1, 2, 3])
    log.set(2048, [4])
    return log


def test_checkpoint_holds_the_moment_of_its_beginning() -> None:
    """Writes, trims and a resize after begin are in the map and not in the checkpoint."""
    log = two_leaves()
    leaves = log.map.begin_checkpoint()
    frozen = log.oracle.copy()
    log.set(11, [7])
    log.set(3000, [8])
    log.clear(2048, 1)
    log.map.resize(2500)
    log.oracle.resize(2500)

    for index in leaves:
        log.write_leaf(index)
    root = log.finish_checkpoint(lambda: log.set(20, [5]))
    log.map.end_checkpoint()
    frozen.pages = dict(log.oracle.pages)
    opened = log.reopen(root)
    load_all(opened, log.pages())

    assert leaves == [0, 2]
    assert_same(opened, frozen, SPANS)
    assert_same(log.map, log.oracle, SPANS)


def test_frozen_copy_is_made_once_and_counted() -> None:
    """A frozen leaf that changes costs one copy until it is encoded."""
    log = two_leaves()
    before = log.map.resident_bytes
    log.map.begin_checkpoint()

    log.set(11, [7])
    log.set(12, [8])
    with_copy = log.map.resident_bytes
    log.map.encode_leaf(0)
    log.set(13, [9])

    assert with_copy - before == 1024 * 12
    assert log.map.resident_bytes == before


def test_leaf_changed_after_encoding_stays_dirty() -> None:
    """Its stored page is older than its content."""
    log = two_leaves()
    log.map.begin_checkpoint()
    pages = {index: log.map.encode_leaf(index) for index in (0, 2)}
    log.set(11, [7])

    for index, page in pages.items():
        log.leaf_written(index, log.put(page))

    assert log.map.oldest_dirty(9) == [0]
    assert log.map.evict(0) == 12344
    assert log.map.get(11) == log.oracle.entries[11]


def test_clean_map_has_nothing_to_checkpoint_but_the_root() -> None:
    """A second checkpoint writes no page, and the root is the same."""
    log = two_leaves()
    first = log.checkpoint()
    assert log.map.begin_checkpoint() == []
    assert (log.map.dirty_directories(), log.map.dirty_usage_pages()) == ([], [])
    assert log.map.encode_root() == first
    log.map.end_checkpoint()


def test_cleared_volume_drops_its_pages() -> None:
    """Absent leaves and directories have no page and count no unit."""
    log = two_leaves()
    log.checkpoint()
    log.map.evict(0)
    log.clear(0, 4096)

    root = log.checkpoint()

    usage = {ref[0]: ref[1:] for ref in log.map.usage.references()}
    assert (log.map.leaf_count, log.map.mapped_blocks, log.map.live_units()) == (0, 0, 0)
    assert root == oracle.encode_root(4096, 0, {}, usage)
    log.map.verify()


def test_abort_loses_nothing() -> None:
    """After an abort the next checkpoint holds everything; written leaves stay written."""
    log = two_leaves()
    log.map.begin_checkpoint()
    log.write_leaf(0)
    log.set(2049, [5])
    log.map.encode_leaf(2)
    log.map.abort_checkpoint()

    assert log.map.oldest_dirty(9) == [2]
    with pytest.raises(LookupError):
        log.map.leaf_written(2, 1, 500, 156, 0)
    opened = log.reopen(log.checkpoint())
    load_all(opened, log.pages())

    assert_same(opened, log.oracle, SPANS)


def out_of_turn() -> list[tuple[str, Callable[[PageLog], object]]]:
    """Calls that a checkpoint with one leaf left does not allow."""
    return [
        ("begin twice", lambda log: log.map.begin_checkpoint()),
        ("page-out of a leaf changed since", lambda log: log.map.encode_leaf(3)),
        ("leaf that was not encoded", lambda log: log.map.leaf_written(2, 1, 99, 156, 0)),
        ("leaf that is absent", lambda log: log.map.encode_leaf(1)),
        ("directory first", lambda log: log.map.encode_directory(0)),
        ("directory written first", lambda log: log.map.directory_written(0, 1, 99, 200, 0)),
        ("usage first", lambda log: log.map.encode_usage(0)),
        ("usage written first", lambda log: log.map.usage_written(0, 1, 99, 200, 0)),
        ("root first", lambda log: log.map.encode_root()),
        ("end first", lambda log: log.map.end_checkpoint()),
        ("abandon", lambda log: log.map.abandon_page_outs()),
    ]


@pytest.mark.parametrize("call", [call for _, call in out_of_turn()])
def test_call_out_of_turn_is_refused(call: Callable[[PageLog], object]) -> None:
    """Each level waits for the one below; nothing is changed by asking too early."""
    log = two_leaves()
    log.map.begin_checkpoint()
    log.write_leaf(0)
    log.set(3072, [1])

    with pytest.raises(LookupError):
        call(log)

    log.write_leaf(2)
    log.finish_checkpoint()
    log.map.end_checkpoint()
    log.map.verify()


def test_levels_wait_for_each_other() -> None:
    """Usage pages after directories, the root after usage pages, the end after the root."""
    log = two_leaves()
    for index in log.map.begin_checkpoint():
        log.write_leaf(index)

    with pytest.raises(LookupError, match="directories"):
        log.map.encode_usage(0)
    log.map.directory_written(0, *log.put(log.map.encode_directory(0)))
    with pytest.raises(LookupError, match="usage"):
        log.map.encode_root()
    log.map.usage_written(0, *log.put(log.map.encode_usage(0)))
    with pytest.raises(LookupError, match="root"):
        log.map.end_checkpoint()
    log.map.encode_root()
    log.map.end_checkpoint()

    assert not log.map.in_checkpoint


def test_checkpoint_waits_for_page_outs() -> None:
    """A late page-out must not pass an older page off as the checkpoint's."""
    log = two_leaves()
    log.map.encode_leaf(0)

    with pytest.raises(LookupError):
        log.map.begin_checkpoint()
    with pytest.raises(LookupError):
        log.map.encode_leaf(0)
    log.map.abandon_page_outs()

    assert log.map.begin_checkpoint() == [0, 2]


def test_written_refuses_what_was_not_encoded() -> None:
    """An empty place for a page with entries would lose them."""
    log = two_leaves()
    page = log.map.encode_leaf(0)

    with pytest.raises(LookupError, match="such a page"):
        log.map.leaf_written(0, 0, 0, 0, 0)
    with pytest.raises(LookupError, match="not open"):
        log.map.leaf_written(0, 77, 8, len(page), checksum(page))
    with pytest.raises(ValueError, match="cannot lie"):
        log.map.leaf_written(0, 1, 8192, len(page), checksum(page))
    log.leaf_written(0, log.put(page))

    log.map.verify()


def test_chunks_open_die_and_go() -> None:
    """None = gone, 0 = dead, and only the dead can go."""
    log = new_log(4096)
    found = log.map
    for sequence in (5, 6, 9000):
        found.open_sequence(sequence)
    found.set(0, b"\1\0\0\0", 6, 0)
    found.open_sequence(6)

    assert [found.live(at) for at in (0, 4, 5, 6, 9000, 1 << 31)] == [None, None, 0, 8, 0, None]
    assert found.dead(0, 1 << 32) == [5, 9000]
    assert (found.dead(5, 5), found.dead(6, 8999)) == ([5], [])
    with pytest.raises(ValueError, match="still holds"):
        found.drop_sequence(6)
    found.drop_sequence(5)
    found.drop_sequence(5)
    assert (found.live(5), found.dead(0, 1 << 32)) == (None, [9000])


def test_chunk_that_the_checkpoint_needs_cannot_go() -> None:
    """Dead now, but alive in the root that is being written."""
    log = two_leaves()
    log.map.begin_checkpoint()
    log.clear(0, 4096)

    assert log.map.dead(1, 1) == [1]
    with pytest.raises(ValueError, match="still holds"):
        log.map.drop_sequence(1)


def test_usage_pages_pin_their_chunks_until_the_next_root() -> None:
    """The last durable root may still name a replaced page when a checkpoint is aborted."""
    log = two_leaves()
    log.checkpoint()
    log.offset = 8192  # a new chunk from here on
    log.set(0, [1])

    log.map.begin_checkpoint()
    log.write_leaf(0)
    log.finish_checkpoint()
    during = log.map.pinned_sequences()
    log.map.abort_checkpoint()
    after_abort = log.map.pinned_sequences()
    log.checkpoint()

    assert during == after_abort == {1, 2}
    assert log.map.pinned_sequences() == {2}
    with pytest.raises(ValueError, match="still holds"):
        log.map.drop_sequence(2)


def test_usage_table_moves_with_the_log() -> None:
    """Usage pages of sequences long gone leave the root and memory."""
    log = new_log(4096)
    log.set(0, [1])
    log.checkpoint()
    log.sequence, log.offset = 3_000_000_000, 8192
    log.set(0, [2])
    log.checkpoint()
    log.map.drop_sequence(1)
    log.checkpoint()

    page_index = 3_000_000_001 // 4096
    assert [ref[0] for ref in log.map.usage.references()] == [page_index]
    log.map.open_sequence(3_000_000_001 - 4096)
    assert log.map.live(3_000_000_001 - 4096) == 0
    log.map.verify()


def crafted(counts: dict[int, int], entries: dict[int, oracle.Entry]) -> BlockMap:
    """A map of one leaf whose usage page says what the test wants."""
    leaf = oracle.encode_leaf(0, entries)
    place = (4, 0, len(leaf), checksum(leaf))
    directory = oracle.encode_directory(0, {0: place})
    usage = oracle.encode_usage(0, counts)
    root = oracle.encode_root(
        4096,
        len(entries),
        {0: (4, 50, len(directory), checksum(directory))},
        {0: (4, 60, len(usage), checksum(usage))},
    )
    opened = BlockMap.from_root(root, 1 << 20)
    opened.load_directory(0, directory)
    opened.load_usage(0, usage)
    opened.load_leaf(0, leaf)
    return opened


def test_fault_in_the_counts_makes_nothing_dead() -> None:
    """Counts that do not add up are unknown, and unknown is never dead."""
    opened = crafted({3: 0, 4: 2, 5: 0}, {1: (3, 8, 0, 77)})
    assert opened.dead(1, 9) == [3, 5]

    opened.clear(1, 1)

    assert opened.usage.faults == 1
    assert opened.dead(1, 9) == []
    with pytest.raises(ValueError, match="still holds"):
        opened.drop_sequence(5)
    with pytest.raises(AssertionError, match="faults"):
        opened.verify()


def test_blocks_of_a_base_volume_are_not_counted_here() -> None:
    """A chunk of another family member is accounted by its owner."""
    opened = crafted({4: 2}, {1: (3, 8, 6, 77)})
    assert opened.get(1) == (3, 8, 6, 77)
    opened.verify()

    opened.clear(0, 4096)

    assert (opened.usage.faults, opened.live_units()) == (0, 2)


def test_opened_map_serves_nothing_before_it_is_loaded() -> None:
    """An unloaded directory is never taken for an absent one."""
    log = two_leaves()
    root = log.checkpoint()
    opened = BlockMap.from_root(root, 1 << 20)

    for refused in (
        lambda: opened.get(0),
        lambda: opened.clear(0, 4096),
        opened.begin_checkpoint,
        lambda: opened.load_directory(5, b""),
        lambda: opened.load_usage(5, b""),
    ):
        with pytest.raises(LookupError):
            refused()
    assert opened.extents(0, 4096, 9) == ([], 0)
    assert [(level, index) for level, index, *_ in opened.unloaded()] == [
        ("directory", 0),
        ("usage", 0),
    ]
    for level, index, *_ in opened.unloaded():
        with pytest.raises(Corruption, match=f"map {level} page 0 in chunk 1"):
            (opened.load_directory if level == "directory" else opened.load_usage)(index, b"")


def test_pages_beyond_the_end_of_the_volume_are_corrupt() -> None:
    """Neither a leaf nor an entry may lie beyond the size that the root gives."""
    leaf = oracle.encode_leaf(0, {700: (1, 0, 0, 0)})
    directory = oracle.encode_directory(0, {0: (1, 8, len(leaf), checksum(leaf))})
    far = oracle.encode_directory(0, {1: (1, 8, len(leaf), checksum(leaf))})
    usage = oracle.encode_usage(0, {1: 10})
    for page in (directory, far):
        refs = {0: (1, 9, len(page), checksum(page))}
        root = oracle.encode_root(600, 1, refs, {0: (1, 20, len(usage), checksum(usage))})
        opened = BlockMap.from_root(root, 1 << 20)
        opened.load_usage(0, usage)
        with pytest.raises(Corruption, match=r"600 blocks|volume's end"):  # noqa: PT012
            opened.load_directory(0, page)
            opened.load_leaf(0, leaf)


def test_counts_changed_during_a_checkpoint_are_dirty_after_it() -> None:
    """The usage page that was written holds the frozen counts, not the present ones."""
    log = two_leaves()
    for index in log.map.begin_checkpoint():
        log.write_leaf(index)
    log.finish_checkpoint(lambda: log.clear(0, 4096))
    log.map.end_checkpoint()

    assert log.map.dirty_usage_pages() == [0]
    assert log.map.live_units() == sum(log.oracle.live().values()) == 3
