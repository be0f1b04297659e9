"""What is wrong with a slot that was read again, and how the damage came about.  Pure.

Decides from the bytes of one slot whether it still holds what it should, and tells torn,
rotten, misplaced and stale apart.  What is missing, and whether a copy that is whole is as long
as the others, cannot be told from its bytes: `torus.upkeep.scrub` compares.

Implements docs/scrub.md, "Kinds of damage".
"""

from enum import StrEnum
from typing import NamedTuple

from torus import limits
from torus._fast.record import RecordReader, find_header
from torus.errors import TorusError
from torus.format.logend import headers_beyond
from torus.format.record import HEADER, MAGIC, RecordHeader, bad_blocks
from torus.format.segment import FREED_SLOT, UNUSED_SLOT, SlotHeader
from torus.ids import ChunkId
from torus.store.content import FIRST, walk

_SECTOR = limits.SECTOR_BYTES
_BLOCKS_NAMED_MAX = 8


class Kind(StrEnum):
    """How a part is damaged."""

    TORN = "torn"  # a write did not reach the disk as a whole
    ROTTEN = "rotten"  # bytes are not what was written
    MISPLACED = "misplaced"  # what lies here was written for another place
    MISSING = "missing"  # it cannot be read, or is not there at all
    STALE = "stale"  # an older state of it, or of the slot, lies here


class Damage(NamedTuple):
    """One thing that is wrong with a part."""

    kind: Kind
    offset: int  # in its slot
    what: str  # for people


class Judged(NamedTuple):
    """What one slot holds."""

    end: int  # of the valid records; offset in the slot
    records: int
    crc: int  # CRC-32C of their bytes
    first_lsn: int  # 0 where there is no record
    last_lsn: int
    header: Damage | None  # of the slot's header
    content: Damage | None


def judge_header(data: bytes, expected: SlotHeader) -> Damage | None:
    """Compare a slot's first sector with what must stand there; None: it does."""
    if data == expected.pack():
        return None
    if data == UNUSED_SLOT:
        return Damage(Kind.TORN, 0, "the slot's header is zeroes")
    if data == FREED_SLOT:
        return Damage(Kind.STALE, 0, "the slot's header says that it is free")
    try:
        found = SlotHeader.unpack(data, "slot")
    except TorusError as exc:
        return Damage(Kind.ROTTEN, 0, exc.message)
    assert found is not None, "a free slot was told above"
    place = found.disk_id, found.segment, found.slot
    if place != (expected.disk_id, expected.segment, expected.slot):
        what = f"it was written as segment {found.segment} slot {found.slot}"
        return Damage(Kind.MISPLACED, 0, f"{what} of disk {found.disk_id.hex()}")
    what = f"chunk {found.chunk} copy {found.copy} lies here, an older state of the slot"
    return Damage(Kind.STALE, 0, what)


def judge_slot(data: bytes, expected: SlotHeader, exact: int | None, known: int | None) -> Judged:
    """Judge a whole slot.

    ``exact``: where the chunk ends, if the metadata says so.  ``known``: what is known here of
    where it ends, from appending to it.
    """
    chunk = expected.chunk
    header = judge_header(data[:FIRST], expected)
    content = data[FIRST:]
    reader = RecordReader(content, chunk, FIRST, 0)
    first_lsn = reader.lsn if reader.advance(check_payload=False) else 0
    stop = exact if known is None else known
    there = content if stop is None else content[: max(stop, FIRST) - FIRST]
    found = walk(there, chunk)
    furthest = 0
    if found.end != stop and known is None:
        beyond = headers_beyond(there, found.end - FIRST, chunk, FIRST)
        furthest = max((at for at, _, _ in beyond), default=0)
    whole = found.records > 0 and found.end >= (stop or FIRST) and not furthest
    damage = None if whole else _content(content, chunk, found.end, furthest, header)
    return Judged(found.end, found.records, found.crc, first_lsn, found.lsn, header, damage)


def _content(
    content: bytes, chunk: ChunkId, end: int, furthest: int, header: Damage | None
) -> Damage:
    """Say how the record at ``end``, which must be there, was lost."""
    at = end - FIRST
    if header is not None and header.kind in (Kind.MISPLACED, Kind.STALE) and end == FIRST:
        return Damage(header.kind, end, f"its records are another chunk's: {header.what}")
    here = RecordHeader.unpack(content, at) if at + HEADER.size <= len(content) else None
    if here is not None and here.magic == MAGIC and here.chunk == chunk and here.offset == end:
        return _payload(content, at, here)
    foreign = find_header(content, at)
    if foreign is not None and foreign[0] == at:
        what = f"a record of chunk {ChunkId(*foreign[1][:4])} lies there"
        return Damage(Kind.MISPLACED, end, what)
    if not any(content[at : at + _SECTOR]):
        if furthest:
            return Damage(Kind.TORN, end, f"zeroes, and records behind them at offset {furthest}")
        return Damage(Kind.STALE, end, "it ends here and should go on")
    return Damage(Kind.ROTTEN, end, "the header of a record is damaged")


def _payload(content: bytes, at: int, header: RecordHeader) -> Damage:
    """Judge a record of the right chunk and place that is not whole."""
    end = FIRST + at
    stop = at + header.header_bytes + header.payload_bytes
    if not RecordReader(content[at:], header.chunk, end, header.index, header.salt).advance(
        check_payload=False
    ):
        return Damage(Kind.ROTTEN, end, f"the header of record {header.index} is damaged")
    blocks = bad_blocks(content, at)
    named = ", ".join(f"{block * limits.BLOCK_BYTES:#x}" for block in blocks[:_BLOCKS_NAMED_MAX])
    more = "" if len(blocks) <= _BLOCKS_NAMED_MAX else ", ..."
    what = f"record {header.index}: {len(blocks)} blocks, at byte {named}{more} of the volume"
    tail = content[max(at + header.header_bytes, stop - _SECTOR) : stop]
    torn = stop > len(content) or not any(tail)
    spoken = what if blocks else f"the payload of record {header.index}"
    return Damage(Kind.TORN if torn else Kind.ROTTEN, end, spoken)
