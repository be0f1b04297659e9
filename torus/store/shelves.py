"""Shelves: slots that are cut into cells, each for one shard.

Decides which cell a shard gets (of a shelf with room, if there is one), when a slot becomes a
shelf, and when a shelf's slot is free again: when no cell of it is in use.  Implements
docs/format.md, "Shards".
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torus import limits
from torus.errors import DiskFailed, LocalProtocolError, TorusError
from torus.format.segment import FREED_SLOT, Geometry
from torus.format.shard import (
    PLACE_BYTES,
    SHELF_HEADER_BYTES,
    CellHeader,
    cell_bytes,
    cell_offset,
    payload_bytes,
    shelf_id,
)
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.appender import Slot

if TYPE_CHECKING:
    from torus.store.store import Store

log = get_logger("torus.store")


class Shelf:
    """A used slot with ``data`` cells.  A cell is free, in use, or damaged."""

    __slots__ = ("cell_bytes", "data", "free", "slot")

    def __init__(self, slot: Slot, data: int, slot_bytes: int) -> None:
        self.slot = slot
        self.data = data
        self.cell_bytes = cell_bytes(data, slot_bytes)
        self.free: list[int] = []  # numbers of cells whose headers say so durably

    @property
    def empty(self) -> bool:
        """True when the slot may hold something else."""
        return len(self.free) == self.data

    def cell_address(self, number: int) -> int:
        """Return the disk address of a cell."""
        return self.slot.address + SHELF_HEADER_BYTES + number * self.cell_bytes


class Cell(Slot):
    """A used cell: what a slot is for a whole copy."""

    __slots__ = ("number", "room", "shelf")
    counted = False

    def __init__(self, shard: ChunkId, shelf: Shelf, number: int, copy: int = 0) -> None:
        super().__init__(shard, shelf.cell_address(number), shelf.slot.segment, copy)
        self.shelf = shelf
        self.number = number
        self.room = shelf.cell_bytes

    def header(self, disk_id: bytes, geometry: Geometry) -> bytes:
        """Return the header that says which shard lies here."""
        slot = geometry.slot_of(self.shelf.slot.address)
        return CellHeader(
            disk_id, self.segment, slot, self.number, self.shelf.data, self.chunk, self.copy
        ).pack()


def slot_index(geometry: Geometry, address: int) -> int:
    """Return a slot's number among all of its disk: no two shelves have the same id."""
    return address // geometry.slot_bytes


class Shelves:
    """The shelves of one store.  Used from one event loop."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._roomy: dict[int, dict[Shelf, None]] = {}  # by cells of a shelf, longest known first
        self._making = asyncio.Lock()
        self.count = 0

    @property
    def free_bytes(self) -> int:
        """Return the bytes of free cells, in slots that count as used."""
        return sum(
            len(shelf.free) * shelf.cell_bytes
            for shelves in self._roomy.values()
            for shelf in shelves
        )

    def found(self, shelves: Iterable[Shelf]) -> None:
        """Take over the shelves that were there when the disk was opened."""
        for shelf in shelves:
            self.count += 1
            self._offer(shelf)

    async def take(self, shard: ChunkId, data: int, copy: int) -> Cell:
        """Take a cell for a shard of a chunk that is cut into ``data``; nobody is told of it yet.

        Raises: PoolFull, DiskFailed; LocalProtocolError when a slot has no room for such cells.
        """
        if payload_bytes(data, self._store.geometry.slot_bytes) <= 0:
            raise LocalProtocolError(
                f"a slot of {self._store.geometry.slot_bytes} bytes cannot be cut into {data} cells"
            )
        while True:
            shelf = next(iter(self._roomy.get(data, ())), None)
            if shelf is not None:
                number = shelf.free.pop(0)
                if not shelf.free:
                    del self._roomy[data][shelf]
                return Cell(shard, shelf, number, copy)
            async with self._making:
                if not self._roomy.get(data):
                    await self._make(data)

    async def _make(self, data: int) -> None:
        """Cut a slot into cells that are all free.

        What stood in the slot may look like a cell in use: their headers are emptied, durably,
        before the slot's own header says that it is a shelf.  That one is not waited for: it is
        durable with the first shard.

        Raises: PoolFull, DiskFailed.
        """
        store = self._store
        slot = await store.take_waiting(ChunkId(0, 0, 0, 0))
        slot.chunk = shelf_id(data, slot_index(store.geometry, slot.address))
        slot_bytes = store.geometry.slot_bytes
        mark = FREED_SLOT + bytes(SHELF_HEADER_BYTES - len(FREED_SLOT))
        empty = [(cell_offset(data, cell, slot_bytes), bytes(PLACE_BYTES)) for cell in range(data)]
        header = store.slot_header(slot)
        try:
            await store.write_durably(slot, [(0, mark), *empty])
            await store.write_soon(slot, [(0, header + header)])
        except TorusError as exc:
            if not isinstance(exc, DiskFailed):
                await store.give_back(slot)
            raise
        shelf = Shelf(slot, data, slot_bytes)
        shelf.free = list(range(data))
        self.count += 1
        self._offer(shelf)

    async def freed(self, cells: Sequence[Cell]) -> None:
        """Make cells whose headers say durably that they are free available.

        A shelf without used cells becomes a free slot; where that fails it stays a shelf.
        """
        emptied = []
        for cell in cells:
            shelf = cell.shelf
            shelf.free.append(cell.number)
            if shelf.empty:
                self._roomy.get(shelf.data, {}).pop(shelf, None)
                emptied.append(shelf)
            else:
                self._offer(shelf)
        for shelf in emptied:
            if await self._store.give_back(shelf.slot):
                self.count -= 1
            else:
                self._offer(shelf)

    def _offer(self, shelf: Shelf) -> None:
        if shelf.free:
            self._roomy.setdefault(shelf.data, {})[shelf] = None


def is_cut(data: int) -> bool:
    """Tell whether a slot may be cut into so many cells."""
    return limits.ERASURE_DATA_MIN <= data <= limits.ERASURE_DATA_MAX
