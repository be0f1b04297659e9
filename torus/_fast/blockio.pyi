from typing import Protocol

from typing_extensions import Buffer

from torus._fast.record import RecordBuilder

class PythonDisk(Protocol):
    def read_now(self, address: int, size: int) -> bytes | None: ...
    def write(self, address: int, data: bytes) -> None: ...

class BlockIo:
    def write(self, address: int, record: RecordBuilder) -> None: ...
    def write_bytes(self, address: int, data: Buffer) -> None: ...

class FileIo(BlockIo):
    writes: int
    short_writes: int
    def __init__(self, segment_bytes: int, header_bytes: int) -> None: ...
    def set_file(self, segment: int, fd: int) -> None: ...

class ManyIo(BlockIo):
    def __init__(self) -> None: ...
    def set_part(self, number: int, part: BlockIo) -> None: ...

class PythonIo(BlockIo):
    def __init__(self, disk: PythonDisk) -> None: ...

def read_files(places: list[tuple[int, int, int]]) -> list[bytes]:
    """Return the bytes of each (descriptor, offset, size), read without the interpreter.

    Raises: OSError; EIO where a file ends early.
    """

def fallocate(fd: int, mode: int, offset: int, size: int) -> None: ...
