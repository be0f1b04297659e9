"""Which chunk lies in which slot, and which chunks a volume has here.

A shard is entered under its own id, as the whole copy of its chunk is.
"""

from collections.abc import Iterator

from torus.ids import PARTS_MAX, ChunkId, is_shard, shard_id, split_part, volume_of
from torus.store.appender import Slot


class SlotTable:
    """The used slots and cells of a disk, by chunk and by volume."""

    def __init__(self) -> None:
        self._slots: dict[ChunkId, Slot] = {}
        self._volumes: dict[int, dict[ChunkId, None]] = {}  # in order of arrival
        # How many shards of each number a volume has here.  Of each chunk nothing is kept: there
        # may be millions, and only a deletion asks.
        self._numbers: dict[int, list[int]] = {}
        self.get = self._slots.get

    def __contains__(self, chunk: ChunkId) -> bool:
        return chunk in self._slots

    def __iter__(self) -> Iterator[ChunkId]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, slot: Slot) -> None:
        """Enter a chunk's slot, or a shard's cell."""
        if is_shard(slot.chunk) and slot.chunk not in self._slots:
            self._count(slot.chunk, 1)
        self._slots[slot.chunk] = slot
        self._volumes.setdefault(volume_of(slot.chunk), {})[slot.chunk] = None

    def pop(self, chunk: ChunkId) -> Slot | None:
        """Take a chunk out; None when it is not here."""
        slot = self._slots.pop(chunk, None)
        if slot is not None:
            volume = volume_of(chunk)
            chunks = self._volumes[volume]
            del chunks[chunk]
            if not chunks:
                del self._volumes[volume]
            if is_shard(chunk):
                self._count(chunk, -1)
        return slot

    def _count(self, shard: ChunkId, change: int) -> None:
        volume, number = volume_of(shard), split_part(shard)[1]
        assert number is not None
        counts = self._numbers.setdefault(volume, [0] * PARTS_MAX)
        counts[number] += change
        if not any(counts):
            del self._numbers[volume]

    def parts_of(self, chunk: ChunkId) -> list[ChunkId]:
        """Return what of ``chunk`` is here: the whole copy, then its shards.

        Of the id of a shard: that shard.
        """
        parts = [chunk] if chunk in self._slots else []
        for number, count in enumerate(self._numbers.get(chunk.volume, ())):
            if count and (shard := shard_id(chunk, number)) in self._slots:
                parts.append(shard)
        return parts

    @property
    def shards(self) -> int:
        """Return how many shards are here."""
        return sum(map(sum, self._numbers.values()))

    def of(self, volume: int) -> list[ChunkId]:
        """Return the chunks of a volume that are here, whole copies and shards, by their ids;
        costs no more than there are."""
        return list(self._volumes.get(volume, ()))
