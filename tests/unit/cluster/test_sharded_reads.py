"""Reads of chunks that lie in shards: whole, degraded, moved, too few; and who may take over."""

import asyncio

import pytest

from tests.unit.cluster.replicas import BLOCK, Replicas, SimNode, block, let_pass, run
from tests.unit.cluster.test_replicated import not_done, read_back, write
from torus import limits
from torus._fast.record import RecordReader
from torus.cluster.replicated import VolumeChunks
from torus.cluster.sharded_reads import ShardReads
from torus.errors import Corruption, Unavailable
from torus.format.shard import PAYLOAD_OFFSET, PLACE_BYTES, content_max, payload_bytes
from torus.ids import ChunkId, shard_id
from torus.redundancy.scheme import Scheme, erasure
from torus.store.content import FIRST
from torus.testing.simdisk import SMALL
from torus.upkeep.shard_content import make_shard
from torus.volume.attachment import Attachment

NODES = "abcdef"
SHARD_BYTES = payload_bytes(4, SMALL.slot_bytes)


def shard_reads(attachment: Attachment) -> ShardReads:
    """Return what reads the shards of a volume."""
    chunks = attachment.volume.core.chunks
    assert isinstance(chunks, VolumeChunks)
    return chunks._reads.shards


async def encode(
    replicas: Replicas,
    chunk: ChunkId,
    scheme: Scheme,
    *,
    order: list[int] | None = None,
    keep: bool = False,
    epoch: int = 0,
) -> list[SimNode]:
    """Do what upkeep does: make the shards of a chunk, one on each owner, and drop its copies.

    ``order``: the number that each owner gets, in the ring's order.  Returns the node of each
    number.
    """
    sources = [node for node in replicas.nodes.values() if node.store.find(chunk) is not None]
    [found] = await sources[0].chunks.examine([chunk])
    [content] = await sources[0].chunks.read([(chunk, FIRST, found.end - FIRST)])
    owners = replicas.owners(chunk, scheme.shards)
    nodes: dict[int, SimNode] = {}
    for position, node in enumerate(owners):
        number = position if order is None else order[position]
        part = make_shard(chunk, content, scheme, number, SMALL.slot_bytes)
        end = PLACE_BYTES + len(part)
        await node.chunks.install(shard_id(chunk, number), epoch or chunk.epoch, end, part)
        nodes[number] = node
    if not keep:
        for node in sources:
            await node.chunks.drop([chunk])
    return [nodes[number] for number in range(scheme.shards)]


async def written(
    replicas: Replicas, redundancy: str = "erasure:4+2", *, count: int = 24
) -> tuple[Attachment, list[ChunkId]]:
    """Write blocks 0 to ``count``; return the writer and its full chunks."""
    await replicas.create(redundancy=redundancy)
    attachment = await replicas.attach()
    chunks: list[ChunkId] = []
    for number in range(count):
        await write(attachment.volume, number)
        chunk = attachment.volume.core.journal.chunk
        if chunk not in chunks:
            chunks.append(chunk)
    await attachment.volume.flush()
    return attachment, chunks[:-1]


async def settled(
    replicas: Replicas, redundancy: str = "erasure:4+2", *, order: list[int] | None = None
) -> tuple[Attachment, list[ChunkId], dict[ChunkId, list[SimNode]]]:
    """Write, close the span by attaching anew, cut all full chunks into shards."""
    first, chunks = await written(replicas, redundancy)
    await first.detach()
    scheme = erasure(*map(int, redundancy.removeprefix("erasure:").split("+")))
    nodes = {chunk: await encode(replicas, chunk, scheme, order=order) for chunk in chunks}
    second = await replicas.attach(2)
    await second.volume.core.load(0, 1)  # the map
    return second, chunks, nodes


def blocks_of(attachment: Attachment, chunk: ChunkId) -> list[int]:
    """Return the blocks that lie in a chunk."""
    blocks = attachment.volume.core.blocks
    return [
        number
        for number in range(24)
        if (entry := blocks.get(number)) is not None and entry[0] == chunk.sequence
    ]


def place_of(attachment: Attachment, number: int) -> tuple[int, int]:
    """Return the shard that has a block's bytes, and where in its payload they are."""
    entry = attachment.volume.core.blocks.get(number)
    assert entry is not None
    return divmod(entry[1] * limits.SECTOR_BYTES - FIRST, SHARD_BYTES)


def rot(node: SimNode, part: ChunkId, offset: int) -> None:
    """Flip a bit of a shard's payload where it lies."""
    slot = node.store.find(part)
    assert slot is not None
    at = slot.address + PAYLOAD_OFFSET + offset
    node.disk.write(at, bytes([node.disk.read(at, 1)[0] ^ 0x10]))


def test_chunks_leave_room_for_shards() -> None:
    """No chunk is longer than what its shards hold."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks = await written(replicas)
        assert len(chunks) >= 3
        scheme = erasure(4, 2)
        for chunk in chunks:
            await encode(replicas, chunk, scheme)
        await read_back(attachment.volume, *range(24))

    run(1, scenario, nodes=NODES)


def test_a_healthy_read_asks_one_disk_for_just_its_bytes() -> None:
    """No descriptor, no table, no other shard."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, _nodes = await settled(replicas)
        for node in replicas.nodes.values():
            node.asked.clear()
        [number, *_] = blocks_of(attachment, chunks[0])
        await read_back(attachment.volume, number)
        assert [kind for node in replicas.nodes.values() for kind in node.asked] == ["read"]
        assert shard_reads(attachment).degraded == 0

    run(2, scenario, nodes=NODES)


def test_everything_is_read_without_any_two_nodes() -> None:
    """M disks are gone: what they had is put together from the others."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, _nodes = await settled(replicas)
        names = list(replicas.nodes)
        for one in range(len(names)):
            for other in range(one):
                gone = [replicas.nodes[names[one]], replicas.nodes[names[other]]]
                for node in gone:
                    node.kill()
                for chunk in chunks:
                    await read_back(attachment.volume, *blocks_of(attachment, chunk))
                for node in gone:
                    node.up = True
        assert shard_reads(attachment).degraded > 0

    run(3, scenario, nodes=NODES)


@pytest.mark.parametrize(
    ("redundancy", "nodes"), [("erasure:2+1", "abc"), ("erasure:3+3", "abcdefgh")]
)
def test_nodes_die_one_by_one_and_all_start_anew(redundancy: str, nodes: str) -> None:
    """As many as there is parity, then more than that, then all at once: each time the same."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, placed = await settled(replicas, redundancy)
        parity = int(redundancy[-1])
        dying = placed[chunks[0]][: parity + 1]
        for node in dying[:parity]:
            node.kill()
            await read_back(attachment.volume, *blocks_of(attachment, chunks[0]))
        dying[-1].kill()
        reading = asyncio.ensure_future(
            read_back(attachment.volume, *blocks_of(attachment, chunks[0]))
        )
        await not_done(reading, 2)
        for node in dying:
            node.lose_power()
            node.up = True
        await reading
        await attachment.detach()
        for node in replicas.nodes.values():
            node.lose_power()
        again = await replicas.attach(3)
        await read_back(again.volume, *range(24))

    run(20, scenario, nodes=nodes)


@pytest.mark.parametrize("killed", [0, 2])
def test_unaligned_reads_cross_shards(killed: int) -> None:
    """Any offset and length in sectors, whole and without two nodes."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, placed = await settled(replicas)
        whole = b"".join(map(block, range(24)))
        for node in placed[chunks[0]][:killed]:
            node.kill()
        for size in (512, 1536, 4096, 4608, 13 * 512, 40 * 512, 23 * BLOCK + 512):
            for offset in range(0, len(whole) - size, 37 * 512):
                assert await attachment.volume.read(offset, size) == whole[offset : offset + size]
        if killed:
            assert shard_reads(attachment).degraded > 0

    run(21, scenario, nodes=NODES)


def test_a_degraded_read_touches_only_the_column() -> None:
    """Of K others the column and the table are read, not whole shards."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, nodes = await settled(replicas)
        [number, *_] = blocks_of(attachment, chunks[0])
        nodes[chunks[0]][place_of(attachment, number)[0]].kill()
        for node in replicas.nodes.values():
            node.asked.clear()
        await read_back(attachment.volume, number)
        asked = [kind for node in replicas.nodes.values() for kind in node.asked]
        assert set(asked) == {"read"}
        assert len(asked) <= 6  # one for what the shards are, four for the columns

    run(4, scenario, nodes=NODES)


def test_too_few_shards_are_waited_for() -> None:
    """M + 1 disks away: unknown, never damage; one comes back, and the read goes on."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, nodes = await settled(replicas)
        [number, *_] = blocks_of(attachment, chunks[0])
        for node in nodes[chunks[0]][:3]:
            node.kill()
        with pytest.raises(Unavailable):
            await attachment.volume.read(number * BLOCK, BLOCK)
        nodes[chunks[0]][1].up = True
        await read_back(attachment.volume, number)

    run(5, scenario, nodes=NODES)


def test_a_silent_disk_delays_a_read_and_no_more() -> None:
    """It is put together beside, as soon as the disk takes long."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, nodes = await settled(replicas)
        for node in nodes[chunks[0]][:2]:
            node.silent = True
        await read_back(attachment.volume, *blocks_of(attachment, chunks[0]))

    run(6, scenario, nodes=NODES)


def test_busy_disks_are_not_made_busier() -> None:
    """Where all disks take long, reads wait for the one that has the bytes: putting them together
    would ask K disks instead of one, and take as long."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, _nodes = await settled(replicas)
        for node in replicas.nodes.values():
            node.answers_after_s = 0.2
            node.asked.clear()
        numbers = blocks_of(attachment, chunks[0])
        for _ in range(20):
            await read_back(attachment.volume, *numbers)
        asked = sum(len(node.asked) for node in replicas.nodes.values())
        assert asked < 2 * 20 * len(numbers)

    run(21, scenario, nodes=NODES)


def test_one_slow_disk_is_not_waited_for() -> None:
    """It takes long again and again: for a while its shards are put together at once."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, nodes = await settled(replicas)
        numbers = blocks_of(attachment, chunks[0])
        slow = nodes[chunks[0]][0]
        slow.answers_after_s = 2.0
        for _ in range(2):
            slow.asked.clear()
            for _ in range(10):
                await read_back(attachment.volume, *numbers)
            assert 0 < len(slow.asked) <= 3
            await let_pass(1.5)  # it is given another chance
        assert shard_reads(attachment).degraded > 0

    run(22, scenario, nodes=NODES)


def test_rotten_shards_are_found_and_written_again() -> None:
    """The bytes that the map names are wrong: others give them, and the shard is made anew."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, nodes = await settled(replicas)
        [number, *_] = blocks_of(attachment, chunks[0])
        shard, offset = place_of(attachment, number)
        bad = nodes[chunks[0]][shard]
        part = shard_id(chunks[0], shard)
        [right] = await bad.chunks.examine([part], afresh=True)
        rot(bad, part, offset)
        assert (await bad.chunks.examine([part], afresh=True))[0] != right

        await read_back(attachment.volume, number)
        for _ in range(400):
            [found] = await bad.chunks.examine([part], afresh=True)
            if found == right:
                break
            await let_pass(0.005)
        assert found == right

    run(7, scenario, nodes=NODES)


def test_damage_beyond_repair_is_an_error_never_data() -> None:
    """M + 1 shards are rotten in the same column."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, nodes = await settled(replicas)
        [number, *_] = blocks_of(attachment, chunks[0])
        shard, offset = place_of(attachment, number)
        for step in range(3):
            one = (shard + step) % 6
            rot(nodes[chunks[0]][one], shard_id(chunks[0], one), offset)
        with pytest.raises(Corruption):
            await attachment.volume.read(number * BLOCK, BLOCK)

    run(8, scenario, nodes=NODES)


def test_shards_that_lie_elsewhere_are_found() -> None:
    """The ring's order is a guess: who is asked says what it has, and that is remembered."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, _nodes = await settled(replicas, order=[3, 0, 5, 1, 2, 4])
        await read_back(attachment.volume, *blocks_of(attachment, chunks[0]))
        for node in replicas.nodes.values():
            node.asked.clear()
        await read_back(attachment.volume, *blocks_of(attachment, chunks[0]))
        assert "examine" not in [kind for node in replicas.nodes.values() for kind in node.asked]

    run(9, scenario, nodes=NODES)


def test_shards_of_another_scheme_are_read() -> None:
    """The volume was converted, its shards not yet: they say themselves how they were cut."""

    async def scenario(replicas: Replicas) -> None:
        attachment, _chunks, _nodes = await settled(replicas, "erasure:2+2")
        await replicas.catalog.convert("one", "erasure:3+1")
        await attachment.follow_size()
        await read_back(attachment.volume, *range(16))
        await replicas.catalog.convert("one", "replica:2")
        await attachment.follow_size()
        await read_back(attachment.volume, *range(16))

    run(10, scenario, nodes=NODES)


def test_a_takeover_replays_chunks_that_lie_in_shards() -> None:
    """A crash after spans were closed and cut: what the checkpoint has not comes from shards."""

    async def scenario(replicas: Replicas) -> None:
        _first, chunks = await written(replicas)
        second = await replicas.attach(2)  # no checkpoint: the first one's span is closed
        await write(second.volume, 30)
        await second.volume.flush()
        for chunk in chunks:
            await encode(replicas, chunk, erasure(4, 2), epoch=second.epoch)
        gone = replicas.owners(chunks[0], 6)[:2]
        for node in gone:
            node.kill()
        third = await replicas.attach(3)
        await read_back(third.volume, *range(24), 30)

    run(11, scenario, nodes=NODES)


def test_a_takeover_believes_no_short_copy_beside_the_shards() -> None:
    """A disk that missed the end of a chunk still has its copy, the others gave theirs up."""

    async def scenario(replicas: Replicas) -> None:
        _first, chunks = await written(replicas)
        second = await replicas.attach(2)  # no checkpoint: the first one's span is closed
        for chunk in chunks:
            short, *others = replicas.owners(chunk)
            await encode(replicas, chunk, erasure(4, 2), epoch=second.epoch, keep=True)
            for node in others:
                await node.chunks.drop([chunk])
            slot = short.store.find(chunk)
            assert slot is not None
            reader = RecordReader(short.disk.read(slot.address + FIRST, 8192), chunk, FIRST, 0)
            assert reader.advance()
            short.disk.write(slot.address + reader.end, bytes(SMALL.slot_bytes - reader.end))

        third = await replicas.attach(3)

        await read_back(third.volume, *range(24))

    run(11, scenario, nodes=NODES)


def test_shards_are_listed_as_their_chunk_and_deleted_with_it() -> None:
    """Nothing of a deleted chunk stays on any disk."""

    async def scenario(replicas: Replicas) -> None:
        attachment, chunks, _nodes = await settled(replicas)
        core = attachment.volume.core
        there, whole = await core.chunks.survey(core.spec.volume)
        assert whole
        assert set(chunks) <= set(there)
        assert await core.chunks.delete(core.spec.volume, core.epoch, chunks) > 0
        for node in replicas.nodes.values():
            left = list(await node.chunks.list(core.spec.volume))
            assert not [part for part in left if part.volume != core.spec.volume]

    run(12, scenario, nodes=NODES)


def test_a_span_keeps_its_number_of_copies_through_conversions() -> None:
    """A takeover asks the disks that the writer wrote to: a third one, which another redundancy
    would have, says "not here", and that must not end the log."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(copies=2)
        attachment = await replicas.attach()
        for number in range(12):
            await write(attachment.volume, number)
        await attachment.volume.flush()
        await replicas.catalog.convert("one", "replica:3")
        chunk = attachment.volume.core.journal.chunk
        away = replicas.owners(chunk, 2)
        for node in away:
            node.silent = True
        with pytest.raises(Unavailable):
            await replicas.attach(2)
        for node in away:
            node.silent = False
        third = await replicas.attach(3)
        await read_back(third.volume, *range(12))

    run(13, scenario, nodes=NODES)


def test_a_writer_follows_a_conversion_in_a_new_span() -> None:
    """It needs no new attachment."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(copies=2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        await replicas.catalog.convert("one", "erasure:2+2")
        await attachment.follow_size()
        for _ in range(400):
            if attachment.volume.resealer.rolls:
                break
            await let_pass(0.005)
        assert [span.copies for span in attachment.holder.head.spans][-1] == 3
        await write(attachment.volume, 1)
        await attachment.volume.flush()
        chunk = attachment.volume.core.journal.chunk
        assert sum(node.store.find(chunk) is not None for node in replicas.nodes.values()) == 3
        await read_back(attachment.volume, 0, 1)

    run(14, scenario, nodes=NODES)


def test_a_full_chunk_fits_into_shards_of_nearly_every_scheme() -> None:
    """What volumes write today can be cut tomorrow; and it wastes little of a shelf."""
    room = limits.CHUNK_BYTES_MAX - FIRST
    for data in range(limits.ERASURE_DATA_MIN, limits.CHUNK_DATA_MAX + 1):
        assert content_max(data) >= room
    assert limits.SLOT_BYTES / room <= 1.02


def test_writes_pause_without_enough_nodes_for_the_shards() -> None:
    """M + 1 nodes are dead, which the membership does not know yet: no span after the other on
    those who are thought to live, and all goes on when one is back."""

    async def scenario(replicas: Replicas) -> None:
        attachment, _ = await written(replicas)
        chunk = attachment.volume.core.journal.chunk
        has = [node for node in replicas.nodes.values() if node.store.find(chunk)]
        has_not = [node for node in replicas.nodes.values() if node not in has]
        tag = attachment.volume.core.journal.chunk.tag
        dead = [*has_not[:2], has[0]]
        for node in dead:
            node.kill()
        writing = asyncio.ensure_future(write_all(attachment, range(24, 56)))
        await let_pass(30.0)
        assert not writing.done()
        assert attachment.volume.core.chunks.waiting
        assert attachment.volume.core.journal.chunk.tag <= tag + 3
        dead[0].up = True
        await writing
        await attachment.volume.flush()
        assert attachment.volume.core.journal.chunk.tag <= tag + 12
        await read_back(attachment.volume, *range(56))

    run(15, scenario, nodes=NODES)


async def write_all(attachment: Attachment, numbers: range) -> None:
    """Write blocks one after the other."""
    for number in numbers:
        await write(attachment.volume, number)
