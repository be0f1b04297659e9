"""Deleting chunks and shards, and taking them back.

Decides what a deletion takes along (every part of a chunk that is here), and what is here again
when it fails.  When a freed slot may be used again is decided in `torus.store.trash`.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torus.errors import LocalProtocolError, NotFound, TorusError
from torus.ids import ChunkId, volume_of
from torus.log import get_logger
from torus.store.appender import Slot
from torus.store.cooling import Cooling
from torus.store.shelves import Cell, Shelves
from torus.store.trash import Trash

if TYPE_CHECKING:
    from torus.store.store import Store

log = get_logger("torus.store")


class Deleting:
    """The deletions of one store."""

    def __init__(self, store: "Store", trash: Trash) -> None:
        self._store = store
        self._trash = trash

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        """Do what `Store.delete` says."""
        store = self._store
        store.check_disk()
        store.fences.check(volume, epoch)
        wanted = list(chunks)
        for chunk in wanted:
            if volume_of(chunk) != volume:
                raise LocalProtocolError(f"chunk {chunk} is not of volume {volume}")
        parts = [store.slots.parts_of(chunk) for chunk in wanted]
        await self.discard([part for some in parts for part in some])
        return sum(bool(some) for some in parts)

    async def discard(self, parts: Iterable[ChunkId]) -> int:
        """Do what `Store.discard` says."""
        store = self._store
        store.check_disk()
        found = [store.slots.pop(part) for part in parts]
        slots = [slot for slot in found if slot is not None]
        ends = [slot.end for slot in slots]
        for slot in slots:
            slot.end = None  # a writer that has it open is done
        if self._trash.keeps:
            self._trash.add(slots)
            return len(slots)
        try:
            await self._trash.wipe(slots)
        except TorusError:
            # Deleting may be tried again, also where a header is wiped already.
            for slot, end in zip(slots, ends, strict=True):
                slot.end = end
                store.slots.add(slot)
            raise
        return len(slots)

    async def give_back(self, slot: Slot) -> bool:
        """Do what `Store.give_back` says."""
        try:
            await self._trash.wipe([slot])
        except TorusError as exc:
            log.warning("store.slot.not_freed", chunk=str(slot.chunk), reason=str(exc))
            return False
        return True

    async def restore(self, part: ChunkId) -> None:
        """Do what `Store.restore` says."""
        store = self._store
        store.check_disk()
        slot = self._trash.take_back(part)
        if slot is None:
            raise NotFound(f"chunk {part} is not in the trash of disk {store.identity.disk_id}")
        slot.examined = None
        store.slots.add(slot)
        try:  # an attempt to free it may have wiped it
            store.disk.write(slot.address, store.slot_header(slot))
        except OSError as exc:
            raise store.translate(exc, "restore a chunk") from exc
        await store.sync_segments({slot.segment})


async def make_available(slots: Sequence[Slot], cooling: Cooling, shelves: Shelves) -> None:
    """Give slots and cells whose headers say durably that they are free to who takes the next."""
    cooling.add([slot.address for slot in slots if slot.counted])
    cells = [slot for slot in slots if isinstance(slot, Cell)]
    if cells:
        await shelves.freed(cells)
