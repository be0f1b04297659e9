"""One chunk that is being written: its copies, and the records that can be sent again."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from torus import limits
from torus.cluster.chunks import DiskWriter
from torus.ids import ChunkId


class Kept(NamedTuple):
    """A record that may not be durable on every copy yet."""

    number: int  # of the record in its chunk, from 0
    offset: int
    record: bytes


class Copy:
    """One disk's copy of a chunk."""

    __slots__ = ("disk_id", "next_index", "writer")

    def __init__(self, disk_id: str, writer: DiskWriter | None) -> None:
        self.disk_id = disk_id
        self.writer = writer
        self.next_index = 0  # records that it has


class OpenChunk:
    """A chunk with records that are not durable everywhere, or that more are appended to."""

    __slots__ = ("answered", "chunk", "copies", "end", "from_reserve", "kept", "next_index")

    def __init__(self, chunk: ChunkId, copies: Iterable[Copy], *, from_reserve: bool) -> None:
        self.chunk = chunk
        self.copies = {copy.disk_id: copy for copy in copies}
        self.from_reserve = from_reserve
        self.kept: deque[Kept] = deque()
        self.next_index = 0
        self.end = limits.SLOT_HEADER_BYTES
        self.answered = 0  # records whose append has returned

    def keep(self, index: int, offset: int, record: bytes) -> Kept:
        """Note a record that is about to be appended."""
        kept = Kept(index, offset, record)
        if index == self.next_index:
            self.kept.append(kept)
            self.next_index = index + 1
            self.end = offset + len(record)
        return kept

    def forget(self, index: int) -> None:
        """Forget the records before ``index``: every copy has them durably."""
        while self.kept and self.kept[0].number < index:
            self.kept.popleft()

    def is_whole(self, copy: Copy) -> bool:
        """Tell whether a copy has every record that was answered."""
        return copy.writer is not None and copy.next_index >= self.answered

    def held(self, offset: int, size: int) -> bytes | None:
        """Return bytes of a record that can be sent again; None when none has them all."""
        for kept in self.kept:
            start = offset - kept.offset
            if start >= 0 and start + size <= len(kept.record):
                return kept.record[start : start + size]
        return None

    @property
    def first_kept(self) -> int:
        """Return the number of the first record that can be sent again."""
        return self.kept[0].number if self.kept else self.next_index
