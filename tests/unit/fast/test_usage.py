"""Eras of dead chunks, and the usage that a rollback takes over."""

import pytest

from tests.contract import oracles_blockmap as oracle
from tests.contract.log_blockmap import PageLog, new_log
from torus._fast import mappages
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum
from torus.errors import Corruption


def dead_and_alive() -> PageLog:
    """Chunk 1 is dead, chunk 2 holds a block."""
    log = new_log(4096)
    log.set(0, [1])
    log.offset = 8192
    log.set(0, [2])
    return log


def stored_usage(log: PageLog) -> list[tuple[int, int, int]]:
    """What the stored usage page 0 says."""
    (ref,) = log.map.usage.references()
    return mappages.read_usage(log.stored[ref[1], ref[2]], ref[0])


def test_dead_chunks_take_an_era_once() -> None:
    """Only those that have none are listed as unassigned."""
    log = dead_and_alive()
    log.map.open_sequence(5)
    assert log.map.dead_unassigned(1, 9) == log.map.dead(1, 9) == [1, 5]

    log.map.set_era(1, 0xFFFFFFFF)

    assert [log.map.era(at) for at in (1, 2, 5, 77)] == [0xFFFFFFFF, 0, 0, 0]
    assert (log.map.dead_unassigned(1, 9), log.map.dead(1, 9)) == ([5], [1, 5])


@pytest.mark.parametrize(
    ("sequence", "era", "error"),
    [(2, 1, LookupError), (77, 1, LookupError), (1, -1, ValueError), (1, 1 << 32, ValueError)],
)
def test_era_of_what_is_not_dead_is_refused(
    sequence: int, era: int, error: type[Exception]
) -> None:
    """A live chunk, one that is not there, and a number that cannot be stored."""
    log = dead_and_alive()
    with pytest.raises(error):
        log.map.set_era(sequence, era)
    assert log.map.dead_unassigned(1, 9) == [1]


def test_eras_come_back_from_the_root() -> None:
    """Stored with the live units, chunk by chunk."""
    log = dead_and_alive()
    log.map.set_era(1, 7)

    opened = log.reopen(log.checkpoint())

    assert [opened.era(at) for at in (1, 2)] == [7, 0]
    assert opened.dead_unassigned(1, 9) == []
    assert opened.dirty_usage_pages() == []


def test_an_era_makes_its_page_dirty_only_when_it_changes() -> None:
    """A checkpoint that assigns nothing writes nothing."""
    log = dead_and_alive()
    log.map.set_era(1, 7)
    log.checkpoint()

    log.map.set_era(1, 7)
    same = log.map.dirty_usage_pages()
    log.map.set_era(1, 8)

    assert (same, log.map.dirty_usage_pages()) == ([], [0])


def test_a_chunk_that_lives_again_has_lost_its_era() -> None:
    """Also when it dies at once again."""
    log = dead_and_alive()
    log.map.set_era(1, 7)

    log.map.set(3, b"\1\0\0\0", 1, 800)
    live = log.map.era(1)
    log.map.clear(3, 1)

    assert (live, log.map.era(1), log.map.dead_unassigned(1, 9)) == (0, 0, [1])


def test_a_chunk_that_went_has_lost_its_era() -> None:
    """Were its number opened again, it would begin without one."""
    log = dead_and_alive()
    log.map.set_era(1, 7)
    log.map.drop_sequence(1)
    log.map.open_sequence(1)

    assert log.map.era(1) == 0


def test_checkpoint_holds_the_eras_of_its_beginning() -> None:
    """An era given while it runs is in the next one; nothing is lost."""
    log = dead_and_alive()
    log.map.open_sequence(3)
    log.map.set_era(1, 7)
    leaves = log.map.begin_checkpoint()
    log.map.set_era(3, 9)
    for index in leaves:
        log.write_leaf(index)
    log.finish_checkpoint()
    log.map.end_checkpoint()
    first = stored_usage(log)
    log.checkpoint()

    assert [item for item in first if item[1] == 0] == [(1, 0, 7), (3, 0, 0)]
    assert [item for item in stored_usage(log) if item[1] == 0] == [(1, 0, 7), (3, 0, 9)]


def test_pages_of_the_checkpoint_end_an_era_in_it() -> None:
    """A chunk that was dead when it began, and now holds its leaf, is stored without an era."""
    log = dead_and_alive()
    log.map.set_era(1, 7)
    (index,) = log.map.begin_checkpoint()
    page = log.map.encode_leaf(index)
    log.stored[1, 900] = page
    log.leaf_written(index, (1, 900, len(page), checksum(page)))
    log.finish_checkpoint()
    log.map.end_checkpoint()

    assert log.map.dirty_usage_pages() == []
    assert stored_usage(log)[0] == (1, 1, 0)
    assert log.map.era(1) == 0


def test_aborted_checkpoint_keeps_eras() -> None:
    """They are stored by the next one."""
    log = dead_and_alive()
    log.map.set_era(1, 7)
    log.map.begin_checkpoint()
    log.map.abort_checkpoint()
    log.checkpoint()

    assert stored_usage(log)[0] == (1, 0, 7)


def test_full_page_of_dead_chunks_is_written() -> None:
    """The largest usage page there is."""
    found = BlockMap(4096, 1 << 20)
    for sequence in range(4096, 8192):
        found.open_sequence(sequence)
        found.set_era(sequence, sequence)
    found.begin_checkpoint()
    page = found.encode_usage(1)
    found.usage_written(1, 5000, 0, len(page), checksum(page))

    assert len(page) == 16 + 512 + 6 * 4096
    assert mappages.read_usage(page, 1) == [(i, 0, 4096 + i) for i in range(4096)]


@pytest.mark.parametrize("change", [-4, -1, 1, 4])
def test_usage_page_of_the_wrong_length_is_corrupt(change: int) -> None:
    """One era for every dead chunk, no more and no less."""
    page = oracle.encode_usage(0, {1: 0, 2: 5, 3: 0}, {1: 4})
    assert mappages.read_usage(page, 0) == [(1, 0, 4), (2, 5, 0), (3, 0, 0)]
    with pytest.raises(Corruption, match="eras"):
        mappages.read_usage(page[:change] if change < 0 else page + bytes(change), 0)


# --- rollback ---------------------------------------------------------------------------


def snapshot_and_present() -> tuple[PageLog, bytes, BlockMap]:
    """A log, the root of a snapshot in it, and the snapshot's map.

    Chunk 1 was dead before the snapshot (era 3), 2 lives in both, 3 only in the snapshot, 4
    holds its pages, 5 lives only now, 6 was made since and is dead.
    """
    log = new_log(8192)
    for block, crc in ((0, 1), (1024, 2), (2048, 3)):
        log.offset = 8192
        log.set(block, [crc])
    log.offset = 8192
    log.clear(0, 1)
    log.map.set_era(1, 3)
    root = log.checkpoint()
    log.offset = 8192
    log.set(2048, [5])
    log.reserve(8192 - log.offset)
    log.reserve(8)
    return log, root, log.reopen(root)


def test_rollback_keeps_the_chunks_of_now_and_the_units_of_then() -> None:
    """Existence from the volume, live units from the snapshot, eras for what is dead."""
    log, _, found = snapshot_and_present()
    log.map.set_era(6, 8)
    before = {sequence: log.map.live(sequence) for sequence in range(8)}
    pages = found.live(4)

    found.adopt_usage(log.map, 9)

    assert before == {0: None, 1: 0, 2: 8, 3: 0, 4: 3, 5: 8, 6: 0, 7: None}
    assert [found.live(at) for at in range(8)] == [None, 0, 8, 8, pages, 0, 0, None]
    assert [found.era(at) for at in range(8)] == [0, 3, 0, 0, 0, 9, 8, 0]
    assert found.live_units() == 8 + 8 + 3
    assert found.dead(1, 99) == [1, 5, 6]
    found.verify()


def test_rollback_lets_what_is_gone_be_gone() -> None:
    """A chunk that was dead in the snapshot and is deleted by now does not come back."""
    log, _, found = snapshot_and_present()
    log.map.drop_sequence(1)

    found.adopt_usage(log.map, 9)

    assert (found.live(1), found.era(1)) == (None, 0)
    assert found.dead(1, 99) == [5, 6]


def test_rollback_to_what_was_deleted_is_corruption() -> None:
    """Nothing is changed, and nothing is called dead by mistake."""
    log, root, found = snapshot_and_present()
    log.map.drop_sequence(3)
    pinned = found.pinned_sequences()

    with pytest.raises(Corruption, match="chunk number 3"):
        found.adopt_usage(log.map, 9)
    with pytest.raises(Corruption, match="chunk number"):
        log.reopen(root).adopt_usage(BlockMap(8192, 1 << 20), 9)

    assert [found.live(at) for at in range(1, 7)] == [0, 8, 8, 3, None, None]
    assert (found.dirty_usage_pages(), found.pinned_sequences()) == ([], pinned)


def test_rollback_writes_every_usage_page_and_pins_the_old_ones() -> None:
    """Those of both maps, until the root that has the new ones is durable."""
    log, _, found = snapshot_and_present()
    log.set(3000, [7])
    log.checkpoint()
    log.sequence, log.offset = 5000, 8192
    log.set(4000, [8])
    (old,), (present,) = found.pinned_sequences(), log.map.pinned_sequences()
    found.adopt_usage(log.map, 9)
    rolled = PageLog(found, log.oracle, log.sequence, 8192, log.stored)

    assert found.dirty_usage_pages() == [0, 1]
    assert rolled.map.begin_checkpoint() == []
    root = rolled.finish_checkpoint()
    during = found.pinned_sequences()
    found.end_checkpoint()

    assert old != present
    assert during == {old, present, 5002}
    assert found.pinned_sequences() == {5002}
    again = rolled.reopen(root)
    assert [again.live(at) for at in (3, 5, 5001, 5002)] == [8, 0, 0, None]
    assert [again.era(at) for at in (1, 5, 5001)] == [3, 9, 9]


def test_usage_pages_that_are_empty_after_a_rollback_go() -> None:
    """A page whose chunks were all dead in the snapshot and are deleted by now."""
    log = new_log(4096)
    log.set(0, [1])
    log.sequence, log.offset = 4999, 8192
    log.set(0, [2])
    found = log.reopen(log.checkpoint())
    log.map.drop_sequence(1)
    log.checkpoint()

    found.adopt_usage(log.map, 1)
    rolled = PageLog(found, log.oracle, log.sequence, 8192, log.stored)
    root = rolled.checkpoint()

    assert [ref[0] for ref in mappages.read_root(root)[3]] == [1]


def test_rollback_waits_for_whole_and_quiet_maps() -> None:
    """A changed leaf, a checkpoint or an unloaded page is not guessed about."""
    log, root, found = snapshot_and_present()

    def refuse(target: BlockMap, current: BlockMap) -> None:
        with pytest.raises(LookupError):
            target.adopt_usage(current, 1)

    refuse(log.map, found)  # dirty leaves
    refuse(BlockMap.from_root(root, 1 << 20), log.map)
    refuse(found, BlockMap.from_root(root, 1 << 20))
    log.map.begin_checkpoint()
    refuse(found, log.map)
    log.map.abort_checkpoint()
    for era in (-1, 1 << 32):
        with pytest.raises(ValueError, match="snapshot"):
            found.adopt_usage(log.map, era)
    found.adopt_usage(log.map, 1)


def test_faults_are_not_rolled_back_to() -> None:
    """Counts that do not add up are no ground for calling anything dead."""
    _, _, found = snapshot_and_present()
    leaf = oracle.encode_leaf(0, {1: (3, 8, 0, 77)})
    directory = oracle.encode_directory(0, {0: (4, 0, len(leaf), checksum(leaf))})
    usage = oracle.encode_usage(0, {3: 0, 4: 2})
    places = [
        {0: (4, at, len(page), checksum(page))} for at, page in ((50, directory), (60, usage))
    ]
    faulty = BlockMap.from_root(oracle.encode_root(4096, 1, *places), 1 << 20)
    faulty.load_directory(0, directory)
    faulty.load_usage(0, usage)
    faulty.load_leaf(0, leaf)
    faulty.clear(1, 1)

    with pytest.raises(Corruption, match="do not add up"):
        found.adopt_usage(faulty, 1)
