"""A simulated cluster whose volumes have several copies: rings, disks that come and go.

A node is known to be gone some time after it is, as if its lease ended then.
"""

import asyncio
from dataclasses import replace
from typing import Any

from torus.cluster.chunks import Chunks
from torus.cluster.membership import Place
from torus.cluster.pool import DiskPool
from torus.errors import Corruption
from torus.metadata.base import Put
from torus.metadata.keys import spec_key
from torus.metadata.schema import VolumeSpec
from torus.ring.member import RingMember
from torus.testing.simcluster import Cluster
from torus.testing.simloop import SimClock, SimProcess
from torus.testing.simnode import SimNode
from torus.testing.simpeer import connect_replica
from torus.testing.simview import Authority
from torus.volume.catalog_async import AsyncCatalog

_LEASE_S = 3.0


class ReplicatedCluster(Cluster):
    """A cluster with a ring."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.authority = Authority(self.loop, self.rng)
        self.copies = self.rng.choice((2, 3, 3))
        self.min_copies = max(1, self.copies - self.rng.choice((0, 1, 1, 1)))

    def expects(self, error: Corruption) -> bool:
        """Nothing may be damaged: there are copies."""
        return False

    def wanted_nodes(self) -> int:
        """Return how many nodes there are at first."""
        return self.copies + self.rng.choice((0, 1, 2, 3))

    async def begin(self) -> None:
        """Start nodes, make the first ring and the volumes."""
        await super().begin()
        await asyncio.sleep(0.1)  # all nodes are up by then

    async def make_volume(self, catalog: AsyncCatalog, name: str, size: int) -> VolumeSpec:
        """Make a volume with copies."""
        if self.authority.head is None:
            self.change_ring()
        spec = replace(
            await catalog.create(name, size),
            redundancy=f"replica:{self.copies}",
            min_copies=self.min_copies,
        )
        self.metadata.content.commit([], [Put(spec_key(spec.volume), spec.to_bytes())])
        return spec

    # --- nodes and rings ----------------------------------------------------------------

    def add_node(self, number: int) -> SimNode:
        """Add a machine and start its node."""
        node = super().add_node(number)
        node.on_up = self._node_is_up
        for drive in node.drives:
            self.authority.set_place(
                Place(drive.disk_id, node.node_id, node.name, node.zone, None, "in")
            )
        self._watch(node)
        return node

    def _node_is_up(self, node: SimNode) -> None:
        for drive in node.drives:
            place = self.authority.places[drive.disk_id]
            self.authority.set_place(
                replace(place, address=node.address, instance_id=f"{node.starts}")
            )
        self._watch(node)

    def _watch(self, node: SimNode) -> None:
        """Let everybody know some time after the process is gone."""
        process = node.process
        assert process is not None

        def gone(_power: bool) -> None:
            self.loop.outside.call_at(
                self.loop.time() + _LEASE_S * (0.3 + self.rng.random()), self._lease_ended, node
            )

        if gone not in process.on_kill:
            process.on_kill.append(gone)

    def _lease_ended(self, node: SimNode) -> None:
        if node.up:
            return
        for drive in node.drives:
            place = self.authority.places[drive.disk_id]
            self.authority.set_place(replace(place, address=None, instance_id=""))

    def change_ring(self, *, without: int | None = None) -> None:
        """Let the ring be made of all members but perhaps one, another perhaps twice as heavy."""
        heavy = self.rng.randrange(4) if self.authority.members and without is None else None
        members = [
            RingMember(drive.disk_id, node.node_id, node.zone, 2 if number == heavy else 1)
            for number, node in enumerate(self.nodes)
            for drive in node.drives
            if number != without
        ]
        if self.authority.set_members(tuple(members)):
            self.trace(f"ring {self.authority.ring.version}")

    # --- writers ------------------------------------------------------------------------

    async def chunks(self, name: str, process: SimProcess, catalog: AsyncCatalog) -> Chunks:
        """Return the chunks of a volume in a process."""
        found = await catalog.get(name)
        pool = DiskPool(
            self.authority.view(process), {},
            lambda place: connect_replica(place, process.name),
            SimClock(self.loop), host=process.machine, slot_bytes=self.geometry.slot_bytes,
        )  # fmt: skip
        return pool.chunks_of(found.spec)

    def trouble_kinds(self) -> dict[str, float]:
        """Return what may happen, and how likely."""
        return {**super().trouble_kinds(), "ring": 1.0, "join": 0.3}

    def _fault_ring(self) -> None:
        self.change_ring()

    def _fault_join(self) -> None:
        if len(self.nodes) < self.copies + 4:
            node = self.add_node(len(self.nodes))
            self.trace(f"{node.name} joins")
            self.loop.outside.call_at(self.loop.time() + 0.3, self.change_ring)


class LargeCluster(ReplicatedCluster):
    """Dozens of nodes and volumes, for a shorter time."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.trouble_s = 2.5

    def wanted_nodes(self) -> int:
        """Return how many nodes there are at first."""
        return self.rng.randrange(12, 19)

    def wanted_volumes(self) -> int:
        """Return how many volumes there are."""
        return self.rng.randrange(6, 13)
