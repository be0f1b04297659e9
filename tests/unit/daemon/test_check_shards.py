"""`torus check` and `torus segment inspect` know shelves and shards."""

import asyncio
import json
import random
from pathlib import Path

import pytest

from tests.unit.daemon.conftest import Directory, write_directory
from torus import limits
from torus.daemon.offline import inspect_segment
from torus.format.segment import FREED_SLOT
from torus.format.shard import (
    PAYLOAD_OFFSET,
    PLACE_BYTES,
    CellHeader,
    cell_offset,
    pack_shard,
    payload_bytes,
)
from torus.ids import ChunkId, shard_id
from torus.store.content import FIRST
from torus.testing.world import World

SLOT = 64 * limits.KIB
DATA, PARITY = 4, 2
EACH = payload_bytes(DATA, SLOT)
NUMBERS = (0, 2, 5)


def _shard(volume: int, number: int) -> tuple[ChunkId, bytes]:
    chunk = ChunkId(volume, 1, 0, 3)
    payload = random.Random(number).randbytes(EACH)
    packed = pack_shard(
        chunk, number, DATA, PARITY, content_end=FIRST + DATA * EACH, content_crc=7, payload=payload
    )
    return shard_id(chunk, number), packed


async def _made(path: Path, volume: int | None) -> Directory:
    world = World(random.Random(1))
    world.store.open()
    await world.catalog.init_cluster()
    made = (await world.catalog.create("v", 512 * limits.KIB)).volume
    for number in NUMBERS:
        shard, content = _shard(made if volume is None else volume, number)
        await world.store.copies.install(shard, 1, FIRST + len(content), content)
    await world.stop()
    return write_directory(path, world.disk.image, world.metadata.snapshot())


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return asyncio.run(_made(tmp_path, None))


def _cell(number: int) -> int:
    """Return where in its file a cell of the first slot begins."""
    return limits.SEGMENT_HEADER_BYTES + cell_offset(DATA, number, SLOT)


def test_shards_are_checked_and_shown(directory: Directory) -> None:
    """Nothing is wrong: each cell has a row, each shard is counted and read."""
    report = directory.check()
    found = inspect_segment(directory.segment())

    assert report.findings == ()
    assert (report.shards, report.chunks) == (len(NUMBERS), 0)
    assert report.slots_free == report.slots - 1
    assert report.bytes_read >= len(NUMBERS) * EACH
    assert found["slots"][0]["state"] == "shelf"
    assert [row["state"] for row in found["shards"]] == ["used", "used", "used", "free"]
    assert [row["shard"] for row in found["shards"][:3]] == [f"1:1.0:3#{one}" for one in NUMBERS]
    assert found["shards"][0] == {
        "slot": 0, "cell": 0, "state": "used", "shard": "1:1.0:3#0", "copy": 0, "data": DATA,
        "parity": PARITY, "content_end": FIRST + DATA * EACH, "payload_bytes": EACH,
    }  # fmt: skip
    assert found["findings"] == []
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("offset", "kind", "word"),
    [
        (20, "bad-slot", "header"),
        (PLACE_BYTES + 30, "bad-shard", "descriptor"),
        (PAYLOAD_OFFSET, "bad-shard", "bytes from 0"),
        (PAYLOAD_OFFSET + EACH - 1, "bad-shard", f"bytes from {EACH - 4096}"),
    ],
)
def test_flipped_bit_is_found(directory: Directory, offset: int, kind: str, word: str) -> None:
    """Where it is, and what: once, by the check and by a look into the file."""
    directory.flip(directory.segment(), _cell(1) + offset)

    report = directory.check()
    found = inspect_segment(directory.segment())

    assert [one.kind for one in report.findings] == [kind]
    assert word in report.findings[0].message
    assert report.ok == (kind == "bad-shard")
    assert [row["state"] for row in found["shards"]] == ["used", "damaged", "used", "free"]
    assert [one["where"] for one in found["findings"]] == ["slot 0 cell 1"]
    assert word in found["findings"][0]["message"]


def test_cell_in_a_foreign_place(directory: Directory) -> None:
    """A copied cell names the one where it belongs."""
    path = directory.segment()
    data = path.read_bytes()
    directory.write(path, _cell(3), data[_cell(0) : _cell(1)])

    [finding] = directory.check().findings

    assert finding.kind == "foreign-slot"
    assert inspect_segment(path)["shards"][3]["state"] == "damaged"


def test_shard_that_lies_there_twice(directory: Directory) -> None:
    """Of two copies the later is it; of two equal ones nobody can tell."""
    path = directory.segment()
    data = path.read_bytes()
    header = bytearray(data[_cell(0) : _cell(0) + PLACE_BYTES])
    before = CellHeader.unpack(bytes(header), "")
    assert before is not None
    for copy, findings in ((1, []), (0, ["duplicate-chunk"])):
        moved = CellHeader(before.disk_id, 0, 0, 3, DATA, before.shard, copy).pack()
        directory.write(path, _cell(3), moved + data[_cell(0) + PLACE_BYTES : _cell(1)])
        report = directory.check()
        assert [one.kind for one in report.findings] == findings
        assert report.shards == len(NUMBERS)


def test_lost_header_of_a_shelf(directory: Directory) -> None:
    """Zeroes in its place are no damage: the second one serves; rubbish is."""
    path, at = directory.segment(), limits.SEGMENT_HEADER_BYTES
    directory.write(path, at, bytes(512))
    assert directory.check().findings == ()
    assert inspect_segment(path)["slots"][0]["state"] == "shelf"
    directory.write(path, at, b"rubbish")
    assert [one.kind for one in directory.check().findings] == ["bad-slot"]
    directory.write(path, at, FREED_SLOT)
    assert directory.check().shards == 0


def test_shards_of_an_unknown_volume(tmp_path: Path) -> None:
    """Newer than the metadata: told, as chunks are."""
    directory = asyncio.run(_made(tmp_path, 77))

    kinds = {one.kind for one in directory.check().findings}

    assert kinds == {"unknown-volume", "stale-metadata"}
