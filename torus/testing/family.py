"""Workloads with snapshots and clones: volumes that grow from each other, recorded."""

import asyncio
from collections.abc import Awaitable, Callable

from torus import limits
from torus.metadata.schema import Snapshot
from torus.testing.history import VolumeHistory
from torus.testing.operations import delete_snapshot, delete_volume, go_back, read_snapshot
from torus.testing.workload import Recorder
from torus.testing.world import World

_CLONES_MAX = 3
_SNAPSHOTS_MAX = 5  # of one volume


class FamilyRecorder:
    """Some volumes, their snapshots and clones, under a recorded workload.

    ``kept``: what each snapshot holds, by its uid.
    """

    def __init__(self, world: World, capacity: int) -> None:
        self.world = world
        self.rng = world.rng
        self.recorders: dict[str, Recorder] = {}
        self.histories: dict[str, VolumeHistory] = {}
        self.kept: dict[str, bytes] = {}
        self.strict = True  # collections must be complete
        self._capacity = capacity
        self._made = 0

    async def begin(self, name: str, size_bytes: int) -> Recorder:
        """Make a volume and attach it."""
        await self.world.catalog.create(name, size_bytes)
        return await self._add(name, b"")

    async def _add(self, name: str, start: bytes) -> Recorder:
        recorder = Recorder(self.world, name, self._capacity, start)
        self.recorders[name] = recorder
        self.histories[name] = recorder.history
        await recorder.attach()
        return recorder

    async def settle(self) -> None:
        """Wait for everything in the background."""
        for recorder in self.recorders.values():
            await recorder.settle()

    # --- single operations --------------------------------------------------------------

    async def snapshot(
        self, name: str, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> str:
        """Make a snapshot of an attached volume, while ``meanwhile`` runs; return its name."""
        recorder, snap, uid = self.recorders[name], *self._new_name()
        least = recorder.history.answers
        self.kept[uid] = recorder.history.content[: recorder.size]  # if there is no answer
        making = asyncio.ensure_future(recorder.attachment.snapshot(snap, self._made, uid))
        if meanwhile is not None:
            await asyncio.sleep(0)
            await meanwhile()
        made = await making
        recorder.flushed(least)
        await self._keep(recorder.history, made, least)
        return snap

    async def snapshot_detached(self, name: str) -> str:
        """Make a snapshot of a volume that nobody has attached; return its name."""
        recorder, snap, uid = self.recorders[name], *self._new_name()
        self.kept[uid] = recorder.history.content[: recorder.size]
        await recorder.detach()
        made = await self.world.catalog.snapshot_detached(name, snap, self._made, uid)
        if made is not None:  # else it is not clean: an attach must come first
            await self._keep(recorder.history, made, len(recorder.history))
        await recorder.attach()
        return snap

    def _new_name(self) -> tuple[str, str]:
        self._made += 1
        return f"s{self._made}", f"{self._made:032x}"

    async def _keep(self, history: VolumeHistory, made: Snapshot, least: int) -> None:
        content = await read_snapshot(self.world, made)
        count = history.find(content, least, len(history), 0)
        assert count is not None, f"snapshot {made.name!r} is no moment since it was asked for"
        self.kept[made.uid] = content

    async def delete_snapshot(self, name: str, snap: str) -> None:
        """Delete a snapshot that has no clones, free its space."""
        await delete_snapshot(self.world, name, snap, self.recorders[name].attachment)

    async def clone(self, name: str, snap: str) -> Recorder:
        """Make a clone, attach it, write to it."""
        self._made += 1
        new, snapshot = f"c{self._made}", await self.world.catalog.get_snapshot(name, snap)
        start = self.kept[snapshot.snapshot.uid]
        self.histories[new] = VolumeHistory(self._capacity, start)  # if there is no answer
        await self.world.catalog.clone(name, snap, new, self._made)
        clone = await self._add(new, start)
        offset, length = clone.extent(aligned=True)
        await clone.write(offset, self.rng.randbytes(length))
        return clone

    async def delete_clone(self, name: str) -> None:
        """Delete a volume, and its snapshots."""
        recorder = self.recorders.pop(name)
        await recorder.detach()
        await delete_volume(self.world, name)

    async def flatten(
        self, name: str, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Flatten a clone, while ``meanwhile`` runs."""
        recorder = self.recorders[name]
        before = recorder.history.answers
        flattening = asyncio.ensure_future(recorder.attachment.flatten())
        if meanwhile is not None:
            await asyncio.sleep(0)
            await meanwhile()
        await flattening
        recorder.flushed(before)

    async def roll_back(self, name: str, snap: str) -> None:
        """Detach a volume, roll it back, attach it."""
        recorder = self.recorders[name]
        entry = await self.world.catalog.get_snapshot(name, snap)
        await recorder.detach()
        await recorder.replace(self.kept[entry.snapshot.uid], go_back(self.world, name, snap))
        await recorder.attach()

    async def collect(
        self,
        name: str,
        *,
        target: float | None = None,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Collect a volume's garbage; without ``target`` write all of it anew."""
        recorder = self.recorders[name]
        before = recorder.history.answers
        collector = recorder.attachment.volume.collector
        work = collector.defragment() if target is None else collector.collect(target=target)
        collecting = asyncio.ensure_future(work)
        if meanwhile is not None:
            await meanwhile()
        done = await collecting
        if self.strict:
            assert not done.problem, done.problem
            assert not done.rotten, done.rotten
        recorder.flushed(before)

    # --- chance -------------------------------------------------------------------------

    async def random_step(self) -> None:
        """Do one random operation on a random volume."""
        rng = self.rng
        name = rng.choice([*self.recorders, *self.recorders][-4:])  # the young ones more
        if rng.random() < 0.55:
            await self.recorders[name].random_step()
            return
        kind = rng.choices(
            ("snapshot", "detached", "delete", "clone", "drop", "flatten", "rollback", "collect"),
            (20, 6, 18, 14, 8, 12, 12, 12),
        )[0]
        await self.do(kind, name)

    async def do(self, kind: str, name: str) -> bool:
        """Do one operation of a kind, if that is possible now; return whether it was."""
        found = await self.world.catalog.snapshots(name)
        free = [one.name for one in found if not one.clones]
        rng, recorder = self.rng, self.recorders[name]
        is_clone = (await self.world.catalog.get(name)).head.base is not None
        if kind in ("snapshot", "detached"):
            if len(found) >= _SNAPSHOTS_MAX:
                return False
            if kind == "snapshot":
                await self.snapshot(name, self._meanwhile(recorder))
            else:
                await self.snapshot_detached(name)
        elif kind == "delete" and free:
            await self.delete_snapshot(name, rng.choice(free))
        elif kind == "clone" and found and len(self.recorders) <= _CLONES_MAX:
            await self.clone(name, rng.choice(found).name)
        elif kind == "drop" and name.startswith("c") and not any(one.clones for one in found):
            await self.delete_clone(name)
        elif kind == "flatten" and is_clone:
            await self.flatten(name, self._meanwhile(recorder))
        elif kind == "rollback" and found:
            await self.roll_back(name, rng.choice(found).name)
        elif kind == "collect":
            goal = rng.choice((None, 0.7, 0.95))
            await self.collect(name, target=goal, meanwhile=self._meanwhile(recorder))
        else:
            return False
        return True

    def _meanwhile(self, recorder: Recorder) -> Callable[[], Awaitable[None]] | None:
        """Return some writes, or nothing."""
        rng = self.rng
        if rng.random() < 0.5 or recorder.size < limits.BLOCK_BYTES:
            return None

        async def write() -> None:
            for _ in range(rng.randint(1, 6)):
                for _ in range(rng.randint(0, 20)):
                    await asyncio.sleep(0)
                offset, length = recorder.extent(aligned=rng.random() < 0.5)
                await recorder.write(offset, rng.randbytes(length))

        return write
