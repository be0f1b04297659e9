"""Reading slots again as they lie on the disk, and putting a lost slot header back.

Decides what is read for a look at a slot, and that only the header of a slot whose records are
the chunk's own may be written again.  What damage is, is decided by `torus.upkeep.scrub_judge`.

Implements docs/scrub.md, "A look at a slot".
"""

from typing import NamedTuple

from torus import limits
from torus.errors import Busy, Corruption
from torus.format.segment import SegmentHeader, SlotHeader, segment_name
from torus.ids import ChunkId
from torus.store.appender import Slot
from torus.store.content import Examined, Presence
from torus.store.store import Store

_ATTEMPTS_MAX = 8  # while somebody appends to the chunk at the same time
_SECTOR = limits.SECTOR_BYTES


class SlotBytes(NamedTuple):
    """What was read of one slot."""

    header: SlotHeader  # that must stand there
    data: bytes  # the whole slot, or its first sectors
    known: int | None  # where the chunk ends, as far as this process knows
    slot: Slot


async def read_slot(store: Store, chunk: ChunkId, *, whole: bool) -> SlotBytes | None:
    """Read a chunk's slot: all of it, or its first two sectors and, for its file's length, its
    last.

    Returns: None when the chunk is not here, or has no record yet.
    Raises: Corruption when the disk cannot read it, or it may lie in a damaged slot; Busy while
        it is being written; DiskFailed.
    """
    size = store.geometry.slot_bytes
    for _ in range(_ATTEMPTS_MAX):
        store.check_disk()
        slot = store.find(chunk)
        if slot is None or slot.end == 0:
            return None
        known = slot.end
        reads = [(slot.address, size if whole else 2 * _SECTOR)]
        if not whole:
            reads.append((slot.address + size - _SECTOR, _SECTOR))
        try:
            data = (await store.read(reads))[0]
        except Corruption:
            slot.examined = None  # who asks for it is told the truth
            raise
        if store.slots.get(chunk) is slot and (slot.end == known or not whole):
            number = store.geometry.slot_of(slot.address)
            disk = bytes.fromhex(store.identity.disk_id)
            header = SlotHeader(disk, slot.segment, number, chunk, slot.copy)
            return SlotBytes(header, data, known, slot)
    raise Busy(f"chunk {chunk} is being written")


def remember(store: Store, read: SlotBytes, end: int, records: int, crc: int) -> None:
    """Let others who ask for the chunk be told what was found now."""
    slot, chunk = read.slot, read.header.chunk
    if store.slots.get(chunk) is slot and slot.end is None and read.known is None:
        slot.examined = Examined(chunk, Presence.PRESENT, end, records, crc)


async def restore_header(store: Store, read: SlotBytes) -> bool:
    """Write the header of a slot again whose records are its chunk's; durable on return.

    Returns: False when the chunk does not lie there any more.
    Raises: DiskFailed, PoolFull.
    """
    # No turn of the event loop between look and write: the slot is still the chunk's.
    if store.slots.get(read.header.chunk) is not read.slot:
        return False
    await restore(store, read.slot, read.header.pack())
    return True


async def restore(store: Store, slot: Slot, header: bytes) -> None:
    """Write a header again of a slot or cell that the caller has just found in use.

    Raises: DiskFailed, PoolFull.
    """
    store.check_disk()
    try:
        store.disk.write(slot.address, header)
    except OSError as exc:
        raise store.translate(exc, "restore a header") from exc
    await store.sync_segments({slot.segment})


async def check_segment(store: Store, segment: int) -> str:
    """Read a segment's header again; return what is wrong with it, empty for nothing.

    Raises: DiskFailed.
    """
    store.check_disk()
    identity, geometry = store.identity, store.geometry
    name = segment_name(segment)
    try:
        found = SegmentHeader.unpack(await store.in_pool(store.disk.read_header, segment), name)
        file_bytes = limits.SEGMENT_HEADER_BYTES + found.slot_count * geometry.slot_bytes
        found.check_place(
            bytes.fromhex(identity.disk_id), bytes.fromhex(identity.cluster_id), segment,
            geometry.slot_bytes, file_bytes, name,
        )  # fmt: skip
    except Corruption as exc:
        return exc.message
    except OSError as exc:
        return f"{name}: its header cannot be read: {exc}"
    return ""
