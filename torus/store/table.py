"""Which chunk lies in which slot, and which chunks a volume has here.

A shard is entered under its own id, as the whole copy of its chunk is.
"""

from collections.abc import Iterator

from torus.ids import PARTS_MAX, ChunkId, is_shard, shard_id, split_part, volume_of
from torus.store.appender import Slot


class SlotTable:
    """The used slots of a disk, by chunk and by volume."""

    def __init__(self) -> None:
        self._slots: dict[ChunkId, Slot] = {}
        self._volumes: dict[int, dict[ChunkId, None]] = {}  # in order of arrival
        self._shards: dict[ChunkId, int] = {}  # by chunk: a bit for each number that is here
        self._shard_count = 0
        self.get = self._slots.get

    def __contains__(self, chunk: ChunkId) -> bool:
        return chunk in self._slots

    def __iter__(self) -> Iterator[ChunkId]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, slot: Slot) -> None:
        """Enter a chunk's slot, or a shard's cell."""
        self._slots[slot.chunk] = slot
        self._volumes.setdefault(volume_of(slot.chunk), {})[slot.chunk] = None
        chunk, number = split_part(slot.chunk)
        if number is not None:
            before = self._shards.get(chunk, 0)
            self._shard_count += not before >> number & 1
            self._shards[chunk] = before | 1 << number

    def pop(self, chunk: ChunkId) -> Slot | None:
        """Take a chunk out; None when it is not here."""
        slot = self._slots.pop(chunk, None)
        if slot is not None:
            chunks = self._volumes[volume_of(chunk)]
            del chunks[chunk]
            if not chunks:
                del self._volumes[volume_of(chunk)]
            if is_shard(chunk):
                self._forget_shard(chunk)
        return slot

    def _forget_shard(self, shard: ChunkId) -> None:
        chunk, number = split_part(shard)
        assert number is not None
        self._shard_count -= 1
        left = self._shards[chunk] & ~(1 << number)
        if left:
            self._shards[chunk] = left
        else:
            del self._shards[chunk]

    def parts_of(self, chunk: ChunkId) -> list[ChunkId]:
        """Return what of ``chunk`` is here: the whole copy, then its shards.

        Of the id of a shard: that shard.
        """
        parts = [chunk] if chunk in self._slots else []
        shards = self._shards.get(chunk, 0)
        if shards:
            parts += [shard_id(chunk, one) for one in range(PARTS_MAX) if shards >> one & 1]
        return parts

    @property
    def shards(self) -> int:
        """Return how many shards are here."""
        return self._shard_count

    def of(self, volume: int) -> list[ChunkId]:
        """Return the chunks of a volume that are here; costs no more than there are."""
        return list(self._volumes.get(volume, ()))
