"""What a damaged disk may still hold: so that nothing on it is taken for "never there".  Pure."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from torus import limits
from torus._fast.record import RecordReader, find_header
from torus.errors import Corruption
from torus.format.segment import segment_name
from torus.ids import ChunkId

_HEADERS_BYTES = 16 * limits.KIB  # a slot header and the longest record header


def chunks_in(slot: bytes) -> set[ChunkId]:
    """Return the chunks whose records lie in a slot: one of them is what it held."""
    found, at = set(), 0
    while (hit := find_header(slot, at)) is not None:
        at, header = hit
        found.add(ChunkId(*header[:4]))
        at += limits.RECORD_ALIGN_BYTES
    return found


def chunk_behind(read: Callable[[int], bytes], slot_bytes: int) -> ChunkId | None:
    """Return the chunk whose first record stands behind a slot header that is all zeroes.

    ``read(size)`` returns so many bytes from the slot's beginning.
    """
    first = limits.SLOT_HEADER_BYTES
    hit = find_header(read(min(slot_bytes, _HEADERS_BYTES)), first)
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
