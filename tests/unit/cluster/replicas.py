"""Several disks in one test: stores in memory, reached as those of other processes are, that
restart, lose power, fall silent or fail when a test says so."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from torus import limits
from torus._fast.record import RecordBuilder
from torus.cluster.chunks import DiskChunks
from torus.cluster.local import LocalChunks
from torus.cluster.membership import Place
from torus.cluster.one_disk import OneDisk
from torus.cluster.pool import DiskPool
from torus.errors import TimedOut, TorusError, Unavailable
from torus.format.identity import DiskIdentity
from torus.ids import ChunkId
from torus.metadata.schema import Owner
from torus.ring.builder import first_ring, next_ring
from torus.ring.member import RingMember
from torus.store.content import Examined, Reopened
from torus.store.store import Store
from torus.testing.clock import ManualClock
from torus.testing.faults import FaultyMetadata
from torus.testing.membership import StaticMembership
from torus.testing.pool import SimPool
from torus.testing.simdisk import SMALL, DiskImage, PowerLoss, SimDisk
from torus.testing.simloop import SimLoop
from torus.volume.attach import VolumeOptions, attach
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog

BLOCK = limits.BLOCK_BYTES
T = TypeVar("T")

CLUSTER = "c1" * 16
SLOTS = 160

Act = Callable[["SimNode"], None]
Delay = Callable[[], Awaitable[None]]


@dataclass
class SimNode:
    """One process with one disk, as others see it."""

    name: str
    rng: random.Random
    boot_id: int = 1
    up: bool = True
    silent: bool = False  # it takes requests and never answers
    answers_after_s: float = 0.0
    refusing: TorusError | None = None  # every request ends so
    asked: list[str] = field(default_factory=list)
    # Per kind of request: what happens with the next ones.  "drop": it never arrives and its
    # connection breaks; "lose": it is carried out, its answer is lost with the connection; "hang":
    # it is carried out and never answered; an error: the answer; a coroutine function: waited for
    # before it is carried out.
    faults: dict[str, list[str | TorusError | Act | Delay]] = field(default_factory=dict)
    # Called when a request of that kind was carried out, before it is answered.
    after: dict[str, Act] = field(default_factory=dict)
    soon_share: float = 0.7  # of requests that take the short way where there is one

    def __post_init__(self) -> None:
        """Make its disk."""
        self.address = f"sim:{self.name}"
        self.disk_id = f"{ord(self.name):02x}" * 16
        self.identity = DiskIdentity(
            self.disk_id, CLUSTER, SMALL.slot_bytes, SMALL.segment_slots, 1
        )
        self._start(DiskImage())

    def _start(self, image: DiskImage) -> None:
        self.start = image.copy()
        self.disk = SimDisk(SMALL, image)
        pool = SimPool(self.disk, self.rng)
        size = SLOTS * SMALL.slot_bytes
        self.store = Store(
            self.disk, self.identity, pool, ManualClock(), self.boot_id, size_bytes=size
        )
        self.store.open()
        self.chunks = LocalChunks(self.store)

    def restart(self) -> None:
        """Let the process be killed and started again: the page cache stays."""
        self.boot_id += 1
        self._start(self.disk.image)

    def lose_power(self) -> None:
        """Let the machine lose power and come back: what was not synced is gone."""
        losing = PowerLoss(SMALL, self.start.copy())
        for event in self.disk.history:
            losing.step(event)
        self.boot_id += 1
        self._start(losing.certain())

    def kill(self) -> None:
        """Let the process be gone."""
        self.up = False

    def place(self) -> Place:
        """Return what the membership says of the disk."""
        return Place(self.disk_id, self.name, self.name, self.name, self.address, "in")


class FarWriter:
    """What `PeerWriter` is for a `FarDisk`; it compares no boot ids."""

    immediate = False

    def __init__(self, disk: "FarDisk", chunk: ChunkId, boot_id: int) -> None:
        self._disk = disk
        self._chunk = chunk
        self._sent: asyncio.Future[int] | None = None
        self.boot_id = boot_id

    def append_now(self, index: int, offset: int, record: RecordBuilder) -> bool:
        return False

    async def append(self, index: int, offset: int, record: RecordBuilder) -> None:
        await self.append_bytes(index, offset, record.tobytes())

    def append_soon(self, index: int, offset: int, record: bytes) -> asyncio.Future[int] | None:
        """Send the record without a coroutine, or not."""
        if self._disk.slowly():
            return None

        async def send() -> int:
            await self.append_bytes(index, offset, record)
            return self._disk.answered

        self._sent = self._disk.soon(send())
        return self._sent

    def sync_soon(self) -> asyncio.Future[int] | None:
        """Send a sync behind the record that was sent last, or not."""
        if self._disk.slowly():
            return None
        before = self._sent

        async def send() -> int:
            if before is not None:
                await asyncio.wait([before])
            await self._disk.sync([self._chunk])
            return self._disk.answered

        return self._disk.soon(send())

    async def append_bytes(self, index: int, offset: int, record: bytes) -> None:
        async def work(node: SimNode) -> None:
            node.store.appender(self._chunk).append_bytes(index, offset, record)

        await self._disk.ask("append", work)


class FarDisk(OneDisk):
    """A `DiskChunks` over a `SimNode`, as one process is connected to it."""

    io = None

    def __init__(self, node: SimNode, cut: set[str]) -> None:
        self._node = node
        self._address = node.address
        self._cut = cut
        self.disk_id = node.disk_id
        self.boot_id = node.boot_id
        self.slot_bytes = SMALL.slot_bytes
        self._writers: dict[ChunkId, FarWriter] = {}
        self._sent: set[asyncio.Future[Any]] = set()
        self.answered = 0  # the boot id of the node that answered last

    def slowly(self) -> bool:
        """Tell whether the short way is not taken this time."""
        return self._node.rng.random() >= self._node.soon_share

    def soon(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Return the future of something that was sent; its connection gives it up in time."""

        async def bounded() -> T:
            try:
                return await asyncio.wait_for(work, limits.REPLICA_SILENCE_S)
            except TimeoutError:
                raise TimedOut(f"node {self._node.name} said nothing") from None

        task = asyncio.ensure_future(bounded())
        self._sent.add(task)
        task.add_done_callback(self._sent.discard)
        return task

    async def close(self) -> None:
        """Hang up."""
        for task in list(self._sent):
            task.cancel()
        if self._sent:
            await asyncio.wait(self._sent)

    async def ask(self, kind: str, work: Callable[[SimNode], Awaitable[object]]) -> object:
        node = self._node
        for _ in range(node.rng.randint(1, 4)):
            await asyncio.sleep(0)
        if not node.up or node.name in self._cut or node.address != self._address:
            raise Unavailable(f"node {node.name} is gone")
        fault = node.faults[kind].pop(0) if node.faults.get(kind) else ""
        if callable(fault):
            if iscoroutinefunction(fault):
                await fault()
            else:
                fault(node)  # type: ignore[call-arg]
            fault = ""
        node.asked.append(kind)
        if isinstance(fault, TorusError):
            raise fault
        if fault == "drop":
            raise Unavailable(f"connection to node {node.name} ended")
        if node.silent:
            await asyncio.get_running_loop().create_future()
        if node.answers_after_s:
            await let_pass(node.answers_after_s)
        if node.refusing is not None:
            raise node.refusing
        boot_id = node.boot_id
        answer = await work(node)
        if (act := node.after.get(kind)) is not None:
            act(node)
        if fault == "hang":
            await asyncio.get_running_loop().create_future()
        if fault == "lose" or not node.up or boot_id != node.boot_id:
            raise Unavailable(f"connection to node {node.name} ended")
        await asyncio.sleep(0)
        self.answered = boot_id
        self.boot_id = max(self.boot_id, boot_id)
        return answer

    def open_now(self, chunk: ChunkId, *, from_reserve: bool) -> None:
        return None

    async def open(self, chunk: ChunkId, *, from_reserve: bool) -> FarWriter:
        async def work(node: SimNode) -> int:
            await node.chunks.open(chunk, from_reserve=from_reserve)
            return node.boot_id

        boot_id = await self.ask("open", work)
        assert isinstance(boot_id, int)
        writer = self._writers[chunk] = FarWriter(self, chunk, boot_id)
        return writer

    def writer(self, chunk: ChunkId, boot_id: int) -> FarWriter:
        return FarWriter(self, chunk, boot_id)

    def place(self, chunk: ChunkId, known: object = None) -> None:
        return None

    async def room(self) -> tuple[int, int]:
        return await self.ask("room", lambda node: node.chunks.room())  # type: ignore[return-value]

    async def ping(self) -> None:
        await self.ask("ping", lambda node: node.chunks.ping())

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        wanted = list(chunks)
        await self.ask("sync", lambda node: node.chunks.sync(wanted))

    def sync_soon(self, chunks: Iterable[ChunkId]) -> None:
        return None

    def sync_many_soon(self, chunks: Sequence[ChunkId]) -> asyncio.Future[int] | None:
        """Send a sync without a coroutine, or not."""
        if self.slowly():
            return None

        async def send() -> int:
            await self.sync(chunks)
            return self.answered

        return self.soon(send())

    def read_many_soon(
        self, reads: Sequence[tuple[ChunkId, int, int]], size: int
    ) -> asyncio.Future[list[bytes]] | None:
        """Send a read without a coroutine, or not."""
        return None if self.slowly() else self.soon(self.read(reads))

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        return await self.ask("read", lambda node: node.chunks.read(reads))  # type: ignore[return-value]

    async def fence(self, volume: int, epoch: int) -> None:
        await self.ask("fence", lambda node: node.chunks.fence(volume, epoch))

    async def scan(self, chunk: ChunkId, epoch: int, offset: int) -> bytes | None:
        return await self.ask("scan", lambda node: node.chunks.scan(chunk, epoch, offset))  # type: ignore[return-value]

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        wanted = list(chunks)
        return await self.ask("delete", lambda node: node.chunks.delete(volume, epoch, wanted))  # type: ignore[return-value]

    async def reopen(self, chunk: ChunkId, epoch: int) -> Reopened | None:
        found = await self.ask("reopen", lambda node: node.chunks.reopen(chunk, epoch))
        if isinstance(found, Reopened) and chunk in self._writers:
            self._writers[chunk].boot_id = found.boot_id
        return found  # type: ignore[return-value]

    async def install(self, chunk: ChunkId, epoch: int, end: int, content: bytes) -> None:
        await self.ask("install", lambda node: node.chunks.install(chunk, epoch, end, content))

    async def examine(
        self, chunks: Sequence[ChunkId], *, afresh: bool = False
    ) -> Sequence[Examined]:
        return await self.ask("examine", lambda node: node.chunks.examine(chunks))  # type: ignore[return-value]

    def space(self) -> None:
        return None

    async def wait_for_space(self) -> None:
        await let_pass(0.01)

    async def list(self, volume: int) -> Sequence[ChunkId]:
        return await self.ask("list", lambda node: node.chunks.list(volume))  # type: ignore[return-value]


class LoopClock:
    """The time of the loop."""

    def monotonic_ns(self) -> int:
        """Return the loop's time."""
        return int(asyncio.get_running_loop().time() * 1e9)

    wall_ns = monotonic_ns


class Replicas:
    """Nodes, a metadata store, a ring; and processes that write and take over."""

    def __init__(self, seed: int, nodes: str = "abcd", *, near: str = "") -> None:
        """``near``: the nodes whose disks are in the first writer's process."""
        self.rng = random.Random(seed)
        self.nodes = {name: SimNode(name, random.Random(seed + ord(name))) for name in nodes}
        self.members = [
            RingMember(node.disk_id, node.name, node.name, 1) for node in self.nodes.values()
        ]
        self.ring = first_ring(self.members)
        self.view = StaticMembership([node.place() for node in self.nodes.values()], self.ring)
        self.metadata = FaultyMetadata()
        self.clock = ManualClock()
        self.catalog = AsyncCatalog(self.metadata, self.clock)  # type: ignore[arg-type]
        self.near = near
        self.cut: set[str] = set()  # nodes that the first writer cannot reach
        self.pools: list[DiskPool] = []
        self.attachments: list[Attachment] = []
        self.options = VolumeOptions(
            map_cache_bytes=limits.MIB, checkpoint_interval_s=1e6, delete_delay_s=0.0,
            gc_rate_bytes=0,
        )  # fmt: skip

    def pool(self, cut: set[str] | None = None, near: str = "") -> DiskPool:
        """Return the disks as a new process reaches them."""
        unreached = set() if cut is None else cut

        async def connect(place: Place) -> DiskChunks:
            node = self.nodes[place.node_id]
            if not node.up or node.name in unreached:
                raise Unavailable(f"node {node.name} refuses connections")
            return FarDisk(node, unreached)

        local = {self.nodes[name].disk_id: self.nodes[name].chunks for name in near}
        pool = DiskPool(
            self.view, local, connect, LoopClock(), host=near, slot_bytes=SMALL.slot_bytes
        )
        self.pools.append(pool)
        return pool

    async def create(
        self, copies: int = 3, min_copies: int | None = None, redundancy: str = ""
    ) -> None:
        """Make the volume "one" of 256 blocks."""
        redundancy = redundancy or f"replica:{copies}"
        await self.catalog.create("one", 256 * BLOCK, redundancy, min_copies)

    async def attach(
        self, pid: int = 1, *, cut: set[str] | None = None, near: str = ""
    ) -> Attachment:
        """Become the writer of the volume in a new process, whoever is it now."""
        found = await self.catalog.get("one")
        chunks = self.pool(cut, near).chunks_of(found.spec)
        owner = Owner("sim", "boot", pid, pid, "gateway", f"process-{pid}", 0)
        attachment = await attach(
            found, self.catalog, chunks, owner, self.clock, self.options, takeover=True
        )
        self.attachments.append(attachment)
        return attachment

    def owners(self, chunk: ChunkId, copies: int = 3) -> list[SimNode]:
        """Return the nodes that a chunk is written to when nobody is left out."""
        return [self.nodes[member.node_id] for member in self.ring.owners(chunk, copies)]

    def next_ring(self, *without: str) -> None:
        """Let the ring change: the weights of some nodes become 0."""
        self.members = [
            replace(member, weight=0 if member.node_id in without else 1) for member in self.members
        ]
        self.ring = next_ring(self.ring, self.members)
        self.view.set_ring(self.ring)

    async def stop(self) -> None:
        """End all processes at once."""
        for attachment in self.attachments:
            volume = attachment.volume
            volume.core.chunks.stop_waiting()
            volume.collector.ask_stop()
            attachment.holder._stopping = True
            await volume.resealer.stop()
            await volume.queue.stop()
            await volume.checkpointer.stop()
            await volume.collector.stop()
            await volume.early_flush.stop()
            await volume.core.chunks.stop()
        for pool in self.pools:
            await pool.close()
        for node in self.nodes.values():
            await node.store.close()


def run(seed: int, scenario: Callable[[Replicas], Awaitable[None]], **options: str) -> None:
    """Run a scenario to its end, in virtual time; nothing may be left running."""

    async def guarded() -> None:
        replicas = Replicas(seed, **options)
        try:
            async with asyncio.timeout(3600):
                await scenario(replicas)
        finally:
            await replicas.stop()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    loop = SimLoop(random.Random(f"loop:{seed}"))
    try:
        loop.run_until_complete(loop.outside.run(guarded()))
        assert loop.errors == []
    finally:
        loop.close()


async def let_pass(seconds: float) -> None:
    """Let time pass; it costs nothing."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


def block(number: int) -> bytes:
    """Return a block's content."""
    return bytes([number % 255 + 1]) * BLOCK
