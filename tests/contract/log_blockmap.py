"""A log that keeps map pages in a dict, and the turn of a checkpoint over it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.contract.oracles_blockmap import NO_REF, MapOracle, Ref, units
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum

CHUNK_UNITS = 8192
Pages = dict[tuple[int, int, int], bytes]  # base, sequence, offset


@dataclass(slots=True)
class PageLog:
    """Gives places to blocks and pages, opens chunks as they fill, and mirrors both in `oracle`."""

    map: BlockMap
    oracle: MapOracle
    sequence: int = 0
    offset: int = CHUNK_UNITS
    stored: dict[tuple[int, int], bytes] = field(default_factory=dict)
    ancestors: dict[tuple[int, int, int], bytes] = field(default_factory=dict)  # base first

    def pages(self) -> Pages:
        """All pages that the volume can read, by (base, sequence, offset)."""
        return {(0, *place): page for place, page in self.stored.items()} | self.ancestors

    def page(self, sequence: int, offset: int, base: int) -> bytes:
        """A stored page of this volume or of an ancestor."""
        if base:
            return self.ancestors[base, sequence, offset]
        return self.stored[sequence, offset]

    def reserve(self, count_units: int) -> tuple[int, int]:
        """The next free place of that many units."""
        if self.offset + count_units > CHUNK_UNITS:
            self.sequence, self.offset = self.sequence + 1, 1
            self.map.open_sequence(self.sequence)
            self.oracle.chunks.add(self.sequence)
        place = (self.sequence, self.offset)
        self.offset += count_units
        return place

    def put(self, page: bytes) -> Ref:
        """Store a page; an empty one has no place."""
        if not page:
            return NO_REF
        place = self.reserve(units(len(page)))
        self.stored[place] = page
        return (*place, len(page), checksum(page))

    def set(self, block: int, crcs: list[int]) -> None:
        """Write a run of blocks to the log and the map."""
        self.load(block, len(crcs))
        sequence, offset = self.reserve(8 * len(crcs))
        packed = b"".join(crc.to_bytes(4, "little") for crc in crcs)
        self.map.set(block, packed, sequence, offset)
        self.oracle.map_run(block, crcs, sequence, offset)

    def clear(self, block: int, count: int) -> None:
        """Trim a range."""
        self.load(block, count)
        self.map.clear(block, count)
        self.oracle.clear(block, count)

    def load(self, block: int, count: int) -> int:
        """Load the cold leaves of a range; return how many there were."""
        missing = self.map.missing(block, count)
        for index, sequence, offset, _, _, base in missing:
            page = self.page(sequence, offset, base)
            assert self.map.load_leaf(index, page, sequence, offset, base)
        return len(missing)

    def write_leaf(self, index: int) -> None:
        """Encode a leaf, store it, and say where."""
        ref = self.put(self.map.encode_leaf(index))
        self.leaf_written(index, ref)

    def leaf_written(self, index: int, ref: Ref) -> None:
        """Say where a leaf lies."""
        self.map.leaf_written(index, *ref)
        self.oracle.pages["leaf", index] = ref

    def finish_checkpoint(self, between: Callable[[], None] = lambda: None) -> bytes:
        """Write directories and usage pages, return the root; `between` runs at every await."""
        for index in self.map.dirty_directories():
            page = self.map.encode_directory(index)
            between()
            ref = self.put(page)
            self.map.directory_written(index, *ref)
            self.oracle.pages["directory", index] = ref
        for index in self.map.dirty_usage_pages():
            page = self.map.encode_usage(index)
            between()
            self.map.usage_written(index, *self.put(page))
        between()
        root = self.map.encode_root()
        between()
        return root

    def checkpoint(self) -> bytes:
        """A whole checkpoint without anything in between."""
        for index in self.map.begin_checkpoint():
            self.write_leaf(index)
        root = self.finish_checkpoint()
        self.map.end_checkpoint()
        return root

    def reopen(self, root: bytes, cache_bytes: int = 1 << 20, base: int = 0) -> BlockMap:
        """A new map from the root, its directories and usage pages loaded.

        base: how many members away from this log's volume the reader is.
        """
        opened = BlockMap.from_root(root, cache_bytes, base)
        for level, index, sequence, offset, _, _, member in opened.unloaded():
            load = opened.load_directory if level == "directory" else opened.load_usage
            load(index, self.page(sequence, offset, member - base))
        return opened

    def compare(self) -> None:
        """Every block and count against the oracle; loads everything."""
        self.load(0, self.oracle.size_blocks)
        spans = [(at & -1024, 1024) for at in {at & -1024 for at in self.oracle.entries}]
        assert_same(self.map, self.oracle, spans)


def new_log(size_blocks: int, cache_bytes: int = 1 << 20) -> PageLog:
    """An empty map with its log and oracle."""
    return PageLog(BlockMap(size_blocks, cache_bytes), MapOracle(size_blocks))


def clone_of(log: PageLog, root: bytes, base: int = 1) -> PageLog:
    """A new volume whose map is that of `root`, which lies `base` members away."""
    found = log.reopen(root, base=base)
    entries = {at: (s, o, b + base, crc) for at, (s, o, b, crc) in log.oracle.entries.items()}
    made = PageLog(found, MapOracle(found.size_blocks, entries))
    made.ancestors = {(base + at, *place): page for (at, *place), page in log.pages().items()}
    return made


def load_all(opened: BlockMap, stored: Pages) -> None:
    """Load every cold leaf."""
    for index, sequence, offset, _, _, base in opened.missing(0, opened.size_blocks):
        page = stored[base, sequence, offset]
        assert opened.load_leaf(index, page, sequence, offset, base)


def assert_same(found: BlockMap, oracle: MapOracle, spans: list[tuple[int, int]]) -> None:
    """Compare a fully loaded map with the oracle; `spans` (block, count) cover all that is used."""
    found.verify()
    assert found.size_blocks == oracle.size_blocks
    assert found.mapped_blocks == len(oracle.entries)
    assert {key: found.live(key) for key in oracle.chunks} == oracle.live()
    eras = {key: found.era(key) for key in oracle.chunks}
    assert eras == {key: oracle.eras.get(key, 0) for key in oracle.chunks}
    for block, wanted in spans:
        count = max(0, min(wanted, oracle.size_blocks - block))
        if count == 0:
            continue
        entries = [oracle.entries.get(at, (0, 0, 0, 0)) for at in range(block, block + count)]
        crcs = b"".join(entry[3].to_bytes(4, "little") for entry in entries)
        assert found.runs(block, count) == oracle.runs(block, count)
        assert found.entries_crc(block, count) == crcs
        assert found.extents(block, count, 1 << 30) == (oracle.extents(block, count), block + count)
        assert found.depths(block, count, 1 << 30) == (oracle.depths(block, count), block + count)
