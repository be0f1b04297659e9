"""The block map: look-ups, runs, cold leaves, eviction."""

import pytest

from tests.contract.log_blockmap import PageLog, new_log
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum
from torus.errors import Corruption

LEAF_BYTES_MAX = 12_400
BLOCKS_64_TIB = 1 << 34


def crcs(count: int, first: int = 1) -> bytes:
    """Made-up CRCs first, first + 1, ..."""
    return b"".join((first + i).to_bytes(4, "little") for i in range(count))


def cold_log() -> PageLog:
    """Leaves 0, 1 and 3 hold one block each and are stored, not in memory."""
    log = new_log(8192)
    for leaf in (0, 1, 3):
        log.set(leaf * 1024 + 5, [leaf + 1])
    log.checkpoint()
    log.map.evict(0)
    return log


def test_set_across_leaves_gives_each_block_its_place() -> None:
    """Block i of a run lies 8 units after block i - 1, also in the next leaf."""
    found = BlockMap(4096, 1 << 20)
    found.open_sequence(7)

    found.set(1022, crcs(4), 7, 100)

    assert [found.get(at) for at in (1021, 1022, 1025, 1026)] == [
        None, (7, 100, 0, 1), (7, 124, 0, 4), None,
    ]  # fmt: skip
    assert (found.mapped_blocks, found.leaf_count, found.live(7)) == (4, 2, 32)


def test_overwrite_moves_live_units_to_the_newer_chunk() -> None:
    """Every unit is counted once, for the chunk that holds the newest copy."""
    found = BlockMap(4096, 1 << 20)
    found.open_sequence(1)
    found.open_sequence(2)
    found.set(0, crcs(100), 1, 0)

    found.set(90, crcs(20), 2, 0)
    found.clear(0, 10)

    assert (found.live(1), found.live(2), found.live_units()) == (640, 160, 800)
    assert found.mapped_blocks == 100
    found.verify()


@pytest.mark.parametrize(
    ("block", "count", "sequence", "offset", "error"),
    [
        (4090, 7, 1, 0, ValueError),  # beyond the end
        (5000, 1, 1, 0, ValueError),
        (0, 2, 1, 8184, ValueError),  # beyond the chunk
        (0, 1, 2, 0, LookupError),  # a chunk that was never opened
        (0, 1, 0, 0, LookupError),  # the sequence that means "absent"
    ],
)
def test_set_that_cannot_be_meant_is_refused_whole(
    block: int, count: int, sequence: int, offset: int, error: type[Exception]
) -> None:
    """A refused set changes nothing."""
    found = BlockMap(4096, 1 << 20)
    found.open_sequence(1)

    with pytest.raises(error):
        found.set(block, crcs(count), sequence, offset)

    assert (found.mapped_blocks, found.leaf_count, found.live(1)) == (0, 0, 0)


@pytest.mark.parametrize("size_blocks", [0, BLOCKS_64_TIB + 1])
def test_impossible_size_is_refused(size_blocks: int) -> None:
    """Volumes have between one block and 64 TiB."""
    with pytest.raises(ValueError, match=str(size_blocks)):
        BlockMap(size_blocks, 1 << 20)
    with pytest.raises(ValueError, match=str(size_blocks)):
        BlockMap(1, 1 << 20).resize(size_blocks)


def test_empty_64_tib_volume_is_one_extent() -> None:
    """Absent directories cost nothing to walk, list or clear."""
    found = BlockMap(BLOCKS_64_TIB, 1 << 20)
    found.open_sequence(1)
    found.set(BLOCKS_64_TIB - 1, crcs(1), 1, 0)

    extents, end = found.extents(0, BLOCKS_64_TIB, 10)
    found.clear(0, BLOCKS_64_TIB)

    assert (extents, end) == ([(BLOCKS_64_TIB - 1, False), (1, True)], BLOCKS_64_TIB)
    assert (found.mapped_blocks, found.live(1)) == (0, 0)


def test_extents_stop_at_the_limit_and_go_on_from_there() -> None:
    """The pieces of a limited walk are the whole walk."""
    found = BlockMap(4096, 1 << 20)
    found.open_sequence(1)
    for at in range(1000, 1100, 2):
        found.set(at, crcs(1), 1, 0)
    whole, _ = found.extents(0, 4096, 1000)

    pieces: list[tuple[int, bool]] = []
    block = 0
    while block < 4096:
        part, block = found.extents(block, 4096 - block, 7)
        assert len(part) <= 7
        pieces += part

    assert pieces == whole
    assert len(whole) == 101


def test_extents_stop_at_a_cold_leaf() -> None:
    """What lies before the cold leaf is told; the rest after loading it."""
    log = cold_log()
    log.load(1024, 1)

    assert log.map.extents(0, 8192, 100) == ([], 0)
    log.load(0, 1)
    extents, end = log.map.extents(0, 8192, 100)

    assert end == 3 * 1024
    assert extents == [(5, False), (1, True), (1023, False), (1, True), (2042, False)]


def test_runs_join_blocks_that_follow_in_address_and_chunk() -> None:
    """A gap in either ends a run."""
    found = BlockMap(4096, 1 << 20)
    found.open_sequence(1)
    found.open_sequence(2)
    found.set(1000, crcs(30), 1, 8)
    found.set(1030, crcs(2), 1, 248)
    found.set(1032, crcs(2), 1, 272)
    found.set(1034, crcs(2), 2, 288)
    found.clear(1010, 1)

    assert found.runs(0, 4096) == [
        (1000, 10, 1, 8, 0),
        (1011, 21, 1, 96, 0),
        (1032, 2, 1, 272, 0),
        (1034, 2, 2, 288, 0),
    ]
    assert found.entries_crc(1008, 4) == crcs(2, 9) + bytes(4) + crcs(1, 12)


def test_missing_names_cold_leaves_and_load_takes_them() -> None:
    """Exactly the stored leaves of the range that are not in memory."""
    log = cold_log()

    missing = log.map.missing(0, 8192)
    limited = log.map.missing(0, 8192, 2)
    loaded = log.load(1024, 3072)

    assert [place[0] for place in missing] == [0, 1, 3]
    assert limited == missing[:2]
    assert loaded == 2
    assert [place[0] for place in log.map.missing(0, 8192)] == [0]
    assert log.map.get(3 * 1024 + 5) == log.oracle.entries[3 * 1024 + 5]


def test_cold_leaf_refuses_every_call_that_needs_it() -> None:
    """A cold leaf is never taken for an absent one."""
    log = cold_log()
    sequence = log.sequence
    before = log.map.live_units()

    for refused in (
        lambda: log.map.set(1020, crcs(8), sequence, 0),
        lambda: log.map.clear(0, 8192),
        lambda: log.map.get(1024),
        lambda: log.map.runs(2048, 2048),
        lambda: log.map.entries_crc(0, 1),
        lambda: log.map.resize(3000),
    ):
        with pytest.raises(LookupError, match="map leaf"):
            refused()

    assert (log.map.live_units(), log.map.mapped_blocks) == (before, 3)
    assert log.map.get(2048) is None


def test_load_leaf_ignores_an_old_page() -> None:
    """A page read before the leaf moved is not taken in, and not called corrupt."""
    log = cold_log()
    index, sequence, offset, size, crc, _ = log.map.missing(0, 1)[0]
    old = log.stored[sequence, offset]
    log.set(6, [99])
    log.write_leaf(0)
    log.map.evict(0)

    stale = log.map.load_leaf(index, old, sequence, offset)
    log.load(0, 1)
    again = log.map.load_leaf(index, old, sequence, offset)

    assert (len(old), checksum(old)) == (size, crc)
    assert (stale, again) == (False, False)
    assert log.map.get(6) == log.oracle.entries[6]


def test_load_leaf_refuses_a_changed_page() -> None:
    """The reference's CRC and size cover every bit of the page."""
    log = cold_log()
    index, sequence, offset, _, _, _ = log.map.missing(0, 1)[0]
    page = log.stored[sequence, offset]

    for bad in (page[:-1], page + b"\0", page[:-1] + bytes([page[-1] ^ 1]), b""):
        with pytest.raises(Corruption, match="map leaf 0 in chunk 1"):
            log.map.load_leaf(index, bad, sequence, offset)

    assert log.map.load_leaf(index, page, sequence, offset)


def test_shrink_then_grow_reads_unmapped() -> None:
    """What lay beyond the end does not come back."""
    log = new_log(8192)
    log.set(2000, list(range(1, 200)))
    log.checkpoint()

    log.map.resize(2050)
    log.map.resize(1 << 21)

    assert log.map.runs(0, 1 << 21) == [(2000, 50, 1, 1, 0)]
    log.map.verify()


def test_evict_frees_only_clean_leaves_used_longest_ago() -> None:
    """Dirty leaves stay; a leaf that was looked at gets a second chance."""
    log = cold_log()
    log.load(0, 8192)
    leaf_bytes = log.map.resident_bytes // 3
    log.map.get(5)
    log.set(3 * 1024 + 6, [9])

    freed = log.map.evict(2 * leaf_bytes)
    kept = [index for index in (0, 1, 3) if not log.map.missing(index * 1024, 1)]
    log.map.evict(0)

    assert freed == leaf_bytes
    assert kept == [0, 3]
    assert (log.map.leaf_count, log.map.dirty_bytes) == (1, leaf_bytes)
    assert log.map.get(3 * 1024 + 6) == log.oracle.entries[3 * 1024 + 6]


def test_evict_without_target_keeps_to_the_cache_bound() -> None:
    """cache_bytes is what evict aims at."""
    log = new_log(1 << 20, 40_000)
    for leaf in range(10):
        log.set(leaf * 1024, [1])
    log.checkpoint()

    log.map.evict()

    assert 40_000 - LEAF_BYTES_MAX < log.map.resident_bytes <= 40_000


def test_oldest_dirty_is_the_order_of_first_changes() -> None:
    """A leaf that is written and changed again queues behind the others."""
    log = new_log(8192)
    for leaf in (3, 0, 2, 3):
        log.set(leaf * 1024, [1])
    first = log.map.oldest_dirty(2)
    page = log.map.encode_leaf(3)
    log.set(3 * 1024 + 1, [1])
    log.leaf_written(3, log.put(page))

    assert first == [3, 0]
    assert log.map.oldest_dirty(9) == [0, 2, 3]


def test_full_leaf_takes_little_more_than_its_entries() -> None:
    """12 bytes a block and some dozens for the leaf; the page of one entry is tiny."""
    log = new_log(8192)
    for at in range(0, 1024, 256):
        log.set(at, list(range(1, 257)))
    log.set(1024, [1])
    log.map.begin_checkpoint()

    assert log.map.resident_bytes <= 2 * LEAF_BYTES_MAX
    assert len(log.map.encode_leaf(0)) == 16 + 128 + 1024 * 12
    assert len(log.map.encode_leaf(1)) == 16 + 128 + 12
