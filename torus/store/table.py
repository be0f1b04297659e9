"""Which chunk lies in which slot, and which chunks a volume has here."""

from collections.abc import Iterator

from torus.ids import ChunkId
from torus.store.appender import Slot


class SlotTable:
    """The used slots of a disk, by chunk and by volume."""

    def __init__(self) -> None:
        self._slots: dict[ChunkId, Slot] = {}
        self._volumes: dict[int, dict[ChunkId, None]] = {}  # in order of arrival
        self.get = self._slots.get

    def __contains__(self, chunk: ChunkId) -> bool:
        return chunk in self._slots

    def __iter__(self) -> Iterator[ChunkId]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, slot: Slot) -> None:
        """Enter a chunk's slot."""
        self._slots[slot.chunk] = slot
        self._volumes.setdefault(slot.chunk.volume, {})[slot.chunk] = None

    def pop(self, chunk: ChunkId) -> Slot | None:
        """Take a chunk out; None when it is not here."""
        slot = self._slots.pop(chunk, None)
        if slot is not None:
            chunks = self._volumes[chunk.volume]
            del chunks[chunk]
            if not chunks:
                del self._volumes[chunk.volume]
        return slot

    def of(self, volume: int) -> list[ChunkId]:
        """Return the chunks of a volume that are here; costs no more than there are."""
        return list(self._volumes.get(volume, ()))
