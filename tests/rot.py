"""Damage to what lies on a simulated disk, as no write does it: one function for each kind.

Each takes a store, its disk, the chunk whose slot is spoiled and another chunk of the same disk,
and returns as what the scrub has to tell it.
"""

import errno
from collections.abc import Callable

from torus._fast.record import RecordReader
from torus.format.segment import FREED_SLOT, SlotHeader
from torus.ids import ChunkId
from torus.store.content import FIRST
from torus.store.store import Store
from torus.testing.simdisk import SMALL, SimDisk
from torus.upkeep.scrub_judge import Kind

SLOT = SMALL.slot_bytes
Damage = Callable[[Store, SimDisk, ChunkId, ChunkId], Kind]


def place_of(store: Store, disk: SimDisk, chunk: ChunkId) -> tuple[bytearray, int]:
    """Return the segment that a chunk lies in, and where its slot begins there."""
    slot = store.find(chunk)
    assert slot is not None
    segment, at = divmod(slot.address, SMALL.segment_bytes)
    return disk.image.segments[segment], at


def records_of(store: Store, disk: SimDisk, chunk: ChunkId) -> list[tuple[int, int]]:
    """Return (offset, end) of the records of a chunk, in its slot."""
    data, at = place_of(store, disk, chunk)
    reader = RecordReader(bytes(data[at + FIRST : at + SLOT]), chunk, FIRST, 0)
    found = []
    while reader.advance():
        found.append((reader.offset, reader.end))
    return found


def flip(store: Store, disk: SimDisk, chunk: ChunkId, offset: int) -> Kind:
    """Flip a bit at an offset of the slot."""
    data, at = place_of(store, disk, chunk)
    data[at + offset] ^= 1
    return Kind.ROTTEN


def flip_header(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """Rot in the slot's header."""
    return flip(store, disk, chunk, 9)


def zero_header(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """The slot's header never arrived."""
    data, at = place_of(store, disk, chunk)
    data[at : at + FIRST] = bytes(FIRST)
    return Kind.TORN


def freed_header(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """The header from before the chunk is back."""
    data, at = place_of(store, disk, chunk)
    data[at : at + FIRST] = FREED_SLOT
    return Kind.STALE


def flip_record_header(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """Rot in the first record's header."""
    return flip(store, disk, chunk, FIRST + 40)


def flip_payload(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """Rot in the first record's payload."""
    (offset, end), *_ = records_of(store, disk, chunk)
    return flip(store, disk, chunk, offset + (end - offset) // 2)


def flip_last_record(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """Rot in the last record's payload."""
    *_, (offset, end) = records_of(store, disk, chunk)
    return flip(store, disk, chunk, offset + (end - offset) // 2)


def tear_record(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """The end of the last record never arrived."""
    data, at = place_of(store, disk, chunk)
    *_, (offset, end) = records_of(store, disk, chunk)
    start = max(end - 2048, offset + 512)
    data[at + start : at + end] = bytes(end - start)
    return Kind.TORN


def lose_sector(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """The first sector of the first record never arrived."""
    data, at = place_of(store, disk, chunk)
    data[at + FIRST : at + FIRST + 512] = bytes(512)
    return Kind.TORN


def misdirect(store: Store, disk: SimDisk, chunk: ChunkId, other: ChunkId) -> Kind:
    """A write to another chunk arrived in this one."""
    data, at = place_of(store, disk, chunk)
    source, there = place_of(store, disk, other)
    data[at + FIRST : at + FIRST + 9000] = bytes(source[there + FIRST : there + FIRST + 9000])
    return Kind.MISPLACED


def swap_slots(store: Store, disk: SimDisk, chunk: ChunkId, other: ChunkId) -> Kind:
    """Two slots have each other's content."""
    data, at = place_of(store, disk, chunk)
    there, other_at = place_of(store, disk, other)
    one, two = bytes(data[at : at + SLOT]), bytes(there[other_at : other_at + SLOT])
    data[at : at + SLOT], there[other_at : other_at + SLOT] = two, one
    return Kind.MISPLACED


def shorten(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """What the chunk was before its last record is back."""
    data, at = place_of(store, disk, chunk)
    *_, (offset, _) = records_of(store, disk, chunk)
    data[at + offset : at + SLOT] = bytes(SLOT - offset)
    return Kind.STALE


def former_slot(store: Store, disk: SimDisk, chunk: ChunkId, other: ChunkId) -> Kind:
    """What lay in the slot before this chunk is back, header and all."""
    data, at = place_of(store, disk, chunk)
    source, there = place_of(store, disk, other)
    header = SlotHeader.unpack(bytes(data[at : at + FIRST]), "slot")
    assert header is not None
    old = SlotHeader(header.disk_id, header.segment, header.slot, other)
    data[at : at + FIRST] = old.pack()
    data[at + FIRST : at + SLOT] = bytes(source[there + FIRST : there + SLOT])
    return Kind.STALE


def unreadable(store: Store, disk: SimDisk, chunk: ChunkId, _other: ChunkId) -> Kind:
    """The medium refuses a part of the slot, until the disk is opened again."""
    slot = store.find(chunk)
    assert slot is not None
    first, end, read = slot.address + 1500, slot.address + SLOT, disk.read

    def refuse(address: int, size: int) -> bytes:
        if address < end and address + size > first:
            raise OSError(errno.EIO, "medium error")
        return read(address, size)

    disk.read = refuse  # type: ignore[method-assign]
    return Kind.MISSING


HEADERS: tuple[Damage, ...] = (flip_header, zero_header, freed_header)
CONTENTS: tuple[Damage, ...] = (
    flip_record_header, flip_payload, flip_last_record, tear_record, lose_sector, misdirect,
    swap_slots, shorten, former_slot, unreadable,
)  # fmt: skip
DAMAGES = HEADERS + CONTENTS
