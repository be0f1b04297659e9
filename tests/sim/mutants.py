"""Rules of the log's protocol, each taken out of the real code by a patch.

The simulation is worth something when it notices each of them.
"""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest import mock

from tests.sim.patches import Patch
from tests.sim.patches import replace as _replace
from tests.sim.shard_mutants import SHARD_MUTANTS
from torus.cluster.local import LocalChunks
from torus.cluster.quorum import Takeover
from torus.cluster.replicated import VolumeChunks
from torus.cluster.replicated_writes import OpenChunks
from torus.errors import TorusError
from torus.metadata.base import Put
from torus.metadata.keys import head_key
from torus.store.fences import Fences
from torus.store.store import Store
from torus.testing.simdisk import DiskImage, PowerLoss
from torus.testing.simnode import SimDrive
from torus.testing.simreplicas import ReplicatedCluster
from torus.volume import epoch_steps
from torus.volume.catalog_ask import Commit
from torus.volume.log import Log
from torus.volume.reseal import Resealer


class SmallCluster(ReplicatedCluster):
    """Two copies on two nodes: where trouble of a few kinds meets soon."""

    kinds: ClassVar[dict[str, float]] = {}

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.copies, self.min_copies = 2, 1

    def wanted_nodes(self) -> int:
        """Return 2."""
        return 2

    def wanted_volumes(self) -> int:
        """Return 1."""
        return 1

    def trouble_kinds(self) -> dict[str, float]:
        """Return the kinds of this cluster."""
        return self.kinds


class Blackouts(SmallCluster):
    """The power goes everywhere at once, and writers die."""

    kinds: ClassVar[dict[str, float]] = {"blackout": 3, "writer": 1, "kill": 1}


class Hangs(SmallCluster):
    """Writers stop while others take over and nodes restart."""

    kinds: ClassVar[dict[str, float]] = {"hang": 2, "blackout": 1, "kill": 3}


class SlowHeads(SmallCluster):
    """The metadata store is away again and again, while spans end and writers change."""

    kinds: ClassVar[dict[str, float]] = {"metadata": 3, "hang": 2, "kill": 1, "cut": 1, "power": 1}


class Blinks(SmallCluster):
    """The power goes everywhere, for a moment, under a writer that writes much."""

    kinds: ClassVar[dict[str, float]] = {"blink": 5, "writer": 1}

    def _fault_blink(self) -> None:
        writer = self._some_writer()
        if writer is not None:
            writer.idle_s = 0.005
        for node in self.nodes:
            self._cut_power(node, 0.02 + 0.1 * self.rng.random())


class Rivals(SmallCluster):
    """Writers take the volume from each other all the time, and write much."""

    kinds: ClassVar[dict[str, float]] = {"rival": 5, "slow": 1}

    def _fault_rival(self) -> None:
        writer = self._some_writer()
        if writer is not None and writer.serving:
            writer.idle_s = 0.002
            self.start_writer(writer.check.name)


class Cuts(SmallCluster):
    """Nodes and writers lose each other, and nodes their power."""

    kinds: ClassVar[dict[str, float]] = {"cut": 3, "power": 2, "pause": 1, "writer": 1, "hang": 1}


class Losses(SmallCluster):
    """Disks are lost one after the other, writers too."""

    kinds: ClassVar[dict[str, float]] = {"cut": 2, "power": 2, "pause": 2, "writer": 2}


def no_fence(stack: ExitStack) -> None:
    """Nodes do not refuse older epochs."""
    _replace(stack, Fences, "check", lambda *_: None)


def no_head_check(stack: ExitStack) -> None:
    """A head is written whatever epoch it has by now."""

    def publish(volume_id: int, head: Any, head_revision: int) -> Any:
        written = yield Commit((), (Put(head_key(volume_id), head.to_bytes()),))
        return written

    _replace(stack, epoch_steps, "publish", publish)


def volatile_fence(stack: ExitStack) -> None:
    """A node forgets its fences when it is restarted."""
    left = SimDrive.left

    def forgetful(self: SimDrive, *, power: bool) -> None:
        left(self, power=power)
        self.image.files.pop("fences", None)
        self.power._durable.files.pop("fences", None)

    _replace(stack, SimDrive, "left", forgetful)


def wiped_disk(stack: ExitStack) -> None:
    """A disk comes back empty under its old id after some power losses."""
    left = SimDrive.left

    def wiped(self: SimDrive, *, power: bool) -> None:
        left(self, power=power)
        if power and self.rng.random() < 0.5:
            self.image = DiskImage()
            self.power = PowerLoss(self.geometry)

    _replace(stack, SimDrive, "left", wiped)


def one_boot_id(stack: ExitStack) -> None:
    """A restart of a disk cannot be told: its boot id stays."""
    made = functools.partial(_same_boot, Store)
    stack.enter_context(mock.patch("torus.testing.simnode.Store", made))


def _same_boot(store: Any, *arguments: Any, boot_id: int, **options: Any) -> Any:
    return store(*arguments, boot_id=1, **options)


def answer_before_all(stack: ExitStack) -> None:
    """A write or a flush is answered though one copy does not have it."""
    lose = OpenChunks.lose

    def forgiving(self: OpenChunks, disk_id: str, error: TorusError) -> None:
        missed = self.__dict__.setdefault("missed", set())
        missed.add(disk_id)
        if len(missed) > 1:
            lose(self, disk_id, error)

    _replace(stack, OpenChunks, "lose", forgiving)


def read_then_fence(stack: ExitStack) -> None:
    """A takeover reads the log first and fences behind that."""
    fence, settle = VolumeChunks.fence, VolumeChunks.settle

    async def no_fence_yet(self: VolumeChunks, volume: int, epoch: int) -> None:
        self._epoch = epoch

    async def late(self: VolumeChunks, ends: Any) -> None:
        await fence(self, self._volume, self._epoch)
        await settle(self, ends)

    async def scan(self: LocalChunks, chunk: Any, epoch: int, offset: int) -> bytes | None:
        slot = self._store.find(chunk)
        if slot is None:
            return None
        [data] = await self._store.read([(slot.address + offset, self.slot_bytes - offset)])
        return data

    _replace(stack, VolumeChunks, "fence", no_fence_yet)
    _replace(stack, VolumeChunks, "settle", late)
    _replace(stack, LocalChunks, "scan", scan)


def tail_not_settled(stack: ExitStack) -> None:
    """What a takeover found is published before it is durable."""

    async def nothing(self: VolumeChunks, ends: Any) -> None:
        return

    _replace(stack, VolumeChunks, "settle", nothing)


def shortest_copy(stack: ExitStack) -> None:
    """A takeover believes the shortest of the copies that it is shown."""
    ask = Takeover._ask

    async def shortest(self: Takeover, chunk: Any, epoch: int) -> Any:
        answers, silent = await ask(self, chunk, epoch)
        there = {disk: one for disk, one in answers.items() if one.data} or answers
        if there:
            worst = min(there, key=lambda disk: there[disk].end)
            answers = {worst: there[worst]}
        return answers, silent

    _replace(stack, Takeover, "_ask", shortest)


def survivors_not_synced(stack: ExitStack) -> None:
    """A span is closed and answered though the survivors do not have it durably."""

    async def nothing(self: OpenChunks) -> None:
        return

    _replace(stack, OpenChunks, "secure", nothing)


def publish_first(stack: ExitStack) -> None:
    """A span is closed in the metadata before the survivors have it durably."""

    async def next_span(self: Resealer) -> None:
        chunks: Any = self._core.chunks
        opened = chunks._open
        kept = dict(opened.chunks), dict(opened.lost)
        begin = chunks.begin_span

        def begin_and_keep() -> None:
            begin()
            opened.chunks.update(kept[0])
            opened.lost.update(kept[1])

        with mock.patch.object(chunks, "begin_span", begin_and_keep):
            await original(self)
        await opened.secure()
        opened.clear()

    original = Resealer._next_span

    async def secure(self: Log) -> bool:
        lsn, dirty = self._begin_sync()
        self._synced(lsn, dirty)
        return True

    _replace(stack, Resealer, "_next_span", next_span)
    _replace(stack, Log, "secure", secure)


def healed_without_records(stack: ExitStack) -> None:
    """A copy whose process was restarted counts as whole without what it lost."""

    async def bring_up(self: OpenChunks, disk: Any, opened: Any, copy: Any) -> None:
        found = await disk.reopen(opened.chunk, opened.chunk.epoch)
        if found is None or copy.writer is None:
            copy.writer = await disk.open(opened.chunk, from_reserve=opened.from_reserve)
        copy.next_index = opened.next_index

    _replace(stack, OpenChunks, "_bring_up", bring_up)


def stale_ahead(stack: ExitStack) -> None:
    """A sync that went along with a record counts for those after it, too."""
    original = OpenChunks.append

    async def append(self: OpenChunks, *given: Any) -> None:
        before = self._ahead
        await original(self, *given)
        if self._ahead is None:
            self._ahead = before

    _replace(stack, OpenChunks, "append", append)


MUTANTS: dict[str, tuple[Patch, int, type[ReplicatedCluster]]] = {
    "no_fence": (no_fence, 1, ReplicatedCluster),
    "no_head_check": (no_head_check, 9, SlowHeads),
    "volatile_fence": (volatile_fence, 10, Hangs),
    "wiped_disk": (wiped_disk, 13, ReplicatedCluster),
    "one_boot_id": (one_boot_id, 16, Blinks),
    "answer_before_all": (answer_before_all, 20, Losses),
    "read_then_fence": (read_then_fence, 0, Rivals),
    "tail_not_settled": (tail_not_settled, 4, Blackouts),
    "shortest_copy": (shortest_copy, 3, ReplicatedCluster),
    "survivors_not_synced": (survivors_not_synced, 6, Losses),
    "publish_first": (publish_first, 0, Losses),
    "healed_without_records": (healed_without_records, 0, Blackouts),
    "stale_ahead": (stale_ahead, 3, Blinks),
    **SHARD_MUTANTS,
}
"""Each rule with the first seed that is known to find its absence, in which kind of cluster."""


@contextmanager
def without(name: str) -> Iterator[None]:
    """Run with one rule taken out."""
    with ExitStack() as stack:
        MUTANTS[name][0](stack)
        yield
