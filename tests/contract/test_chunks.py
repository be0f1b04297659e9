"""What every `Chunks` promises, near and far: the same tests over both (design, section 4)."""

from pathlib import Path

import pytest

from tests.contract.chunk_places import FIRST, SLOT_BYTES, SLOTS, Place, build, record
from torus import limits
from torus._fast.crc import checksum
from torus.cluster.chunks import ChunkWriter
from torus.errors import Corruption, DiskFailed, Fenced, LocalProtocolError, PoolFull
from torus.ids import ChunkId
from torus.store.content import Examined, Presence, Reopened

ONE = ChunkId(5, 2, 0, 1)
TWO = ChunkId(5, 2, 0, 2)
OTHER_VOLUME = ChunkId(6, 1, 0, 1)
PLACES = [
    "local-asyncio", "peer-asyncio", "peer-uvloop", "tcp-asyncio", "tcp-uvloop", "tls-asyncio",
    "tls-uvloop",
]  # fmt: skip


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, socket_folder: Path) -> Place:
    """Give one store, reached each way on each loop."""
    kind, _, loop = request.param.partition("-")
    return Place(kind, loop, tmp_path / "data", socket_folder)


async def append(writer: ChunkWriter, chunk: ChunkId, count: int) -> int:
    """Append ``count`` records, the n-th full of n + 1; return the end."""
    offset = FIRST
    for index in range(count):
        made = build(chunk, index, offset, fill=index + 1)
        if not writer.append_now(index, offset, made):
            await writer.append(index, offset, made)
        offset += made.size
    return offset


def test_append_then_read_returns_the_bytes(place: Place) -> None:
    """What was appended is read back at once, many pieces in one call and in their order."""

    async def scenario() -> None:
        chunks = place.chunks
        writer = await chunks.open(ONE, from_reserve=False)
        other = await chunks.open(TWO, from_reserve=False)
        end = await append(writer, ONE, 2)
        await append(other, TWO, 1)
        size = (end - FIRST) // 2
        reads = [(ONE, FIRST + size, size), (TWO, FIRST, 100), (ONE, FIRST, size)]

        found = await chunks.read(reads)

        assert chunks.slot_bytes == SLOT_BYTES
        assert found == [
            record(ONE, 1, FIRST + size, fill=2),
            record(TWO, 0, FIRST)[:100],
            record(ONE, 0, FIRST),
        ]
        assert await chunks.read([]) == []

    place.run(scenario)


def test_append_again_is_no_error(place: Place) -> None:
    """The same record under the same number is answered like the first time."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        end = await append(writer, ONE, 2)

        await writer.append(0, FIRST, build(ONE, 0, FIRST, fill=1))
        await writer.append(2, end, build(ONE, 2, end, fill=9))

        [found] = await place.chunks.read([(ONE, FIRST, 1024)])
        assert found == record(ONE, 0, FIRST, fill=1)[:1024]

    place.run(scenario)


def test_append_other_bytes_is_refused(place: Place) -> None:
    """A number that was used for other bytes is a broken writer, and nothing is changed."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        await append(writer, ONE, 1)

        with pytest.raises(LocalProtocolError, match="other bytes"):
            await writer.append(0, FIRST, build(ONE, 0, FIRST, fill=77))

        [found] = await place.chunks.read([(ONE, FIRST, 4608)])
        assert found == record(ONE, 0, FIRST, fill=1)

    place.run(scenario)


def test_append_with_a_gap_is_refused(place: Place) -> None:
    """A number that is not the next, or an offset that is not the end, leaves a hole."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        end = await append(writer, ONE, 1)

        with pytest.raises(LocalProtocolError, match="gap"):
            await writer.append(2, end, build(ONE, 2, end))
        with pytest.raises(LocalProtocolError, match="whose end is"):
            await writer.append(1, end + 512, build(ONE, 1, end + 512))

    place.run(scenario)


def test_append_behind_the_slot_is_refused(place: Place) -> None:
    """A record that does not fit would overwrite the neighbour's slot."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)

        with pytest.raises(LocalProtocolError, match="whose end is"):
            await writer.append(0, FIRST, build(ONE, 0, FIRST, blocks=16))

    place.run(scenario)


def test_fence_refuses_older_epochs(place: Place) -> None:
    """After a fence the writer before can neither open, append, fence nor delete."""

    async def scenario() -> None:
        chunks = place.chunks
        writer = await chunks.open(ONE, from_reserve=False)
        end = await append(writer, ONE, 1)

        await chunks.fence(ONE.volume, ONE.epoch + 1)
        await chunks.fence(ONE.volume, ONE.epoch + 1)

        with pytest.raises(Fenced, match="epoch 3"):
            await writer.append(1, end, build(ONE, 1, end))
        with pytest.raises(Fenced):
            await chunks.open(TWO, from_reserve=False)
        with pytest.raises(Fenced):
            await chunks.fence(ONE.volume, ONE.epoch)
        with pytest.raises(Fenced):
            await chunks.delete(ONE.volume, ONE.epoch, [ONE])
        await chunks.open(OTHER_VOLUME, from_reserve=False)
        assert list(await chunks.list(ONE.volume)) == [ONE]

    place.run(scenario)


def test_fence_outlives_a_restart(place: Place) -> None:
    """A fence is durable when it is answered."""

    async def scenario() -> None:
        await place.chunks.fence(ONE.volume, 9)
        await place.restart()

        with pytest.raises(Fenced):
            await place.chunks.open(ONE, from_reserve=False)

    place.run(scenario)


def test_sync_then_restart_keeps_the_records(place: Place) -> None:
    """What was synced is there under the next boot id; the chunk takes no more records."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        end = await append(writer, ONE, 3)
        await place.chunks.sync([ONE])
        await place.restart()

        [found] = await place.chunks.read([(ONE, FIRST, end - FIRST)])
        assert found[-4096:] == bytes([3]) * 4096
        again = await place.chunks.open(ONE, from_reserve=False)
        with pytest.raises(LocalProtocolError, match="not open"):
            await again.append(3, end, build(ONE, 3, end))

    place.run(scenario)


def test_sync_of_a_missing_chunk_is_corruption(place: Place) -> None:
    """A chunk that is not there cannot be made durable, and nobody says it was."""

    async def scenario() -> None:
        with pytest.raises(Corruption, match=str(TWO)):
            await place.chunks.sync([TWO])

    place.run(scenario)


def test_read_of_a_missing_chunk_is_corruption(place: Place) -> None:
    """The map said that the chunk is there: never zeroes, never an empty answer."""

    async def scenario() -> None:
        with pytest.raises(Corruption, match=str(TWO)):
            await place.chunks.read([(TWO, 512, 512)])

    place.run(scenario)


def test_scan_fences_and_returns_the_rest_of_the_slot(place: Place) -> None:
    """Fence and read are one step: no append can slip in behind what was read."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        end = await append(writer, ONE, 1)

        found = await place.chunks.scan(ONE, ONE.epoch + 1, FIRST)

        assert found is not None
        assert len(found) == SLOT_BYTES - FIRST
        assert found[: end - FIRST] == record(ONE, 0, FIRST)
        with pytest.raises(Fenced):
            await writer.append(1, end, build(ONE, 1, end))
        with pytest.raises(Fenced):
            await place.chunks.scan(ONE, ONE.epoch, FIRST)

    place.run(scenario)


def test_scan_of_a_missing_chunk_is_none_and_fences(place: Place) -> None:
    """A positive "not there", after which it cannot come to be by the older writer."""

    async def scenario() -> None:
        assert await place.chunks.scan(ONE, ONE.epoch + 1, FIRST) is None

        with pytest.raises(Fenced):
            await place.chunks.open(ONE, from_reserve=False)

    place.run(scenario)


def test_delete_frees_what_is_there(place: Place) -> None:
    """Chunks are gone from every answer, and those that were not there are not counted."""

    async def scenario() -> None:
        chunks = place.chunks
        for chunk in (ONE, TWO):
            await append(await chunks.open(chunk, from_reserve=False), chunk, 1)

        assert await chunks.delete(5, 2, [ONE, ChunkId(5, 1, 0, 99)]) == 1
        assert list(await chunks.list(5)) == [TWO]
        assert await chunks.scan(ONE, 2, FIRST) is None
        assert await chunks.delete(5, 2, []) == 0
        await place.restart()
        assert list(await place.chunks.list(5)) == [TWO]

    place.run(scenario)


def test_list_returns_the_chunks_of_one_volume(place: Place) -> None:
    """Other volumes' chunks are not listed."""

    async def scenario() -> None:
        for chunk in (TWO, OTHER_VOLUME, ONE):
            await place.chunks.open(chunk, from_reserve=False)

        assert sorted(await place.chunks.list(5)) == [ONE, TWO]
        assert list(await place.chunks.list(6)) == [OTHER_VOLUME]
        assert list(await place.chunks.list(7)) == []

    place.run(scenario)


def test_full_pool_keeps_its_reserve(place: Place) -> None:
    """Ordinary writes are refused first, those that free space last; a deletion helps both."""

    async def scenario() -> None:
        chunks = place.chunks
        free = SLOTS - limits.RESERVE_SLOTS_MIN
        opened = [ChunkId(5, 2, 0, sequence) for sequence in range(1, SLOTS + 1)]
        for chunk in opened[:free]:
            await append(await chunks.open(chunk, from_reserve=False), chunk, 1)

        with pytest.raises(PoolFull, match="12 of 16"):
            await chunks.open(opened[free], from_reserve=False)
        for chunk in opened[free:]:
            await chunks.open(chunk, from_reserve=True)
        with pytest.raises(PoolFull):
            await chunks.open(ChunkId(5, 2, 0, 99), from_reserve=True)
        await chunks.delete(5, 2, opened[:5])
        await chunks.wait_for_space()
        assert await chunks.room() == (1, SLOTS)
        await chunks.open(ChunkId(5, 2, 0, 100), from_reserve=False)
        assert await chunks.room() == (0, SLOTS)

    place.run(scenario)


def test_failed_write_takes_the_disk_out(place: Place) -> None:
    """After one failed write nothing is taken, acknowledged or said to be absent."""

    async def scenario() -> None:
        chunks = place.chunks
        writer = await chunks.open(ONE, from_reserve=False)
        end = await append(writer, ONE, 1)
        place.disk.broken = {"write"}

        with pytest.raises(DiskFailed, match="injected"):
            await writer.append(1, end, build(ONE, 1, end))
        place.disk.broken = set()

        with pytest.raises(DiskFailed):
            await writer.append(1, end, build(ONE, 1, end))
        with pytest.raises(DiskFailed):
            await chunks.open(TWO, from_reserve=False)
        with pytest.raises(DiskFailed):
            await chunks.sync([ONE])
        with pytest.raises(DiskFailed):
            await chunks.scan(TWO, 2, FIRST)
        with pytest.raises(DiskFailed):
            await chunks.list(5)
        with pytest.raises(DiskFailed):
            await chunks.delete(5, 2, [ONE])

    place.run(scenario)


def test_failed_sync_takes_the_disk_out(place: Place) -> None:
    """A failed fdatasync is never tried again: its pages may be gone and marked clean."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        await append(writer, ONE, 1)
        place.disk.broken = {"sync"}

        with pytest.raises(DiskFailed, match="injected"):
            await place.chunks.sync([ONE])
        place.disk.broken = set()
        with pytest.raises(DiskFailed):
            await place.chunks.sync([ONE])

    place.run(scenario)


# --- copies -------------------------------------------------------------------------------


def content(chunk: ChunkId, count: int) -> bytes:
    """Return the bytes of a chunk with the records of `append`."""
    records, offset = [], FIRST
    for index in range(count):
        records.append(record(chunk, index, offset, fill=index + 1))
        offset += len(records[-1])
    return b"".join(records)


def test_reopen_then_appending_goes_on(place: Place) -> None:
    """After a restart the chunk takes its next record, from an old writer and from a new one."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        end = await append(writer, ONE, 2)
        await place.chunks.sync([ONE])
        await place.restart()
        chunks = place.chunks

        found = await chunks.reopen(ONE, ONE.epoch)

        assert found == Reopened(place.boot_id, 2, end, 2)
        assert await chunks.reopen(ONE, ONE.epoch) == found
        assert await chunks.reopen(TWO, ONE.epoch) is None
        if place.kind == "local":
            writer = await chunks.open(ONE, from_reserve=False)
        await writer.append(1, FIRST + (end - FIRST) // 2, build(ONE, 1, FIRST + 4608, fill=2))
        await writer.append(2, end, build(ONE, 2, end, fill=3))
        await chunks.sync([ONE])
        [data] = await chunks.read([(ONE, FIRST, 3 * 4608)])
        assert data == content(ONE, 3)
        assert chunks.boot_id == place.boot_id
        assert chunks.disk_id == place.disk_id
        await chunks.fence(ONE.volume, 9)
        with pytest.raises(Fenced):
            await chunks.reopen(ONE, 8)

    place.run(scenario)


def test_install_puts_a_copy_there(place: Place) -> None:
    """Whole, verified, durable; extended when it is longer than what is there."""

    async def scenario() -> None:
        chunks = place.chunks
        long, short = content(ONE, 3), content(ONE, 2)

        await chunks.install(ONE, 5, FIRST + len(short), short)
        await chunks.install(ONE, 5, FIRST + len(long), long)
        await chunks.install(ONE, 5, FIRST + len(short), short)
        await place.restart()

        [data] = await place.chunks.read([(ONE, FIRST, len(long))])
        assert data == long
        with pytest.raises(Corruption, match="refused"):
            await place.chunks.install(TWO, 5, FIRST + len(long), long)
        with pytest.raises(LocalProtocolError):
            await place.chunks.install(ONE, 5, FIRST + len(long) + 1, long)
        with pytest.raises(LocalProtocolError, match="epoch 1"):
            await place.chunks.install(ONE, 1, FIRST + len(long), long)
        await place.chunks.fence(ONE.volume, 9)
        with pytest.raises(Fenced):
            await place.chunks.install(ONE, 8, FIRST + len(long), long)

    place.run(scenario)


def test_examine_says_what_each_copy_holds(place: Place) -> None:
    """Ends, counts and checksums; what is not there is positively absent."""

    async def scenario() -> None:
        chunks = place.chunks
        end = await append(await chunks.open(ONE, from_reserve=False), ONE, 3)

        found = await chunks.examine([ONE, TWO])
        again = await chunks.examine([ONE], afresh=True)

        assert found == [
            Examined(ONE, Presence.PRESENT, end, 3, checksum(content(ONE, 3))),
            Examined(TWO, Presence.ABSENT, 0, 0, 0),
        ]
        assert again == found[:1]
        many = [ChunkId(5, 2, 0, number) for number in range(10, 210)]
        assert [one.chunk for one in await chunks.examine(many)] == many
        assert await chunks.examine([]) == []

    place.run(scenario)


def test_failed_disk_has_no_copies_to_speak_of(place: Place) -> None:
    """Neither "not here" nor "here": it says that it failed."""

    async def scenario() -> None:
        chunks = place.chunks
        await append(await chunks.open(ONE, from_reserve=False), ONE, 1)
        place.disk.broken = {"sync"}
        with pytest.raises(DiskFailed):
            await chunks.sync([ONE])
        for chunk in (ONE, TWO):
            with pytest.raises(DiskFailed):
                await chunks.reopen(chunk, 5)
            with pytest.raises(DiskFailed):
                await chunks.examine([chunk])
            with pytest.raises(DiskFailed):
                await chunks.install(chunk, 5, FIRST + 4608, content(chunk, 1))

    place.run(scenario)
