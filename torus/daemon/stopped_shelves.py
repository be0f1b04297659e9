"""The shelves of a stopped node's disk: which cells can be used, and what is said of the others.

Decides where each shard lies; of two of them the later copy is it, as for the store.  Nothing is
written.  Implements docs/format.md, "Shards".
"""

from collections.abc import Callable
from typing import NamedTuple

from torus.daemon.findings import Findings
from torus.errors import ForeignData, TorusError
from torus.format.segment import Geometry
from torus.format.shard import PLACE_BYTES, CellHeader, cell_bytes, cell_offset, shelf_data
from torus.ids import ChunkId, split_part

Read = Callable[[int, int], bytes]
"""Returns so many bytes at a disk address.  Raises: OSError."""


class Place(NamedTuple):
    """Where a shard lies."""

    address: int  # of its cell
    room: int  # bytes of the cell
    copy: int


class StoppedShelves:
    """The shelves of one disk, as they are found."""

    def __init__(self, read: Read, disk_id: bytes, geometry: Geometry, findings: Findings) -> None:
        self._read = read
        self._disk_id = disk_id
        self._geometry = geometry
        self._findings = findings
        self.count = 0
        self.cells_free = 0
        self.shards: dict[ChunkId, Place] = {}

    def add(self, shelf: ChunkId, address: int, where: str) -> None:
        """Read the headers of a shelf's cells; ``where`` names its slot.

        Raises: OSError.
        """
        data = shelf_data(shelf) or 0
        index = address // self._geometry.slot_bytes
        room = cell_bytes(data, self._geometry.slot_bytes) if data else 0
        if room <= 0 or shelf[1:] != (0, 0, index):
            self._findings.error(
                "bad-slot", where, f"its header names shelf {shelf}, it is slot {index}"
            )
            return
        self.count += 1
        for cell in range(data):
            place = address + cell_offset(data, cell, self._geometry.slot_bytes)
            self._cell(cell, data, Place(place, room, 0), f"{where} cell {cell}")

    def _cell(self, cell: int, data: int, place: Place, where: str) -> None:
        segment = self._geometry.segment_of(place.address)
        slot = self._geometry.slot_of(place.address)
        try:
            header = CellHeader.unpack(self._read(place.address, PLACE_BYTES), where)
            if header is None:
                self.cells_free += 1
                return
            header.check_place(self._disk_id, segment, slot, cell, data, where)
            split_part(header.shard)
        except ForeignData as exc:
            self._findings.error("foreign-slot", where, exc.message)
            return
        except TorusError as exc:
            self._findings.error("bad-slot", where, exc.message)
            return
        other = self.shards.get(header.shard)
        if other is not None and other.copy == header.copy:
            self._findings.error(
                "duplicate-chunk", where, f"shard {header.shard} lies in another cell, too"
            )
        elif other is None or header.copy > other.copy:
            self.shards[header.shard] = Place(place.address, place.room, header.copy)
