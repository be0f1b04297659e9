"""The erasure code by zfec, which defines the bytes of every shard.  Pure.

Decides nothing about the code; it checks what zfec does not (numbers out of range make it
compute with memory that is no part of its matrix) and copies zfec's results to the caller's
buffers.  It is slow, and its copies cost memory: the kernel is what is used.
"""

from collections.abc import Iterable, Sequence

import zfec  # type: ignore[import-untyped]

from torus.redundancy.codec import Buffer


def _views(buffers: Iterable[Buffer], what: str, expected: int) -> list[memoryview]:
    """Return flat views of so many buffers of equal size.

    Raises: ValueError.
    """
    views = [memoryview(buffer) for buffer in buffers]
    if len(views) != expected:
        raise ValueError(f"expected {expected} buffers as {what}, found {len(views)}")
    for number, view in enumerate(views):
        if not view.c_contiguous:
            raise ValueError(f"{what} {number} cannot be used: expected it contiguous")
        if view.nbytes != views[0].nbytes:
            raise ValueError(
                f"{what} {number} has {view.nbytes} bytes, "
                f"expected {views[0].nbytes} as number 0 has"
            )
    return [view.cast("B") for view in views]


def _outputs(buffers: Iterable[Buffer], what: str, expected: int) -> list[memoryview]:
    """Return flat views of so many writable buffers of equal size.

    Raises: ValueError.
    """
    views = _views(buffers, what, expected)
    for number, view in enumerate(views):
        if view.readonly:
            raise ValueError(f"{what} {number} cannot be used: expected it writable")
    return views


def _check_sizes(sources: list[memoryview], targets: list[memoryview]) -> None:
    if sources[0].nbytes != targets[0].nbytes:
        raise ValueError(
            f"an output has {targets[0].nbytes} bytes, expected {sources[0].nbytes} as an input has"
        )


class ReferenceCode:
    """K data shards and M parity shards; see `torus.redundancy.codec.Codec`."""

    kernel = "zfec"

    def __init__(self, data: int, parity: int) -> None:
        self._data = data
        self._parity = parity
        self._encoder = zfec.Encoder(data, data + parity)
        self._decoder = zfec.Decoder(data, data + parity)

    def _made(self, data: Sequence[Buffer], numbers: Sequence[int]) -> list[bytes]:
        made: list[bytes] = self._encoder.encode(list(data), list(numbers))
        return made

    def _parity_of(self, data: Sequence[Buffer]) -> list[bytes]:
        return self._made(data, range(self._data, self._data + self._parity))

    def encode(self, data: Sequence[Buffer], parity: Sequence[Buffer]) -> None:
        """Write all parity shards from all data shards."""
        sources = _views(data, "data shard", self._data)
        targets = _outputs(parity, "parity shard", self._parity)
        _check_sizes(sources, targets)
        for target, made in zip(targets, self._parity_of(sources), strict=True):
            target[:] = made

    def encode_whole(self, content: Buffer, parity: Buffer, shard_bytes: int) -> None:
        """Write all parity shards, one after the other, from content that is the data shards."""
        (source,) = _views([content], "content", 1)
        (target,) = _outputs([parity], "parity", 1)
        if target.nbytes != self._parity * shard_bytes:
            raise ValueError(
                f"the parity has {target.nbytes} bytes, "
                f"expected {self._parity} shards of {shard_bytes}"
            )
        if source.nbytes > self._data * shard_bytes:
            raise ValueError(
                f"the content has {source.nbytes} bytes, "
                f"expected at most {self._data} shards of {shard_bytes}"
            )
        starts = [shard * shard_bytes for shard in range(self._data)]
        data = [bytes(source[at : at + shard_bytes]).ljust(shard_bytes, b"\0") for at in starts]
        target[:] = b"".join(self._parity_of(data))

    def add(self, index: int, piece: Buffer, parity: Sequence[Buffer], offset: int) -> None:
        """Add to the parity shards what a piece of a data shard contributes."""
        if not 0 <= index < self._data:
            raise ValueError(f"shard {index} is no data shard: expected 0 to {self._data - 1}")
        (source,) = _views([piece], "data piece", 1)
        targets = _outputs(parity, "parity shard", self._parity)
        size = source.nbytes
        if not 0 <= offset <= targets[0].nbytes - size:
            raise ValueError(
                f"{size} bytes at {offset} do not lie in a shard of {targets[0].nbytes}"
            )
        zeroes = bytes(size)
        data = [source if shard == index else zeroes for shard in range(self._data)]
        for target, made in zip(targets, self._parity_of(data), strict=True):
            before = int.from_bytes(target[offset : offset + size], "big")
            total = before ^ int.from_bytes(made, "big")
            target[offset : offset + size] = total.to_bytes(size, "big")

    def rebuild(
        self,
        numbers: Sequence[int],
        present: Sequence[Buffer],
        wanted: Sequence[int],
        outputs: Sequence[Buffer],
    ) -> None:
        """Write the wanted shards, data or parity, from exactly K present ones."""
        self._check(numbers, wanted)
        sources = _views(present, "present shard", self._data)
        targets = _outputs(outputs, "wanted shard", len(wanted))
        if not wanted:
            return
        _check_sizes(sources, targets)
        # zfec reorders the list of blocks that it is given: `sources` is not used after this.
        data: list[bytes] = self._decoder.decode(sources, list(numbers))
        for target, made in zip(targets, self._made(data, wanted), strict=True):
            target[:] = made

    def _check(self, numbers: Sequence[int], wanted: Sequence[int]) -> None:
        """Raise unless the numbers are legal: distinct, in range, K present."""
        named = [*numbers, *wanted]
        last = self._data + self._parity - 1
        for number in named:
            if not 0 <= number <= last:
                raise ValueError(f"shard {number} does not exist: expected 0 to {last}")
        if len(numbers) != self._data:
            raise ValueError(
                f"{len(numbers)} shards are given, expected {self._data}: {list(numbers)}"
            )
        if len(set(named)) != len(named):
            raise ValueError(
                f"a shard is named twice: expected distinct ones, found present {list(numbers)} "
                f"and wanted {list(wanted)}"
            )
