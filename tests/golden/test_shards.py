"""Frozen bytes of shelves, cells and shards, version 1.

Never regenerated: a new format gets new ones beside these, which stay readable.
"""

import pytest

from torus import limits
from torus._fast.crc import checksum
from torus.errors import Corruption, ForeignData, LocalProtocolError, UnknownVersion
from torus.format.segment import FREED_SLOT, SlotHeader
from torus.format.shard import (
    CellHeader,
    Descriptor,
    cell_bytes,
    cell_offset,
    content_max,
    describe,
    join,
    open_shard,
    pack_shard,
    payload_bytes,
    shelf_data,
    shelf_id,
    stored_bytes,
)
from torus.ids import ChunkId, is_shard, shard_id, split_part, volume_of, whole_id

DISK_ID = bytes(range(16))
CHUNK = ChunkId(0x02030405060708, 0x11121314, 0x2122, 0x31323334)
SHELF = (
    bytes.fromhex(
        "54534c54 0100 0000"  # TSLT, version 1
        "000102030405060708090a0b0c0d0e0f 2a000000 03000000"  # disk, segment 42, slot 3
        "04000000000000ff 00000000 0000 830a0000"  # shelf of 4 cells, slot 2691 of the disk
    )
    + bytes(512 - 50 - 4)
    + bytes.fromhex("dc3975b0")
)
CELL = (
    bytes.fromhex(
        "5443454c 0100 0700"  # TCEL, version 1, copy 7
        "000102030405060708090a0b0c0d0e0f 2a000000 03000000"  # disk, segment 42, slot 3
        "02000000 04000000"  # cell 2 of 4
        "0807060504030206 14131211 2221 34333231"  # shard 5 of volume, epoch, tag, sequence
    )
    + bytes(512 - 58 - 4)
    + bytes.fromhex("81126025")
)
DESCRIPTOR = (
    bytes.fromhex(
        "54534844 0100 04 02 05 000000"  # TSHD, version 1, 4+2, shard 5
        "0807060504030200 14131211 2221 34333231"  # chunk
        "00220000 00200000 44434241"  # content ends at 8704, 8192 bytes of payload, CRC of it all
    )
    + bytes(64 - 42)
    + bytes.fromhex("93413794 98757625")  # of the two columns
    + bytes(3584 - 64 - 8 - 4)
    + bytes.fromhex("69db1f1f")
)
PAYLOAD = b"\xab" * 4096 + b"\xcd" * 4096


def test_ids() -> None:
    """The number of a shard, plus one, is the top byte of the volume."""
    shard = shard_id(CHUNK, 5)

    assert shard == CHUNK._replace(volume=0x0602030405060708)
    assert str(shard) == f"{CHUNK}#5"
    assert split_part(shard) == (CHUNK, 5)
    assert split_part(CHUNK) == (CHUNK, None)
    assert (whole_id(shard), whole_id(CHUNK)) == (CHUNK, CHUNK)
    assert volume_of(shard) == volume_of(CHUNK) == CHUNK.volume
    assert (is_shard(shard), is_shard(CHUNK)) == (True, False)
    for kind in (23, 0x80, 0xFF):
        with pytest.raises(LocalProtocolError, match="names no part"):
            split_part(CHUNK._replace(volume=kind << 56 | 5))


def test_shelf() -> None:
    """The header of a slot that is cut into cells."""
    shelf = shelf_id(4, 42 * 64 + 3)

    assert SlotHeader(DISK_ID, 42, 3, shelf).pack() == SHELF
    found = SlotHeader.unpack(SHELF, "")
    assert found is not None
    assert shelf_data(found.chunk) == 4
    assert shelf_data(CHUNK) is shelf_data(shard_id(CHUNK, 21)) is None


def test_cell_header() -> None:
    """The first sector of a used cell."""
    header = CellHeader(DISK_ID, 42, 3, 2, 4, shard_id(CHUNK, 5), 7)

    assert header.pack() == CELL
    assert CellHeader.unpack(CELL, "") == header
    assert CellHeader.unpack(FREED_SLOT, "") is None
    assert CellHeader.unpack(bytes(512), "") is None
    header.check_place(DISK_ID, 42, 3, 2, 4, "")
    places = ((bytes(16), 42, 3, 2, 4), (DISK_ID, 41, 3, 2, 4), (DISK_ID, 42, 4, 2, 4))
    for place in (*places, (DISK_ID, 42, 3, 1, 4), (DISK_ID, 42, 3, 2, 5)):
        with pytest.raises(ForeignData):
            header.check_place(*place, "")


def test_descriptor() -> None:
    """What stands before a shard's payload, on the disk and on its way."""
    described = describe(CHUNK, 5, 4, 2, content_end=8704, content_crc=0x41424344, payload=PAYLOAD)

    assert described.pack() == DESCRIPTOR
    assert Descriptor.unpack(DESCRIPTOR, "") == described
    assert open_shard(DESCRIPTOR + PAYLOAD, shard_id(CHUNK, 5)) == described
    assert join(described, PAYLOAD) == DESCRIPTOR + PAYLOAD
    packed = pack_shard(CHUNK, 5, 4, 2, content_end=8704, content_crc=0x41424344, payload=PAYLOAD)
    assert packed == DESCRIPTOR + PAYLOAD


def test_descriptor_of_another_version_is_refused() -> None:
    """Unknown is not damaged."""
    for made, at, unpack in (
        (CELL, 508, CellHeader.unpack),
        (DESCRIPTOR, 3580, Descriptor.unpack),
    ):
        newer = _with_crc(made[:4] + b"\x02" + made[5:at])
        with pytest.raises(UnknownVersion):
            unpack(newer, "")
        with pytest.raises(Corruption):
            unpack(made[:4] + b"\x02" + made[5:], "")
    for bad in (DESCRIPTOR[:-1], _with_crc(b"XXXX" + DESCRIPTOR[4:3580])):
        with pytest.raises(Corruption):
            Descriptor.unpack(bad, "")


@pytest.mark.parametrize(
    ("at", "value"), [(6, 1), (6, 17), (7, 0), (7, 7), (8, 6), (30, 0), (34, 1), (37, 255)]
)
def test_descriptor_that_cannot_be_is_refused(at: int, value: int) -> None:
    """K, M, the number and the sizes have bounds, whatever the checksum says."""
    changed = bytearray(DESCRIPTOR[:3580])
    changed[at] = value
    if at == 30:
        changed[30:34] = bytes(4)
    with pytest.raises(Corruption, match="cannot be"):
        Descriptor.unpack(_with_crc(bytes(changed)), "")


def _with_crc(body: bytes) -> bytes:
    return body + checksum(body).to_bytes(4, "little")


def test_how_a_slot_is_cut() -> None:
    """Never to be changed: shards would not be found, or would not fit each other."""
    assert [cell_bytes(data) // 4096 for data in range(2, 17)] == [
        511, 341, 255, 204, 170, 146, 127, 113, 102, 93, 85, 78, 73, 68, 63,
    ]  # fmt: skip
    assert [payload_bytes(data) for data in (2, 4, 16)] == [2088960, 1040384, 253952]
    assert min(content_max(data) for data in range(2, 17)) == content_max(16) == 4063232
    assert cell_offset(4, 3) == 4096 + 3 * 255 * 4096
    for data in range(2, 17):
        end = cell_offset(data, data - 1) + cell_bytes(data)
        assert end <= limits.SLOT_BYTES


def test_how_much_of_a_shard_is_stored() -> None:
    """Whole columns up to the end of the content; parity as much as the first data shard."""
    each = payload_bytes(4)

    assert [stored_bytes(each + 512, 4, number) for number in range(6)] == [
        each, 4096, 0, 0, each, each,
    ]  # fmt: skip
    assert [stored_bytes(512, 4, number) for number in range(6)] == [4096, 0, 0, 0, 4096, 4096]
    assert [stored_bytes(4 * each, 4, number) for number in range(6)] == [each] * 6
