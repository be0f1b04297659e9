"""One chunk's bytes, walked record by record and summed up.

Decides where a chunk's records end and what the bytes behind that end are: nothing, another
chunk's leftovers, or records of this chunk that cannot be reached any more.  Whether those are
a loss or an unflushed end depends on the volume's log (`torus.daemon.check_log`).  Pure.

Implements docs/format.md, "Records".
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torus import limits
from torus._fast.record import KIND_DATA, KIND_HEAD, KIND_ROOT, RecordReader
from torus.format.logend import goes_on, headers_beyond
from torus.format.record import HEADER, RecordHeader, bad_blocks
from torus.ids import ChunkId

_BLOCKS_NAMED_MAX = 8
_NOTHING = ("no record", "end of data")
_STALE = "record of another chunk"

Visit = Callable[[RecordReader], None]


@dataclass(frozen=True, slots=True)
class Rotten:
    """A record whose header is whole and whose payload is not."""

    index: int
    offset: int
    lsn: int
    what: str  # for people: which blocks


@dataclass(frozen=True, slots=True)
class HeadCopy:
    """Where a record lies that holds a copy of the volume's head."""

    lsn: int
    offset: int
    index: int
    kind: int
    size: int


@dataclass(slots=True)
class ChunkSeen:
    """What one chunk holds.  ``end`` is the offset behind the last record of the walk."""

    chunk: ChunkId
    address: int
    records: int = 0
    first_lsn: int = 0
    last_lsn: int = 0
    end: int = limits.SLOT_HEADER_BYTES
    committed: int = 0  # the highest that any record here names, reachable or not
    top_block: int = 0  # behind the last block that a data extent writes
    problem: str = ""  # why the bytes at ``end`` are no record, when they look like ours
    beyond: int = 0  # whole records of this chunk behind ``end``
    beyond_offset: int = 0  # of the first of them
    beyond_lsn: int = 0  # of the last of them
    rotten: list[Rotten] = field(default_factory=list)
    heads: list[HeadCopy] = field(default_factory=list)


def walk(data: bytes, chunk: ChunkId, address: int, visit: Visit | None = None) -> ChunkSeen:
    """Walk the records of a slot; ``data`` is the whole slot with its header.

    ``visit`` is called with the reader at each record that is reached.
    """
    seen = ChunkSeen(chunk, address)
    start = limits.SLOT_HEADER_BYTES
    reader = RecordReader(memoryview(data)[start:], chunk, start, 0)
    while goes_on(reader, seen.last_lsn if seen.records else None):
        _note(seen, reader, data)
        if visit is not None:
            visit(reader)
    if reader.problem is None:
        seen.problem = f"lsn {reader.lsn} where {seen.last_lsn + 1} is due"
    else:
        seen.problem = _judge_end(seen, reader.problem, data)
    _look_beyond(seen, data)
    return seen


def _note(seen: ChunkSeen, reader: RecordReader, data: bytes) -> None:
    if not seen.records:
        seen.first_lsn = reader.lsn
    seen.records += 1
    seen.last_lsn = reader.lsn
    seen.end = reader.end
    seen.committed = max(seen.committed, reader.committed)
    if not reader.payload_ok:
        blocks = bad_blocks(data, reader.offset)
        seen.rotten.append(Rotten(reader.index, reader.offset, reader.lsn, _spoken(blocks)))
    if reader.kind == KIND_DATA:
        for block, count, zero in reader.extent_list():
            if not zero and block + count > seen.top_block:
                seen.top_block = block + count
    elif reader.kind in (KIND_HEAD, KIND_ROOT) and reader.payload_ok:
        size = reader.end - reader.offset
        seen.heads.append(HeadCopy(reader.lsn, reader.offset, reader.index, reader.kind, size))


def _spoken(blocks: list[int]) -> str:
    if not blocks:
        return "its payload"
    named = ", ".join(f"{block * limits.BLOCK_BYTES:#x}" for block in blocks[:_BLOCKS_NAMED_MAX])
    more = "" if len(blocks) <= _BLOCKS_NAMED_MAX else ", ..."
    return f"{len(blocks)} blocks of the volume, at byte {named}{more}"


def _judge_end(seen: ChunkSeen, problem: str, data: bytes) -> str:
    """Return the problem when what lies at the end is a record of ours that is damaged.

    A slot that was used before and not punched holds other chunks' records: those are whole
    and name their chunk.  Damage in the fields that name the chunk leaves the others.
    """
    if problem in _NOTHING and not any(data[seen.end : seen.end + limits.RECORD_ALIGN_BYTES]):
        return ""
    if problem == _STALE or seen.end + HEADER.size > len(data):
        return ""
    header = RecordHeader.unpack(data, seen.end)
    if header.chunk == seen.chunk:
        return problem
    due = [*seen.chunk, seen.end, seen.records]
    found = [*header.chunk, header.offset, header.index]
    if seen.records:
        due.append(seen.last_lsn + 1)
        found.append(header.lsn)
    different = sum(one != other for one, other in zip(due, found, strict=True))
    return problem if different <= 1 else ""


def _look_beyond(seen: ChunkSeen, data: bytes) -> None:
    for at, lsn, committed in headers_beyond(data, seen.end, seen.chunk):
        if not seen.beyond:
            seen.beyond_offset = at
        seen.beyond += 1
        seen.beyond_lsn = lsn
        seen.committed = max(seen.committed, committed)
