"""A cluster of stores on simulated disks in one process, with a ring that is easy to reckon.

Records, spans and heads are made by hand: a test says what lies where.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from torus import limits
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.clock import Clock
from torus.cluster.local import LocalChunks
from torus.cluster.membership import Place
from torus.errors import Unavailable
from torus.format.identity import DiskIdentity
from torus.ids import ChunkId, is_shard, shard_id, whole_id
from torus.metadata.base import Put
from torus.metadata.keys import head_key, spec_key
from torus.metadata.schema import Head, RingHead, RootRef, Span, VolumeSpec
from torus.redundancy.scheme import Scheme, replica
from torus.store.content import FIRST, Examined, walk
from torus.store.store import Store
from torus.testing.clock import ManualClock
from torus.testing.faults import FaultyDisk
from torus.testing.membership import StaticMembership
from torus.testing.metadata import SimMetadata
from torus.testing.pool import SimPool
from torus.testing.simdisk import SMALL, DiskImage, SimDisk
from torus.testing.world import CLUSTER_ID
from torus.upkeep.budget import Budget
from torus.upkeep.disk import DiskUpkeep
from torus.upkeep.heads import Heads
from torus.upkeep.node import NodeUpkeep
from torus.upkeep.pace import Pace
from torus.upkeep.shard_content import fits, make_shard

RECORD_BYTES = 8 * limits.KIB
UNLIMITED = 1 << 60


def slot_of(chunk: ChunkId) -> int:
    """Return a slot of 2^16 for a chunk."""
    return (chunk.sequence * 40503 + chunk.volume * 9973 + chunk.epoch * 31 + chunk.tag) % 65536


@dataclass(frozen=True)
class ToyMember:
    """A disk of a ring, alone on its node."""

    disk_id: str

    @property
    def node_id(self) -> str:
        """Its node."""
        return self.disk_id


@cache
def _draw(slot: int, disk: str) -> int:
    return random.Random(f"{slot} {disk}").getrandbits(32)


@cache
def _block(chunk: ChunkId, number: int) -> bytes:
    return random.Random(f"{chunk} {number}").randbytes(limits.BLOCK_BYTES)


@dataclass(frozen=True)
class ToyRing:
    """Rendezvous hashing in a line."""

    version: int
    members: tuple[ToyMember, ...]

    def order(
        self, slot: int, count: int, excluded: frozenset[str] = frozenset()
    ) -> Sequence[ToyMember]:
        """Return the first owners."""
        able = [one for one in self.members if one.disk_id not in excluded]
        return sorted(able, key=lambda one: _draw(slot, one.disk_id))[:count]

    def owners(
        self, chunk: ChunkId, count: int, excluded: frozenset[str] = frozenset()
    ) -> Sequence[ToyMember]:
        """Return the first owners of a chunk."""
        return self.order(slot_of(chunk), count, excluded)


def ring_of(version: int, disks: Iterable[str]) -> ToyRing:
    """Return a ring of these disks."""
    return ToyRing(version, tuple(ToyMember(disk) for disk in sorted(disks)))


class Lag:
    """The membership as one disk sees it, maybe with an older ring."""

    def __init__(self, view: StaticMembership) -> None:
        self._view = view
        self.version: int | None = None  # None: the newest
        self.on_change: list[Callable[[], None]] = []

    @property
    def head(self) -> RingHead | None:
        """Return which ring holds."""
        head = self._view.head
        return head if head is None or self.version is None else RingHead(self.version)

    @property
    def ring(self) -> Any:
        """Return that ring."""
        assert self.head is not None
        return self._view.ring_at(self.head.version)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


class House:
    """One disk with its store and its upkeep; `down` takes it off the net."""

    def __init__(self, town: "Town", disk_id: str, image: DiskImage | None = None) -> None:
        self.town = town
        self.disk_id = disk_id
        self.disk = FaultyDisk.over(SimDisk(image=image))
        self.view = Lag(town.view)
        self.open()

    def open(self) -> None:
        """Start the process anew."""
        town = self.town
        town.starts += 1
        identity = DiskIdentity(self.disk_id, CLUSTER_ID, SMALL.slot_bytes, SMALL.segment_slots, 1)
        self.store = Store(
            self.disk, identity, SimPool(self.disk, town.rng), town.clock, town.starts,
            size_bytes=town.slots * SMALL.slot_bytes, punch_delay_s=None,
        )  # fmt: skip
        self.store.open()
        self.chunks = LocalChunks(self.store)
        self._watch_drops()
        self.pace = Pace(
            Budget(town.rate_bytes, UNLIMITED), town.clock, clients_hurt=lambda: town.clients_hurt
        )
        self.upkeep = DiskUpkeep(
            self.store, self.chunks, self.view, Street(town, self.disk_id), town.heads,
            town.clock, self.pace, slot_of,
        )  # fmt: skip
        self.node = NodeUpkeep(town.clock, [self.upkeep])
        town.view.set_place(
            Place(self.disk_id, self.disk_id, "h", "", "unix:x", "in", f"i{town.starts}")
        )

    def _watch_drops(self) -> None:
        """After each drop there are as many copies as there should be, or can be."""
        drop = self.chunks.drop

        async def watched(chunks: Iterable[ChunkId]) -> int:
            dropped = list(chunks)
            count = await drop(dropped)
            for chunk in dropped:
                self.town.check_enough(chunk)
            return count

        self.chunks.drop = watched  # type: ignore[method-assign]

    def restart(self, image: DiskImage | None = None) -> None:
        """End the process without a word, and start it anew on what lies on the disk."""
        left = (self.disk.image if image is None else image).copy()
        self.disk = FaultyDisk.over(SimDisk(image=left))
        self.open()

    @property
    def up(self) -> bool:
        """Say whether others reach it."""
        return self.town.view.disks()[self.disk_id].up

    def write(self, chunk: ChunkId, content: bytes) -> None:
        """Append records as a writer does, and call them durable."""
        appender = self.store.appender(chunk)
        appender.open(from_reserve=False)
        at = 0
        for index, record in enumerate(records_in(content, chunk)):
            appender.append_bytes(index, FIRST + at, record)
            at += len(record)

    def content(self, chunk: ChunkId) -> bytes | None:
        """Return the valid records of a chunk; None when it is not here."""
        slot = self.store.find(chunk)
        if slot is None:
            return None
        data = self.disk.read(slot.address + FIRST, SMALL.slot_bytes - FIRST)
        return data[: walk(data, chunk).end - FIRST]

    def shard(self, shard: ChunkId, size: int) -> bytes | None:
        """Return so many bytes of a shard as it travels; None when it is not here."""
        cell = self.store.find(shard)
        return None if cell is None else self.disk.read(cell.address + FIRST, size)

    def rot(self, chunk: ChunkId, offset: int) -> None:
        """Flip a byte of a chunk, as no write does."""
        slot = self.store.find(chunk)
        assert slot is not None
        segment, at = divmod(slot.address + offset, SMALL.segment_bytes)
        self.disk.image.segments[segment][at] ^= 0xFF


def records_in(content: bytes, chunk: ChunkId) -> list[bytes]:
    """Cut a chunk's content into its records."""
    found, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at + 52 : at + 56], "little")
        payload = int.from_bytes(content[at + 56 : at + 60], "little")
        found.append(content[at : at + size + payload])
        at += size + payload
    return found


def make_content(chunk: ChunkId, lsn: int, count: int) -> bytes:
    """Return ``count`` records of a chunk."""
    content = b""
    for index in range(count):
        record = RecordBuilder(RECORD_BYTES, 4)
        for block in range(RECORD_BYTES // limits.BLOCK_BYTES):
            record.add_data(index * 2 + block, _block(chunk, index * 2 + block))
        record.finish(KIND_DATA, chunk, index, lsn + index, 0, FIRST + len(content), 77)
        content += record.tobytes()
    return content


@dataclass
class Traffic:
    """What went over the net."""

    read_bytes: int = 0
    lists: int = 0
    examined: int = 0
    asked: int = 0


class Street:
    """The other disks, as one disk reaches them."""

    def __init__(self, town: "Town", own: str) -> None:
        self._town = town
        self._own = own

    async def get(self, disk_id: str) -> "Neighbour":
        """Return a disk that is up."""
        await self._reach(disk_id)
        return Neighbour(self, self._town, disk_id)

    async def _reach(self, disk_id: str) -> House:
        await self._town.delay()
        house = self._town.houses[disk_id]
        if not house.up or not self._town.houses[self._own].up:
            raise Unavailable(f"disk {disk_id} is down")
        return house

    async def ask(self, disk_id: str, question: bytes) -> bytes:
        """Ask another upkeep."""
        self._town.traffic.asked += 1
        house = await self._reach(disk_id)
        answer = await house.node.answer(question)
        await self._reach(disk_id)
        return answer


class Neighbour:
    """Another disk."""

    def __init__(self, street: Street, town: "Town", disk_id: str) -> None:
        self._street = street
        self._town = town
        self._disk_id = disk_id

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        """Read."""
        house = await self._street._reach(self._disk_id)
        self._town.traffic.read_bytes += sum(size for _, _, size in reads)
        return await house.chunks.read(reads)

    async def examine(self, chunks: Sequence[ChunkId]) -> Sequence[Examined]:
        """Examine."""
        house = await self._street._reach(self._disk_id)
        self._town.traffic.examined += len(chunks)
        return await house.chunks.examine(chunks)

    async def list(self, volume: int) -> Sequence[ChunkId]:
        """List."""
        house = await self._street._reach(self._disk_id)
        self._town.traffic.lists += 1
        return await house.chunks.list(volume)


@dataclass
class Volume:
    """A volume's log as the metadata has it."""

    number: int
    copies: int
    scheme: Scheme
    former: tuple[Scheme, ...] = ()
    replay: int = 0  # where a takeover begins to read
    epoch: int = 1
    spans: list[Span] = field(default_factory=list)
    chunks: dict[ChunkId, bytes] = field(default_factory=dict)  # those that live

    written: int = 0  # the last sequence number
    written_end: int = 0  # where that chunk ends

    @property
    def next_sequence(self) -> int:
        """The sequence number that comes next."""
        return 1 + self.written

    def close(self) -> None:
        """Close the open span behind all that was written."""
        self.spans[-1] = replace(self.spans[-1], last=self.written, end=self.written_end)


class Town:
    """The cluster."""

    def __init__(
        self,
        seed: int,
        disks: Iterable[str],
        *,
        slots: int = 400,
        clock: Clock | None = None,
        rate_bytes: int = UNLIMITED,
    ) -> None:
        """``clock``: None: it stands still; ``rate_bytes``: of each disk's upkeep, a second."""
        self.rng = random.Random(seed)
        self.rate_bytes = rate_bytes
        self.clients_hurt: bool | None = None
        self.slots = slots
        self.starts = 0
        self.clock: Any = clock or ManualClock()
        self.metadata = SimMetadata()
        self.heads = Heads(self.metadata, self.clock, -1.0)  # type: ignore[arg-type]
        self.view = StaticMembership()
        self.traffic = Traffic()
        self.slow_net = False
        self._right: dict[tuple[ChunkId, Scheme], list[bytes]] = {}
        self.houses: dict[str, House] = {}
        self.volumes: dict[int, Volume] = {}
        for disk in disks:
            self.add(disk)
        self.set_ring(self.houses)

    async def delay(self) -> None:
        """Let others run."""
        for _ in range(self.rng.randint(1, 4) if self.slow_net else 1):
            await asyncio.sleep(0)

    def add(self, disk: str) -> House:
        """Add a disk."""
        self.houses[disk] = House(self, disk)
        return self.houses[disk]

    def set_ring(self, disks: Iterable[str]) -> ToyRing:
        """Let a new ring of these disks hold."""
        version = 1 if self.view.head is None else self.view.head.version + 1
        ring = ring_of(version, disks)
        self.view.set_ring(ring)  # type: ignore[arg-type]
        return ring

    @property
    def ring(self) -> Any:
        """The newest ring."""
        return self.view.ring

    def owners(self, chunk: ChunkId, copies: int) -> list[str]:
        """Return the owners of a chunk in the newest ring."""
        return [one.disk_id for one in self.ring.order(slot_of(chunk), copies)]

    # --- volumes ------------------------------------------------------------------------

    async def volume(self, copies: int, scheme: Scheme | None = None) -> Volume:
        """Make a volume; ``scheme``: another than so many copies."""
        scheme = scheme or replica(copies)
        volume = Volume(len(self.volumes) + 1, scheme.copies, scheme)
        self.volumes[volume.number] = volume
        await self.publish(volume)
        return volume

    async def publish(self, volume: Volume) -> None:
        """Write a volume's head."""
        spec = VolumeSpec(volume.number, f"v{volume.number}", 1 << 30,
                          str(volume.scheme), 0, former=tuple(map(str, volume.former)))  # fmt: skip
        root = RootRef(1, FIRST, 1, 1, volume.replay, FIRST, 0) if volume.replay else None
        head = Head(volume.epoch, None, tuple(volume.spans), root)
        await self.metadata.commit(
            (), (Put(spec_key(volume.number), spec.to_bytes()),
                 Put(head_key(volume.number), head.to_bytes()))
        )  # fmt: skip
        for house in self.houses.values():
            house.upkeep.poke()

    async def convert(self, volume: Volume, scheme: Scheme) -> None:
        """Let a volume have another redundancy from now on."""
        volume.former = (*volume.former, volume.scheme)
        volume.scheme, volume.copies = scheme, scheme.copies
        await self.publish(volume)

    async def write(
        self,
        volume: Volume,
        count: int,
        *,
        missed: Callable[[str, int], int | None] = lambda _disk, _sequence: None,
        excluded: Iterable[str] = (),
        records: int = 3,
        end: bool = True,
        closed: bool = True,
    ) -> list[ChunkId]:
        """Write a span of ``count`` chunks, which is closed unless that is not wanted.

        ``missed(disk, sequence)``: how many records a disk got, None for all.
        """
        tags = [span.tag for span in volume.spans if span.epoch == volume.epoch]
        tag = max(tags, default=-1) + 1
        first = volume.next_sequence
        chunks = []
        ring, left_out = self.ring, frozenset(excluded)
        volume.written = first + count - 1
        for sequence in range(first, first + count):
            chunk = ChunkId(volume.number, volume.epoch, tag, sequence)
            content = make_content(chunk, 1 + sequence * records, records)
            volume.chunks[chunk] = content
            chunks.append(chunk)
            for one in ring.order(slot_of(chunk), volume.copies, left_out):
                got = missed(one.disk_id, sequence)
                if got != 0:
                    parts = records_in(content, chunk)[:got]
                    self.houses[one.disk_id].write(chunk, b"".join(parts))
        volume.written_end = FIRST + len(volume.chunks[chunks[-1]])
        exact = volume.written_end if end else None
        volume.spans.append(
            Span(volume.epoch, tag, first, first + count - 1 if closed else None,
                 exact if closed else None, ring.version, tuple(sorted(left_out)))
        )  # fmt: skip
        await self.publish(volume)
        return chunks

    async def delete(self, chunks: Iterable[ChunkId]) -> None:
        """Delete chunks as their owner does: on all disks that are up."""
        for chunk in chunks:
            self.volumes[chunk.volume].chunks.pop(chunk, None)
            for house in self.houses.values():
                if house.up:
                    await house.chunks.delete(chunk.volume, chunk.epoch, [chunk])

    # --- what happens -------------------------------------------------------------------

    async def rounds(self, most: int = 12, *, check: bool = True) -> int:
        """Let all disks that are up make rounds, side by side, until nothing happens."""
        for number in range(most):
            before = self.state()
            await asyncio.gather(*(
                house.upkeep.round() for house in self.houses.values() if house.up
            ))  # fmt: skip
            if check:
                self.check_copies()
            busy = any(house.upkeep._changed.is_set() for house in self.houses.values() if house.up)
            if self.state() == before and not busy:
                return number
        return most

    def state(self) -> object:
        """Return what lies where."""
        return {
            disk: sorted(
                (chunk, 0 if is_shard(chunk) else len(house.content(chunk) or b""))
                for chunk in house.store.chunks()
            )
            for disk, house in self.houses.items()
        }

    def holders(self, chunk: ChunkId) -> list[str]:
        """Return the disks that have the whole chunk."""
        content = self.volumes[chunk.volume].chunks[chunk]
        return sorted(d for d, house in self.houses.items() if house.content(chunk) == content)

    def shards(self, chunk: ChunkId, scheme: Scheme) -> dict[str, set[int]]:
        """Return the numbers of the right shards of the whole content that each disk has."""
        content = self.volumes[chunk.volume].chunks[chunk]
        if not fits(FIRST + len(content), scheme, SMALL.slot_bytes):
            return {}
        if (chunk, scheme) not in self._right:
            self._right[chunk, scheme] = [
                make_shard(chunk, content, scheme, number, SMALL.slot_bytes)
                for number in range(scheme.shards)
            ]
        found: dict[str, set[int]] = {}
        for disk, house in self.houses.items():
            for number, right in enumerate(self._right[chunk, scheme]):
                if house.shard(shard_id(chunk, number), len(right)) == right:
                    found.setdefault(disk, set()).add(number)
        return found

    def good(self, chunk: ChunkId) -> int:
        """Return how many disks have to be lost until a chunk is."""
        volume, holders = self.volumes[chunk.volume], self.holders(chunk)
        best = len(holders)
        for scheme in {volume.scheme, *volume.former}:
            if scheme.erasure:
                shards = self.shards(chunk, scheme)
                others = {n for disk, some in shards.items() if disk not in holders for n in some}
                best = max(best, len(holders) + len(others) - scheme.data + 1)
        return best

    def check_copies(self) -> None:
        """Every chunk that lives can be had."""
        for volume in self.volumes.values():
            for chunk in volume.chunks:
                assert self.good(chunk) > 0, f"chunk {chunk} is lost"

    def check_enough(self, chunk: ChunkId) -> None:
        """A chunk that lives has its copies, on disks that are up or down."""
        chunk = whole_id(chunk)
        volume = self.volumes[chunk.volume]
        if chunk in volume.chunks:
            least = min(one.copies for one in (volume.scheme, *volume.former))
            wanted = min(least, len(self.ring.members))
            assert self.good(chunk) >= wanted, f"chunk {chunk}: {self.holders(chunk)}"

    def misplaced(self) -> list[ChunkId]:
        """Return the chunks that do not lie exactly where the ring wants them."""
        return [
            chunk
            for volume in self.volumes.values()
            for chunk in volume.chunks
            if self.holders(chunk) != sorted(self.owners(chunk, volume.copies))
        ]

    def strangers(self) -> set[ChunkId]:
        """Return the chunks that lie somewhere and do not live."""
        living = {chunk for volume in self.volumes.values() for chunk in volume.chunks}
        there = {c for house in self.houses.values() for c in house.store.chunks()}
        return {chunk for chunk in there if whole_id(chunk) not in living}


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario; what the event loop complains of is a failure."""

    async def whole() -> None:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, said: reported.append(said))
        await scenario()
        assert reported == []

    asyncio.run(whole())
