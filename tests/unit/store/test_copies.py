"""Copies of chunks: where appending goes on, what is put there, and what a power loss leaves."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.store.test_trash import GRACE_S, Machine
from torus import limits
from torus._fast.crc import checksum
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.errors import Corruption, DiskFailed, Fenced, LocalProtocolError, PoolFull
from torus.format.segment import FREED_SLOT
from torus.ids import ChunkId
from torus.store.content import FIRST, Examined, Presence, Reopened
from torus.testing.simdisk import SMALL, DiskImage, PowerLoss

CHUNK = ChunkId(5, 2, 0, 1)
OTHER = ChunkId(5, 2, 0, 2)
EPOCH = 3
SALT = 77


def made(chunk: ChunkId, count: int, *, fill: int = 1, salt: int = SALT) -> list[bytes]:
    """Return a chunk's records: the n-th has n % 3 + 1 blocks full of ``fill`` + n."""
    records, offset = [], FIRST
    for index in range(count):
        builder = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, 4)
        builder.add_data(7, bytes([fill + index]) * ((index % 3 + 1) * limits.BLOCK_BYTES))
        builder.finish(KIND_DATA, chunk, index, 100 + index, 0, offset, salt)
        records.append(builder.tobytes())
        offset += len(records[-1])
    return records


def append(machine: Machine, chunk: ChunkId, records: list[bytes], first: int = 0) -> int:
    """Append ``records[first:]``; return the end."""
    appender = machine.store.appender(chunk)
    appender.open(from_reserve=False)
    offset = FIRST + sum(map(len, records[:first]))
    for index, record in enumerate(records[first:], first):
        appender.append_bytes(index, offset, record)
        offset += len(record)
    return offset


def run(scenario: Callable[[Machine], Awaitable[None]], **options: object) -> None:
    """Run a scenario on a machine of its own."""

    async def bounded() -> None:
        machine = Machine(1, **options)  # type: ignore[arg-type]
        try:
            await scenario(machine)
        finally:
            await machine.store.close()

    asyncio.run(bounded())


def again(machine: Machine, **options: object) -> Machine:
    """Open what the machine's disk holds once more, as after the death of the process."""
    return Machine(2, image=machine.disk.image.copy(), **options)  # type: ignore[arg-type]


async def content_of(machine: Machine, chunk: ChunkId, end: int) -> bytes:
    slot = machine.store.find(chunk)
    assert slot is not None
    [data] = await machine.store.read([(slot.address + FIRST, end - FIRST)])
    return data


async def until_a_slot_is_taken(machine: Machine) -> None:
    for _ in range(100):
        if machine.store.usage.used:
            return
        await asyncio.sleep(0)


# --- going on -----------------------------------------------------------------------------


def test_reopen_goes_on_behind_the_last_record() -> None:
    """After a restart the chunk takes its next record; asking again says the same."""

    async def scenario(machine: Machine) -> None:
        records = made(CHUNK, 4)
        end = append(machine, CHUNK, records[:3])
        second = again(machine)

        found = await second.store.copies.reopen(CHUNK, EPOCH)

        assert found == Reopened(1, 3, end, 102)
        assert await second.store.copies.reopen(CHUNK, EPOCH) == found
        end = append(second, CHUNK, records, 3)
        assert await second.store.copies.reopen(CHUNK, EPOCH) == Reopened(1, 4, end, 103)
        assert await content_of(second, CHUNK, end) == b"".join(records)
        append(second, CHUNK, records)  # all of them again: told by their numbers
        await second.store.close()

    run(scenario)


def test_reopen_of_what_is_not_here() -> None:
    """Absent, empty, deleted, behind the fence, on a failed disk."""

    async def scenario(machine: Machine) -> None:
        copies = machine.store.copies
        assert await copies.reopen(CHUNK, EPOCH) is None
        append(machine, OTHER, [])
        assert await copies.reopen(OTHER, EPOCH) == Reopened(1, 0, FIRST, 0)
        append(machine, OTHER, made(OTHER, 1))
        append(machine, CHUNK, made(CHUNK, 2))
        await machine.store.delete(5, 2, [CHUNK])
        assert await copies.reopen(CHUNK, EPOCH) is None
        machine.store.fences.advance(5, EPOCH + 1)
        with pytest.raises(Fenced):
            await copies.reopen(OTHER, EPOCH)
        machine.disk.fail("sync", 1)
        with pytest.raises(DiskFailed):
            await machine.store.sync([OTHER])
        with pytest.raises(DiskFailed):
            await copies.reopen(CHUNK, EPOCH + 1)

    run(scenario)


def test_reopen_of_a_chunk_in_a_damaged_slot_is_unknown() -> None:
    """A slot whose header is damaged may hold it: never "not here"."""

    async def scenario(machine: Machine) -> None:
        append(machine, CHUNK, made(CHUNK, 2))
        slot = machine.store.find(CHUNK)
        assert slot is not None
        machine.disk.write(slot.address + 40, b"x")
        second = again(machine)

        with pytest.raises(Corruption):
            await second.store.copies.reopen(CHUNK, EPOCH)
        found = await second.store.copies.examine([CHUNK, OTHER])
        assert [one.state for one in found] == [Presence.UNKNOWN, Presence.ABSENT]
        await second.store.close()

    run(scenario)


@pytest.mark.parametrize("where", ["header", "payload"])
def test_reopen_ends_before_a_damaged_record_and_the_next_does_not_come_back(where: str) -> None:
    """What stands behind a torn record is not taken for the record that follows its successor."""

    async def scenario(machine: Machine) -> None:
        records = made(CHUNK, 4)
        append(machine, CHUNK, records)
        slot = machine.store.find(CHUNK)
        assert slot is not None
        torn_at = FIRST + len(records[0])
        at = torn_at + (8 if where == "header" else len(records[1]) - 5)
        machine.disk.write(slot.address + at, b"\xff\xfe")
        second = again(machine)

        found = await second.store.copies.reopen(CHUNK, EPOCH)
        assert found == Reopened(1, 1, torn_at, 100)
        end = append(second, CHUNK, records[:2], 1)

        third = again(second)
        assert await third.store.copies.reopen(CHUNK, EPOCH) == Reopened(1, 2, end, 101)
        await third.store.close()
        assert append(second, CHUNK, records, 2) == FIRST + sum(map(len, records))
        [examined] = await second.store.copies.examine([CHUNK])
        assert examined.records == 4
        await second.store.close()

    run(scenario)


def test_reopen_says_that_records_were_lost_under_its_feet() -> None:
    """A record that was answered since the disk was opened and cannot be read any more."""

    async def scenario(machine: Machine) -> None:
        records = made(CHUNK, 3)
        append(machine, CHUNK, records)
        slot = machine.store.find(CHUNK)
        assert slot is not None
        machine.disk.write(slot.address + FIRST + len(records[0]) + 8, b"\xff")

        with pytest.raises(Corruption, match="has 3 records, 1 can be read"):
            await machine.store.copies.reopen(CHUNK, EPOCH)

    run(scenario)


# --- putting one there --------------------------------------------------------------------


def test_install_puts_a_chunk_there() -> None:
    """It is read, listed and examined like one that was appended; and again is no error."""

    async def scenario(machine: Machine) -> None:
        content = b"".join(made(CHUNK, 3))
        end = FIRST + len(content)

        await machine.store.copies.install(CHUNK, EPOCH, end, content)
        used = machine.store.usage.used
        await machine.store.copies.install(CHUNK, EPOCH, end, content)

        assert machine.store.usage.used == used == 1
        assert await content_of(machine, CHUNK, end) == content
        assert machine.store.chunks_of(5) == [CHUNK]
        expected = Examined(CHUNK, Presence.PRESENT, end, 3, checksum(content))
        assert await machine.store.copies.examine([CHUNK]) == [expected]
        with pytest.raises(LocalProtocolError, match="not open"):
            machine.store.appender(CHUNK).append_bytes(3, end, made(CHUNK, 4)[3])

    run(scenario)


def test_install_writes_only_what_is_missing() -> None:
    """A copy that is a prefix is extended where it lies; a longer one is kept."""

    async def scenario(machine: Machine) -> None:
        records = made(CHUNK, 4)
        content = b"".join(records)
        short = append(machine, CHUNK, records[:2])
        second = again(machine)
        slot = second.store.find(CHUNK)
        assert slot is not None
        before = len(second.disk.history)

        await second.store.copies.install(CHUNK, EPOCH, FIRST + len(content), content)

        writes = [event for event in second.disk.history[before:] if event.kind == "write"]
        assert [event.a for event in writes] == [
            slot.address + short, slot.address + FIRST + len(content),
        ]  # fmt: skip
        assert await content_of(second, CHUNK, FIRST + len(content)) == content
        await second.store.copies.install(CHUNK, EPOCH, short, content[: short - FIRST])
        assert await content_of(second, CHUNK, FIRST + len(content)) == content
        await second.store.close()

    run(scenario)


def test_install_empties_the_place_behind_its_end() -> None:
    """A record of the same chunk that stands behind the installed end never becomes valid."""

    async def scenario(machine: Machine) -> None:
        records = made(CHUNK, 4)
        append(machine, CHUNK, records)
        slot = machine.store.find(CHUNK)
        assert slot is not None
        machine.disk.write(slot.address + FIRST + len(records[0]) + 8, b"\xff")  # tears record 1
        second = again(machine)
        content = b"".join(records[:2])

        await second.store.copies.install(CHUNK, EPOCH, FIRST + len(content), content)

        [found] = await second.store.copies.examine([CHUNK])
        assert (found.end, found.records) == (FIRST + len(content), 2)
        await second.store.close()

    run(scenario)


def test_install_replaces_a_copy_with_other_bytes() -> None:
    """The new copy lies in another slot, the former one's slot is free; also after a restart."""

    async def scenario(machine: Machine) -> None:
        append(machine, CHUNK, made(CHUNK, 2, fill=50))
        before = machine.store.find(CHUNK)
        assert before is not None
        appender = machine.store.appender(CHUNK)
        content = b"".join(made(CHUNK, 3))
        end = FIRST + len(content)

        await machine.store.copies.install(CHUNK, EPOCH, end, content)

        slot = machine.store.find(CHUNK)
        assert slot is not None
        assert slot.address != before.address
        assert machine.store.usage.used == 1
        assert await content_of(machine, CHUNK, end) == content
        with pytest.raises(LocalProtocolError, match="not open"):
            appender.append_bytes(2, end, made(CHUNK, 3)[2])
        assert machine.disk.read(before.address, len(FREED_SLOT)) == FREED_SLOT
        second = again(machine)
        assert await content_of(second, CHUNK, end) == content
        assert second.store.damaged == []
        await second.store.close()

    run(scenario)


def test_install_into_a_slot_that_held_more_of_the_chunk() -> None:
    """What a longer copy left in the slot, with the same salt, does not come back."""

    async def scenario(machine: Machine) -> None:
        long, short = b"".join(made(CHUNK, 4)), b"".join(made(CHUNK, 2))
        copies = machine.store.copies
        await copies.install(CHUNK, EPOCH, FIRST + len(long), long)
        before = machine.store.find(CHUNK)
        await copies.drop([CHUNK])
        await copies.install(CHUNK, EPOCH, FIRST + len(short), short)

        after = machine.store.find(CHUNK)
        assert before is not None
        assert after is not None
        assert after.address == before.address, "the test is about a slot that is used again"
        [found] = await copies.examine([CHUNK])
        assert (found.end, found.records) == (FIRST + len(short), 2)

    run(scenario, grace_s=0.0)


def test_of_two_copies_the_later_one_is_the_chunk(seed: int) -> None:
    """The power goes when the new copy is durable and the old one is not freed, in either order
    of their slots."""

    async def scenario(machine: Machine) -> None:
        rng = random.Random(seed)
        for _ in range(6):  # the copies change places
            old = machine.store.find(CHUNK)
            if old is None:
                append(machine, CHUNK, made(CHUNK, 2, fill=50))
                old = machine.store.find(CHUNK)
            assert old is not None
            header = machine.store.slot_header(old)
            content = b"".join(made(CHUNK, 3, fill=rng.randint(60, 200)))
            await machine.store.copies.install(CHUNK, EPOCH, FIRST + len(content), content)
            image = machine.disk.image.copy()
            segment, at = divmod(old.address, SMALL.segment_bytes)
            image.segments[segment][at : at + len(header)] = header
            second = Machine(2, image=image)
            assert second.store.damaged == []
            assert await content_of(second, CHUNK, FIRST + len(content)) == content
            assert second.store.usage.used == 1
            assert second.disk.read(old.address, len(FREED_SLOT)) == FREED_SLOT
            assert [event.kind for event in second.disk.history[-2:]] == ["write", "sync"]
            await second.store.close()

    run(scenario, grace_s=0.0)


def test_install_refuses_what_is_not_the_chunk() -> None:
    """Each byte counts, as do the chunk, the end, the fence and the order of records."""

    async def scenario(machine: Machine) -> None:
        records = made(CHUNK, 3)
        content = b"".join(records)
        end = FIRST + len(content)
        install = machine.store.copies.install
        damaged = bytearray(content)
        for at in random.Random(5).sample(range(len(content)), 30):
            damaged[at] ^= 4
            with pytest.raises(Corruption, match="refused"):
                await install(CHUNK, EPOCH, end, bytes(damaged))
            damaged[at] ^= 4
        with pytest.raises(Corruption, match="another chunk"):
            await install(OTHER, EPOCH, end, content)
        with pytest.raises(Corruption):
            await install(CHUNK, EPOCH, end - 512, content[:-512])
        swapped = records[1] + records[0] + records[2]
        with pytest.raises(Corruption):
            await install(CHUNK, EPOCH, end, swapped)
        with pytest.raises(LocalProtocolError):
            await install(CHUNK, EPOCH, end + 512, content)
        with pytest.raises(LocalProtocolError):
            await install(CHUNK, EPOCH, FIRST + SMALL.slot_bytes, bytes(SMALL.slot_bytes))
        with pytest.raises(LocalProtocolError):
            await install(CHUNK, CHUNK.epoch - 1, end, content)
        machine.store.fences.advance(5, EPOCH + 1)
        with pytest.raises(Fenced):
            await install(CHUNK, EPOCH, end, content)
        assert machine.store.usage.used == 0
        assert machine.store.chunks() == []

    run(scenario)


def test_install_takes_no_reserve_and_leaves_nothing_when_it_fails() -> None:
    """A full disk says so; its slots are what they were."""

    async def scenario(machine: Machine) -> None:
        machine.fill()
        used = machine.store.usage.used
        content = b"".join(made(CHUNK, 2))

        with pytest.raises(PoolFull):
            await machine.store.copies.install(CHUNK, EPOCH, FIRST + len(content), content)

        assert machine.store.usage.used == used
        assert await machine.store.copies.examine([CHUNK]) == [
            Examined(CHUNK, Presence.ABSENT, 0, 0, 0)
        ]

    run(scenario)


def test_install_that_is_fenced_on_its_way_leaves_nothing() -> None:
    """A fence that comes while the copy is written wins."""

    async def scenario(machine: Machine) -> None:
        content = b"".join(made(CHUNK, 2))
        task = asyncio.ensure_future(
            machine.store.copies.install(CHUNK, EPOCH, FIRST + len(content), content)
        )
        await until_a_slot_is_taken(machine)
        machine.store.fences.advance(5, EPOCH + 1)

        with pytest.raises(Fenced):
            await task
        assert machine.store.chunks() == []
        assert machine.store.usage.used == 0

    run(scenario)


def test_install_of_one_chunk_at_the_same_time() -> None:
    """Calls for a chunk follow each other: one slot, the longest content."""

    async def scenario(machine: Machine) -> None:
        records = made(CHUNK, 4)
        parts = [b"".join(records[:count]) for count in (2, 4, 1, 3)]
        await asyncio.gather(
            *[machine.store.copies.install(CHUNK, EPOCH, FIRST + len(p), p) for p in parts]
        )
        [found] = await machine.store.copies.examine([CHUNK])
        assert found.records == 4
        assert machine.store.usage.used == 1

    run(scenario)


def test_cancelled_install_is_finished() -> None:
    """A slot that is being written is not forgotten with its caller."""

    async def scenario(machine: Machine) -> None:
        content = b"".join(made(CHUNK, 2))
        task = asyncio.ensure_future(
            machine.store.copies.install(CHUNK, EPOCH, FIRST + len(content), content)
        )
        await until_a_slot_is_taken(machine)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await machine.store.copies.close()
        assert machine.store.chunks() == [CHUNK]

    run(scenario)


# --- comparing, taking away ---------------------------------------------------------------


def test_examine_remembers_until_it_is_told_not_to() -> None:
    """A closed chunk is read once; afresh finds what rotted since."""

    async def scenario(machine: Machine) -> None:
        records = made(CHUNK, 3)
        append(machine, CHUNK, records)
        second = again(machine)
        copies = second.store.copies
        [first] = await copies.examine([CHUNK])
        slot = second.store.find(CHUNK)
        assert slot is not None
        second.disk.write(slot.address + FIRST + len(records[0]) + 4096, b"rot")

        assert await copies.examine([CHUNK]) == [first]
        [rotten] = await copies.examine([CHUNK], afresh=True)

        assert (rotten.end, rotten.records) == (FIRST + len(records[0]), 1)
        assert rotten.crc == checksum(records[0])
        await second.store.close()

    run(scenario)


def test_examine_of_what_cannot_be_read_is_unknown() -> None:
    """Never "absent"; a failed disk says nothing at all."""

    async def scenario(machine: Machine) -> None:
        append(machine, CHUNK, made(CHUNK, 1))
        machine.disk.fail("read", 1)
        [found] = await machine.store.copies.examine([CHUNK])
        assert found.state is Presence.UNKNOWN
        machine.disk.fail("sync", 1)
        with pytest.raises(DiskFailed):
            await machine.store.sync([CHUNK])
        with pytest.raises(DiskFailed):
            await machine.store.copies.examine([OTHER])

    run(scenario)


def test_dropped_copy_comes_back_by_install() -> None:
    """A surplus copy goes into the trash, whatever the fence; a ring may want it back."""

    async def scenario(machine: Machine) -> None:
        content = b"".join(made(CHUNK, 3))
        await machine.store.copies.install(CHUNK, EPOCH, FIRST + len(content), content)
        machine.store.fences.advance(5, 99)

        assert await machine.store.copies.drop([CHUNK, OTHER]) == 1

        assert machine.store.trash == [CHUNK]
        assert await machine.store.copies.reopen(CHUNK, 99) is None
        await machine.store.copies.install(CHUNK, 99, FIRST + len(content), content)
        assert machine.store.chunks() == [CHUNK]
        assert machine.store.trash == []

    run(scenario, grace_s=GRACE_S)


# --- power ---------------------------------------------------------------------------------


def _cuts(machine: Machine, start: DiskImage, first: int, seed: int) -> list[tuple[int, DiskImage]]:
    """Return images of power losses at every moment from event ``first`` on."""
    rng = random.Random(seed)
    power = PowerLoss(machine.disk.geometry, start)
    images = []
    events = list(machine.disk.history)
    for number, event in enumerate([*events, None]):
        if number >= first:
            images += [(number, power.cut(rng, event)) for _ in range(12)]
            images.append((number, power.killed(event, rng)))
        if event is not None:
            power.step(event)
    return images


async def _examined(image: DiskImage) -> tuple[Machine, Examined]:
    machine = Machine(3, image=image, grace_s=0.0)
    assert machine.store.damaged == []
    [found] = await machine.store.copies.examine([CHUNK])
    return machine, found


@pytest.mark.parametrize("case", ["new", "new-warm", "extended", "replaced", "torn"])
def test_power_loss_in_an_install_leaves_one_of_the_two(case: str, seed: int) -> None:
    """Before, during, after: the copy from before whole, or a prefix of the new one, in one slot;
    when it was answered, all of it; and the next install makes it whole in any case."""

    async def scenario() -> None:
        records = made(CHUNK, 4)
        content = b"".join(records)
        end = FIRST + len(content)
        # The torn chunk has two records more, which come back where the power took the cut.
        longest = b"".join(made(CHUNK, 6)) if case == "torn" else content
        old = b"".join(made(CHUNK, 2, fill=90)) if case == "replaced" else b""
        machine = Machine(1, grace_s=0.0)
        if case == "new-warm":  # the slot holds another use of it, of another salt
            append(machine, OTHER, made(OTHER, 4, salt=9))
            await machine.store.sync([OTHER])
            await machine.store.delete(5, 2, [OTHER])
        elif case == "extended":
            append(machine, CHUNK, records[:2])
            await machine.store.sync([CHUNK])
            old = b"".join(records[:2])
        elif case == "torn":
            append(machine, CHUNK, made(CHUNK, 6))
            slot = machine.store.find(CHUNK)
            assert slot is not None
            machine.disk.write(slot.address + FIRST + len(records[0]) + 8, b"\xff")
            await machine.store.sync([CHUNK])
            old = records[0]
        elif case == "replaced":
            append(machine, CHUNK, made(CHUNK, 2, fill=90))
            await machine.store.sync([CHUNK])
        await machine.store.close()
        second = Machine(2, image=machine.disk.image.copy(), grace_s=0.0)
        start = second.disk.image.copy()
        first = len(second.disk.history)
        await second.store.copies.install(CHUNK, EPOCH, end, content)
        answered = len(second.disk.history)
        await second.store.close()
        seen = set()
        for number, image in _cuts(second, start, first, seed):
            third, found = await _examined(image)
            what = f"seed {seed}, before event {number}"
            if found.state is Presence.ABSENT:
                assert not old, what
                seen.add("absent")
            else:
                data = await content_of(third, CHUNK, found.end)
                if data == old and data != content[: len(data)]:
                    seen.add("old")
                else:
                    assert data == longest[: len(data)], what
                    assert case == "replaced" or len(data) >= len(old), what
                    assert case != "replaced" or data == content, what
                    seen.add("whole" if data == content else "part")
            if number >= answered:
                assert found.end == end, what
            await third.store.copies.install(CHUNK, EPOCH, end, content)
            assert await content_of(third, CHUNK, end) == content, what
            [found] = await third.store.copies.examine([CHUNK], afresh=True)
            assert found.end == end or (case == "torn" and found.records == 6), what
            assert third.store.usage.used == 1, what
            await third.store.close()
        assert "whole" in seen
        assert len(seen) > 1

    asyncio.run(scenario())


def test_power_loss_while_a_chunk_is_reopened_and_appended_to(seed: int) -> None:
    """Under power losses one after the other the chunk is a prefix of what was sent, holds what a
    sync covered, and goes on."""

    async def scenario() -> None:
        rng = random.Random(seed)
        for _ in range(60):
            records = made(CHUNK, 7, salt=rng.getrandbits(32))
            image, synced = DiskImage(), 0
            for _ in range(5):
                start = image.copy()
                machine = Machine(1, image=image, grace_s=0.0)
                found = await machine.store.copies.reopen(CHUNK, EPOCH)
                at = 0 if found is None else found.next_index
                assert at >= synced, f"seed {seed}: synced records are gone"
                wanted = rng.randint(at, len(records))
                for count in range(at, wanted):
                    append(machine, CHUNK, records[: count + 1], count)
                    if rng.random() < 0.3:
                        await machine.store.sync([CHUNK])
                        synced = count + 1
                [after] = await machine.store.copies.examine([CHUNK])
                assert after.records == wanted or after.state is Presence.ABSENT
                power = PowerLoss(machine.disk.geometry, start)
                for event in machine.disk.history:
                    power.step(event)
                image = power.cut(rng)
                await machine.store.close()

    asyncio.run(scenario())
