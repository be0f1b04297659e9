"""Crash a recorded machine at every moment, open what is left, and say what is wrong.

The checks: every volume attaches; its content is a prefix of what was asked, at least all that
a flush had answered (after the death of the process alone: all that was answered); the map and
the space agree with each other; it takes writes again, also across a second crash.
"""

import random
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from torus.daemon.orphans import judge, read_known
from torus.format.segment import Geometry
from torus.ids import ChunkId
from torus.metadata.keys import NEXT_VOLUME
from torus.testing.history import VolumeHistory
from torus.testing.metadata import Snapshot
from torus.testing.simdisk import SMALL, DiskImage, Event, PowerLoss
from torus.testing.world import World


@dataclass(slots=True)
class Known:
    """What the world outside knows of one volume at a moment."""

    issued: int = 0
    answered: int = 0
    flushed: int = 0


@dataclass(slots=True)
class Moment:
    """A place in a history where the machine may crash."""

    number: int
    disk: PowerLoss
    current: Event | None  # the operation that is under way
    snapshot: Snapshot | None
    known: dict[str, Known]


def moments(world: World, first: int = 0) -> Iterator[Moment]:
    """Walk a world's history; yields the state before each disk or metadata operation."""
    power = PowerLoss(world.disk.geometry)
    known: dict[str, Known] = {}
    snapshot: Snapshot | None = None
    events = list(world.history)
    for number, event in enumerate([*events, None]):
        if number >= first and snapshot and (event is None or event.kind != "mark"):
            yield Moment(number, power, event, snapshot, known)
        if event is None:
            return
        power.step(event)
        if event.kind == "meta":
            snapshot = event.a  # type: ignore[assignment]
        elif event.kind == "mark":
            assert isinstance(event.a, tuple)
            setattr(known.setdefault(event.a[1], Known()), event.a[0], event.a[2])


@dataclass(slots=True)
class Examiner:
    """Opens images and checks them.  ``points`` counts them."""

    histories: dict[str, VolumeHistory]
    rng: random.Random
    options: dict[str, object] = field(default_factory=dict)
    deep_every: int = 4
    points: int = 0

    async def killed(self, moment: Moment) -> None:
        """The process dies: everything answered must be there."""
        deep = self._is_deep()
        image = moment.disk.killed(None if deep else moment.current, self.rng)
        power = moment.disk.continued() if deep else None
        await self._examine(moment, image, "answered", power)

    async def cut(self, moment: Moment) -> None:
        """The power goes: everything flushed must be there."""
        image = moment.disk.cut(self.rng, moment.current)
        power = PowerLoss(self._geometry(), image.copy()) if self._is_deep() else None
        await self._examine(moment, image, "flushed", power)

    def _is_deep(self) -> bool:
        return (self.points + 1) % self.deep_every == 0

    def _geometry(self) -> Geometry:
        geometry = self.options.get("geometry", SMALL)
        assert isinstance(geometry, Geometry)
        return geometry

    async def _examine(
        self, moment: Moment, image: DiskImage, promise: str, power: PowerLoss | None
    ) -> None:
        """``power`` is the disk for a second crash, None for one crash only."""
        self.points += 1
        assert moment.snapshot is not None
        world = World(
            self.rng,
            image=image,
            snapshot=moment.snapshot,
            **self.options,  # type: ignore[arg-type]
        )
        try:
            world.store.open()
            assert not world.store.damaged, world.store.damaged
            await self.opened(world)
            contents = {}
            for name, history in self.histories.items():
                if f"names/{name}" not in world.metadata.snapshot()[1]:
                    continue
                known = moment.known.get(name, Known())
                least = getattr(known, promise)
                contents[name] = await self._check(world, name, history, least, known.issued)
            await self.attached(world)
            if NEXT_VOLUME in moment.snapshot[1]:
                check_space(world, await find_orphans(world))
            if power is not None:
                await self._go_on(world, contents, power)
        finally:
            await world.stop()

    async def opened(self, world: World) -> None:
        """More to be checked while nobody has a volume."""

    async def attached(self, world: World) -> None:
        """More to be checked when all volumes are attached."""

    async def went_on(self, world: World) -> None:
        """More to be done before the second crash."""

    async def reopened(self, world: World) -> None:
        """More to be checked after the second crash."""

    async def _check(
        self, world: World, name: str, history: VolumeHistory, least: int, most: int
    ) -> bytes:
        attachment = await world.attach(name)
        volume = attachment.volume
        content = await volume.read(0, volume.size_bytes)
        lsn = volume.core.journal.lsn
        count = history.find(content, least, most, lsn)
        assert count is not None, (
            f"volume {name!r}: its content is not the state after {least} to {most} operations "
            f"(log found to end at lsn {lsn})"
        )
        volume.core.blocks.verify()
        return content

    async def _go_on(self, world: World, contents: dict[str, bytes], power: PowerLoss) -> None:
        """Write, crash again, and compare: recovery must leave a log that can be gone on with."""
        expected = {}
        for attachment in list(world.attachments):
            volume, rng = attachment.volume, self.rng
            content = bytearray(contents[volume.name])
            for _ in range(rng.randint(1, 4)):
                size = min(rng.choice((512, 4096, 20480)), len(content))
                at = rng.randint(0, (len(content) - size) // 512) * 512
                data = rng.randbytes(size)
                await volume.write(at, data, durable=False)
                content[at : at + size] = data
            if rng.random() < 0.5:
                await volume.checkpointer.write()
            await volume.flush()
            if rng.random() < 0.3:
                await attachment.detach()
            expected[volume.name] = bytes(content)
        await self.went_on(world)
        for event in world.history:
            power.step(event)
        again = World(
            self.rng,
            image=power.cut(self.rng),
            snapshot=world.metadata.snapshot(),
            **self.options,  # type: ignore[arg-type]
        )
        try:
            again.store.open()
            for name, wanted in expected.items():
                attachment = await again.attach(name)
                found = await attachment.volume.read(0, len(wanted))
                assert found == wanted, f"volume {name!r} lost data in a second crash"
            check_space(again, await find_orphans(again))
            await self.reopened(again)
        finally:
            await again.stop()


async def find_orphans(world: World) -> set[ChunkId]:
    """Return what the orphan rounds would find: chunks that were in the trash before a crash,
    and that no head names any more."""
    if not world.trash_grace_s:
        return set()
    known = await read_known(world.metadata)  # type: ignore[arg-type]
    found = judge(world.store.chunks(), known, world.store.fences.get)
    return {chunk for chunks in found.values() for chunk in chunks}


def check_space(world: World, orphans: AbstractSet[ChunkId] = frozenset()) -> None:
    """Every slot in use holds a chunk that some volume still counts, and none is missing."""
    store = world.store
    chunks = set(store.chunks())
    assert store.usage.used == len(chunks), (store.usage, len(chunks))
    attached = {one.volume.core.spec.volume for one in world.attachments}
    counted = {chunk for chunk in orphans if chunk.volume not in attached}
    for attachment in world.attachments:
        core = attachment.volume.core
        for chunk in store.chunks_of(core.spec.volume):
            if chunk in orphans:
                assert core.blocks.live(chunk.sequence) is None, f"orphan {chunk} is counted"
                counted.add(chunk)
                continue
            assert core.chunk(chunk.sequence) == chunk, f"chunk {chunk} belongs to nobody"
            assert core.blocks.live(chunk.sequence) is not None, f"chunk {chunk} is not counted"
            counted.add(chunk)
        own = [place for place in core.places if place >> 32 == 0]  # not an ancestor's
        forgotten = [number for number in own if core.blocks.live(number) is None]
        assert not forgotten, f"places of chunks {forgotten} are kept"
        for span in core.spans:
            last = core.journal.chunk.sequence if span.last is None else span.last
            for sequence in range(span.first, last + 1):
                if core.blocks.live(sequence):
                    assert core.chunk(sequence) in chunks, f"chunk {sequence} is gone"
    assert counted == chunks, f"chunks {chunks - counted} belong to nobody"
