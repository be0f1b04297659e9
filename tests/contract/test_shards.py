"""What every `Chunks` promises of shards, near and far: the same tests over both."""

from pathlib import Path

import pytest

from tests.contract.chunk_places import FIRST, SLOT_BYTES, Place, build
from torus import limits
from torus.errors import AlreadyExists, Corruption, Fenced, LocalProtocolError
from torus.format.shard import (
    DESCRIPTOR_BYTES,
    PAYLOAD_OFFSET,
    PLACE_BYTES,
    Descriptor,
    cell_bytes,
    pack_shard,
    payload_bytes,
)
from torus.ids import ChunkId, shard_id
from torus.store.content import Examined, Presence

CHUNK = ChunkId(5, 2, 0, 1)
EPOCH = 3
PLACES = ["local-asyncio", "peer-asyncio", "peer-uvloop", "tcp-asyncio"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, socket_folder: Path) -> Place:
    """Give one store, reached each way on each loop."""
    kind, _, loop = request.param.partition("-")
    return Place(kind, loop, tmp_path / "data", socket_folder)


def shard(number: int, *, data: int = 4, parity: int = 2, fill: int = 1) -> tuple[ChunkId, bytes]:
    """Return a whole shard as it travels."""
    each = payload_bytes(data, SLOT_BYTES)
    payload = bytes([fill + number]) * each
    packed = pack_shard(
        CHUNK, number, data, parity, content_end=FIRST + data * each, content_crc=fill,
        payload=payload,
    )  # fmt: skip
    return shard_id(CHUNK, number), packed


def test_shard_is_put_there_read_and_deleted(place: Place) -> None:
    """In one read descriptor and column; listed and examined under its own id; deleted with its
    chunk; also after a restart."""

    async def scenario() -> None:
        for number in (0, 5):
            one, content = shard(number)
            await place.chunks.install(one, EPOCH, FIRST + len(content), content)
        writer = await place.chunks.open(CHUNK, from_reserve=False)
        await writer.append(0, FIRST, build(CHUNK, 0, FIRST))
        await place.chunks.sync([CHUNK])
        await place.restart()
        chunks, (one, content) = place.chunks, shard(5)

        descriptor, column, both = await chunks.read(
            [
                (one, PLACE_BYTES, DESCRIPTOR_BYTES),
                (one, PAYLOAD_OFFSET + limits.BLOCK_BYTES, limits.BLOCK_BYTES),
                (shard(0)[0], PLACE_BYTES, len(shard(0)[1])),
            ]
        )

        found = Descriptor.unpack(descriptor, "")
        assert descriptor + column * 2 == content
        assert (found.shard, found.bad_column(column, 1)) == (one, None)
        assert both == shard(0)[1]
        assert sorted(await chunks.list(5)) == [CHUNK, shard_id(CHUNK, 0), shard_id(CHUNK, 5)]
        assert await chunks.examine([one, shard(1)[0]], afresh=True) == [
            Examined(one, Presence.PRESENT, found.content_end, 4 << 8 | 2, 1),
            Examined(shard(1)[0], Presence.ABSENT, 0, 0, 0),
        ]
        await chunks.sync([one, CHUNK])
        assert await chunks.delete(5, EPOCH, [CHUNK]) == 1
        assert await chunks.list(5) == []
        with pytest.raises(Corruption, match="not on disk"):
            await chunks.read([(one, PLACE_BYTES, 512)])

    place.run(scenario)


def test_shard_that_cannot_be_had_is_refused(place: Place) -> None:
    """One flipped bit, another's number, the end, an old epoch, another K."""

    async def scenario() -> None:
        chunks, (one, content) = place.chunks, shard(1)
        end = FIRST + len(content)
        damaged = content[:-1] + bytes([content[-1] ^ 1])
        with pytest.raises(Corruption, match="damaged"):
            await chunks.install(one, EPOCH, end, damaged)
        with pytest.raises(Corruption, match="are those of"):
            await chunks.install(shard_id(CHUNK, 2), EPOCH, end, content)
        with pytest.raises(LocalProtocolError):
            await chunks.install(CHUNK._replace(volume=200 << 56 | 5), EPOCH, end, content)
        await chunks.install(one, EPOCH, end, content)
        other, larger = shard(1, data=2, parity=1)
        with pytest.raises(AlreadyExists):
            await chunks.install(other, EPOCH, FIRST + len(larger), larger)
        with pytest.raises(LocalProtocolError, match="end behind"):
            await chunks.read([(one, cell_bytes(4, SLOT_BYTES) - 512, 1024)])
        with pytest.raises(LocalProtocolError):
            await chunks.scan(one, EPOCH, FIRST)
        with pytest.raises(LocalProtocolError):
            await chunks.open(shard_id(CHUNK, 9), from_reserve=False)
        with pytest.raises(LocalProtocolError, match="no volume"):
            await chunks.fence(one.volume, EPOCH)
        await chunks.fence(5, EPOCH + 1)
        with pytest.raises(Fenced):
            await chunks.install(one, EPOCH, end, content)
        with pytest.raises(Fenced):
            await chunks.delete(5, EPOCH, [CHUNK])

    place.run(scenario)
