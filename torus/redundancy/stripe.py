"""How a chunk's content is cut into data shards, and where a byte of it lies.  Pure.

Decides the size of a shard, which shard holds which bytes, and how much of each is really stored.
Does not decide the bytes of parity (`torus.redundancy.codec`), nor on which disk a shard lies.

Content is cut into K runs, so that a small read touches one shard.  Content that is shorter
than the stripe ends with zeroes that nobody stores.  Implements docs/erasure-code.md.
"""

from dataclasses import dataclass

from torus.limits import BLOCK_BYTES
from torus.redundancy.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one shard, by their offset in it."""

    shard: int
    offset: int
    size_bytes: int


def shard_bytes(content_bytes_max: int, data: int) -> int:
    """Return the size of each of ``data`` shards of content: whole blocks."""
    each = -(-content_bytes_max // data)
    return -(-each // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Stripe:
    """K data shards, then M parity shards, of ``shard_bytes`` each."""

    data: int
    parity: int
    shard_bytes: int

    @property
    def shards(self) -> int:
        """Return how many shards there are; they are numbered from 0 on."""
        return self.data + self.parity

    @property
    def content_bytes_max(self) -> int:
        """Return how much content fits."""
        return self.data * self.shard_bytes

    def locate(self, offset: int, size_bytes: int) -> list[Piece]:
        """Return where these bytes of the content lie, in order.

        Raises: ValueError when they do not lie in the stripe.
        """
        self._check(offset, size_bytes)
        pieces = []
        while size_bytes:
            shard, start = divmod(offset, self.shard_bytes)
            here = min(size_bytes, self.shard_bytes - start)
            pieces.append(Piece(shard, start, here))
            offset, size_bytes = offset + here, size_bytes - here
        return pieces

    def stored_bytes(self, shard: int, content_bytes: int) -> int:
        """Return how much of a shard is stored: what follows is zeroes.

        A parity shard is as long as the longest data shard, which is the first one.

        Raises: ValueError when there is no such shard, or the content does not fit.
        """
        self._check(0, content_bytes)
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard {shard} does not exist: expected 0 to {self.shards - 1}")
        before = shard * self.shard_bytes if shard < self.data else 0
        return max(0, min(self.shard_bytes, content_bytes - before))

    def _check(self, offset: int, size_bytes: int) -> None:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.content_bytes_max:
            raise ValueError(
                f"{size_bytes} bytes at {offset} do not lie in a stripe of "
                f"{self.data} shards of {self.shard_bytes} bytes"
            )


def stripe(scheme: Scheme, content_bytes_max: int) -> Stripe:
    """Return the stripe of an erasure scheme for chunks of at most so much content."""
    assert scheme.erasure, scheme
    return Stripe(scheme.data, scheme.parity, shard_bytes(content_bytes_max, scheme.data))
