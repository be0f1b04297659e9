"""The short ways to copies: what comes together goes together; what is not right is made again."""

import asyncio

from tests.unit.cluster.replicas import BLOCK, Replicas, block, let_pass, run
from tests.unit.cluster.test_replicated import read_back
from tests.unit.cluster.test_replicated_reads import closed_chunk, order, rot
from torus.volume.attachment import Attachment


async def replicas_of_one(replicas: Replicas) -> Attachment:
    """Return a writer whose requests all take the short way where there is one."""
    for node in replicas.nodes.values():
        node.soon_share = 1.0
    await replicas.create()
    return await replicas.attach()


async def fill(attachment: Attachment, *numbers: int) -> None:
    """Write blocks, all in the same turn of the loop."""
    sent = [attachment.volume.write_soon(number * BLOCK, block(number)) for number in numbers]
    assert None not in sent
    await asyncio.gather(*[one for one in sent if one is not None])


def test_writes_of_one_turn_are_one_record_and_one_append_for_each_disk() -> None:
    """Thirty blocks cost one round trip to each copy."""

    async def scenario(replicas: Replicas) -> None:
        attachment = await replicas_of_one(replicas)
        await fill(attachment, 0)
        records = attachment.volume.core.journal.records
        for node in replicas.nodes.values():
            node.asked.clear()

        await fill(attachment, *range(1, 11))

        assert attachment.volume.core.journal.records == records + 1
        asked = [node.asked for node in replicas.nodes.values()]
        assert sorted(asked) == [[], ["append"], ["append"], ["append"]]
        await read_back(attachment.volume, *range(11))

    run(1, scenario)


def test_a_cancelled_write_goes_on() -> None:
    """Its connection is gone, the write is not."""

    async def scenario(replicas: Replicas) -> None:
        attachment = await replicas_of_one(replicas)
        sent = attachment.volume.write_soon(0, block(0))
        assert sent is not None
        sent.cancel()
        await fill(attachment, 1)

        await read_back(attachment.volume, 0, 1)

    run(2, scenario)


def test_a_write_during_a_loss_is_answered_after_the_seal() -> None:
    """The short way leads to the same seal as the long one."""

    async def scenario(replicas: Replicas) -> None:
        attachment = await replicas_of_one(replicas)
        await fill(attachment, 0)
        replicas.owners(attachment.volume.core.journal.chunk)[0].kill()

        await fill(attachment, 1, 2)
        await attachment.volume.flush()

        found = await replicas.catalog.get("one")
        assert len(found.head.spans) == 2
        await read_back(attachment.volume, 0, 1, 2)

    run(3, scenario)


def test_reads_of_one_turn_are_one_question() -> None:
    """All pieces of a disk come in one answer."""

    async def scenario(replicas: Replicas) -> None:
        for node in replicas.nodes.values():
            node.soon_share = 1.0
        attachment, chunk = await closed_chunk(replicas)
        await read_back(attachment.volume, 0)
        first = order(attachment, replicas, chunk)[0]
        for node in replicas.nodes.values():
            node.asked.clear()

        sent = [attachment.volume.read_soon(number * BLOCK, BLOCK) for number in range(3)]

        found = await asyncio.gather(*[one for one in sent if one is not None])
        assert found == [block(0), block(1), block(2)]
        assert first.asked == ["read"]

    run(4, scenario)


def test_a_rotten_copy_is_read_again_the_long_way() -> None:
    """The short way hands out nothing that the map's checksum does not confirm."""

    async def scenario(replicas: Replicas) -> None:
        for node in replicas.nodes.values():
            node.soon_share = 1.0
        attachment, chunk = await closed_chunk(replicas)
        await read_back(attachment.volume, 2)
        place = attachment.volume.core.blocks.get(2)
        assert place is not None
        rot(order(attachment, replicas, chunk)[0], chunk, place[1] * 512 + 100)

        sent = attachment.volume.read_soon(2 * BLOCK, BLOCK)

        assert sent is not None
        assert await sent is None
        assert await attachment.volume.read(2 * BLOCK, BLOCK) == block(2)

    run(5, scenario)


def test_a_silent_disk_is_given_up_soon() -> None:
    """The long way, which asks another disk, is due after the usual time of a hedge."""

    async def scenario(replicas: Replicas) -> None:
        for node in replicas.nodes.values():
            node.soon_share = 1.0
        attachment, chunk = await closed_chunk(replicas)
        await read_back(attachment.volume, 0, 1)
        first = order(attachment, replicas, chunk)[0]
        first.silent = True
        began_s = asyncio.get_running_loop().time()

        sent = attachment.volume.read_soon(0, BLOCK)

        assert sent is not None
        assert await sent is None
        assert asyncio.get_running_loop().time() - began_s < 0.1
        assert await attachment.volume.read(0, BLOCK) == block(0)
        assert order(attachment, replicas, chunk)[0] is not first
        first.silent = False
        await let_pass(1.0)

    run(6, scenario)
