"""The block map against a dict, with checkpoints that other calls run into."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.contract.log_blockmap import PageLog, assert_same, clone_of, load_all, new_log
from tests.contract.oracles_blockmap import MapOracle

BORDER = 1 << 20  # between two directories
SPANS = [(0, 2100), (BORDER - 1100, 2200)]
SIZE_MAX = BORDER + 1100

starts = st.one_of(
    st.integers(0, 2080),
    st.integers(BORDER - 1080, BORDER + 1000),
    st.sampled_from([0, 1023, 1024, 2047, BORDER - 1024, BORDER - 1, BORDER]),
)
lengths = st.one_of(st.integers(1, 12), st.sampled_from([1, 256, 1000]))


class BlockMapMachine(RuleBasedStateMachine):
    """Every call that a volume makes, in any order that the map allows."""

    clone = False  # whether the map begins as that of another volume
    log: PageLog
    frozen: MapOracle
    waiting: list[int]  # leaves of the checkpoint that are not encoded yet
    encoded: list[tuple[int, bytes]]

    @initialize()
    def create(self) -> None:
        self.log = new_log(SIZE_MAX)
        if self.clone:
            for block in (5, 1020, BORDER - 1):
                self.log.set(block, list(range(1, 12)))
            self.log = clone_of(self.log, self.log.checkpoint())
        self.victims: set[int] = set()
        self.waiting, self.encoded = [], []
        self.durable: tuple[bytes, MapOracle] | None = None
        self.crc = 0

    def clip(self, block: int, count: int) -> tuple[int, int]:
        block = min(block, self.log.oracle.size_blocks - 1)
        return block, min(count, self.log.oracle.size_blocks - block)

    @rule(block=starts, count=lengths)
    def write(self, block: int, count: int) -> None:
        block, count = self.clip(block, count)
        self.crc += 1000
        self.log.set(block, [self.crc + i for i in range(count)])

    @rule(block=starts, count=st.one_of(lengths, st.just(BORDER)))
    def trim(self, block: int, count: int) -> None:
        self.log.clear(*self.clip(block, count))

    @rule(size=st.sampled_from([700, 1024, 1500, BORDER - 500, BORDER, SIZE_MAX, SIZE_MAX]))
    def resize(self, size: int) -> None:
        old = self.log.oracle.size_blocks
        if size < old:
            self.log.load(size, old - size)
        self.log.map.resize(size)
        self.log.oracle.resize(size)

    @rule(keep=st.sampled_from([0, 1, 2]))
    def evict(self, keep: int) -> None:
        before = self.log.map.resident_bytes
        freed = self.log.map.evict(keep * 12344)
        assert before - self.log.map.resident_bytes == freed

    @rule(count=st.integers(1, 3))
    def page_out(self, count: int) -> None:
        if self.log.map.in_checkpoint:
            return
        for index in self.log.map.oldest_dirty(count):
            self.log.write_leaf(index)

    @rule(era=st.integers(1, 3))
    def assign_eras(self, era: int) -> None:
        """As before a checkpoint: chunks that are newly dead, but not the open one."""
        for sequence in self.log.map.dead_unassigned(1, self.log.sequence - 1)[:era]:
            assert self.log.oracle.eras.get(sequence, 0) == 0
            self.log.map.set_era(sequence, era)
            self.log.oracle.eras[sequence] = era

    @precondition(lambda self: not self.log.map.in_checkpoint)
    @rule(which=st.integers(1, 9))
    def vacate(self, which: int) -> None:
        """The pages of some chunks are to be written anew, and nothing else changes."""
        victims = {at for at in range(1, self.log.sequence) if at % 9 != which}
        for index in self.log.map.mark_pages_dirty(victims):
            self.log.load(index << 10, 1)
            self.log.map.touch_leaf(index)
        self.victims |= victims

    @precondition(lambda self: not self.log.map.in_checkpoint)
    @rule()
    def begin(self) -> None:
        self.waiting = self.log.map.begin_checkpoint()
        self.frozen = self.log.oracle.copy()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 10))
    def encode(self, which: int) -> None:
        index = self.waiting.pop(which % len(self.waiting))
        self.encoded.append((index, self.log.map.encode_leaf(index)))

    @precondition(lambda self: self.encoded)
    @rule()
    def written(self) -> None:
        index, page = self.encoded.pop()
        self.log.leaf_written(index, self.log.put(page))

    @precondition(lambda self: self.log.map.in_checkpoint)
    @rule(block=starts, whole=st.booleans())
    def finish(self, block: int, whole: bool) -> None:
        """Write what is left while other writes go on, then reopen from the root."""
        while self.waiting or self.encoded:
            if self.waiting:
                self.encode(0)
            self.written()
        root = self.log.finish_checkpoint(lambda: self.write(block, 3))
        self.log.map.end_checkpoint()
        self.frozen.pages = dict(self.log.oracle.pages)
        self.frozen.chunks &= self.log.oracle.chunks
        self.durable = (root, self.frozen)
        assert not self.victims & self.log.map.pinned_sequences()
        assert not self.victims & {ref[0] for ref in self.log.oracle.pages.values()}
        self.victims.clear()
        opened = self.log.reopen(root)
        load_all(opened, self.log.pages())
        assert_same(opened, self.frozen_chunks(), SPANS)
        if whole:
            self.drop_dead()

    def frozen_chunks(self) -> MapOracle:
        """The frozen oracle, with the chunks that only its own pages lie in."""
        expected = self.frozen.copy()
        expected.chunks |= {ref[0] for ref in expected.pages.values() if ref[0]}
        return expected

    def drop_dead(self) -> None:
        """Drop what is dead now, as collection does after a checkpoint."""
        for sequence in self.log.map.dead(1, self.log.sequence - 1):
            if sequence not in self.log.map.pinned_sequences():
                self.log.map.drop_sequence(sequence)
                self.log.oracle.chunks.discard(sequence)
                self.log.oracle.eras.pop(sequence, None)

    @precondition(lambda self: self.log.map.in_checkpoint)
    @rule()
    def abort(self) -> None:
        self.waiting, self.encoded = [], []
        self.log.map.abort_checkpoint()

    @rule()
    def compare(self) -> None:
        self.log.load(0, self.log.oracle.size_blocks)
        assert_same(self.log.map, self.log.oracle, SPANS)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "log"):
            assert self.log.map.live_units() == sum(self.log.oracle.live().values())
            assert self.log.map.mapped_blocks == len(self.log.oracle.entries)

    def teardown(self) -> None:
        if hasattr(self, "log"):
            if self.log.map.in_checkpoint:
                self.abort()
            self.compare()


class CloneMapMachine(BlockMapMachine):
    """The same, over blocks and pages that lie in another volume's log."""

    clone = True


TestBlockMap = BlockMapMachine.TestCase
TestCloneMap = CloneMapMachine.TestCase
TestBlockMap.settings = TestCloneMap.settings = settings(
    max_examples=int(os.environ.get("TORUS_MODEL_EXAMPLES", "60")),
    stateful_step_count=50,
    deadline=None,
    derandomize=True,  # the same examples every time; hypothesis prints the failing steps
    suppress_health_check=list(HealthCheck),
)
