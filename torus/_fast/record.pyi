from typing_extensions import Buffer

from torus._fast.blockmap import BlockMap

VERSION: int
KIND_DATA: int
KIND_PAGES: int
KIND_ROOT: int
KIND_HEAD: int
HEADER_FIXED_BYTES: int
EXTENT_BYTES: int

class RecordBuilder:
    header_bytes: int
    size: int
    empty: bool
    payload_size: int
    def __init__(self, payload_max: int, extents_max: int) -> None: ...
    def clear(self) -> None: ...
    def room(self, chunk_room: int) -> int: ...
    def add_data(self, block: int, data: Buffer, start: int = 0, stop: int = -1) -> None: ...
    def add_zero(self, block: int, count: int) -> None: ...
    def set_payload(self, payload: bytes) -> None: ...
    def finish(
        self,
        kind: int,
        chunk: tuple[int, int, int, int],
        index: int,
        lsn: int,
        committed: int,
        offset: int,
        salt: int = 0,
    ) -> int: ...
    def apply(self, blocks: BlockMap) -> None: ...
    def extent_list(self) -> list[tuple[int, int, bool]]: ...
    def tobytes(self) -> bytes: ...

class RecordReader:
    start_offset: int
    end: int
    next_index: int
    payload_ok: bool
    problem: str | None
    salt: int | None
    kind: int
    lsn: int
    committed: int
    index: int
    offset: int
    header_bytes: int
    payload_bytes: int
    def __init__(
        self,
        data: Buffer,
        chunk: tuple[int, int, int, int],
        offset: int,
        next_index: int,
        salt: int | None = None,
    ) -> None: ...
    def advance(self, check_payload: bool = True) -> bool: ...
    def payload(self) -> bytes: ...
    def extent_list(self) -> list[tuple[int, int, bool]]: ...
    def ready(self, blocks: BlockMap) -> bool: ...
    def apply(self, blocks: BlockMap) -> None: ...

def find_header(
    data: Buffer, start: int
) -> tuple[int, tuple[int, int, int, int, int, int]] | None: ...
