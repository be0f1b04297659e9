"""Where a log ends: one judgement for recovery and the check."""

import random

import pytest

from torus import limits
from torus._fast.record import KIND_DATA, RecordBuilder, RecordReader
from torus.format.logend import (
    begins,
    committed_beyond,
    follows,
    goes_on,
    headers_beyond,
    was_durable,
)
from torus.ids import ChunkId

CHUNK = ChunkId(7, 2, 0, 5)
HEADER = limits.SLOT_HEADER_BYTES


def record(index: int, lsn: int, committed: int, offset: int, chunk: ChunkId = CHUNK) -> bytes:
    builder = RecordBuilder(limits.MIB, 1)
    builder.add_data(0, random.Random(lsn).randbytes(limits.BLOCK_BYTES))
    builder.finish(KIND_DATA, chunk, index, lsn, committed, offset)
    return builder.tobytes()


def slot(*lsns: int) -> bytes:
    """Return a slot's bytes behind its header; record i says that all up to lsn - 1 was durable."""
    data = b""
    for index, lsn in enumerate(lsns):
        data += record(index, lsn, lsn - 1, HEADER + len(data))
    return data + bytes(8192)


def test_a_record_goes_on_when_its_lsn_is_due() -> None:
    """A gap ends the log, also where the record itself is right."""
    reader = RecordReader(slot(5, 6, 8), CHUNK, HEADER, 0)

    assert goes_on(reader, None)
    assert goes_on(reader, 5)
    assert not goes_on(reader, 6)
    assert reader.problem is None
    assert not goes_on(reader, 8)
    assert reader.problem is not None


def test_a_chunk_may_end_early_where_the_next_goes_on() -> None:
    """With the very next lsn, and with a record of its own chunk."""
    assert begins(slot(9), CHUNK) == 9
    assert begins(slot(9), ChunkId(7, 2, 0, 6)) is None
    assert begins(bytes(8192), CHUNK) is None
    assert follows(8, 9)
    assert not follows(8, 10)
    assert not follows(8, 8)


@pytest.mark.parametrize("shift", [0, HEADER, 3 * HEADER])
def test_headers_prove_something_where_they_were_written_for(shift: int) -> None:
    """The same bytes elsewhere are a copy in some payload; another chunk's say nothing."""
    own = record(3, 40, 39, shift + 1024)
    other = record(4, 90, 89, shift + 1024 + len(own), ChunkId(7, 2, 0, 6))
    copy = record(5, 80, 79, shift + 512)
    data = bytes(1024) + own + other + copy + bytes(512)

    assert list(headers_beyond(data, 0, CHUNK, shift)) == [(shift + 1024, 40, 39)]
    assert committed_beyond(data, 0, CHUNK, shift) == 39
    assert committed_beyond(data, 1536, CHUNK, shift) == 0


def test_what_a_record_calls_durable_cannot_be_missing() -> None:
    """Up to and with that lsn."""
    assert was_durable(39, 39)
    assert was_durable(1, 39)
    assert not was_durable(40, 39)
