"""What lies durably on the disks of a simulated cluster: whole copies of chunks, and shards.

Reads past all code of the cluster that keeps books, but for the place of a part on a disk whose
store is open.  It decides nothing about right and wrong: `torus.testing.simtruth` does.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torus import limits
from torus.errors import TorusError
from torus.format.segment import Geometry, SlotHeader
from torus.format.shard import PLACE_BYTES, CellHeader, cell_bytes, cell_offset, shelf_data
from torus.ids import ChunkId
from torus.store.content import FIRST
from torus.store.shelves import Cell
from torus.testing.simdisk import DiskImage
from torus.testing.simnode import SimDrive

_HEADER = limits.SLOT_HEADER_BYTES


class Place(NamedTuple):
    """Where a part lies: its slot's or cell's address and size, and its shelf's address."""

    address: int
    room: int
    shelf: int | None


def slice_of(image: DiskImage, geometry: Geometry, address: int, size: int) -> bytes:
    """Return bytes of a disk."""
    segment, offset = divmod(address, geometry.segment_bytes)
    return bytes(image.segments[segment][offset : offset + size])


def flip(image: DiskImage, geometry: Geometry, address: int, mask: int) -> None:
    """Turn bits of one byte of a disk, as no write does."""
    segment, offset = divmod(address, geometry.segment_bytes)
    if segment in image.segments:
        image.segments[segment][offset] ^= mask


class DriveParts:
    """The parts on one disk."""

    def __init__(self, drive: SimDrive) -> None:
        self.drive = drive
        self._index: tuple[DiskImage, dict[ChunkId, Place]] | None = None

    def places(self) -> dict[ChunkId, Place]:
        """Return all parts that are here; only of those is the place asked for."""
        store = self.drive.store
        if store is not None:
            return {part: self._open_place(part) for part in store.chunks()}  # type: ignore[misc]
        return self._closed()

    def place(self, part: ChunkId) -> Place | None:
        """Return where a part lies; None when it is not here."""
        if self.drive.store is not None:
            return self._open_place(part)
        return self._closed().get(part)

    def _open_place(self, part: ChunkId) -> Place | None:
        store = self.drive.store
        slot = None if store is None else store.slots.get(part)
        if slot is None:
            return None
        if isinstance(slot, Cell):
            return Place(slot.address, slot.room, slot.shelf.slot.address)
        return Place(slot.address, self.drive.geometry.slot_bytes, None)

    def holds(self, part: ChunkId, content: bytes) -> bool:
        """Say whether a part is here with that content, headers and all, after a power loss."""
        place = self.place(part)
        if place is None or len(content) > place.room - FIRST:
            return False
        image = self.drive.durable()
        data = slice_of(image, self.drive.geometry, place.address + FIRST, len(content))
        return data == content and self._named(part, place, image)

    def _named(self, part: ChunkId, place: Place, image: DiskImage) -> bool:
        """Say whether the headers name the part."""
        geometry = self.drive.geometry
        head = slice_of(image, geometry, place.address, _HEADER)
        try:
            if place.shelf is None:
                whole = SlotHeader.unpack(head, "")
                return whole is not None and whole.chunk == part
            cell = CellHeader.unpack(head, "")
            shelf = SlotHeader.unpack(slice_of(image, geometry, place.shelf, _HEADER), "")
        except TorusError:
            return False
        return (
            cell is not None
            and cell.shard == part
            and shelf is not None
            and shelf_data(shelf.chunk) is not None
        )

    def content(self, part: ChunkId) -> bytes | None:
        """Return what lies behind a part's header now, durable or not; None: it is not here."""
        place = self.place(part)
        if place is None:
            return None
        size = place.room - FIRST
        return slice_of(self.drive.image, self.drive.geometry, place.address + FIRST, size)

    # --- a disk that no process has open --------------------------------------------------

    def _closed(self) -> dict[ChunkId, Place]:
        image = self.drive.image
        if self._index is None or self._index[0] is not image:
            found: dict[ChunkId, tuple[int, Place]] = {}
            for part, copy, place in self._scan(image):
                if part not in found or copy > found[part][0]:
                    found[part] = copy, place
            self._index = image, {part: place for part, (_, place) in found.items()}
        return self._index[1]

    def _scan(self, image: DiskImage) -> Iterator[tuple[ChunkId, int, Place]]:
        geometry = self.drive.geometry
        for segment in image.segments:
            for number in range(geometry.segment_slots):
                address = geometry.address(segment, number)
                head = slice_of(image, geometry, address, _HEADER)
                try:
                    found = SlotHeader.unpack(head, "")
                except TorusError:
                    continue
                if found is None:
                    continue
                data = shelf_data(found.chunk)
                if data is None:
                    yield found.chunk, found.copy, Place(address, geometry.slot_bytes, None)
                else:
                    yield from self._cells(image, address, data)

    def _cells(
        self, image: DiskImage, address: int, data: int
    ) -> Iterator[tuple[ChunkId, int, Place]]:
        geometry = self.drive.geometry
        for number in range(data):
            at = address + cell_offset(data, number, geometry.slot_bytes)
            try:
                cell = CellHeader.unpack(slice_of(image, geometry, at, PLACE_BYTES), "")
            except TorusError:
                continue
            if cell is not None:
                place = Place(at, cell_bytes(data, geometry.slot_bytes), address)
                yield cell.shard, cell.copy, place
