"""Shards on one disk: put there, read, verified, replaced, deleted; and the shelves they lie on."""

import asyncio
import errno
import random
from collections.abc import Iterable

import pytest

from tests.unit.store.test_copies import again, append, made, run
from tests.unit.store.test_trash import GRACE_S, Machine
from torus import limits
from torus._fast.crc import checksum
from torus.cluster.local import LocalChunks
from torus.errors import (
    AlreadyExists,
    Corruption,
    DiskFailed,
    Fenced,
    LocalProtocolError,
    PoolFull,
    TorusError,
)
from torus.format.segment import FREED_SLOT
from torus.format.shard import (
    DESCRIPTOR_BYTES,
    PAYLOAD_OFFSET,
    PLACE_BYTES,
    Descriptor,
    cell_bytes,
    describe,
    join,
    pack_shard,
    payload_bytes,
)
from torus.ids import ChunkId, shard_id, volume_of, whole_id
from torus.store.content import FIRST, Examined, Presence
from torus.store.shelves import Cell
from torus.testing.simdisk import SMALL

CHUNK = ChunkId(5, 2, 0, 1)
EPOCH = 3
DATA, PARITY = 4, 2
EACH = payload_bytes(DATA, SMALL.slot_bytes)


def content_of(sequence: int, *, fill: int = 0, size: int = DATA * EACH) -> bytes:
    """Return what a chunk holds: random bytes, which only `describe` looks at."""
    return random.Random(sequence * 1000 + fill).randbytes(size)


def shard_of(
    number: int, sequence: int = 1, *, fill: int = 0, data: int = DATA, parity: int = PARITY
) -> tuple[ChunkId, bytes]:
    """Return a shard as it travels; what its parity is, the store does not know."""
    chunk = ChunkId(5, 2, 0, sequence)
    each = payload_bytes(data, SMALL.slot_bytes)
    content = content_of(sequence, fill=fill, size=data * each)
    first = number % data * each
    payload = content[first : first + each]
    if number >= data:
        payload = bytes(byte ^ number for byte in payload)
    packed = pack_shard(
        chunk, number, data, parity, content_end=FIRST + len(content),
        content_crc=checksum(content), payload=payload,
    )  # fmt: skip
    return shard_id(chunk, number), packed


async def install(machine: Machine, *shards: tuple[ChunkId, bytes]) -> None:
    """Put shards there, one after the other."""
    for shard, content in shards:
        end = FIRST + len(content)
        await machine.store.copies.install(shard, EPOCH, end, content)


def cell_of(machine: Machine, shard: ChunkId) -> Cell:
    cell = machine.store.find(shard)
    assert isinstance(cell, Cell)
    return cell


async def examine(machine: Machine, shard: ChunkId) -> Examined:
    """Return what is on the disk, not what is remembered."""
    [found] = await machine.store.copies.examine([shard], afresh=True)
    return found


def whole(shard: ChunkId, content: bytes) -> Examined:
    """Return what `examine` says of a shard that is there."""
    found = Descriptor.unpack(content, "")
    scheme = found.data << 8 | found.parity
    return Examined(shard, Presence.PRESENT, found.content_end, scheme, found.content_crc)


def adds_up(machine: Machine) -> bool:
    """True when each cell is counted once, and each slot: nothing leaked, nothing lies twice."""
    store = machine.store
    cells = [slot for slot in map(store.find, store.chunks()) if isinstance(slot, Cell)]
    shelves = {cell.shelf for cell in cells}
    numbers = {
        shelf: sorted([*shelf.free, *(one.number for one in cells if one.shelf is shelf)])
        for shelf in shelves
    }
    free = sum(len(shelf.free) * shelf.cell_bytes for shelf in shelves)
    usage = store.usage
    slots = usage.used + usage.trash + usage.free + usage.reserve + usage.quarantined
    return (
        all(found == list(range(shelf.data)) for shelf, found in numbers.items())
        and store.shelves.count == len(shelves)
        and store.slots.shards == len(cells)
        and store.shelves.free_bytes == free
        and slots == usage.limit
        and usage.used == len(shelves) + len(store.chunks()) - len(cells)
    )


# --- there and back -----------------------------------------------------------------------


def test_shard_is_installed_read_and_examined() -> None:
    """Descriptor and payload come back as they were given; offsets count from the cell's start."""

    async def scenario(machine: Machine) -> None:
        shard, content = shard_of(1)
        await install(machine, (shard, content))
        chunks = LocalChunks(machine.store)

        [descriptor, column] = await chunks.read(
            [(shard, PLACE_BYTES, DESCRIPTOR_BYTES), (shard, PAYLOAD_OFFSET + 4096, 4096)]
        )
        found = Descriptor.unpack(descriptor, "")

        assert descriptor == content[:DESCRIPTOR_BYTES]
        assert found.shard == shard
        assert found.bad_column(column, 1) is None
        assert found.bad_column(column, 0) == 0
        assert column == content_of(1)[EACH + 4096 : EACH + 8192]
        assert await examine(machine, shard) == whole(shard, content)
        assert await chunks.list(5) == [shard]
        second = again(machine)
        assert second.store.chunks() == [shard]
        assert await examine(second, shard) == whole(shard, content)
        assert adds_up(second)
        await second.store.close()

    run(scenario)


def test_shards_fill_shelves_and_take_a_part_of_a_slot_each() -> None:
    """Shelves with free cells come first; the next shelf comes when all are full; shards of
    another K have shelves of their own."""

    async def scenario(machine: Machine) -> None:
        await install(machine, *(shard_of(0, sequence) for sequence in range(1, DATA + 1)))
        assert machine.store.usage.used == 1
        assert machine.store.shelves.free_bytes == 0
        await install(machine, shard_of(0, 9))
        assert machine.store.usage.used == 2
        room = cell_of(machine, shard_of(0, 9)[0]).room
        assert machine.store.shelves.free_bytes == (DATA - 1) * room
        await install(machine, shard_of(1, 10, data=2, parity=1))
        assert machine.store.usage.used == 3
        other = cell_of(machine, shard_of(1, 10, data=2, parity=1)[0]).room
        assert machine.store.shelves.free_bytes == (DATA - 1) * room + other
        append(machine, CHUNK, made(CHUNK, 1))  # a whole copy beside a shard of the same chunk
        assert machine.store.usage.used == 4
        assert adds_up(machine)
        second = again(machine)
        assert sorted(second.store.chunks()) == sorted(machine.store.chunks())
        assert second.store.usage == machine.store.usage
        assert second.store.shelves.free_bytes == machine.store.shelves.free_bytes
        assert adds_up(second)
        await second.store.close()

    run(scenario)


def test_shards_that_come_at_the_same_time_share_a_shelf() -> None:
    """One shelf is made for all who wait for it."""

    async def scenario(machine: Machine) -> None:
        shards = [shard_of(0, sequence) for sequence in range(1, DATA + 1)]
        await asyncio.gather(*(install(machine, one) for one in shards))

        assert machine.store.usage.used == 1
        assert adds_up(machine)
        for shard, content in shards:
            assert await examine(machine, shard) == whole(shard, content)

    run(scenario)


def test_install_again_changes_nothing() -> None:
    """The same bytes are kept where they are."""

    async def scenario(machine: Machine) -> None:
        shard, content = shard_of(2)
        await install(machine, (shard, content))
        before = cell_of(machine, shard)
        writes = [event for event in machine.disk.history if event.kind == "write"]

        await install(machine, (shard, content))

        assert cell_of(machine, shard) is before
        assert writes == [event for event in machine.disk.history if event.kind == "write"]

    run(scenario)


@pytest.mark.parametrize("grace_s", [0.0, GRACE_S])
def test_other_content_replaces_a_shard(grace_s: float) -> None:
    """The new one lies in another cell, the former one's cell is free; also after a restart."""

    async def scenario(machine: Machine) -> None:
        old, new = shard_of(2), shard_of(2, fill=7)
        await install(machine, old)
        before = cell_of(machine, old[0])

        await install(machine, new)

        assert cell_of(machine, new[0]).address != before.address
        assert machine.disk.read(before.address, PLACE_BYTES) == FREED_SLOT
        assert await examine(machine, new[0]) == whole(*new)
        assert adds_up(machine)
        second = again(machine)
        assert await examine(second, new[0]) == whole(*new)
        assert adds_up(second)
        await second.store.close()

    run(scenario, grace_s=grace_s)


def test_shard_for_another_erasure_code_is_not_replaced_while_it_is_whole() -> None:
    """It may be one of the last K of its kind; when it was dropped, or is damaged, it goes."""

    async def scenario(machine: Machine) -> None:
        old, new = shard_of(1), shard_of(1, data=2, parity=1)
        await install(machine, old)
        with pytest.raises(AlreadyExists, match=r"4\+2"):
            await install(machine, new)
        assert await examine(machine, old[0]) == whole(*old)

        await machine.store.copies.drop([old[0]])
        await install(machine, new)

        assert await examine(machine, new[0]) == whole(*new)
        machine.disk.write(cell_of(machine, new[0]).address + PAYLOAD_OFFSET + 5, b"\x00\x01")
        await install(machine, old)
        assert await examine(machine, old[0]) == whole(*old)
        assert adds_up(machine)

    run(scenario)


def test_install_refuses_what_is_not_the_shard() -> None:
    """Each byte counts; so do the chunk, the number, the end and the fence."""

    async def scenario(machine: Machine) -> None:
        shard, content = shard_of(1)
        end = FIRST + len(content)
        install = machine.store.copies.install
        places = [*range(64), *random.Random(3).sample(range(len(content)), 40)]
        for at in places:
            damaged = bytearray(content)
            damaged[at] ^= 4
            with pytest.raises(TorusError) as refusal:
                await install(shard, EPOCH, end, bytes(damaged))
            assert refusal.value.code in ("corrupt", "version", "local-protocol"), at
        with pytest.raises(Corruption, match="are those of shard"):
            await install(shard_id(CHUNK, 2), EPOCH, end, content)
        with pytest.raises(Corruption):
            await install(shard, EPOCH, end - 4096, content[:-4096])
        with pytest.raises(Corruption):
            await install(shard, EPOCH, end + 4096, content + bytes(4096))
        with pytest.raises(LocalProtocolError):
            await install(shard, EPOCH, end + 512, content)
        with pytest.raises(LocalProtocolError):
            await install(shard, CHUNK.epoch - 1, end, content)
        machine.store.fences.advance(5, EPOCH + 1)
        with pytest.raises(Fenced):
            await install(shard, EPOCH, end, content)
        assert machine.store.usage.used == 0
        assert machine.store.chunks() == []

    run(scenario)


def test_short_shard_is_stored_short() -> None:
    """Padding is not stored; less than the content is refused, and so is a chunk too long."""

    async def scenario(machine: Machine) -> None:
        size = EACH + 512  # all of shard 0 and a sector of shard 1
        for number, payload in ((1, bytes(512)), (2, b""), (3, b""), (4, bytes(EACH))):
            described = describe(
                CHUNK, number, DATA, PARITY, content_end=FIRST + size, content_crc=1,
                payload=payload,
            )  # fmt: skip
            await install(machine, (described.shard, join(described, payload)))
            assert (await examine(machine, described.shard)).end == FIRST + size
        lacking = describe(
            CHUNK, 1, DATA, PARITY, content_end=FIRST + size, content_crc=1, payload=b""
        )
        with pytest.raises(Corruption, match="at least 4096"):
            await install(machine, (lacking.shard, join(lacking, b"")))
        too_long = describe(
            CHUNK, 0, DATA, PARITY, content_end=FIRST + DATA * EACH + 512, content_crc=1,
            payload=bytes(EACH),
        )  # fmt: skip
        with pytest.raises(LocalProtocolError, match="more than 4 shards hold"):
            await install(machine, (too_long.shard, join(too_long, bytes(EACH))))
        assert adds_up(machine)

    run(scenario)


def test_shard_is_no_log() -> None:
    """What appends, or looks for a log's end, is refused; a read stays in the cell."""

    async def scenario(machine: Machine) -> None:
        shard, content = shard_of(1)
        chunks = LocalChunks(machine.store)
        for _ in range(2):  # while it is not there, and while it is
            with pytest.raises(LocalProtocolError):
                machine.store.appender(shard).append_bytes(0, FIRST, made(CHUNK, 1)[0])
            with pytest.raises(LocalProtocolError):
                await chunks.scan(shard, EPOCH, FIRST)
            with pytest.raises(LocalProtocolError):
                await chunks.reopen(shard, EPOCH)
            if machine.store.find(shard) is None:
                with pytest.raises(LocalProtocolError, match="not appended"):
                    await chunks.open(shard, from_reserve=False)
                await install(machine, (shard, content))
        room = cell_of(machine, shard).room
        assert len((await chunks.read([(shard, 0, room)]))[0]) == room
        with pytest.raises(LocalProtocolError, match="end behind"):
            await chunks.read([(shard, 4096, room)])
        with pytest.raises(LocalProtocolError, match="cannot be cut"):
            await machine.store.shelves.take(shard, 16, 0)

    run(scenario)


def test_full_disk_takes_no_shard_and_keeps_what_it_has() -> None:
    """A free cell is used all the same."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(0, 1))
        machine.fill()
        used = machine.store.usage.used
        await install(machine, *(shard_of(0, sequence) for sequence in range(2, DATA + 1)))

        with pytest.raises(PoolFull):
            await install(machine, shard_of(0, 9))

        assert machine.store.usage.used == used
        assert adds_up(machine)

    run(scenario)


# --- deleting -----------------------------------------------------------------------------


@pytest.mark.parametrize("grace_s", [0.0, GRACE_S])
def test_delete_of_a_chunk_takes_all_of_its_parts(grace_s: float) -> None:
    """Whole copy and shards; the shelf's slot is free with its last cell."""

    async def scenario(machine: Machine) -> None:
        store = machine.store
        append(machine, CHUNK, made(CHUNK, 2))
        await install(machine, shard_of(0), shard_of(5), shard_of(1, 2))

        deleted = await store.delete(5, EPOCH, [CHUNK, ChunkId(5, 2, 0, 77)])
        await machine.let_time_pass(GRACE_S + 1)

        assert deleted == 1
        assert store.chunks() == [shard_of(1, 2)[0]]
        room = cell_bytes(DATA, SMALL.slot_bytes)
        assert store.shelves.free_bytes == (DATA - 1) * room
        assert await store.delete(5, EPOCH, [shard_of(1, 2)[0]]) == 1
        await machine.let_time_pass(GRACE_S + 1)
        assert store.shelves.count == 0
        assert store.usage.used == store.usage.trash == 0
        second = again(machine)
        assert second.store.chunks() == []
        assert second.store.usage.used == 0
        await second.store.close()

    run(scenario, grace_s=grace_s)


def test_drop_takes_only_what_it_names() -> None:
    """A surplus whole copy goes, the shard of the same chunk stays; and the other way round."""

    async def scenario(machine: Machine) -> None:
        append(machine, CHUNK, made(CHUNK, 2))
        await install(machine, shard_of(0), shard_of(1))

        assert await machine.store.copies.drop([CHUNK]) == 1
        assert sorted(machine.store.chunks()) == [shard_of(0)[0], shard_of(1)[0]]
        assert await machine.store.copies.drop([shard_of(1)[0]]) == 1
        assert machine.store.chunks() == [shard_of(0)[0]]
        assert adds_up(machine)

    run(scenario, grace_s=0.0)


def test_deleted_shard_is_taken_back_within_the_grace_period() -> None:
    """Its cell is not given to another one while it is in the trash."""

    async def scenario(machine: Machine) -> None:
        shard, content = shard_of(0)
        await install(machine, (shard, content))
        await machine.store.delete(5, EPOCH, [CHUNK])
        assert (await examine(machine, shard)).state is Presence.ABSENT
        await install(machine, *(shard_of(0, sequence) for sequence in range(2, DATA + 2)))
        assert machine.store.usage.used == 2

        await machine.store.restore(shard)

        assert await examine(machine, shard) == whole(shard, content)
        assert adds_up(machine)

    run(scenario)


def test_cells_in_the_trash_make_room() -> None:
    """A writer that finds no slot gets that of a shelf whose shards were all deleted."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(0, 1), shard_of(0, 2))
        machine.fill()
        await machine.store.copies.drop([shard_of(0, 1)[0], shard_of(0, 2)[0]])

        await LocalChunks(machine.store).open(ChunkId(9, 1, 0, 9999), from_reserve=False)

        assert machine.store.shelves.count == 0
        assert machine.store.trash == []

    run(scenario)


def test_fence_and_delete_go_by_the_volume_of_a_shard() -> None:
    """The number in the id is no part of the volume's."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(3))
        with pytest.raises(LocalProtocolError, match="not of volume"):
            await machine.store.delete(6, EPOCH, [shard_of(3)[0]])
        machine.store.fences.advance(5, EPOCH + 1)
        with pytest.raises(Fenced):
            await machine.store.delete(5, EPOCH, [shard_of(3)[0]])
        with pytest.raises(Fenced):
            await install(machine, shard_of(4))

    run(scenario)


# --- damage -------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_cell_is_found_and_mended() -> None:
    """In the header, the descriptor, the payload: nothing of the shard is valid any more, and
    installing it again makes it whole."""

    async def scenario(machine: Machine) -> None:
        shard, content = shard_of(1)
        await install(machine, (shard, content), shard_of(2), shard_of(3))
        size = PLACE_BYTES + len(content)
        places = [*range(0, 60, 3), 511, 512, 530, 4095, *random.Random(9).sample(range(size), 20)]
        for at in places:
            address = cell_of(machine, shard).address
            [byte] = machine.disk.read(address + at, 1)
            machine.disk.write(address + at, bytes([byte ^ 16]))
            damaged = Examined(shard, Presence.PRESENT, FIRST, 0, 0)

            found = await examine(machine, shard)

            assert found == damaged, at
            await install(machine, (shard, content))
            assert await examine(machine, shard) == whole(shard, content), at
            assert adds_up(machine)
        assert await examine(machine, shard_of(2)[0]) == whole(*shard_of(2))

    run(scenario, grace_s=0.0)


def test_what_was_found_once_is_remembered_until_it_is_asked_afresh() -> None:
    """As for whole copies."""

    async def scenario(machine: Machine) -> None:
        shard, content = shard_of(1)
        await install(machine, (shard, content))
        assert await machine.store.copies.examine([shard]) == [whole(shard, content)]
        machine.disk.write(cell_of(machine, shard).address + 5000, b"\xff\x00\xff")

        assert await machine.store.copies.examine([shard]) == [whole(shard, content)]
        assert (await examine(machine, shard)).records == 0
        assert [one.records for one in await machine.store.copies.examine([shard])] == [0]

    run(scenario)


def test_shard_that_cannot_be_read_is_unknown() -> None:
    """A disk that answers with an error does not say that the shard is gone."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(1))
        machine.disk.fail("read", 1, errno.EIO)
        assert (await examine(machine, shard_of(1)[0])).state is Presence.UNKNOWN
        assert await examine(machine, shard_of(1)[0]) == whole(*shard_of(1))

    run(scenario)


def test_cell_with_a_damaged_header_is_quarantined() -> None:
    """After a restart the shard is unknown, its neighbours are there, its cell is not used; and
    putting the shard there again makes it known."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(1), shard_of(2))
        shard, content = shard_of(1)
        machine.disk.write(cell_of(machine, shard).address + 9, b"xyz")
        second = again(machine)

        assert len(second.store.damaged) == 1
        assert "cell 0" in second.store.damaged[0]
        assert second.store.chunks() == [shard_of(2)[0]]
        assert (await examine(second, shard)).state is Presence.UNKNOWN
        assert (await examine(second, shard_of(3)[0])).state is Presence.ABSENT
        room = cell_bytes(DATA, SMALL.slot_bytes)
        assert second.store.shelves.free_bytes == (DATA - 2) * room
        await install(second, (shard, content))
        assert await examine(second, shard) == whole(shard, content)
        await second.store.delete(5, EPOCH, [CHUNK])
        await second.let_time_pass(GRACE_S + 1)
        assert second.store.shelves.count == 1  # nobody knows what the damaged cell holds
        await second.store.close()

    run(scenario)


def test_shelf_whose_header_was_lost_is_found_again() -> None:
    """Zeroes where the slot's header was: the second one says that it is a shelf."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(1), shard_of(2))
        machine.disk.write(cell_of(machine, shard_of(1)[0]).shelf.slot.address, bytes(512))
        second = again(machine)

        assert second.store.damaged == []
        assert await examine(second, shard_of(1)[0]) == whole(*shard_of(1))
        assert adds_up(second)
        await second.store.close()

    run(scenario)


@pytest.mark.parametrize("both", [False, True])
def test_shards_of_a_damaged_shelf_are_unknown(both: bool) -> None:
    """Rubbish in the first or in both headers: the slot is quarantined, its shards are unknown."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(1), shard_of(2))
        address = cell_of(machine, shard_of(1)[0]).shelf.slot.address
        machine.disk.write(address + 4, b"rubbish")
        if both:
            machine.disk.write(address + 512 + 4, b"rubbish")
        second = again(machine)

        assert second.store.usage.quarantined == 1
        for number, state in ((1, Presence.UNKNOWN), (2, Presence.UNKNOWN), (3, Presence.ABSENT)):
            assert (await examine(second, shard_id(CHUNK, number))).state is state
        await second.store.close()

    run(scenario)


def test_cell_in_a_foreign_place_is_not_taken() -> None:
    """A cell that was copied elsewhere names the place where it belongs."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(1), shard_of(2, 2))
        source, target = cell_of(machine, shard_of(1)[0]), cell_of(machine, shard_of(2, 2)[0])
        machine.disk.write(target.address, machine.disk.read(source.address, source.room))
        second = again(machine)

        assert second.store.chunks() == [shard_of(1)[0]]
        assert len(second.store.damaged) == 1
        assert "cell belongs to disk" in second.store.damaged[0]
        await second.store.close()

    run(scenario)


def test_shelf_in_a_foreign_place_is_not_taken() -> None:
    """Of a slot, its header included, that was copied onto another one."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(1))
        append(machine, CHUNK, made(CHUNK, 1))
        source = cell_of(machine, shard_of(1)[0]).shelf.slot.address
        target = machine.store.find(CHUNK)
        assert target is not None
        machine.disk.write(target.address, machine.disk.read(source, SMALL.slot_bytes))
        second = again(machine)

        assert second.store.chunks() == [shard_of(1)[0]]
        assert second.store.usage.quarantined == 1
        await second.store.close()

    run(scenario)


@pytest.mark.parametrize("offset", [512, 4096, 4608, 20480])
def test_content_of_a_chunk_is_never_taken_for_cells(offset: int) -> None:
    """A slot that becomes a shelf may hold what a guest wrote: whole shards, at their very
    place, with headers that are right in every respect."""

    async def scenario(machine: Machine) -> None:
        await install(machine, *(shard_of(0, sequence) for sequence in range(1, DATA + 1)))
        shelf = cell_of(machine, shard_of(0)[0]).shelf.slot
        image = machine.disk.read(shelf.address, SMALL.slot_bytes)
        await machine.store.delete(5, EPOCH, [ChunkId(5, 2, 0, one) for one in range(1, DATA + 1)])
        machine.disk.write(shelf.address + offset, image[offset:])

        await install(machine, shard_of(1, 9))

        assert cell_of(machine, shard_of(1, 9)[0]).shelf.slot.address == shelf.address
        second = again(machine)
        assert second.store.chunks() == [shard_of(1, 9)[0]]
        assert second.store.damaged == []
        await second.store.close()

    run(scenario, grace_s=0.0)


# --- failures -----------------------------------------------------------------------------


async def _steps(machine: Machine) -> None:
    """Do some of everything."""
    await install(machine, shard_of(0), shard_of(1), shard_of(2, 2))
    await install(machine, shard_of(1, fill=3))
    await machine.store.copies.drop([shard_of(0)[0]])
    await install(machine, shard_of(4, 3))
    await machine.store.delete(5, EPOCH, [CHUNK, ChunkId(5, 2, 0, 2), ChunkId(5, 2, 0, 3)])
    await install(machine, shard_of(5, 4))


@pytest.mark.parametrize("kind", ["write", "sync", "allocate"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_disk_that_fails_at_any_call(kind: str, error: int) -> None:
    """No space refuses that step and leaks nothing; another error takes the disk out.  What is
    left after a restart is whole."""

    async def scenario(at: int) -> bool:
        machine = Machine(at, grace_s=0.0)
        machine.disk.fail(kind, at, error, part=0.5)
        try:
            await _steps(machine)
        except PoolFull:
            assert error == errno.ENOSPC
            await machine.settle()
            assert adds_up(machine), at
            await _steps(machine)  # it goes on as if nothing had been
            assert machine.store.chunks() == [shard_of(5, 4)[0]]
            assert adds_up(machine), at
        except DiskFailed:
            assert error == errno.EIO or kind == "sync"
        failed = bool(machine.disk.failures)
        await machine.store.close()
        second = again(machine)
        for shard in second.store.chunks():
            assert (await examine(second, shard)).records, at
        assert second.store.damaged == []
        assert adds_up(second), at
        await second.store.close()
        return failed

    at = 1
    while asyncio.run(scenario(at)):
        at += 1
    assert at > {"write": 20, "sync": 15, "allocate": 1}[kind]


def parts(machine: Machine) -> Iterable[tuple[ChunkId, int]]:
    """Return chunks and volumes of what is here: for completeness of the ids."""
    return ((whole_id(one), volume_of(one)) for one in machine.store.chunks())


def test_ids_of_what_is_here_lead_to_the_volume() -> None:
    """Whoever lists chunks can tell whose they are."""

    async def scenario(machine: Machine) -> None:
        await install(machine, shard_of(0), shard_of(5))
        assert set(parts(machine)) == {(CHUNK, 5)}
        assert machine.store.slots.parts_of(CHUNK) == machine.store.chunks()
        assert machine.store.slots.shards == 2
        assert limits.ERASURE_DATA_MAX + limits.ERASURE_PARITY_MAX == 22

    run(scenario)
