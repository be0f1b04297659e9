"""What a collection moves: the blocks of victims that still live (see collect.pyx)."""

from typing import final

from typing_extensions import Buffer

from torus._fast.blockmap import BlockMap
from torus._fast.record import RecordBuilder

_Run = tuple[int, int, int, int, bytes]  # block, blocks, sequence, offset (512 B), CRCs

@final
class Candidates:
    @property
    def left(self) -> int:
        """Candidates that `window` has not judged yet."""

    def __len__(self) -> int: ...
    def add_chunk(
        self, data: Buffer, chunk: tuple[int, int, int, int], offset: int
    ) -> tuple[int, str | None]:
        """Add the blocks of every record in `data`, the chunk's bytes from `offset` on.

        Returns: (offset behind the last record, why there is none behind it).
        """

    def sort(self) -> None: ...
    def cold(self, blocks: BlockMap, count: int) -> list[int]:
        """A block of each leaf that the next `count` need and that is not in memory."""

    def window(self, blocks: BlockMap, count: int, blocks_max: int) -> list[_Run]:
        """Judge up to `count` more; the runs of those that live, up to `blocks_max` blocks.

        It stops early at a leaf that is not in memory.
        Raises: LookupError when that is the very first.
        """

@final
class Survivors:
    rotten: list[int]
    def __init__(self, runs: list[_Run], pieces: list[bytes]) -> None: ...
    @property
    def done(self) -> bool: ...
    @property
    def blocks(self) -> int: ...
    def cold(self, blocks: BlockMap) -> list[tuple[int, int]]:
        """Ranges (block, count) of what is left that need leaves from the log."""

    def fill(self, blocks: BlockMap, record: RecordBuilder, chunk_room: int, most: int) -> int:
        """Add the next blocks that are where they were read; returns how many.

        Raises: LookupError when a leaf is not in memory.
        """
