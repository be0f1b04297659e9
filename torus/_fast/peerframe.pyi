from collections.abc import Sequence
from typing import Any

from typing_extensions import Buffer

from torus._fast.blockio import BlockIo
from torus._fast.record import RecordBuilder

APPEND: int
SYNC: int
READ: int
APPENDED: int
SYNCED: int
READ_DONE: int

Chunk = tuple[int, int, int, int]

def append_frame(
    request: int,
    capability: int,
    chunk: Chunk,
    index: int,
    offset: int,
    record: RecordBuilder | Buffer,
) -> bytes: ...
def sync_frame(request: int, capability: int, chunks: Sequence[Chunk]) -> bytes: ...
def read_frame(request: int, capability: int, reads: Sequence[tuple[Chunk, int, int]]) -> bytes: ...
def boot_frame(kind: int, request: int, boot_id: int) -> bytes: ...
def read_done_now(request: int, io: BlockIo, places: list[tuple[int, int]]) -> bytes | None: ...
def next_frame(
    data: Buffer, start: int, stop: int, most: int
) -> tuple[int, int, int, int, int, int, Any] | None: ...
