"""Maps whose pages and blocks lie in the logs of other members of the family."""

import pytest

from tests.contract import oracles_blockmap as oracle
from tests.contract.log_blockmap import PageLog, load_all, new_log
from tests.contract.oracles_blockmap import MapOracle
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


def clone_of(log: PageLog, root: bytes, base: int = 1) -> PageLog:
    """A new volume whose map is that of `root`, which lies `base` members away."""
    found = log.reopen(root, base=base)
    entries = {at: (s, o, b + base, crc) for at, (s, o, b, crc) in log.oracle.entries.items()}
    made = PageLog(found, MapOracle(found.size_blocks, entries))
    made.ancestors = {(base + at, *place): page for (at, *place), page in log.pages().items()}
    return made


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
