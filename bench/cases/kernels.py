"""Time the compiled kernels alone: checksums, records, NBD frames.

Decides what one operation of each kernel is.  Every line is the best of several repeats, as
a kernel's own cost is what is left when nothing disturbs it; medians are beside it.
"""

import os
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from torus._fast import crc
from torus._fast.frame import RUN_READ, RequestBatch
from torus._fast.record import KIND_DATA, RecordBuilder, RecordReader
from torus._fast.reply import ReplyBuilder

REPEATS = 7
REPEAT_S = 0.05
BLOCK_BYTES = 4096
MIB = 1 << 20
CHUNK = (1, 1, 0, 1)
BATCH = 32
REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds of one operation; ``bytes_each`` is 0 where a rate says nothing."""

    name: str
    best_ns: float
    median_ns: float
    bytes_each: int = 0

    def gigabytes_per_s(self) -> float:
        """Return how fast bytes pass, at the best repeat."""
        return self.bytes_each / self.best_ns


def clock(
    name: str, operation: Callable[[], object], *, operations: int = 1, bytes_each: int = 0
) -> Timing:
    """Time a call that does ``operations`` operations of ``bytes_each`` bytes."""
    calls = 1
    while (took := _loop(operation, calls)) < REPEAT_S * 1e9 / 4:
        calls *= 4
    calls = max(1, int(calls * REPEAT_S * 1e9 / took))
    each = [_loop(operation, calls) / calls / operations for _ in range(REPEATS)]
    return Timing(name, min(each), statistics.median(each), bytes_each)


def _loop(operation: Callable[[], object], calls: int) -> int:
    began = time.perf_counter_ns()
    for _ in range(calls):
        operation()
    return time.perf_counter_ns() - began


def time_crc() -> list[Timing]:
    """CRC-32C of a block and of a megabyte; google-crc32c beside it where it is installed."""
    block, large = os.urandom(BLOCK_BYTES), os.urandom(MIB)
    timings = [
        clock("crc.checksum 4 KiB", lambda: crc.checksum(block), bytes_each=BLOCK_BYTES),
        clock("crc.checksum 1 MiB", lambda: crc.checksum(large), bytes_each=MIB),
        clock(
            "crc.block_checksums 1 MiB, each 4 KiB",
            lambda: crc.block_checksums(large),
            operations=MIB // BLOCK_BYTES,
            bytes_each=BLOCK_BYTES,
        ),
        clock(
            "crc.checksum_portable 4 KiB",
            lambda: crc.checksum_portable(block),
            bytes_each=BLOCK_BYTES,
        ),
    ]
    try:
        import google_crc32c
    except ImportError:
        return timings
    value = google_crc32c.value
    return [
        *timings,
        clock("google_crc32c.value 4 KiB", lambda: value(block), bytes_each=BLOCK_BYTES),
        clock("google_crc32c.value 1 MiB", lambda: value(large), bytes_each=MIB),
    ]


def time_record() -> list[Timing]:
    """Build a record of one block and of a batch; scan a chunk's worth of records."""
    block = os.urandom(BLOCK_BYTES)
    builder = RecordBuilder(MIB, 256)

    def build(count: int) -> None:
        builder.clear()
        for index in range(count):
            builder.add_data(index * 3, block)
        builder.finish(KIND_DATA, CHUNK, 0, 1, 0, BLOCK_BYTES)

    log = bytearray()
    for index in range(64):
        builder.clear()
        for extent in range(8):
            builder.add_data(extent * 3, block)
        builder.finish(KIND_DATA, CHUNK, index, index + 1, 0, len(log))
        log += builder.tobytes()

    def scan(check_payload: bool) -> None:
        reader = RecordReader(log, CHUNK, 0, 0)
        count = 0
        while reader.advance(check_payload):
            count += 1
        if count != 64:
            raise AssertionError(f"scanned {count} records of 64: {reader.problem}")

    return [
        clock("record build, 1 block", lambda: build(1), bytes_each=BLOCK_BYTES),
        clock(
            "record build, 32 blocks, each",
            lambda: build(BATCH),
            operations=BATCH,
            bytes_each=BLOCK_BYTES,
        ),
        clock("record scan, 8 blocks, headers only", lambda: scan(False), operations=64),
        clock(
            "record scan, 8 blocks, with payload",
            lambda: scan(True),
            operations=64,
            bytes_each=8 * BLOCK_BYTES,
        ),
    ]


def time_frame() -> list[Timing]:
    """Parse a batch of 32 reads, and answer it from memory."""
    image = memoryview(bytearray(MIB))
    batch = RequestBatch(32 * MIB, size_bytes=MIB)
    replies = ReplyBuilder()
    feed = b"".join(
        REQUEST.pack(REQUEST_MAGIC, 0, 0, index, index * BLOCK_BYTES, BLOCK_BYTES)
        for index in range(BATCH)
    )

    def parse() -> None:
        batch.received(batch.feed(feed))
        kind, stop, _ = batch.next_run(0, MIB)
        if (kind, stop) != (RUN_READ, BATCH):
            raise AssertionError(f"the batch is run {kind} up to {stop}, not one of {BATCH} reads")

    def answer() -> None:
        parse()
        replies.expect(batch, 0, BATCH)
        replies.reads_from(batch, 0, BATCH, image)
        replies.take()

    def with_struct() -> None:
        for offset in range(0, len(feed), REQUEST.size):
            REQUEST.unpack_from(feed, offset)

    return [
        clock("nbd parse, 32 reads, each", parse, operations=BATCH),
        clock(
            "nbd parse and answer, 32 reads of 4 KiB, each",
            answer,
            operations=BATCH,
            bytes_each=BLOCK_BYTES,
        ),
        clock("struct.unpack_from, 32 headers, each", with_struct, operations=BATCH),
    ]


CASES: dict[str, Callable[[], list[Timing]]] = {
    "crc": time_crc,
    "record": time_record,
    "frame": time_frame,
}
