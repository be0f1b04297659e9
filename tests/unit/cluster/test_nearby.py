"""Chunks of another process of this host, read from its files."""

import asyncio
import errno
import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.contract import chunk_places
from tests.contract.chunk_places import DISK, FIRST, LOOPS, Place, build
from torus import limits
from torus._fast.peerframe import read_done_now
from torus.cluster.nearby import NearbyFiles, Offer
from torus.cluster.peer import PeerChunks
from torus.errors import RemoteProtocolError, Unavailable
from torus.ids import ChunkId
from torus.net.descriptors import TOKEN_BYTES, fetch
from torus.node.places import Places

ONE, TWO = ChunkId(5, 2, 0, 1), ChunkId(5, 2, 0, 2)
BLOCK_AT = FIRST + limits.RECORD_ALIGN_BYTES  # of the first block of a record


class Neighbour:
    """A node's disk behind a unix socket, and a process of the same host."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.nearby = NearbyFiles()

    @property
    def chunks(self) -> PeerChunks:
        """The disk as the process reaches it."""
        assert isinstance(self.place.chunks, PeerChunks)
        return self.place.chunks

    async def write(self, chunk: ChunkId, fill: int) -> None:
        """Write a chunk of one block."""
        writer = await self.chunks.open(chunk, from_reserve=False)
        await writer.append(0, FIRST, build(chunk, 0, FIRST, fill=fill))

    async def address_of(self, chunk: ChunkId) -> int:
        """Ask until the place is known."""
        async with asyncio.timeout(30):
            while (found := self.nearby.place(chunk, self.chunks)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        return found

    def block_at(self, address: int) -> bytes:
        """Read a block from the files."""
        frame = read_done_now(1, self.nearby.io, [(address + BLOCK_AT, limits.BLOCK_BYTES)])
        assert frame is not None
        return frame[-limits.BLOCK_BYTES :]


@pytest.fixture(params=list(LOOPS))
def run(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    socket_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[Neighbour], Awaitable[None]]], None]:
    """Give what runs a scenario on each loop."""
    monkeypatch.setattr(chunk_places, "SLOT_BYTES", limits.SLOT_BYTES)
    monkeypatch.setattr(chunk_places, "SLOTS", limits.SEGMENT_SLOTS)
    place = Place("peer", request.param, tmp_path / "data", socket_folder)

    def go(scenario: Callable[[Neighbour], Awaitable[None]]) -> None:
        neighbour = Neighbour(place)

        async def with_places() -> None:
            places = Places({DISK: place.store})
            places.start()

            async def report(question: bytes) -> bytes:
                return places.answer(question)

            place.service.on_report = report
            try:
                await scenario(neighbour)
            finally:
                await neighbour.nearby.close()
                await places.close()

        place.run(with_places)

    return go


Run = Callable[[Callable[[Neighbour], Awaitable[None]]], None]


def test_chunk_is_read_from_the_node_s_file(run: Run) -> None:
    """What is appended later is there as well: it is the same file."""

    async def scenario(one: Neighbour) -> None:
        await one.write(ONE, 7)
        address = await one.address_of(ONE)
        assert one.block_at(address) == bytes([7]) * limits.BLOCK_BYTES
        await one.write(TWO, 9)
        assert one.block_at(await one.address_of(TWO)) == bytes([9]) * limits.BLOCK_BYTES
        assert len(one.nearby._files) == 1  # both lie in the same segment

    run(scenario)


def test_bytes_that_are_there_are_read_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none that are not: behind the end of the file, or of a file that was closed.  A file
    system that cannot say whether it would wait is one in memory."""

    async def scenario(one: Neighbour) -> None:
        await one.write(ONE, 7)
        address = await one.address_of(ONE) + BLOCK_AT
        block = bytes([7]) * limits.BLOCK_BYTES
        assert one.nearby.read(address, limits.BLOCK_BYTES) == block
        assert one.nearby.read(address, 1 << 29) is None
        assert one.nearby.read(1 << 40, 1) is None
        read = os.preadv

        def refusing(file: int, pieces: list[bytearray], at: int, flags: int) -> int:
            if flags:
                raise OSError(errno.EOPNOTSUPP, "not here")
            return read(file, pieces, at)

        monkeypatch.setattr(os, "preadv", refusing)
        assert one.nearby.read(address, limits.BLOCK_BYTES) == block
        await one.nearby.close()
        assert one.nearby.read(address, limits.BLOCK_BYTES) is None

    run(scenario)


def test_answer_is_given_out_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds that it is wrong asks anew, and hears where the chunk is now."""
    monkeypatch.setattr("torus.cluster.nearby._AGAIN_S", 0.0)  # it may be asked while it is gone

    async def scenario(one: Neighbour) -> None:
        await one.write(ONE, 7)
        first = await one.address_of(ONE)
        assert one.nearby.place(ONE, one.chunks) is None
        store = one.place.store
        content = store.disk.read(first + FIRST, limits.SLOT_BYTES - FIRST)
        end = store.slots.get(ONE).end
        await store.delete(ONE.volume, ONE.epoch, [ONE])
        await one.write(TWO, 9)  # takes the slot
        await store.copies.install(ONE, ONE.epoch, end, content[: end - FIRST])
        second = await one.address_of(ONE)
        assert second != first
        assert one.block_at(second) == bytes([7]) * limits.BLOCK_BYTES

    run(scenario)


def test_chunk_that_is_not_there_has_no_place(run: Run) -> None:
    """And the node is not asked again at once."""

    async def scenario(one: Neighbour) -> None:
        await one.write(ONE, 7)
        assert one.nearby.place(TWO, one.chunks) is None
        async with asyncio.timeout(30):
            while TWO in one.nearby._asking:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert one.nearby.place(TWO, one.chunks) is None
        assert not one.nearby._asking

    run(scenario)


def test_so_many_files_are_open_and_no_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in others is read through the node."""
    monkeypatch.setattr(limits, "NEARBY_FILES_MAX", 0)

    async def scenario(one: Neighbour) -> None:
        await one.write(ONE, 7)
        assert one.nearby.place(ONE, one.chunks) is None
        async with asyncio.timeout(30):
            while ONE in one.nearby._asking:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert one.nearby.place(ONE, one.chunks) is None
        assert not one.nearby._files

    run(scenario)


def test_file_is_given_for_the_token_and_for_reading_only(run: Run) -> None:
    """A stranger who finds the socket gets nothing; a friend cannot write."""

    async def scenario(one: Neighbour) -> None:
        await one.write(ONE, 7)
        question = b'{"ask": "place", "disk": "%s", "chunk": [5, 2, 0, 1]}' % DISK.encode()
        offer = Offer.from_json(await one.chunks.report(question))
        assert offer is not None
        with pytest.raises(Unavailable, match="not given away"):
            await fetch(offer.name, bytes(TOKEN_BYTES), DISK, 0)
        with pytest.raises(Unavailable, match="not given away"):
            await fetch(offer.name, offer.token, DISK, 99)
        with pytest.raises(Unavailable, match="not given away"):
            await fetch(offer.name, offer.token, "ab" * 16, 0)
        with pytest.raises(Unavailable, match="cannot be had"):
            await fetch(b"\0torus-nobody".hex(), offer.token, DISK, 0)
        file = await fetch(offer.name, offer.token, DISK, 0)
        try:
            assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            assert not os.get_inheritable(file)
        finally:
            os.close(file)

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"address": 1}',
        b'{"address": -1, "segment_bytes": 268435456, "name": "", "token": "%s"}' % (b"00" * 16),
        b'{"address": 1, "segment_bytes": 268435456, "name": "", "token": "00"}',
        b'{"address": 1, "segment_bytes": 268435456, "name": "", "token": "zz"}',
    ],
)
def test_answer_that_is_none_is_refused(answer: bytes) -> None:
    """Before anything is done with it."""
    with pytest.raises(RemoteProtocolError):
        Offer.from_json(answer)


def test_disk_that_is_cut_up_in_another_way_is_not_read() -> None:
    """Addresses would mean other places."""
    answer = b'{"address": 0, "segment_bytes": 4096, "name": "00", "token": "%s"}' % (b"00" * 16)
    assert Offer.from_json(answer) is None
