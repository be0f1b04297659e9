"""Volumes, snapshots and clones against dictionaries of blocks, under any sequence of operations.

TORUS_MODEL_STEPS sets how many steps are made in all.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.model.test_volume import BLOCK, STEPS_EACH, ZERO, Blocks, VolumeMachine, blocks_of
from torus import limits
from torus.metadata.schema import Snapshot
from torus.testing.crash_family import take_down
from torus.testing.operations import delete_snapshot, delete_volume, go_back, open_map
from torus.volume.attachment import Attachment
from torus.volume.changes import Change, changes
from torus.volume.reads import Reads

STEPS = int(os.environ.get("TORUS_MODEL_STEPS", "4000"))
VOLUMES_MAX = 4
SNAPSHOTS_MAX = 6  # of one volume


@dataclass(slots=True)
class Member:
    """A volume while another one is the machine's."""

    attachment: Attachment
    content: Blocks
    durable: Blocks
    since: list[tuple[int, bytes | int]]
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What a snapshot holds."""

    volume: str
    snapshot: Snapshot
    blocks: Blocks


class FamilyMachine(VolumeMachine):
    """Some volumes that grow from each other; the rules of one volume apply to that which was
    chosen last."""

    capacity = 12 * limits.MIB  # three leaves
    slots = 4000

    def __init__(self) -> None:
        super().__init__()
        self.members: dict[str, Member] = {}  # the others
        self.kept: list[Kept] = []
        self.made = 0

    # --- which volume -------------------------------------------------------------------

    def select(self, name: str) -> None:
        """Make a volume the machine's."""
        if name != self.name:
            self._park()
            member = self.members.pop(name)
            self.name, self.attachment, self.size = name, member.attachment, member.size
            self.content, self.durable, self.since = member.content, member.durable, member.since

    def _park(self) -> None:
        self.members[self.name] = Member(
            self.attachment, self.content, self.durable, self.since, self.size
        )

    def each(self) -> Iterator[None]:
        """Go through the volumes: each is this one in its turn."""
        here = self.name
        for name in sorted([here, *self.members]):
            self.select(name)
            yield
        self.select(here)

    def own(self) -> list[Kept]:
        """Return the snapshots of the present volume."""
        return [kept for kept in self.kept if kept.volume == self.name]

    picks = st.integers(0, 1 << 16)
    few = st.integers(0, 3)

    @rule(pick=picks)
    def choose(self, pick: int) -> None:
        """Go on with another volume."""
        names = sorted([self.name, *self.members])
        self.select(names[pick % len(names)])

    # --- snapshots ----------------------------------------------------------------------

    @rule(place=VolumeMachine.places, count=few)
    def snapshot(self, place: int, count: int) -> None:
        """Make a snapshot while some writes go on: it holds a first part of those."""
        if len(self.own()) >= SNAPSHOTS_MAX:
            return
        writes = []
        for i in range(count):
            offset, size = self.extent(place * (i + 3), 8192, BLOCK)
            writes.append((offset, self.rng.randbytes(size)))
        made, found = self.run(self._snapshot(self._new_name("s"), writes))
        self.settle()
        fits = found.blocks == self.content.blocks
        for offset, data in writes:
            self.apply(offset, data)
            fits = fits or found.blocks == self.content.blocks
        assert fits, f"snapshot {made.name!r} is no moment since it was asked for"
        self.kept.append(Kept(self.name, made, found))

    async def _snapshot(
        self, name: str, writes: list[tuple[int, bytes]]
    ) -> tuple[Snapshot, Blocks]:
        making = asyncio.ensure_future(self.attachment.snapshot(name, self.made))
        for offset, data in writes:
            await asyncio.sleep(0)
            await self.attachment.volume.write(offset, data, durable=False)
        made = await making
        return made, await self._read(made)

    def _new_name(self, letter: str) -> str:
        self.made += 1
        return f"{letter}{self.made}"

    async def _read(self, snapshot: Snapshot) -> Blocks:
        reads = Reads(await open_map(self.world, snapshot))
        return blocks_of(await reads.sparse(0, snapshot.size_bytes))

    @rule()
    def snapshot_detached(self) -> None:
        """Make a snapshot of a detached volume."""
        if len(self.own()) >= SNAPSHOTS_MAX:
            return
        self.run(self.attachment.detach())
        self.settle()
        name = self._new_name("s")
        made = self.run(self.world.catalog.snapshot_detached(self.name, name, self.made, "u"))
        self.attachment = self.run(self.world.attach(self.name))
        if made is None:  # its size was changed since
            made = self.run(self.attachment.snapshot(name, self.made))
        self.kept.append(Kept(self.name, made, Blocks(self.content.blocks)))

    @rule(pick=picks)
    def delete_snapshot(self, pick: int) -> None:
        """Delete a snapshot that has no clones."""
        found = self.run(self.world.catalog.snapshots(self.name))
        free = [one.name for one in found if not one.clones]
        if free:
            name = free[pick % len(free)]
            self.run(delete_snapshot(self.world, self.name, name, self.attachment))
            self.kept = [
                one for one in self.kept if (one.volume, one.snapshot.name) != (self.name, name)
            ]

    @rule(pick=picks)
    def read_snapshot(self, pick: int) -> None:
        """Read a snapshot of any volume."""
        if self.kept:
            self._check(self.kept[pick % len(self.kept)])

    def _check(self, kept: Kept) -> None:
        found = self.run(self._read(kept.snapshot))
        assert found.blocks == kept.blocks.blocks, f"{kept.volume}@{kept.snapshot.name}"

    @rule(pick=picks)
    def roll_back(self, pick: int) -> None:
        """Go back to a snapshot."""
        if own := self.own():
            kept = own[pick % len(own)]
            self.run(self.attachment.detach())
            self.run(go_back(self.world, self.name, kept.snapshot.name))
            self.attachment = self.run(self.world.attach(self.name))
            self.content, self.size = Blocks(kept.blocks.blocks), kept.snapshot.size_bytes
            self.settle()
            assert self.attachment.volume.size_bytes == self.size

    # --- clones -------------------------------------------------------------------------

    @rule(pick=picks)
    def clone(self, pick: int) -> None:
        """Make a volume that begins as a snapshot, and choose it."""
        if not self.kept or len(self.members) + 1 >= VOLUMES_MAX:
            return
        kept, name = self.kept[pick % len(self.kept)], self._new_name("c")
        catalog = self.world.catalog
        self.run(catalog.clone(kept.volume, kept.snapshot.name, name, self.made))
        self._park()
        self.name, self.size = name, kept.snapshot.size_bytes
        self.attachment = self.run(self.world.attach(name))
        self.content, self.since = Blocks(kept.blocks.blocks), []
        self.settle()

    @rule()
    def flatten(self) -> None:
        """Flatten a clone."""
        self.run(self.attachment.flatten())
        if (self.run(self.world.catalog.get(self.name))).head.base is None:
            assert not self.attachment.volume.core.blocks.has_inherited_pages()

    @rule()
    def drop(self) -> None:
        """Delete a clone from which no other grew, with its snapshots."""
        found = self.run(self.world.catalog.snapshots(self.name))
        if self.name == "v" or any(one.clones for one in found):
            return
        gone = self.name
        self.run(self.attachment.detach())
        self.select("v")
        self.run(delete_volume(self.world, gone))
        del self.members[gone]
        self.kept = [one for one in self.kept if one.volume != gone]

    @rule(place=VolumeMachine.places, count=few)
    def move(self, place: int, count: int) -> None:
        """Another process gets the volume from this one, to which clients write until then."""
        writes = []
        for i in range(count):
            offset, size = self.extent(place * (i + 3), 8192, BLOCK)
            writes.append((offset, self.rng.randbytes(size)))
        self.run(self._move(writes))
        for offset, data in writes:
            self.apply(offset, data)
        self.settle()
        self._compare()

    async def _move(self, writes: list[tuple[int, bytes]]) -> None:
        checkpoint = asyncio.ensure_future(self.attachment.volume.checkpointer.write())
        for offset, data in writes:
            await asyncio.sleep(0)
            await self.attachment.volume.write(offset, data, durable=False)
        await checkpoint
        epoch = self.attachment.epoch
        await self.attachment.detach()
        assert (await self.world.catalog.get(self.name)).head.owner is None
        self.attachment = await self.world.attach(self.name)
        assert self.attachment.epoch == epoch + 1

    # --- garbage, differences -----------------------------------------------------------

    @rule(
        goal=st.sampled_from((None, 0.5, 0.7, 0.95)),
        place=VolumeMachine.places,
        count=st.sampled_from((0, 2, 6)),
    )
    def collect(self, goal: float | None, place: int, count: int) -> None:
        """Collect garbage, or write everything anew, while some writes go on."""
        writes = []
        for i in range(count):
            offset, size = self.extent(place * (i + 3), 65536, BLOCK)
            writes.append((offset, self.rng.randbytes(size)))
        self.run(self._collect(goal, writes))
        self.settle()
        for offset, data in writes:
            self.apply(offset, data)

    async def _collect(self, goal: float | None, writes: list[tuple[int, bytes]]) -> None:
        volume = self.attachment.volume
        collector = volume.collector
        work = collector.defragment() if goal is None else collector.collect(target=goal)
        collecting = asyncio.ensure_future(work)
        for offset, data in writes:
            for _ in range(self.rng.randint(0, 40)):
                await asyncio.sleep(0)
            await volume.write(offset, data, durable=False)
        done = await collecting
        assert not done.problem, done.problem
        assert not done.rotten

    @rule(one=picks, other=picks)
    def diff(self, one: int, other: int) -> None:
        """What is not named as changed is the same; what is named as a hole is one."""
        if not self.kept:
            return
        base, to = (self.kept[pick % len(self.kept)] for pick in (one, other))
        size = to.snapshot.size_bytes
        touched: set[int] = set()
        end = 0
        for change in self.run(self._changes(base.snapshot, to.snapshot)):
            assert end <= change.offset < change.offset + change.length <= size
            end = change.offset + change.length
            blocks = range(change.offset // BLOCK, -(-end // BLOCK))
            touched.update(blocks)
            if not change.mapped:
                assert not any(block in to.blocks.blocks for block in blocks)
        before, after = base.blocks.blocks, to.blocks.blocks
        for block in before.keys() | after.keys():
            if before.get(block, ZERO) != after.get(block, ZERO) and block * BLOCK < size:
                assert block in touched, f"block {block} changed"

    async def _changes(self, base: Snapshot, to: Snapshot) -> list[Change]:
        sides = [await open_map(self.world, one) for one in (base, to)]
        return [change async for change in changes(sides[0], sides[1], to.size_bytes)]

    # --- the end ------------------------------------------------------------------------

    def check_snapshots(self) -> None:
        """Compare every snapshot."""
        for kept in self.kept:
            self._check(kept)

    @rule()
    def kill(self) -> None:
        """The process dies; everything answered is there."""
        super().kill()
        self.check_snapshots()

    @rule()
    def cut_power(self) -> None:
        """The power goes; snapshots stay what they are."""
        super().cut_power()
        self.check_snapshots()

    def teardown(self) -> None:
        """Look at everything; then take it down: nothing stays on the disk."""
        if hasattr(self, "world"):
            self.check_all()
            self.check_snapshots()
            self.run(take_down(self.world))
            attachments: list[Any] = list(self.world.attachments)
            for attachment in attachments:
                self.run(attachment.detach())
            self.run(self.world.stop())
            self.loop.close()


TestFamily = FamilyMachine.TestCase
TestFamily.settings = settings(
    max_examples=max(1, STEPS // STEPS_EACH),
    stateful_step_count=STEPS_EACH,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestFamily.pytestmark = [pytest.mark.slow, pytest.mark.sim]
