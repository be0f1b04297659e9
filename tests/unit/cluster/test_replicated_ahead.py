"""The sync that goes along with a record: when it is sent, and when its answer counts."""

import asyncio

from tests.unit.cluster.replicas import Replicas, SimNode, let_pass, run
from tests.unit.cluster.test_replicated import read_back
from tests.unit.cluster.test_replicated_soon import fill, replicas_of_one
from torus.cluster.replicated_ahead import FlushHabit
from torus.volume.attachment import Attachment


async def commit(attachment: Attachment, number: int) -> None:
    """Write a block and flush."""
    await fill(attachment, number)
    await attachment.volume.flush()


async def used_to(replicas: Replicas) -> tuple[Attachment, list[SimNode]]:
    """Return a writer that has committed a few times, and the nodes that have its open chunk."""
    attachment = await replicas_of_one(replicas)
    for number in range(4):
        await commit(attachment, number)
    owners = replicas.owners(attachment.volume.core.journal.chunk)
    for node in replicas.nodes.values():
        node.asked.clear()
    return attachment, owners


async def survives_power_loss(replicas: Replicas, owners: list[SimNode], *numbers: int) -> None:
    """Cut the power of all copies, and read blocks as the next writer."""
    for node in owners:
        node.lose_power()
    again = await replicas.attach(pid=2)
    await read_back(again.volume, *numbers)


def test_the_habit_is_learnt_and_given_up() -> None:
    """Two commits make it, two records without a flush between them end it."""
    habit = FlushHabit()
    expected = []
    for _ in range(4):
        expected.append(habit.appended())
        habit.synced()
    assert expected == [False, False, True, True]
    assert habit.appended()
    assert not habit.appended()
    habit.synced()
    assert not habit.appended()
    habit.synced()
    habit.synced()  # of nothing: says nothing of the next record
    assert habit.appended()


def test_a_commit_is_one_round_trip() -> None:
    """The sync goes with the record, and the flush asks for nothing more."""

    async def scenario(replicas: Replicas) -> None:
        attachment, owners = await used_to(replicas)

        await commit(attachment, 4)

        assert [node.asked for node in owners] == [["append", "sync"]] * 3

    run(1, scenario)


def test_a_flush_that_comes_late_needs_no_waiting() -> None:
    """Everything is durable by then, and stays so when the power fails."""

    async def scenario(replicas: Replicas) -> None:
        attachment, owners = await used_to(replicas)
        await fill(attachment, 4)
        await let_pass(0.1)

        flush = attachment.volume.flush_soon()

        assert flush is not None
        assert flush.done()
        await survives_power_loss(replicas, owners, 0, 1, 2, 3, 4)

    run(6, scenario)


def test_a_flush_does_not_believe_a_sync_of_another_opening() -> None:
    """The disk was opened anew between the record and the sync."""

    async def scenario(replicas: Replicas) -> None:
        attachment, owners = await used_to(replicas)
        owners[1].faults["sync"] = [lambda node: node.lose_power()]
        await fill(attachment, 4)
        await let_pass(0.1)

        flush = attachment.volume.flush_soon()

        assert not flush.done()
        await flush

    run(7, scenario)


def test_a_flush_waits_for_the_sync_that_is_under_way() -> None:
    """The record's answer is not the sync's."""

    async def scenario(replicas: Replicas) -> None:
        attachment, owners = await used_to(replicas)
        gate = asyncio.Event()

        async def wait(*_: object) -> None:
            await gate.wait()

        owners[1].faults["sync"] = [wait]
        await fill(attachment, 4)

        flush = asyncio.ensure_future(attachment.volume.flush())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not flush.done()
        gate.set()
        await flush

    run(2, scenario)


def test_a_sync_before_the_record_was_sent_again_counts_for_nothing() -> None:
    """The disk answered the sync, and had not the record: it is asked anew."""

    async def scenario(replicas: Replicas) -> None:
        attachment, owners = await used_to(replicas)
        owners[1].faults["append"] = ["drop"]
        await fill(attachment, 4)
        assert owners[1].asked.count("sync") == 1
        order = list(owners[1].asked)

        await attachment.volume.flush()

        assert owners[1].asked[len(order) :].count("sync") == 1, (order, owners[1].asked)
        await survives_power_loss(replicas, owners, 0, 1, 2, 3, 4)

    run(3, scenario)


def test_power_lost_after_the_record_was_answered_is_noticed_by_the_flush() -> None:
    """The sync of the new opening is another one's, however good its answer."""

    async def scenario(replicas: Replicas) -> None:
        attachment, owners = await used_to(replicas)
        owners[1].faults["sync"] = [lambda node: node.lose_power()]
        await fill(attachment, 4)

        await attachment.volume.flush()

        await survives_power_loss(replicas, owners, 0, 1, 2, 3, 4)

    run(4, scenario)


def test_a_second_record_is_covered_by_a_sync_of_its_own() -> None:
    """What was sent ahead covers the record that it followed, and no later one."""

    async def scenario(replicas: Replicas) -> None:
        attachment, owners = await used_to(replicas)
        await fill(attachment, 4)
        await fill(attachment, 5)
        assert [node.asked for node in owners] == [["append", "sync", "append"]] * 3

        await attachment.volume.flush()

        assert [node.asked[3:] for node in owners] == [["sync"]] * 3
        await survives_power_loss(replicas, owners, 5)

    run(5, scenario)
