from collections.abc import Sequence

from typing_extensions import Buffer

from torus._fast.blockio import BlockIo
from torus._fast.blockmap import BlockMap
from torus._fast.frame import RequestBatch
from torus._fast.laterread import LaterRead
from torus._fast.record import RecordBuilder
from torus._fast.reply import ReplyBuilder

class Datapath:
    reads_served: int
    reads_deferred: int
    mismatches: int
    def __init__(
        self, blocks: BlockMap, io: BlockIo, places: dict[int, int | tuple[int | None, ...]]
    ) -> None: ...
    def read_now(
        self, requests: RequestBatch, first: int, stop: int, replies: ReplyBuilder
    ) -> Sequence[int]: ...
    def later(self, block: int, count: int) -> LaterRead | None: ...
    def take_writes(
        self,
        requests: RequestBatch,
        first: int,
        stop: int,
        skip: int,
        record: RecordBuilder,
        chunk_room: int,
    ) -> tuple[int, int]: ...

def first_wrong(data: Buffer, first: int, crcs: bytes, count: int) -> int: ...
