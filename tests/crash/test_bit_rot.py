"""Every kind of damage to what a volume, its snapshot or its clone needs: all of it is found,
repaired while one copy is left, named where none is, and never handed out as data.

The volumes are real, the disks simulated: three nodes with all copies, or six with shards.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.rot import (
    CONTENTS,
    DAMAGES,
    HEADERS,
    SLOT,
    Damage,
    former_slot,
    misdirect,
    swap_slots,
    unreadable,
)  # fmt: skip
from tests.unit.cluster.replicas import BLOCK, Replicas, SimNode, run
from tests.unit.cluster.test_sharded_reads import encode
from tests.unit.upkeep import test_scrub_shards as shards
from torus import limits
from torus.errors import Corruption
from torus.ids import ChunkId, shard_id
from torus.metadata.schema import Owner, Snapshot
from torus.redundancy.scheme import erasure
from torus.ring.table import slot_of
from torus.upkeep.budget import Budget
from torus.upkeep.mend import Mender
from torus.upkeep.pace import Pace
from torus.upkeep.scrub import DiskScrub
from torus.upkeep.scrub_logs import read_logs
from torus.upkeep.scrub_state import LOST, REPAIRED, ScrubState, Tour
from torus.volume.attach import attach
from torus.volume.attachment import Attachment
from torus.volume.readable import MapReader
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.snapshot_map import open_snapshot
from torus.volume.view import View

SEED = 31
BLOCKS = 48  # that are written at first
HEAD, SNAPSHOT, CLONE = "head", "snapshot", "clone"
SIDES = (HEAD, SNAPSHOT, CLONE)
SCHEME = erasure(4, 2)
# what certainly hits blocks that are needed; other damage may be to a record that nothing reads
WHOLE_SLOT = (misdirect, swap_slots, former_slot, unreadable)
# without its descriptor a shard is none for a repair, and its data still what the map says
DESCRIBED = (shards.flip_descriptor, shards.zero_descriptor)


def content(side: str, number: int) -> bytes:
    """Return a block that no other is like."""
    return random.Random(f"{side} {number}").randbytes(BLOCK)


@dataclass
class Side:
    """The volume as it is now, its snapshot, or its clone, opened for reading."""

    view: View
    reader: Any  # has `read(offset, length)`
    due: dict[int, bytes]

    def place(self, number: int) -> ChunkId:
        """Return the chunk that a block lies in."""
        found = self.view.blocks.get(number)
        assert found is not None
        return self.view.chunk(found[0], found[2])


class NoUpkeep:
    """An upkeep that does nothing: what is left to it stays."""

    lacking: Sequence[ChunkId] = ()

    def doubt(self, part: ChunkId) -> None:
        """Do nothing."""


@dataclass
class Scene:
    """A volume with a snapshot and a clone of that, all detached, their chunks at rest."""

    replicas: Replicas
    snapshot: Snapshot
    written: dict[str, dict[int, bytes]] = field(default_factory=dict)
    pids: int = 10

    async def attach(self, name: str) -> Attachment:
        """Attach a volume in a new process."""
        self.pids += 1
        return await attach_to(self.replicas, name, self.pids)

    async def open(self, kind: str) -> Side:
        """Open one side."""
        replicas = self.replicas
        if kind == SNAPSHOT:
            spec = (await replicas.catalog.get("one")).spec
            chunks = replicas.pool().chunks_of(spec)
            view = await open_snapshot(replicas.catalog, chunks, self.snapshot, limits.MIB)
            await view.load(0, BLOCKS)
            return Side(view, SnapshotVolume(view, self.snapshot), self.written[kind])
        volume = (await self.attach("one" if kind == HEAD else "two")).volume
        await volume.core.load(0, BLOCKS)
        return Side(volume.core, volume, self.written[kind])

    async def scrubs(self, nodes: Iterable[SimNode]) -> list[ScrubState]:
        """Make a deep tour of some disks, one after the other; return what they know then."""
        states = []
        for node in nodes:
            state, pace = ScrubState(), Pace(Budget(1 << 60, 1 << 60), self.replicas.clock)
            mender = Mender(
                node.store, node.chunks, self.replicas.view, self.replicas.pool(),  # type: ignore[arg-type]
                pace, NoUpkeep(), slot_of,
            )  # fmt: skip
            scrub = DiskScrub(
                node.store,
                lambda: read_logs(self.replicas.metadata),  # type: ignore[arg-type]
                self.replicas.clock, state, mender,
            )  # fmt: skip
            tour = Tour(True, True, (), 0)
            state.tours.append(tour)
            assert await scrub.tour(tour, pace, lambda: True)
            scrub.ended(tour)
            states.append(state)
        return states


async def attach_to(replicas: Replicas, name: str, pid: int) -> Attachment:
    """Become the writer of a volume."""
    found = await replicas.catalog.get(name)
    chunks = replicas.pool().chunks_of(found.spec)
    owner = Owner("sim", "boot", pid, pid, "gateway", f"process-{pid}", 0)
    made = await attach(
        found, replicas.catalog, chunks, owner, replicas.clock, replicas.options, takeover=True
    )
    replicas.attachments.append(made)
    return made


async def write(attachment: Attachment, side: str, numbers: Iterable[int]) -> dict[int, bytes]:
    """Write blocks, flush, and return them."""
    written = {number: content(side, number) for number in numbers}
    for number, data in written.items():
        await attachment.volume.write(number * BLOCK, data, durable=False)
    await attachment.volume.flush()
    return written


async def scene(replicas: Replicas, redundancy: str) -> Scene:
    """Write the volumes; when this returns nobody has them attached and all nodes restarted."""
    await replicas.create(redundancy=redundancy)
    one = await attach_to(replicas, "one", 1)
    first = await write(one, SNAPSHOT, range(BLOCKS))
    made = await one.snapshot("before", 0)
    head = await write(one, HEAD, range(24))
    await replicas.catalog.clone("one", "before", "two", 0)
    two = await attach_to(replicas, "two", 2)
    clone = await write(two, CLONE, range(20, 44))
    for attachment in (one, two):
        await attachment.detach()
        replicas.attachments.remove(attachment)
    for node in replicas.nodes.values():
        node.restart()
    at = Scene(replicas, made)
    at.written = {HEAD: {**first, **head}, SNAPSHOT: first, CLONE: {**first, **clone}}
    return at


TARGETS = {HEAD: 5, SNAPSHOT: 5, CLONE: 30}


async def refused_of(side: Side) -> set[int]:
    """Read every block; what comes is right; return those that are refused."""
    refused = set()
    for number, due in side.due.items():
        try:
            found = await side.reader.read(number * BLOCK, BLOCK)
        except Corruption:
            refused.add(number)
        else:
            assert found == due, f"block {number} is wrong"
    return refused


async def listed(side: Side) -> set[int]:
    """Return the blocks that `torus volume check` names."""
    found = await MapReader(lambda _count: None).read(side.view, None, ())
    assert all(one.known for one in found.bad)
    return {block for one in found.bad for block in range(one.block, one.block + one.count)}


def neighbour(node: SimNode, chunk: ChunkId) -> ChunkId:
    """Return another chunk of the same volume on a node."""
    return next(one for one in sorted(node.store.chunks()) if one[0] == chunk[0] and one != chunk)


def told(state: ScrubState) -> dict[ChunkId, str]:
    """Return what was found, and what became of it."""
    return {one.part: one.state for one in [*state.closed, *state.open.values()]}


@pytest.mark.parametrize("target", SIDES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_one_copy_rots(damage: Damage, target: str) -> None:
    """The scrub finds it and makes it whole; where a reader comes first it gets what is right."""

    async def scenario(replicas: Replicas) -> None:
        at = await scene(replicas, "replica:3")
        sides = {kind: await at.open(kind) for kind in SIDES}
        chunk = sides[target].place(TARGETS[target])
        node, later = replicas.nodes["b"], replicas.nodes["c"]
        before = bytes(node.store.disk.read(place(node, chunk), SLOT))
        damage(node.store, node.disk, chunk, neighbour(node, chunk))
        (state,) = await at.scrubs([node])
        found = told(state)
        assert found[chunk] == REPAIRED
        assert set(found.values()) == {REPAIRED}, found
        assert len(found) == (2 if damage is swap_slots else 1)
        damage(later.store, later.disk, chunk, neighbour(later, chunk))
        for side in sides.values():
            assert await refused_of(side) == set()
        await at.scrubs([later])
        for one in (node, later):
            one.restart()
            assert told((await at.scrubs([one]))[0]) == {}
            end = (await one.chunks.examine([chunk]))[0].end
            assert one.store.disk.read(place(one, chunk), end)[512:] == before[512:end]
        for kind in SIDES:
            assert await refused_of(await at.open(kind)) == set()

    run(SEED, scenario, nodes="abc")


@pytest.mark.parametrize("target", SIDES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_all_copies_rot(damage: Damage, target: str) -> None:
    """What nobody has is refused, named by block on every side that needs it, and called lost by
    every disk; all else is right. Slot headers come back even then."""

    async def scenario(replicas: Replicas) -> None:
        at = await scene(replicas, "replica:3")
        sides = {kind: await at.open(kind) for kind in SIDES}
        chunk = sides[target].place(TARGETS[target])
        for node in replicas.nodes.values():
            damage(node.store, node.disk, chunk, neighbour(node, chunk))
        states = await at.scrubs(replicas.nodes.values())
        for state in states:
            assert told(state)[chunk] == (REPAIRED if damage in HEADERS else LOST)
        refused = {kind: await refused_of(side) for kind, side in sides.items()}
        for kind, side in sides.items():
            assert await listed(side) == refused[kind], kind
        if damage in HEADERS:
            assert not any(refused.values())
        elif damage in WHOLE_SLOT:
            assert refused[target], "something of it is gone"

    run(SEED, scenario, nodes="abc")


@pytest.mark.parametrize("target", SIDES)
@pytest.mark.parametrize("damage", shards.HEADERS + shards.CONTENTS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("count", [2, 3])
def test_shards_rot(damage: Any, target: str, count: int) -> None:
    """Up to M shards of a chunk may be damaged and everything is right; all of it is found. With
    one more it is refused, named and lost."""

    async def scenario(replicas: Replicas) -> None:
        at = await scene(replicas, str(SCHEME))
        sides = {kind: await at.open(kind) for kind in SIDES}
        chunk = sides[target].place(TARGETS[target])
        other = neighbour_of_all(replicas, chunk)
        nodes = await encode(replicas, chunk, SCHEME, epoch=99)
        beside = await encode(replicas, other, SCHEME, epoch=99)
        for number in range(count):
            node = nodes[number]
            damage(node, shard_id(chunk, number), shard_id(other, beside.index(node)))
        states = await at.scrubs(nodes)
        for number in range(count):
            found = told(states[number])
            if damage in shards.HEADERS:
                assert set(found.values()) == {REPAIRED}
            else:
                assert found[shard_id(chunk, number)] != REPAIRED
        refused = {kind: await refused_of(side) for kind, side in sides.items()}
        for kind, side in sides.items():
            assert await listed(side) == refused[kind], kind
        if count < 3 or damage in shards.HEADERS:
            assert not any(refused.values())
        else:
            if damage not in DESCRIBED:
                assert refused[target]
            states = await at.scrubs(nodes)
            lost = [told(state).get(shard_id(chunk, number)) for number, state in
                    enumerate(states[:count])]  # fmt: skip
            assert lost == [LOST] * count

    run(SEED, scenario, nodes="abcdef")


def place(node: SimNode, chunk: ChunkId) -> int:
    """Return where a chunk lies on a node's disk."""
    slot = node.store.find(chunk)
    assert slot is not None
    return slot.address


def neighbour_of_all(replicas: Replicas, chunk: ChunkId) -> ChunkId:
    """Return a chunk of the same volume, of the same owners or not, that lies somewhere."""
    everything = {one for node in replicas.nodes.values() for one in node.store.chunks()}
    return next(one for one in sorted(everything) if one[0] == chunk[0] and one != chunk)


def test_matrix_has_every_kind() -> None:
    """Each kind of damage that is spoken of is done to a copy."""
    assert set(CONTENTS) | set(HEADERS) == set(DAMAGES)
    assert len(DAMAGES) == 13
