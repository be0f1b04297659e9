"""Where a log ends: what continues it, and what proves that it went on.  Pure.

Recovery (`torus.volume.recovery`) cuts a log off where these say that it ends, and the check
(`torus.daemon.slotwalk`, `torus.daemon.check_log`) calls damaged what they say was durable: one
judgement, so that a volume that recovery opens is not damaged to the check, and the other way.

Implements docs/format.md, "Where a chunk's records end" and "Recovery", 5 and 6.
"""

from collections.abc import Iterator

from torus import limits
from torus._fast.record import RecordReader, find_header
from torus.format.record import RecordHeader
from torus.ids import ChunkId


def goes_on(reader: RecordReader, lsn: int | None) -> bool:
    """Step to the next record of a chunk; True when it is the one behind ``lsn``.

    The reader itself compares chunk, salt, offset and index.  None: any lsn will do, as nothing
    before it is known.
    """
    return bool(reader.advance()) and (lsn is None or reader.lsn == lsn + 1)


def follows(lsn: int, first_lsn: int) -> bool:
    """Tell whether a chunk that begins with ``first_lsn`` goes on where ``lsn`` was the last.

    Only then may the chunk before it end before its slot does: it had no room for the record.
    """
    return first_lsn == lsn + 1


def begins(data: bytes, chunk: ChunkId) -> int | None:
    """Return the lsn of the first record of a chunk, None when there is none.

    ``data``: the bytes of the slot behind its header.
    """
    reader = RecordReader(data, chunk, limits.SLOT_HEADER_BYTES, 0)
    return reader.lsn if reader.advance() else None


def was_durable(lsn: int, committed: int) -> bool:
    """Tell whether the record ``lsn`` was durable, as some record says that all up to
    ``committed`` were: then it cannot be missing, and no log ends before it."""
    return lsn <= committed


def headers_beyond(
    data: bytes, start: int, chunk: ChunkId, shift: int = 0
) -> Iterator[tuple[int, int, int]]:
    """Yield (offset in the slot, lsn, committed) of whole headers of ``chunk`` in ``data`` from
    ``start`` on; ``data`` begins at offset ``shift`` of the slot.

    A header that stands at another offset than it was written for is a copy inside some
    payload: what a guest stores proves nothing.
    """
    at = start
    while (hit := find_header(data, at)) is not None:
        at, (*name, lsn, committed) = hit
        written_for = RecordHeader.unpack(data, at).offset
        if tuple(name) == tuple(chunk) and written_for == at + shift:
            yield at + shift, lsn, committed
        at += limits.RECORD_ALIGN_BYTES


def committed_beyond(data: bytes, start: int, chunk: ChunkId, shift: int) -> int:
    """Return the highest committed lsn that any of `headers_beyond` names; 0 for none."""
    return max((says for _, _, says in headers_beyond(data, start, chunk, shift)), default=0)
