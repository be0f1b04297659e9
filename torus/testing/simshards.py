"""A simulated cluster whose volumes lie in shards, or come to, or did: with upkeep, scrub and rot.

Volumes are converted there and back while they are written, bits turn on the disks, and nothing
that is needed may get lost.  In the end all has to lie as the ring and the redundancies say, every
turned bit is back, and a scrub of everything finds nothing.  `torus.testing.simtruth` judges the
disks, `torus.testing.simvolume` what clients see.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from torus import limits
from torus.cluster import replicated_writes
from torus.errors import TorusError
from torus.format.shard import content_max
from torus.ids import whole_id
from torus.metadata.schema import VolumeSpec
from torus.node.service import PeerService
from torus.redundancy.scheme import Scheme, erasure, replica
from torus.store.store import Store
from torus.testing.simcluster import Patch
from torus.testing.simfamily import FamilyCluster
from torus.testing.simnode import SimNode
from torus.testing.simstore import SimMetadataClient
from torus.testing.simtruth import Truth
from torus.testing.simupkeep import NodeBackground, scaled
from torus.testing.simvolume import Writer
from torus.upkeep import scrub
from torus.volume.catalog_async import AsyncCatalog

SCHEMES = (erasure(2, 1), erasure(2, 2), erasure(4, 2), replica(2), replica(3))
QUIET_S = 90.0
_LOOK_S = 0.3
_NODES_MIN = 3  # of a ring
_CHUNK_DATA_MAX = 4  # shards that every chunk can be cut into


class ShardCluster(FamilyCluster):
    """A cluster with shards."""

    first: ClassVar[tuple[Scheme, ...]] = (
        *[erasure(2, 1)] * 3, *[erasure(2, 2)] * 2, erasure(4, 2)
    )  # fmt: skip

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        rng = self.rng
        self.trouble_s = rng.choice((1.5, 2.0, 2.5, 3.0))
        self.scheme = rng.choice(self.first)
        self.truth = Truth(self.metadata, self.authority, self._wrong)
        self.backgrounds: dict[str, NodeBackground] = {}
        self.tail_chunks = rng.choice((4, 128))
        self.quiet_s = QUIET_S  # how long all may take to come right
        self.converts = rng.random() < 0.7

    def patches(self) -> list[Patch]:
        """Return what is smaller and sooner here."""
        room = limits.SLOT_HEADER_BYTES + content_max(_CHUNK_DATA_MAX, self.geometry.slot_bytes)
        smaller = {
            **scaled(),
            "CHUNK_BYTES_MAX": self.rng.choice((room, room, room, limits.CHUNK_BYTES_MAX)),
            "UPKEEP_TAIL_CHUNKS": self.tail_chunks,
        }
        return [
            *((limits, name, value) for name, value in smaller.items()),
            (replicated_writes, "_UNSYNCED_CHUNKS_MAX", self.tail_chunks // 2),
            (scrub, "_LOG_AGE_S", 0.3),
        ]

    def _wrong(self, what: str) -> None:
        next(iter(self.checks.values())).wrong(what)

    # --- the beginning ------------------------------------------------------------------

    def wanted_nodes(self) -> int:
        """Return how many nodes there are at first."""
        return self.scheme.disks_needed + self.rng.choice((0, 0, 1))

    def wanted_volumes(self) -> int:
        """Return how many volumes there are."""
        return self.rng.choice((1, 1, 1, 2))

    async def make_volume(self, catalog: AsyncCatalog, name: str, size: int) -> VolumeSpec:
        """Make a volume: the first one in shards."""
        if self.authority.head is None:
            self.change_ring()
        scheme = self.scheme if name == "v0" else self._some_scheme()
        return await catalog.create(name, size, str(scheme))

    def _some_scheme(self) -> Scheme:
        nodes = len(self.nodes)
        return self.rng.choice([one for one in SCHEMES if one.disks_needed <= nodes])

    def add_node(self, number: int) -> SimNode:
        """Add a machine and start its node, with upkeep and scrub."""
        node = super().add_node(number)
        node.background = self._begin_background
        for drive in node.drives:
            self.truth.add(drive)
        return node

    async def _begin_background(
        self, node: SimNode, stores: list[Store], services: list[PeerService]
    ) -> None:
        assert node.process is not None
        view = self.authority.view(node.process)
        metadata = SimMetadataClient(self.metadata, node.name)
        background = NodeBackground(node, view, metadata, self.truth, self._wrong)
        self.backgrounds[node.name] = background
        await background.start(stores, services)

    # --- trouble ------------------------------------------------------------------------

    def trouble_kinds(self) -> dict[str, float]:
        """Return what may happen, and how likely."""
        kinds = {**super().trouble_kinds(), "rot": 4.0, "look": 2.0}
        return {**kinds, "convert": 3.0} if self.converts else kinds

    def _fault_ring(self) -> None:
        """The ring changes; one node may be in it no more, until it changes again."""
        out = self.rng.choice((None, 0, 1))
        if out is not None and len(self.nodes) > _NODES_MIN:
            self.trace(f"{self.nodes[out].name} is out")
            self.change_ring(without=out)
        else:
            self.change_ring()

    def _fault_look(self) -> None:
        """Nothing happens: all chunks are looked for."""
        self.truth.check()

    def _fault_rot(self) -> None:
        """Bits turn somewhere, at most so many as a chunk bears."""
        rot = self.truth.rot(self.rng)
        if rot is not None:
            self.trace(f"part {rot.part} of disk {rot.disk[-2:]} rots at {rot.offset}")

    def _fault_convert(self) -> None:
        """A volume is to be kept in another way."""
        name, scheme = self.rng.choice(sorted(self.checks)), self._some_scheme()
        self.loop.outside.run(self._convert(name, scheme))

    async def _convert(self, name: str, scheme: Scheme) -> None:
        try:
            volume = await self.catalog("outside").convert(name, str(scheme))
        except TorusError as exc:
            self.trace(f"{name} could not be converted: {exc}")
            return
        self.trace(f"{name} is converted to {volume.spec.redundancy}")
        for writer in self.writers[name]:
            if writer.attachment is not None and writer.process.alive:
                writer.process.run(self._follow(writer))
        for node in self.nodes:
            background = self.backgrounds.get(node.name)
            if node.process is not None and background and self.rng.random() < 0.7:
                node.process.call_soon(background.upkeep.poke)

    async def _follow(self, writer: Writer) -> None:
        await asyncio.sleep(self.rng.choice((0.001, 0.1)) * self.rng.random())
        assert writer.attachment is not None
        try:
            await writer.attachment.follow_size()
        except TorusError as exc:
            self.trace(f"{writer.name} did not follow: {exc}")

    # --- the end ------------------------------------------------------------------------

    def heal(self) -> None:
        """Repair what was broken from outside, and let all nodes be in the ring."""
        super().heal()
        self.change_ring()

    async def judge(self) -> None:
        """See that all volumes live, then that all lies where it belongs."""
        await super().judge()
        for step in (self._rest, self._lies_right, self._scrubs_clean, self._reads_right):
            if not self.found():
                await step()

    async def _until(self, done: Callable[[], list[str]], what: str) -> None:
        """Wait until ``done()`` returns nothing any more."""
        deadline_s = self.loop.time() + self.quiet_s
        while (left := done()) and not self.found():
            if self.loop.time() > deadline_s:
                self._wrong(
                    f"{what} {self.quiet_s:g} s after everything healed: {'; '.join(left[:4])}"
                )
                return
            await asyncio.sleep(_LOOK_S)

    async def _rest(self) -> None:
        """Let the writers have everything checkpointed, and write no more."""
        for name in self.checks:
            self.writers[name][-1].resting = True

        def busy() -> list[str]:
            left = []
            for name in self.checks:
                writer = self.writers[name][-1]
                if writer.ended:
                    self.start_writer(name).resting = True
                if not writer.rested:
                    left.append(f"{writer.name} serving={writer.serving} {writer.failure}")
            return left

        await self._until(busy, "writers do not come to rest")

    async def _lies_right(self) -> None:
        self.truth.check()
        await self._until(self.truth.misplaced, "not all lies as it should")

    async def _scrubs_clean(self) -> None:
        scrubs = [one for node in self.nodes for one in self.backgrounds[node.name].scrubs.values()]
        for one in scrubs:
            one.begin((), deep=True)

        def dirty() -> list[str]:
            left = [f"disk {one.scrub.store.identity.disk_id[-2:]} scrubs" for one in scrubs
                    if any(tour.asked for tour in one.state.tours)]  # fmt: skip
            return left + [
                f"disk {one.scrub.store.identity.disk_id[-2:]}: {found.part} is {found.kind}, "
                f"{found.state}: {found.what}"
                for one in scrubs for found in one.state.open.values()
                if found.volume and whole_id(found.part) not in self.truth.deleted
            ]  # fmt: skip

        await self._until(dirty, "a scrub finds something")

    async def _reads_right(self) -> None:
        """Let others take the volumes over, from shards alone."""
        last = {name: self.start_writer(name) for name in self.checks}
        for writer in last.values():
            writer.resting = True

        def reading() -> list[str]:
            for name, writer in last.items():
                if writer.ended:
                    last[name] = self.start_writer(name)
                    last[name].resting = True
            return [f"{one.name}: {one.failure}" for one in last.values() if not one.serving]

        await self._until(reading, "volumes cannot be read")
        if not self.found():
            self._gateways += 1
            reader = self.loop.process(f"reader.{self._gateways}", "reader")
            await reader.run(self.read_snapshots(reader))
