"""A machine of the simulated cluster with one node process and its disks.

Real code from the peer protocol down to the store; the disk is a `SimDisk` that outlives the
process: a killed process leaves its page cache, a power loss what was synced and chance.
"""

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torus.cluster.local import LocalChunks
from torus.format.identity import DiskIdentity
from torus.format.segment import Geometry
from torus.store.disk import Bytes
from torus.store.store import Store
from torus.testing.pool import carry_out
from torus.testing.simdisk import DiskImage, Event, PowerLoss, SimDisk
from torus.testing.simloop import SimClock, SimLoop, SimProcess

if TYPE_CHECKING:
    from torus.node.service import PeerService

Result = TypeVar("Result")
CLUSTER_ID = "22" * 16
SECRET = "33" * 32
_IO_S, _SYNC_S = 0.0001, 0.001


class FaultyDisk(SimDisk):
    """A disk whose writes and syncs may be refused."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fails_with: int | None = None

    def write(self, address: int, data: Bytes) -> None:
        self._may()
        super().write(address, data)

    def sync(self, segment: int) -> None:
        if self.fails_with == errno.EIO:
            self._may()
        super().sync(segment)

    def make_segment(self, segment: int, header: bytes, slot_bytes: int) -> None:
        self._may()
        super().make_segment(segment, header, slot_bytes)

    def recover(self) -> None:
        """Have space again."""
        if self.fails_with == errno.ENOSPC:
            self.fails_with = None

    def _may(self) -> None:
        if self.fails_with is not None:
            raise OSError(self.fails_with, errno.errorcode[self.fails_with])


class DelayPool:
    """A `torus.store.pool.Pool` in virtual time; a sync covers what was written before it."""

    def __init__(self, disk: SimDisk, rng: random.Random, slow: Callable[[], float]) -> None:
        self._disk = disk
        self._rng = rng
        self._slow = slow

    def submit(self, call: Callable[..., Result], *arguments: Any) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        began = len(self._disk.history)

        mean_s = _SYNC_S if call == self._disk.sync else _IO_S
        delay_s = self._rng.expovariate(1 / mean_s) * self._slow()
        loop.call_later(delay_s, carry_out, self._disk, began, future, call, arguments)
        return future

    def close(self) -> None:
        return


class SimDrive:
    """One disk of a machine, through all lives of its node."""

    def __init__(self, disk_id: str, rng: random.Random, geometry: Geometry, slots: int) -> None:
        self.disk_id = disk_id
        self.rng = rng
        self.geometry = geometry
        self.slots = slots
        self.power = PowerLoss(geometry)
        self.image = DiskImage()
        self.disk: FaultyDisk | None = None
        self.store: Store | None = None
        self.slow = 1.0
        self._stepped = 0  # events of the disk's history that ``power`` knows

    @property
    def identity(self) -> DiskIdentity:
        """Return what is in its disk.json."""
        return DiskIdentity(
            self.disk_id, CLUSTER_ID, self.geometry.slot_bytes, self.geometry.segment_slots, 1
        )

    def open(self, clock: SimClock, trash_grace_s: float) -> Store:
        """Open it in the node's process."""
        history: list[Event] = []
        rng = self.rng
        self.disk = FaultyDisk(
            self.geometry, self.image, history, cold=lambda _address: rng.random() < 0.2
        )
        self.disk.poison = True
        self.store = Store(
            self.disk, self.identity, DelayPool(self.disk, rng, lambda: self.slow), clock,
            boot_id=rng.getrandbits(60), size_bytes=self.slots * self.geometry.slot_bytes,
            punch_delay_s=rng.choice((0.0, 1.0, None)), trash_grace_s=trash_grace_s,
        )  # fmt: skip
        self.store.open()
        return self.store

    def durable(self) -> DiskImage:
        """Return what a power loss cannot take, as it lies there: not a copy."""
        if self.disk is not None:
            for event in self.disk.history[self._stepped :]:
                self.power.step(event)
            self._stepped = len(self.disk.history)
        return self.power.durable

    def left(self, *, power: bool) -> None:
        """The process is gone, perhaps with the machine's power."""
        if self.disk is None:
            return
        self.durable()
        self._stepped = 0
        if power:
            self.image = self.power.cut(self.rng)
            self.power = PowerLoss(self.geometry, self.image.copy())
        else:
            self.image = self.power.killed()
            self.power = self.power.continued()
        self.disk = self.store = None


async def _nothing(_node: "SimNode", _stores: list[Store], _services: "list[PeerService]") -> None:
    """A node without background work."""


class SimNode:
    """One machine with one node."""

    def __init__(
        self, loop: SimLoop, name: str, zone: str, drives: list[SimDrive], rng: random.Random
    ) -> None:
        self.loop = loop
        self.name = name
        self.zone = zone
        self.drives = drives
        self.rng = rng
        self.node_id = name.encode().ljust(16, b"_").hex()
        self.process: SimProcess | None = None
        self.clock = SimClock(loop)
        self.starts = 0
        self.on_up: Callable[[SimNode], None] = lambda _node: None
        self.background: Callable[[SimNode, list[Store], list[PeerService]], Awaitable[None]]
        self.background = _nothing
        self.local: dict[str, LocalChunks] = {}

    @property
    def up(self) -> bool:
        """True while its process lives."""
        return self.process is not None and self.process.alive

    @property
    def address(self) -> str:
        """Return where it listens."""
        return f"{self.name}:4000"

    def start(self) -> None:
        """Start the process."""
        assert not self.up
        self.starts += 1
        network = self.loop.network
        assert network is not None
        network.dark.discard(self.name)
        self.process = self.loop.process(f"{self.name}.{self.starts}", self.name)
        self.process.run(self._main())

    async def _main(self) -> None:
        from torus.testing.simpeer import serve

        await asyncio.sleep(self.rng.random() * 0.05)
        stores = [drive.open(self.clock, self.rng.choice((0.0, 2.0))) for drive in self.drives]
        self.local = {store.identity.disk_id: LocalChunks(store) for store in stores}
        services = await serve(self.loop, self.address, stores, self.node_id)
        await self.background(self, stores, services)
        self.on_up(self)

    def stop(self, *, power: bool) -> None:
        """Kill the process, or cut the machine's power."""
        if self.process is None or not self.process.alive:
            return
        if power:
            assert self.loop.network is not None
            self.loop.network.dark.add(self.name)
        self.process.kill(power=power)
        for drive in self.drives:
            drive.left(power=power)
        self.local = {}
