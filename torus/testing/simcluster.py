"""A whole cluster in one seeded loop: machines, volumes, writers, and what may happen to them.

`Cluster.live` is one life: it begins, things go wrong for a while, everything heals, and then
every volume must be served again.  What is right is decided in `torus.testing.simvolume` and in
`Cluster.judge`.  Run it with `torus.testing.simrun`.
"""

import asyncio
import errno
import random
from collections.abc import Callable
from functools import partial

from torus.cluster.chunks import Chunks
from torus.errors import Corruption, Unavailable
from torus.format.segment import Geometry
from torus.metadata.keys import head_key
from torus.metadata.schema import Head, Owner, VolumeSpec
from torus.testing.simdisk import SMALL
from torus.testing.simloop import SimClock, SimLoop, SimProcess
from torus.testing.simnet import SimNetwork
from torus.testing.simnode import CLUSTER_ID, SimDrive, SimNode
from torus.testing.simpeer import connect
from torus.testing.simstore import SimMetadataClient, SimMetadataServer
from torus.testing.simvolume import VolumeCheck, Writer
from torus.volume.attach import VolumeOptions, attach
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog

KIB = 1024
Patch = tuple[object, str, object]  # a module, a name in it, what it is in this life
HEALED_S = 60.0
_ROUNDS_ALIVE = 4


class Cluster:
    """Everything of one seed: here, one node with one disk and gateways that share it."""

    def __init__(self, seed: int, *, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(f"cluster:{seed}")
        self.loop = SimLoop(self.rng)
        self.network = self.loop.network = SimNetwork(self.loop, self.rng)
        self.metadata = SimMetadataServer(self.loop, self.rng)
        self.lines: list[str] = []
        self._tell = tell
        self.nodes: list[SimNode] = []
        self.checks: dict[str, VolumeCheck] = {}
        self.writers: dict[str, list[Writer]] = {}
        self.power_losses = 0
        self.faults = 0
        self.faults_per_s = 2.5
        self.over = False
        self.tending: list[asyncio.Task[None]] = []
        self.trouble_s = self.rng.choice((2.5, 3.0, 4.0, 5.0, 8.0))  # how long things go wrong
        self._gateways = 0
        # In small segments few chunks are made durable by the flush of another one.
        self.geometry = self.rng.choice((SMALL, Geometry(SMALL.slot_bytes, 2)))

    def patches(self) -> list[Patch]:
        """Return what is otherwise in this life than in the world; asked once."""
        return []

    def trace(self, line: str) -> None:
        """Remember what happened."""
        text = f"{self.loop.time():9.4f} {line}"
        self.lines.append(text)
        if self._tell is not None:
            self._tell(text)

    # --- the beginning ------------------------------------------------------------------

    async def begin(self) -> None:
        """Start nodes, make volumes."""
        rng = self.rng
        for number in range(self.wanted_nodes()):
            self.add_node(number)
        catalog = self.catalog("outside")
        await catalog.init_cluster(CLUSTER_ID)
        for number in range(self.wanted_volumes()):
            name, size = f"v{number}", rng.choice((64, 128, 256)) * KIB
            spec = await self.make_volume(catalog, name, size)
            check = VolumeCheck(name, size, lambda: self.power_losses, self.trace)
            check.expects = self.expects
            check.epoch = partial(self._epoch, spec.volume)
            self.checks[name] = check
            self.writers[name] = []

    def expects(self, error: Corruption) -> bool:
        """Say whether a writer may be told of such damage: a disk restarted, and there is no
        other copy of what was not flushed."""
        lost = ("restarted since", "checksum it was written", "is not on disk")
        return any(words in error.message for words in lost)

    def wanted_nodes(self) -> int:
        """Return how many nodes there are at first."""
        return 1

    def wanted_volumes(self) -> int:
        """Return how many volumes there are."""
        return self.rng.choice((1, 1, 1, 1, 1, 2, 2, 3))

    async def make_volume(self, catalog: AsyncCatalog, name: str, size: int) -> VolumeSpec:
        """Make one volume."""
        return await catalog.create(name, size)

    def _epoch(self, volume: int) -> int:
        entry = self.metadata.content.get(head_key(volume))
        return 0 if entry is None else Head.from_bytes(entry.value, entry.key).epoch

    def add_node(self, number: int) -> SimNode:
        """Add a machine and start its node."""
        drive = SimDrive(f"{number + 1:032x}", self.rng, self.geometry, 160)
        node = SimNode(self.loop, f"n{number}", f"z{number % 3}", [drive], self.rng)
        self.nodes.append(node)
        node.start()
        return node

    def catalog(self, machine: str) -> AsyncCatalog:
        """Return the catalog as a machine reaches it."""
        client = SimMetadataClient(self.metadata, machine)
        return AsyncCatalog(client, SimClock(self.loop), alive=lambda _owner: None)  # type: ignore[arg-type]

    # --- writers ------------------------------------------------------------------------

    def start_writer(self, name: str, machine: str | None = None) -> Writer:
        """Let another process take a volume over."""
        self._gateways += 1
        machine = machine or f"g{self._gateways}"
        process = self.loop.process(f"{machine}.{self._gateways}", machine)
        number = self._gateways
        writer = Writer(
            process, self.checks[name], lambda: self.attach(name, process, number), self.rng
        )
        self.writers[name].append(writer)
        process.run(writer.main())
        return writer

    async def attach(self, name: str, process: SimProcess, number: int) -> Attachment:
        """Attach as a gateway does: again after what may pass."""
        catalog = self.catalog(process.machine)
        owner = Owner(process.machine, "boot", number, 1, "gateway", process.name, 0)
        while True:
            try:
                chunks = await self.chunks(name, process, catalog)
                found = await catalog.get(name)
                return await attach(
                    found, catalog, chunks, owner, SimClock(self.loop), self.options(),
                    takeover=True,
                )  # fmt: skip
            except Unavailable as exc:
                self.trace(f"{name}: {process.name} could not attach: {exc}")
                await asyncio.sleep(0.2 + self.rng.random())

    async def chunks(self, name: str, process: SimProcess, catalog: AsyncCatalog) -> Chunks:
        """Return the chunks of a volume in a process."""
        node = self.nodes[0]
        return await connect(
            node.address, node.drives[0].disk_id, process.name, timeout_s=3.0, retry_s=2.0
        )

    def options(self) -> VolumeOptions:
        """Return how gateways serve volumes."""
        return VolumeOptions(
            map_cache_bytes=64 * KIB,
            checkpoint_interval_s=self.rng.choice((1.0, 3.0, 1e6)),
            delete_delay_s=self.rng.choice((0.5, 0.5)),
            gc_rate_bytes=self.rng.choice((0, 1 << 20)),
        )

    def found(self) -> bool:
        """Say whether a promise was broken: then there is nothing more to learn."""
        return any(check.violations for check in self.checks.values())

    async def tend(self, name: str) -> None:
        """Have somebody serve a volume; sometimes somebody takes it over."""
        while not self.over:
            writers = self.writers[name]
            last = writers[-1] if writers else None
            if last is None or last.ended or not last.process.alive:
                await asyncio.sleep(self.rng.random() * 0.02 * min(len(writers), 100))
                self.start_writer(name)
            elif last.serving and self.rng.random() < 0.02:
                self.trace(f"{name}: a takeover while {last.name} lives")
                self.start_writer(name)
            await asyncio.sleep(0.1)

    # --- trouble ------------------------------------------------------------------------

    async def trouble(self) -> None:
        """Let things go wrong for a while."""
        rng = self.rng
        weather = self.network.weather
        weather.slow = rng.choice((0.0, 0.0, 0.01))
        weather.reset = rng.choice((0.0, 0.0, 0.0005))
        self.metadata.silent = rng.choice((0.0, 0.0, 0.05))
        while self.loop.time() < self.trouble_s and not self.found():
            await asyncio.sleep(rng.expovariate(self.faults_per_s))
            self.faults += 1
            kinds = self.trouble_kinds()
            [kind] = rng.choices(tuple(kinds), tuple(kinds.values()))
            getattr(self, f"_fault_{kind}")()

    def trouble_kinds(self) -> dict[str, float]:
        """Return what may happen, and how likely."""
        return {
            "kill": 4, "power": 4, "blackout": 1, "pause": 3, "cut": 4, "metadata": 2,
            "writer": 3, "hang": 2, "reset": 3, "slow": 1,
            "error": 1, "full": 0.5, "clock": 0.5,
        }  # fmt: skip

    def _restart_later(self, node: SimNode, after_s: float) -> None:
        def start() -> None:
            if not node.up:
                self.trace(f"{node.name} starts")
                node.start()

        self.loop.outside.call_at(self.loop.time() + after_s, start)

    def _fault_kill(self) -> None:
        node = self.rng.choice(self.nodes)
        self.trace(f"{node.name} is killed")
        node.stop(power=False)
        self._restart_later(node, self.rng.choice((0.05, 0.3, 1.0, 3.0)))

    def _fault_power(self) -> None:
        node = self.rng.choice(self.nodes)
        self._cut_power(node, self.rng.choice((0.1, 0.5, 2.0, 5.0)))

    def _fault_blackout(self) -> None:
        for node in self.nodes:
            self._cut_power(node, 0.1 + self.rng.random())

    def _cut_power(self, node: SimNode, after_s: float) -> None:
        self.trace(f"{node.name} loses power")
        self.power_losses += 1
        node.stop(power=True)
        self._restart_later(node, after_s)

    def _fault_pause(self) -> None:
        node = self.rng.choice(self.nodes)
        if node.process is not None:
            seconds = self.rng.choice((0.1, 0.7, 2.0, 6.0))
            self.trace(f"{node.name} stops for {seconds} s")
            node.process.pause(seconds)

    def _machines(self) -> tuple[str, str]:
        gateways = [w[-1].process.machine for w in self.writers.values() if w]
        node = self.rng.choice(self.nodes).name
        others = [*gateways, *(one.name for one in self.nodes if one.name != node)]
        return node, self.rng.choice(others or ["outside"])

    def _fault_cut(self) -> None:
        one, other = self._machines()
        ways = self.rng.choice(([(one, other)], [(other, one)], [(one, other), (other, one)]))
        self.trace(f"cut: {ways}")
        for way in ways:
            self.network.cut(*way)
            self.loop.outside.call_at(
                self.loop.time() + self.rng.choice((0.2, 1.0, 4.0)), self.network.cuts.discard, way
            )

    def _fault_metadata(self) -> None:
        seconds = self.rng.choice((0.3, 2.0, 5.0))
        self.trace(f"the metadata store is away for {seconds} s")
        self.metadata.away_until_s = self.loop.time() + seconds

    def _fault_writer(self) -> None:
        writer = self._some_writer()
        if writer is not None:
            self.trace(f"{writer.name} is killed")
            writer.process.kill()

    def _fault_hang(self) -> None:
        """A writer stops, and somebody else takes its volume."""
        writer = self._some_writer()
        if writer is not None:
            seconds = self.rng.choice((0.3, 1.0, 3.0, 6.0))
            self.trace(f"{writer.name} stops for {seconds} s")
            writer.process.pause(seconds)
            if self.rng.random() < 0.7:
                self.start_writer(writer.check.name)

    def _some_writer(self) -> Writer | None:
        alive = [w for ws in self.writers.values() for w in ws if w.process.alive and not w.ended]
        return self.rng.choice(alive) if alive else None

    def _fault_reset(self) -> None:
        processes = [process for process, mine in self.network.transports.items() if mine]
        if processes:
            self.network.disturb(self.rng.choice(processes))

    def _fault_slow(self) -> None:
        drive = self.rng.choice(self.rng.choice(self.nodes).drives)
        drive.slow = self.rng.choice((1.0, 5.0, 50.0))
        self.trace(f"disk {drive.disk_id[-2:]} is {drive.slow} times as slow")

    def _fault_error(self) -> None:
        """A disk refuses to write, until somebody starts its node again."""
        node = self.rng.choice(self.nodes)
        disk = self.rng.choice(node.drives).disk
        if disk is not None:
            self.trace(f"{node.name} has a disk that fails")
            disk.fails_with = errno.EIO
            self.loop.outside.call_at(self.loop.time() + 2.0, self._replace, node)

    def _replace(self, node: SimNode) -> None:
        if node.up:
            self.trace(f"{node.name} is started again because of its disk")
            node.stop(power=False)
            self._restart_later(node, 0.1)

    def _fault_full(self) -> None:
        """A file system has no space left for a while."""
        node = self.rng.choice(self.nodes)
        disk = self.rng.choice(node.drives).disk
        if disk is not None and disk.fails_with is None:
            self.trace(f"{node.name} has a disk that is full")
            disk.fails_with = errno.ENOSPC
            self.loop.outside.call_at(self.loop.time() + 1.0, disk.recover)

    def _fault_clock(self) -> None:
        """The time of day jumps by an hour somewhere."""
        clock = self.rng.choice(self.nodes).clock
        clock.wall_offset_ns += self.rng.choice((-1, 1)) * 3600 * 10**9

    # --- the end ------------------------------------------------------------------------

    def heal(self) -> None:
        """Repair everything that was broken from outside."""
        self.trace("all heals")
        self.network.heal()
        self.network.weather.slow = self.network.weather.reset = 0.0
        self.metadata.heal()
        for process in self.loop.processes:
            if process.alive:
                process.resume()
        for node in self.nodes:
            for drive in node.drives:
                drive.slow = 1.0
                if drive.disk is not None and drive.disk.fails_with is not None:
                    self._replace(node)
            if not node.up:
                node.start()

    async def judge(self) -> None:
        """Take every volume over once more and see that it lives."""
        await asyncio.sleep(0.3)
        self.over = True
        last = [self.start_writer(name) for name in self.checks]
        deadline_s = self.loop.time() + HEALED_S
        while self.loop.time() < deadline_s and not self.found():
            if all(writer.serving and writer.rounds >= _ROUNDS_ALIVE for writer in last):
                break
            for place, writer in enumerate(last):
                if writer.ended:
                    last[place] = self.start_writer(writer.check.name)
            await asyncio.sleep(0.1)
        for writer in last:
            if not self.found() and not (writer.serving and writer.rounds >= _ROUNDS_ALIVE):
                writer.check.wrong(
                    f"is not alive {HEALED_S:g} s after everything healed: {writer.name} "
                    f"serving={writer.serving} rounds={writer.rounds} {writer.failure}"
                )

    async def live(self) -> None:
        """Live one whole life."""
        await self.begin()
        self.tending += [asyncio.ensure_future(self.tend(name)) for name in self.checks]
        await self.trouble()
        self.heal()
        await self.judge()
        for task in self.tending:
            await task
