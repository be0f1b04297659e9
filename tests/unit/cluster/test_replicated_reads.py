"""Reads of chunks with several copies: the nearest, another when that is wrong, slow or away."""

import asyncio
from collections.abc import Iterable

import pytest

from tests.unit.cluster.replicas import BLOCK, Replicas, SimNode, block, let_pass, run
from tests.unit.cluster.test_replicated import read_back, until, write
from tests.unit.nbd.test_frame import make_batch, put
from torus import limits
from torus._fast.reply import ReplyBuilder
from torus.cluster.replicated import VolumeChunks
from torus.errors import Corruption, Unavailable
from torus.ids import ChunkId
from torus.nbd import constants as nbd
from torus.nbd.transmission import SessionTerms
from torus.store.content import Presence
from torus.testing.nbd_client import request_bytes
from torus.volume.attachment import Attachment


async def closed_chunk(replicas: Replicas) -> tuple[Attachment, ChunkId]:
    """Write a chunk and begin another; return the writer and the closed one."""
    await replicas.create()
    attachment = await replicas.attach()
    chunk = None
    number = 0
    while chunk is None or attachment.volume.core.journal.chunk == chunk:
        await write(attachment.volume, number)
        chunk = chunk or attachment.volume.core.journal.chunk
        number += 1
    await attachment.volume.flush()
    return attachment, chunk


def order(attachment: Attachment, replicas: Replicas, chunk: ChunkId) -> list[SimNode]:
    """Return the nodes of a chunk in the order in which they are asked."""
    chunks = attachment.volume.core.chunks
    assert isinstance(chunks, VolumeChunks)
    nodes = {node.disk_id: node for node in replicas.nodes.values()}
    return [nodes[disk] for disk in chunks._reads._order(chunk)]


def rot(node: SimNode, chunk: ChunkId, offset: int) -> None:
    """Let a byte rot on a disk."""
    slot = node.store.find(chunk)
    assert slot is not None
    byte = node.disk.read(slot.address + offset, 1)
    node.disk.write(slot.address + offset, bytes([byte[0] ^ 1]))


def test_a_rotten_copy_is_not_handed_out_and_is_repaired() -> None:
    """Another copy is right; the bad one is written again from it."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunk = await closed_chunk(replicas)
        bad = order(attachment, replicas, chunk)[0]
        place = attachment.volume.core.blocks.get(2)
        assert place is not None
        rot(bad, chunk, place[1] * 512 + 100)
        assert (await bad.chunks.examine([chunk], afresh=True))[0].records < 5

        await read_back(attachment.volume, 0, 1, 2, 3)

        others = [node for node in order(attachment, replicas, chunk) if node is not bad]
        [right] = await others[0].chunks.examine([chunk])
        for _ in range(400):
            [found] = await bad.chunks.examine([chunk], afresh=True)
            if found == right:
                break
            await let_pass(0.005)
        assert found == right

    run(1, scenario)


def test_a_block_that_is_rotten_everywhere_is_an_error() -> None:
    """No copy is right, and all were asked: that is damage, never data."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunk = await closed_chunk(replicas)
        place = attachment.volume.core.blocks.get(2)
        assert place is not None
        for node in replicas.owners(chunk):
            rot(node, chunk, place[1] * 512 + 100)

        with pytest.raises(Corruption, match="does not have the checksum"):
            await attachment.volume.read(2 * BLOCK, BLOCK)
        await read_back(attachment.volume, 1, 3)

    run(2, scenario)


def test_a_block_whose_right_copies_are_away_is_unknown() -> None:
    """A rotten copy and two disks that cannot be asked: not damage, and it is waited for."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunk = await closed_chunk(replicas)
        bad, *others = order(attachment, replicas, chunk)
        place = attachment.volume.core.blocks.get(2)
        assert place is not None
        rot(bad, chunk, place[1] * 512 + 100)
        for node in others:
            node.kill()

        with pytest.raises(Unavailable, match="cannot be asked"):
            await attachment.volume.read(2 * BLOCK, BLOCK)

        waiting = asyncio.ensure_future(attachment.volume.read(2 * BLOCK, BLOCK))
        await let_pass(0.05)
        others[0].up = True
        assert await waiting == block(2)

    run(3, scenario)


def test_a_missing_chunk_is_never_zeroes() -> None:
    """Nobody has it, and everybody says so: damage; one cannot be asked: unknown."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunk = await closed_chunk(replicas)
        for node in replicas.nodes.values():
            await node.chunks.drop([chunk])

        with pytest.raises(Corruption, match="on none of its disks"):
            await attachment.volume.read(2 * BLOCK, BLOCK)
        replicas.owners(chunk)[1].kill()
        with pytest.raises(Unavailable):
            await attachment.volume.read(2 * BLOCK, BLOCK)

    run(4, scenario)


def test_a_chunk_that_lies_elsewhere_is_found() -> None:
    """It was moved to a disk that no ring known here names for it: everybody is asked."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunk = await closed_chunk(replicas)
        owners = replicas.owners(chunk)
        [other] = [node for node in replicas.nodes.values() if node not in owners]
        [found] = await owners[0].chunks.examine([chunk])
        first = limits.SLOT_HEADER_BYTES
        [content] = await owners[0].chunks.read([(chunk, first, found.end - first)])
        await other.chunks.install(chunk, chunk.epoch, found.end, content)
        for node in owners:
            await node.chunks.drop([chunk])

        await read_back(attachment.volume, 0, 1, 2)

    run(5, scenario)


def test_a_copy_that_is_missing_where_it_was_written_is_put_back() -> None:
    """The reader tells the disk that lost its copy."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunk = await closed_chunk(replicas)
        loser = order(attachment, replicas, chunk)[0]
        await loser.chunks.drop([chunk])

        await read_back(attachment.volume, 0)

        await until(lambda: loser.store.slots.get(chunk) is not None)
        [found] = await loser.chunks.examine([chunk])
        assert found.state == Presence.PRESENT

    run(6, scenario)


def test_a_chunk_that_moved_from_an_open_span_is_unknown_while_its_new_owner_is_away() -> None:
    """Who reads another writer's log, as a clone does its origin's, knows the span as open which
    was closed since: where it was written is not all that counts."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(copies=1)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        chunk, spans = attachment.volume.core.journal.chunk, attachment.volume.core.spans
        reader = replicas.pool().chunks_of(attachment.volume.core.spec)
        reader.learn(chunk.volume, spans)
        [old] = replicas.owners(chunk, 1)
        replicas.next_ring(old.name)
        [new] = replicas.owners(chunk, 1)
        await until(lambda: attachment.volume.core.journal.chunk != chunk or
                    attachment.volume.resealer.rolls)  # fmt: skip
        [found] = await old.chunks.examine([chunk])
        first = limits.SLOT_HEADER_BYTES
        [content] = await old.chunks.read([(chunk, first, found.end - first)])
        await new.chunks.install(chunk, chunk.epoch, found.end, content)
        await old.chunks.drop([chunk])

        assert await reader.read([(chunk, first, 64)]) == [content[:64]]
        new.kill()
        with pytest.raises(Unavailable):
            await reader.read([(chunk, first, 64)])
        await reader.stop()

    run(7, scenario)


def test_a_rotten_piece_does_not_hide_where_another_lies() -> None:
    """Of two pieces that are asked for together one is rotten, the other on a disk that no ring
    known here names: that one is found all the same."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(copies=1)
        attachment = await replicas.attach()
        number = 0
        by_owner: dict[str, set[ChunkId]] = {}
        while not any(len(chunks) == 2 for chunks in by_owner.values()):
            await write(attachment.volume, number)
            number += 1
            chunk = attachment.volume.core.journal.chunk
            by_owner.setdefault(replicas.owners(chunk, 1)[0].name, set()).add(chunk)
        await attachment.volume.flush()
        [name] = [name for name, chunks in by_owner.items() if len(chunks) == 2]
        rotten, moved = sorted(by_owner[name])
        other = next(node for node in replicas.nodes.values() if node.name != name)
        first = limits.SLOT_HEADER_BYTES
        [found] = await replicas.nodes[name].chunks.examine([moved])
        [content] = await replicas.nodes[name].chunks.read([(moved, first, found.end - first)])
        await other.chunks.install(moved, moved.epoch, found.end, content)
        await replicas.nodes[name].chunks.drop([moved])
        attachment.volume.core.chunks._open.clear()  # type: ignore[attr-defined]

        pieces = await attachment.volume.core.chunks.read_checked(
            [(rotten, first, 64), (moved, first, 64)], lambda number, _piece: number == 1
        )

        assert pieces[1] == content[:64]

    run(8, scenario)


def test_a_repair_takes_no_record_away_that_only_the_bad_copy_has() -> None:
    """One copy has a rotten block, the others another: none of them is the better one."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunk = await closed_chunk(replicas)
        bad, *others = order(attachment, replicas, chunk)
        blocks = attachment.volume.core.blocks
        first, second = blocks.get(0), blocks.get(2)
        assert first is not None
        assert second is not None
        rot(bad, chunk, first[1] * 512 + 100)
        for node in others:
            rot(node, chunk, second[1] * 512 + 100)
        behind = [(chunk, second[1] * 512 - 512, BLOCK)]
        before = await bad.chunks.read(behind)

        await read_back(attachment.volume, 0)
        await let_pass(1)
        assert await bad.chunks.read(behind) == before
        await read_back(attachment.volume, 0, 1, 2, 3)

    run(9, scenario)


def test_a_silent_disk_is_overtaken_by_another() -> None:
    """After some milliseconds the next copy is asked, and the silent disk comes last then."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunk = await closed_chunk(replicas)
        silent = order(attachment, replicas, chunk)[0]
        silent.silent = True

        async with asyncio.timeout(1):
            await read_back(attachment.volume, 0, 1, 2, 3)

        chunks = attachment.volume.core.chunks
        assert isinstance(chunks, VolumeChunks)
        assert chunks._reads.hedges == 1
        assert order(attachment, replicas, chunk)[-1] is silent
        silent.silent = False

    run(7, scenario)


def test_the_near_copy_is_read_and_written_without_the_network() -> None:
    """The disk of this process is asked first, also by the compiled path."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach(near="a")
        for node in replicas.nodes.values():
            node.asked.clear()
        await write(attachment.volume, *range(8), flush=True)
        core = attachment.volume.core
        chunk = core.journal.chunk
        near = replicas.nodes["a"] in replicas.owners(chunk)

        await read_back(attachment.volume, *range(8))

        assert near
        assert core.chunks.place(chunk) is not None
        assert core.path is not None
        assert "append" not in replicas.nodes["a"].asked
        assert all("read" not in node.asked for node in replicas.nodes.values())
        await attachment.detach()

    run(8, scenario, nodes="abc")


def test_every_disk_of_this_process_is_read_by_the_compiled_path() -> None:
    """Not the first one alone: what any of them has needs no network and no Python per read; what
    a disk that is lost has is asked of others."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        attachment = await replicas.attach(near="ab")
        volume, blocks = attachment.volume, range(120)
        await write(volume, *blocks, flush=True)
        await read_back(volume, *blocks)  # the compiled path learns where chunks lie
        here = {number for number in blocks if lies_on(attachment, number, replicas, "ab")}
        only_b = {number for number in here if not lies_on(attachment, number, replicas, "a")}
        assert len(only_b) > 10
        assert len(here) < len(blocks)

        assert left_over(attachment, blocks) == set(blocks) - here

        chunks = volume.core.chunks
        assert isinstance(chunks, VolumeChunks)
        chunks._open.lost[replicas.nodes["b"].disk_id] = Unavailable("planned")
        volume.core.places.clear()
        await read_back(volume, *blocks)
        assert left_over(attachment, blocks) == (set(blocks) - here) | only_b
        chunks._open.lost.clear()

    run(9, scenario, nodes="abcd")


def lies_on(attachment: Attachment, number: int, replicas: Replicas, names: str) -> bool:
    """Say whether a block's chunk has a copy on one of some nodes."""
    core = attachment.volume.core
    entry = core.blocks.get(number)
    assert entry is not None
    chunk = core.chunk(entry[0])
    return any(replicas.nodes[name].store.slots.get(chunk) is not None for name in names)


def left_over(attachment: Attachment, numbers: Iterable[int]) -> set[int]:
    """Read blocks by the compiled path; return which were left over, after a look at the others."""
    terms = SessionTerms(256 * BLOCK)
    left = set()
    for number in numbers:
        batch, replies = make_batch(terms), ReplyBuilder()
        count = put(batch, request_bytes(nbd.NBD_CMD_READ, number * BLOCK, BLOCK, cookie=number))
        assert count == 1
        if list(attachment.volume.read_now(batch, 0, 1, replies)):
            left.add(number)
        else:
            assert bytes(replies.take()).endswith(block(number))
    return left


def test_a_closed_chunk_that_one_owner_never_had_is_unknown_without_the_others() -> None:
    """A disk that was left out says "not here", truly; it is no proof of damage."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 1)
        old = await replicas.attach()
        left_out = replicas.owners(old.volume.core.journal.chunk)[0]
        left_out.kill()
        await write(old.volume, 0, 1)
        left_out.up = True
        await until(lambda: old.volume.resealer.rolls > 0)
        for node in replicas.nodes.values():
            if node is not left_out:
                node.kill()

        with pytest.raises(Unavailable):
            await replicas.attach(2)

        for node in replicas.nodes.values():
            node.up = True
        new = await replicas.attach(3)
        await read_back(new.volume, 0, 1)

    run(9, scenario, nodes="abc")
