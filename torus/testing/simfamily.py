"""Snapshots and clones in a simulated cluster: made, deleted, written, and read in the end.

A snapshot holds the state after some prefix of what its volume's writer was asked: at least what
was answered before it was asked for, at most what was issued when it was answered.  A clone
begins as that, and lives as a volume of its own.
"""

import asyncio
from functools import partial

from torus.errors import NotFound, TorusError
from torus.metadata.schema import Snapshot
from torus.testing.simcluster import KIB
from torus.testing.simloop import SimProcess
from torus.testing.simreplicas import ReplicatedCluster
from torus.testing.simvolume import Moment, VolumeCheck
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.snapshot_map import open_snapshot

_CACHE_BYTES = 64 * KIB
_CLONES_MAX = 1


class FamilyCluster(ReplicatedCluster):
    """A cluster in which snapshots go and clones grow."""

    def trouble_kinds(self) -> dict[str, float]:
        """Return what may happen, and how likely."""
        return {**super().trouble_kinds(), "unsnap": 1.0, "clone": 0.5}

    def _some_snapshot(self) -> tuple[str, str] | None:
        """Return a volume and the name of one of its snapshots."""
        known = [
            (name, snap)
            for name, check in self.checks.items()
            for snap, moment in check.snapshots.items()
            if moment.most is not None and not moment.deleting
        ]
        return self.rng.choice(known) if known else None

    def _fault_unsnap(self) -> None:
        """Somebody deletes a snapshot."""
        found = self._some_snapshot()
        if found is not None:
            self.loop.outside.run(self._delete_snapshot(*found))

    async def _delete_snapshot(self, name: str, snap: str) -> None:
        self.checks[name].snapshots[snap].deleting = True
        try:
            await self.catalog("outside").delete_snapshot(name, snap)
        except TorusError as exc:
            self.trace(f"{name}@{snap} could not be deleted: {exc}")
        else:
            self.trace(f"{name}@{snap} is deleted")

    def _fault_clone(self) -> None:
        """Somebody makes a volume of a snapshot."""
        found = self._some_snapshot()
        clones = sum(check.origin is not None for check in self.checks.values())
        if found is not None and clones < _CLONES_MAX:
            self.loop.outside.run(self._clone(*found))

    async def _clone(self, name: str, snap: str) -> None:
        origin = self.checks[name]
        new = f"{name}-clone"
        if new in self.checks:
            return
        moment = origin.snapshots[snap]
        try:
            spec = await self.catalog("outside").clone(name, snap, new, 0)
        except TorusError as exc:
            self.trace(f"{name}@{snap} could not be cloned: {exc}")
            return
        if self.over or new in self.checks:
            return
        self.trace(f"{new} is a clone of {name}@{snap}")
        check = VolumeCheck(new, origin.size_bytes, lambda: self.power_losses, self.trace)
        check.expects = self.expects
        check.epoch = partial(self._epoch, spec.volume)
        check.origin = moment
        self.checks[new] = check
        self.writers[new] = []
        self.tending.append(asyncio.ensure_future(self.tend(new)))

    # --- the end ------------------------------------------------------------------------

    async def read_snapshots(self, process: SimProcess) -> None:
        """Read every snapshot, and compare it with what its volume was asked."""
        for name, check in self.checks.items():
            there = {one.name: one for one in await self._snapshots_of(name)}
            for snap, moment in check.snapshots.items():
                found = there.get(snap)
                if found is None:
                    if moment.most is not None and not moment.deleting:
                        check.wrong(f"snapshot {snap} is gone")
                elif found.state == "ready":
                    await self._read_snapshot(name, found, moment, process)

    async def _snapshots_of(self, name: str) -> list[Snapshot]:
        return await self.catalog("outside").snapshots(name)

    async def _read_snapshot(
        self, name: str, snapshot: Snapshot, moment: Moment, process: SimProcess
    ) -> None:
        check, catalog = self.checks[name], self.catalog(process.machine)
        chunks = await self.chunks(name, process, catalog)
        try:
            view = await open_snapshot(catalog, chunks, snapshot, _CACHE_BYTES)
            content = await SnapshotVolume(view, snapshot).read(0, snapshot.size_bytes)
        except NotFound:
            check.wrong(f"snapshot {snapshot.name} is gone")
            return
        except TorusError as exc:
            check.wrong(f"snapshot {snapshot.name} cannot be read: {exc}")
            return
        finally:
            await chunks.stop()
        if not moment.allows(content):
            check.wrong(
                f"snapshot {snapshot.name} does not hold what was written: {moment.least} to "
                f"{moment.most} operations"
            )
