"""The erasure code over buffers, without copies (see erasure.pyx; docs/erasure-code.md)."""

from collections.abc import Sequence
from typing import final

from typing_extensions import Buffer

def kernels() -> tuple[str, ...]:
    """The instruction sets that can be used on this machine, from the slowest to the fastest."""

def kernel_name() -> str:
    """The one that is used unless another is asked for: the fastest."""

@final
class Code:
    """K data shards (numbers 0 to K-1) and M parity shards (K to K+M-1).  Threads may share one.

    Every method raises ValueError, and writes nothing, when numbers or sizes do not fit or an
    output is read-only, not contiguous, or overlaps an input or another output.  Buffers are
    borrowed for the call; long calls release the interpreter's lock.
    """

    def __init__(self, data: int, parity: int, kernel: str | None = None) -> None:
        """`kernel`: one of `kernels()`.  Raises: ValueError."""
    @property
    def data(self) -> int: ...
    @property
    def parity(self) -> int: ...
    @property
    def shards(self) -> int: ...
    @property
    def kernel(self) -> str: ...
    def matrix(self) -> list[bytes]:
        """K+M rows of K factors: what of each data shard is in each shard."""
    def encode(self, data: Sequence[Buffer], parity: Sequence[Buffer]) -> None:
        """Write M parity shards from K data shards of equal size."""
    def encode_whole(self, content: Buffer, parity: Buffer, shard_bytes: int) -> None:
        """Write M parity shards, one after the other, of content that is K data shards.

        What is missing of the content's `K * shard_bytes` counts as zeroes.
        """
    def add(self, index: int, piece: Buffer, parity: Sequence[Buffer], offset: int) -> None:
        """Add to M parity shards what `piece`, at `offset` of data shard `index`, contributes.

        The parity begins as zeroes; each byte of the data is added once.
        """
    def rebuild(
        self,
        numbers: Sequence[int],
        present: Sequence[Buffer],
        wanted: Sequence[int],
        outputs: Sequence[Buffer],
    ) -> None:
        """Write the wanted shards, data or parity, from exactly K present ones.

        The buffers may be the same column of all shards: equal offsets, equal sizes.
        """
