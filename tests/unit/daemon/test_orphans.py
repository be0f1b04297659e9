"""Orphan rounds: what belongs to nobody goes, what anybody may need never does."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from torus import limits
from torus.daemon.orphans import Known, OrphanRounds, judge, read_known
from torus.errors import Corruption, TorusError, Unavailable
from torus.ids import ChunkId, shard_id
from torus.metadata.base import Delete, Put
from torus.metadata.keys import head_key, lost_key
from torus.metadata.schema import Base, Head, NameRef, RootRef, Snapshot, Span, VolumeSpec
from torus.testing.workload import Recorder
from torus.testing.world import OWNER, World
from torus.volume.catalog_ask import Volume

INTERVAL_S = 3600.0
SIZE = 512 * limits.KIB


# --- the judgement ----------------------------------------------------------------------


@dataclass
class Life:
    """A volume's log through epochs, snapshots, deletions, kills: what is on the disk and what
    must stay, told apart by its history and not by the head."""

    number: int
    rng: random.Random
    epoch: int = 0
    spans: list[Span] = field(default_factory=list)
    root: RootRef | None = None
    snapshots: list[Snapshot] = field(default_factory=list)
    last: int = 0
    on_disk: set[ChunkId] = field(default_factory=set)
    needed: set[ChunkId] = field(default_factory=set)
    writing: bool = False

    def attach(self) -> None:
        """Another writer: it cuts the log somewhere in the last span, or keeps all of it."""
        self.epoch += 1
        if self.spans and self.spans[-1].last is None:
            first = self.spans[-1].first
            keep = self.last if self.rng.random() < 0.5 else self.rng.randint(first - 1, self.last)
            if self.root is not None:
                keep = max(keep, self.root.sequence)
            self.needed -= {chunk for chunk in self.needed if chunk.sequence > keep}
            self.last = keep
            if keep >= first:
                self.spans[-1] = replace(self.spans[-1], last=keep, end=512)
            else:
                self.spans.pop()
        if self.rng.random() < 0.8:  # else the attach stops before its head is published
            self.spans.append(Span(self.epoch, 0, self.last + 1))
            self.writing = True
        else:
            self.writing = False

    def write(self) -> None:
        """Chunks of the present writer; the last of them may not be in the map yet."""
        if self.writing:
            for _ in range(self.rng.randint(1, 5)):
                self.last += 1
                chunk = ChunkId(self.number, self.epoch, 0, self.last)
                self.on_disk.add(chunk)
                self.needed.add(chunk)

    def checkpoint(self) -> None:
        """Some chunks die; those that no snapshot has go, perhaps only as far as the trash."""
        own = [chunk for chunk in self.needed if chunk.epoch == self.epoch]
        if not self.writing or not own:
            return
        sequence = max(chunk.sequence for chunk in own)
        self.root = RootRef(sequence, 512, 1024, 1, sequence, 1536, 1)
        pinned = max((one.root.sequence for one in self.snapshots if one.root), default=0)
        for chunk in sorted(self.needed):
            if pinned < chunk.sequence < sequence and self.rng.random() < 0.6:
                self.needed.discard(chunk)
                if self.rng.random() < 0.5:
                    self.on_disk.discard(chunk)
        self._trim()

    def _trim(self) -> None:
        there = {chunk.sequence for chunk in self.needed}
        spans = []
        for span in self.spans:
            first, last = span.first, self.last if span.last is None else span.last
            while span.last is not None and first <= last and first not in there:
                first += 1
            if span.last is None or first <= last:
                spans.append(replace(span, first=first))
        self.spans = spans

    def snapshot(self) -> None:
        """Everything of the log up to the root may be needed now."""
        if self.writing and self.root is not None:
            number = len(self.snapshots) + 1
            self.snapshots.append(
                Snapshot(self.number, number, f"s{number}", "u", 1, SIZE, self.root)
            )

    def volume(self) -> Volume:
        """Return what the metadata says."""
        spec = VolumeSpec(self.number, f"v{self.number}", SIZE, "replica:1", 1)
        owner = OWNER if self.writing else None
        return Volume(spec, Head(self.epoch, owner, tuple(self.spans), self.root), 1, 1)


def _live(number: int, rng: random.Random) -> Life:
    life = Life(number, rng)
    life.attach()
    for _ in range(rng.randint(1, 25)):
        rng.choice((life.attach, life.write, life.write, life.checkpoint, life.snapshot))()
    return life


def test_chunk_that_a_head_or_a_snapshot_may_need_is_never_judged(seed: int) -> None:
    """Whatever became of the volumes; and garbage of older epochs is found."""
    rng = random.Random(seed)
    judged = 0
    for round_ in range(3000):
        lives = [_live(number, rng) for number in range(1, 4)]
        known = Known(
            5, 4, {one.number: one.volume() for one in lives},
            tuple(snapshot for one in lives for snapshot in one.snapshots),
        )  # fmt: skip
        chunks = {chunk for one in lives for chunk in one.on_disk}
        epochs = {one.number: one.epoch for one in lives}
        orphans = {chunk for found in judge(chunks, known, epochs.__getitem__).values()
                   for chunk in found}  # fmt: skip
        for one in lives:
            wrong = orphans & one.needed
            assert not wrong, (seed, round_, one.number, wrong, one.volume())
            spans = {(span.epoch, number) for span in one.spans
                     for number in range(span.first, (span.last or one.last) + 1)}  # fmt: skip
            for chunk in one.on_disk - orphans - one.needed:
                named = (chunk.epoch, chunk.sequence) in spans
                assert named or chunk.epoch == one.epoch, (seed, round_, chunk)
        judged += len(orphans)
    assert judged > 5000


def _known(*volumes: Volume, snapshots: tuple[Snapshot, ...] = (), next_volume: int = 9) -> Known:
    return Known(1, next_volume, {one.spec.volume: one for one in volumes}, snapshots)


def _volume(number: int, epoch: int = 3, *spans: Span, **changes: object) -> Volume:
    spec = VolumeSpec(number, f"v{number}", SIZE, "replica:1", 1)
    head = Head(epoch, None, spans, None)
    return Volume(replace(spec, **changes), head, 1, 1)  # type: ignore[arg-type]


GONE = ChunkId(5, 2, 0, 7)


def test_volume_that_is_gone_leaves_nothing() -> None:
    """Its id was given out, and nothing refers to it."""
    assert judge([GONE], _known(), lambda _: 2) == {5: {GONE}}


@pytest.mark.parametrize(
    "known",
    [
        _known(next_volume=5),
        _known(next_volume=0),
        _known(snapshots=(Snapshot(5, 1, "s", "u", 1, SIZE, None),)),
        _known(snapshots=(Snapshot(6, 1, "s", "u", 1, SIZE, None, base=Base(5, 1)),)),
        _known(replace(_volume(6), head=Head(1, None, (), None, base=Base(5, 1)))),
        replace(_known(), lost=frozenset([5])),
    ],
)
def test_volume_that_may_exist_or_is_referred_to_keeps_everything(known: Known) -> None:
    """Unknown is not dead: it may be newer than the metadata, or its metadata lost."""
    assert judge([GONE], known, lambda _: 2) == {}


def test_volume_that_is_being_deleted_or_fenced_beyond_its_head_is_left_alone() -> None:
    """Somebody else frees the first; the head of the second is an old one."""
    assert judge([GONE], _known(_volume(5)), lambda _: 3) == {5: {GONE}}
    assert judge([GONE], _known(_volume(5, state="deleting")), lambda _: 3) == {}
    assert judge([GONE], _known(_volume(5)), lambda _: 4) == {}
    assert judge([GONE._replace(epoch=3)], _known(_volume(5)), lambda _: 3) == {}


def test_shard_is_judged_as_its_chunk() -> None:
    """It goes with it, and stays with it."""
    shard = shard_id(GONE, 3)

    assert judge([shard], _known(), lambda _: 2) == {5: {shard}}
    assert judge([shard, GONE], _known(_volume(5)), lambda _: 3) == {5: {shard, GONE}}
    assert judge([shard, GONE], _known(_volume(5, 3, Span(2, 0, 5))), lambda _: 3) == {}
    assert judge([shard], _known(next_volume=5), lambda _: 2) == {}


def test_head_without_the_chunk_of_a_root_ends_the_round() -> None:
    """Something is wrong with it, so nothing it says is believed."""
    root = RootRef(4, 512, 1024, 1, 4, 1536, 1)
    snapshot = Snapshot(5, 1, "s", "u", 1, SIZE, root)
    with pytest.raises(Corruption):
        judge([GONE], _known(_volume(5, 3, Span(2, 0, 5)), snapshots=(snapshot,)), lambda _: 3)


# --- the rounds -------------------------------------------------------------------------


class Site:
    """A machine with a volume that was killed at a bad time, and its rounds."""

    def __init__(self, world: World, recorder: Recorder) -> None:
        self.world = world
        self.recorder = recorder
        self.rounds = OrphanRounds(
            world.store, world.metadata, world.clock, INTERVAL_S  # type: ignore[arg-type]
        )  # fmt: skip

    async def let_time_pass(self, seconds: float = INTERVAL_S) -> None:
        """Move the clock, and change something elsewhere in the metadata."""
        self.world.clock.advance(int(seconds * 1e9))
        await self.world.metadata.commit((), (Put("elsewhere", b"x"),))

    async def orphans(self) -> set[ChunkId]:
        """Return what is judged now."""
        known = await read_known(self.world.metadata)  # type: ignore[arg-type]
        found = judge(self.world.store.chunks(), known, self.world.store.fences.get)
        return {chunk for chunks in found.values() for chunk in chunks}


def _on_site(scenario: Callable[[Site], Awaitable[None]], seed: int = 1) -> None:
    """Overwrite with a trash that is never emptied, restart, so that chunks before the first
    span are there again."""

    async def run() -> None:
        rng = random.Random(seed)
        first = World(rng, trash_grace_s=1e6)
        first.store.open()
        await first.catalog.init_cluster()
        await first.catalog.create("v", SIZE)
        await first.catalog.create("gone", SIZE)
        recorder = Recorder(first, "v", SIZE)
        await recorder.attach()
        for _ in range(3):
            for at in range(0, SIZE, 64 * limits.KIB):
                await recorder.write(at, rng.randbytes(64 * limits.KIB))
            await recorder.checkpoint()
        await recorder.reattach()
        await recorder.checkpoint()
        await first.stop()
        world = World(
            rng, image=first.disk.image, snapshot=first.metadata.snapshot(), trash_grace_s=30.0
        )
        world.store.open()
        recorder.world = world
        await recorder.attach()
        try:
            await scenario(Site(world, recorder))
            await recorder.read(0, SIZE)
        finally:
            await world.stop()

    asyncio.run(run())


def test_orphan_goes_after_two_rounds_an_interval_apart() -> None:
    """And nothing else does."""

    async def scenario(site: Site) -> None:
        orphans, chunks = await site.orphans(), set(site.world.store.chunks())
        assert orphans
        assert await site.rounds.round() == 0
        await site.let_time_pass(INTERVAL_S - 1)
        assert await site.rounds.round() == 0
        await site.let_time_pass(1)
        assert await site.rounds.round() == len(orphans)
        assert set(site.world.store.chunks()) == chunks - orphans
        assert set(site.world.store.trash) == orphans

    _on_site(scenario)


def test_metadata_that_stands_still_confirms_nothing() -> None:
    """A copy that lags behind would say the same for ever."""

    async def scenario(site: Site) -> None:
        assert await site.rounds.round() == 0
        site.world.clock.advance(int(2 * INTERVAL_S * 1e9))
        assert await site.rounds.round() == 0
        assert site.world.store.trash == []

    _on_site(scenario)


@pytest.mark.parametrize("at", range(1, 9))
def test_error_in_the_metadata_ends_the_round_with_nothing_deleted(at: int) -> None:
    """The n-th question fails; the next round does what is due."""

    async def scenario(site: Site) -> None:
        metadata, asked = site.world.metadata, 0
        assert await site.rounds.round() == 0
        await site.let_time_pass()
        whole = metadata.list, metadata.get

        async def counted(key: str, ask: Callable[[str], Awaitable[object]]) -> object:
            nonlocal asked
            asked += 1
            if asked == at:
                raise Unavailable("planned")
            return await ask(key)

        metadata.list = lambda key: counted(key, whole[0])  # type: ignore[method-assign, assignment, return-value]
        metadata.get = lambda key: counted(key, whole[1])  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(Unavailable):
            await site.rounds.round()
        metadata.list, metadata.get = whole  # type: ignore[method-assign]
        assert site.world.store.trash == []
        assert await site.rounds.round() > 0

    _on_site(scenario)


@pytest.mark.parametrize("value", [b"", b"{}", b'{"format": 2}'])
def test_damaged_value_ends_the_round_with_nothing_deleted(value: bytes) -> None:
    """Of any volume: what is wrong with one may be wrong with all."""

    async def scenario(site: Site) -> None:
        gone = await site.world.catalog.get("gone")
        assert await site.rounds.round() == 0
        await site.let_time_pass()
        good = await site.world.metadata.get(head_key(gone.spec.volume))
        assert good is not None
        await site.world.metadata.commit((), (Put(good.key, value),))
        with pytest.raises(TorusError):
            await site.rounds.round()
        await site.world.metadata.commit((), (Delete(good.key),))
        with pytest.raises(Corruption):
            await site.rounds.round()
        assert site.world.store.trash == []
        await site.world.metadata.commit((), (Put(good.key, good.value),))

    _on_site(scenario)


def test_head_that_changes_during_the_round_ends_it() -> None:
    """Between the judgement and the deletion."""

    async def scenario(site: Site) -> None:
        metadata, whole = site.world.metadata, site.world.metadata.list
        assert await site.rounds.round() == 0
        await site.let_time_pass()
        volume = await site.world.catalog.get("v")
        key, listed = head_key(volume.spec.volume), 0

        async def meddle(prefix: str) -> object:
            nonlocal listed
            listed += 1
            if listed == 4:  # the second reading's first
                entry = await metadata.get(key)
                assert entry is not None
                await metadata.commit((), (Put(key, entry.value),))
            return await whole(prefix)

        metadata.list = meddle  # type: ignore[method-assign, assignment]
        with pytest.raises(Unavailable, match="changed"):
            await site.rounds.round()
        metadata.list = whole  # type: ignore[method-assign]
        assert site.world.store.trash == []
        assert await site.rounds.round() > 0
        await site.recorder.abandon()

    _on_site(scenario)


def test_deleted_volume_that_a_kill_brought_back_goes() -> None:
    """Unless it is marked as lost."""

    async def scenario(site: Site) -> None:
        store = site.world.store
        chunk = ChunkId(2, 1, 0, 1)
        store.create(chunk, from_reserve=False)
        store.fences.advance(2, 3)
        await site.world.catalog.forget(await site.world.catalog.mark_deleting("gone"))
        lost = Put(lost_key(2), NameRef(2).to_bytes())
        await site.world.metadata.commit((), (lost,))
        assert chunk not in await site.orphans()
        await site.world.metadata.commit((), (Delete(lost.key),))
        assert await site.rounds.round() == 0
        await site.let_time_pass()
        assert await site.rounds.round() > 0
        assert store.find(chunk) is None

    _on_site(scenario)


def test_rounds_go_on_after_an_error_and_end_when_they_are_closed() -> None:
    """The task lives as long as the node."""

    async def scenario(site: Site) -> None:
        calls = 0
        done = asyncio.Event()

        async def round_() -> int:
            nonlocal calls
            calls += 1
            if calls == 3:
                done.set()
            raise Unavailable("planned")

        rounds = OrphanRounds(site.world.store, site.world.metadata, site.world.clock, 0.0)  # type: ignore[arg-type]
        rounds.round = round_  # type: ignore[method-assign]
        rounds.start()
        await asyncio.wait_for(done.wait(), 10)
        await rounds.close()
        await rounds.close()

    _on_site(scenario)
