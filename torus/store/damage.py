"""What a damaged disk may still hold: so that nothing on it is taken for "never there".  Pure."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from torus import limits
from torus._fast.record import RecordReader, find_header
from torus.errors import Corruption, TorusError
from torus.format.segment import SlotHeader, segment_name
from torus.format.shard import COLUMN_BYTES, CellHeader, shelf_data
from torus.ids import ChunkId

_HEADERS_BYTES = 16 * limits.KIB  # a slot header and the longest record header


def parts_in(slot: bytes, disk_id: bytes, segment: int, number: int) -> set[ChunkId]:
    """Return the chunks and shards of which a slot with a damaged header may hold one.

    ``number`` is the slot's in its segment.  Where the second header of a shelf stands it held
    shards only, and the records in it are parts of them.
    """
    shards = _shards_in(slot, disk_id, segment, number)
    return shards if shelf_behind(slot) is not None else shards | _chunks_in(slot)


def _chunks_in(slot: bytes) -> set[ChunkId]:
    found, at = set(), 0
    while (hit := find_header(slot, at)) is not None:
        at, header = hit
        found.add(ChunkId(*header[:4]))
        at += limits.RECORD_ALIGN_BYTES
    return found


def _shards_in(slot: bytes, disk_id: bytes, segment: int, number: int) -> set[ChunkId]:
    found = set()
    for at in range(COLUMN_BYTES, len(slot), COLUMN_BYTES):  # cells are whole columns
        try:
            header = CellHeader.unpack(slot[at : at + limits.SLOT_HEADER_BYTES], "")
        except TorusError:
            continue
        if header is not None and (header.disk_id, header.segment, header.slot) == (
            disk_id,
            segment,
            number,
        ):
            found.add(header.shard)
    return found


def shelf_behind(head: bytes) -> SlotHeader | None:
    """Return the second header of a shelf, which stands behind the slot's own; ``head`` is at
    least both, or what is left of a file.  None: the slot was no shelf, or it is damaged."""
    second = head[limits.SLOT_HEADER_BYTES : 2 * limits.SLOT_HEADER_BYTES]
    if len(second) < limits.SLOT_HEADER_BYTES:
        return None
    try:
        header = SlotHeader.unpack(second, "")
    except TorusError:
        return None
    return header if header is not None and shelf_data(header.chunk) is not None else None


def chunk_behind(read: Callable[[int], bytes], slot_bytes: int) -> ChunkId | None:
    """Return the chunk whose first record stands behind a slot header that is all zeroes, or the
    shelf whose second header does.

    ``read(size)`` returns so many bytes from the slot's beginning.
    """
    first = limits.SLOT_HEADER_BYTES
    head = read(min(slot_bytes, _HEADERS_BYTES))
    shelf = shelf_behind(head)
    if shelf is not None:
        return shelf.chunk
    hit = find_header(head, first)
    if hit is None or hit[0] != first:
        return None
    chunk = ChunkId(*hit[1][:4])
    reader = RecordReader(read(slot_bytes)[first:], chunk, first, 0)
    return chunk if reader.advance(check_payload=False) else None


def check_complete(segments: AbstractSet[int], disk_id: str) -> None:
    """Refuse a disk that lacks a segment before its last one.

    Raises: Corruption.
    """
    missing = set(range(max(segments, default=-1) + 1)) - segments
    if missing:
        names = ", ".join(segment_name(segment) for segment in sorted(missing))
        raise Corruption(
            f"disk {disk_id} has {len(segments)} segments, but not {names}",
            hint="put the files back: what lies in them cannot be told from what was deleted",
        )
