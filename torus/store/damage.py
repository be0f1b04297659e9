"""What a damaged disk may still hold: so that nothing on it is taken for "never there".  Pure."""

from collections.abc import Set as AbstractSet

from torus import limits
from torus._fast.record import find_header
from torus.errors import Corruption
from torus.format.segment import segment_name
from torus.ids import ChunkId


def chunks_in(slot: bytes) -> set[ChunkId]:
    """Return the chunks whose records lie in a slot: one of them is what it held."""
    found, at = set(), 0
    while (hit := find_header(slot, at)) is not None:
        at, header = hit
        found.add(ChunkId(*header[:4]))
        at += limits.RECORD_ALIGN_BYTES
    return found


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
