"""Takeovers of logs whose copies are damaged: what is believed, and what is put together."""

import pytest

from tests.unit.cluster.replicas import Replicas, SimNode, block, run
from torus import limits
from torus.errors import Unavailable
from torus.ids import ChunkId
from torus.store.content import FIRST, walk
from torus.testing.simdisk import SMALL
from torus.volume.recovery import Recovery
from torus.volume.volume import Volume

BLOCK = limits.BLOCK_BYTES


async def write(volume: Volume, *numbers: int) -> None:
    """Write blocks, each of them flushed."""
    for number in numbers:
        await volume.write(number * BLOCK, block(number), durable=True)


async def read_back(volume: Volume, *numbers: int) -> None:
    """Read what `write` wrote."""
    for number in numbers:
        assert await volume.read(number * BLOCK, BLOCK) == block(number), number


def spoil(node: SimNode, chunk: ChunkId) -> None:
    """Let nothing of a chunk's slot be readable, and the node start again."""
    slot = node.store.find(chunk)
    assert slot is not None
    node.disk.write(slot.address, b"\x5a" * SMALL.slot_bytes)
    node.restart()
    assert node.store.blind


def rot(node: SimNode, chunk: ChunkId, place: tuple[int, ...]) -> None:
    """Let a byte of a block rot."""
    slot = node.store.find(chunk)
    assert slot is not None
    at = slot.address + place[1] * 512 + 100
    node.disk.write(at, bytes([node.disk.read(at, 1)[0] ^ 1]))


def test_a_disk_that_cannot_tell_what_a_slot_held_is_not_believed_alone() -> None:
    """Its "not here" is no end of the log as long as another disk may know better."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        chunk = attachment.volume.core.journal.chunk
        blind, whole = replicas.nodes.values()
        spoil(blind, chunk)
        whole.kill()
        with pytest.raises(Unavailable, match="where the log ends cannot be told"):
            await replicas.attach(2)
        whole.up = True
        again = await replicas.attach(3)
        await read_back(again.volume, 0)

    run(1, scenario, nodes="ab")


def test_a_disk_that_cannot_tell_is_believed_when_nobody_can_tell_better() -> None:
    """Else one damaged slot would keep every volume of one copy from being attached."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        chunk = attachment.volume.core.journal.chunk
        for node in replicas.nodes.values():
            spoil(node, chunk)
        again = await replicas.attach(2)
        await write(again.volume, 1)
        await read_back(again.volume, 1)

    run(2, scenario, nodes="ab")


def test_copies_that_are_damaged_in_different_places_make_a_whole_log() -> None:
    """Each record comes from the copy in which it is whole; all disks have all of it then."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, 1, 2, 3, 4, 5)
        core = attachment.volume.core
        chunk, end = core.journal.chunk, core.journal.closing[1]
        for node, number in zip(replicas.nodes.values(), (1, 3), strict=True):
            place = core.blocks.get(number)
            assert place is not None
            rot(node, chunk, place)

        again = await replicas.attach(2)

        await read_back(again.volume, 0, 1, 2, 3, 4, 5)
        for node in replicas.nodes.values():
            slot = node.store.find(chunk)
            assert slot is not None
            data = node.disk.read(slot.address + FIRST, SMALL.slot_bytes - FIRST)
            assert walk(data, chunk).end == end

    run(3, scenario, nodes="ab")


def test_the_salt_of_a_chunk_comes_from_a_copy_that_is_whole() -> None:
    """A rotten first record in the copy that is read first is no reason to take any salt."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        core = attachment.volume.core
        chunk = core.journal.chunk
        found = await replicas.catalog.get("one")
        recovery = Recovery(core.chunks, found.spec, found.head, found.head.epoch, limits.MIB)
        salt = await recovery._salt_of(chunk)
        first = replicas.owners(chunk, 2)[0]
        slot = first.store.find(chunk)
        assert slot is not None
        first.disk.write(slot.address + FIRST, bytes(8))

        assert salt is not None
        assert await recovery._salt_of(chunk) == salt

    run(4, scenario, nodes="ab")


def test_a_copy_beside_the_owners_is_asked_for_when_theirs_are_damaged() -> None:
    """Upkeep has not given it up yet: all that the owners have of a closed span has rotted."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, 1, 2, 3)
        chunk = attachment.volume.core.journal.chunk
        place = attachment.volume.core.blocks.get(1)
        assert place is not None
        again = await replicas.attach(2)  # which closes the span
        owners = replicas.owners(chunk, 2)
        [other] = [node for node in replicas.nodes.values() if node not in owners]
        [found] = await owners[0].chunks.examine([chunk])
        [content] = await owners[0].chunks.read([(chunk, FIRST, found.end - FIRST)])
        await other.chunks.install(chunk, again.volume.core.epoch, found.end, content)
        for node in owners:
            rot(node, chunk, place)

        third = await replicas.attach(3)

        await read_back(third.volume, 0, 1, 2, 3)

    run(5, scenario, nodes="abc")
