"""Opening a disk: every segment's, slot's and cell's header, and what each slot is taken for.

Decides what is quarantined, which of two copies of a chunk or a shard is the newer one, and what
becomes of the older, and of a shelf in which nothing lies.  Implements docs/format.md, "Slots"
and "Shards".
"""

from torus import limits
from torus.errors import Corruption, LocalProtocolError, TorusError
from torus.format.identity import DiskIdentity
from torus.format.segment import FREED_SLOT, UNUSED_SLOT, SegmentHeader, SlotHeader
from torus.format.shard import DESCRIPTOR_BYTES, PLACE_BYTES, CellHeader, Descriptor, shelf_data
from torus.ids import ChunkId, is_shard, split_part
from torus.log import get_logger
from torus.store.appender import Slot
from torus.store.damage import chunk_behind, parts_in
from torus.store.disk import Disk
from torus.store.shelves import Cell, Shelf, is_cut, slot_index
from torus.store.space import Space
from torus.store.table import SlotTable

log = get_logger("torus.store")


class Opening:
    """Fills ``space`` and ``slots``; what could not be read is in ``damaged``."""

    def __init__(self, disk: Disk, identity: DiskIdentity, space: Space, slots: SlotTable) -> None:
        self._disk = disk
        self._geometry = identity.geometry
        self._space = space
        self._slots = slots
        self._disk_id = bytes.fromhex(identity.disk_id)
        self._cluster_id = bytes.fromhex(identity.cluster_id)
        self._replaced: set[int] = set()  # segments in which older copies were marked as freed
        self._shelves: list[Shelf] = []
        self.damaged: list[str] = []
        self.unreadable: set[ChunkId] = set()  # they may lie in damaged slots
        self.blind = False  # a damaged slot does not even tell what it may have held

    def segment(self, segment: int, name: str) -> None:
        """Read the headers of one segment.

        Raises: Corruption, ForeignData, UnknownVersion, OSError.
        """
        size = self._disk.open_segment(segment)
        header = SegmentHeader.unpack(self._disk.read_header(segment), name)
        header.check_place(
            self._disk_id, self._cluster_id, segment, self._geometry.slot_bytes, size, name
        )
        for number in range(header.slot_count):
            address = self._geometry.address(segment, number)
            where = f"{name} slot {number}"
            try:
                self._slot(address, segment, number, where)
            except Corruption as exc:
                self.damaged.append(exc.message)
                self._space.quarantine()
                data = self._disk.read(address, header.slot_bytes)
                held = parts_in(data, self._disk_id, segment, number)
                self.unreadable |= held
                self.blind |= not held
                log.error("store.slot.damaged", slot=where, reason=exc.message)

    def _slot(self, address: int, segment: int, number: int, where: str) -> None:
        found = self._read_header(address, segment, number, where)
        if found is None:
            self._space.add_free(address)
            return
        found.check_place(self._disk_id, segment, number, where)
        slot = Slot(found.chunk, address, segment, found.copy)
        if shelf_data(found.chunk) is not None:
            self._shelf(slot, number, where)
        elif is_shard(found.chunk):
            raise Corruption(f"{where}: the slot header names shard {found.chunk}")
        else:
            self._space.add_used()
            self._enter(slot, where)

    def _enter(self, slot: Slot, where: str) -> None:
        """Enter a slot or a cell, which is counted already; free the older of two copies.

        Raises: Corruption when nobody can tell which is the older.
        """
        other = self._slots.get(slot.chunk)
        if other is not None:
            if other.copy == slot.copy:
                if slot.counted:
                    self._space.remove_used()
                raise Corruption(f"{where}: chunk {slot.chunk} lies in two slots")
            older, slot = sorted((other, slot), key=lambda one: one.copy)
            self._free_older(older, where)
        self._slots.add(slot)

    # --- shelves ------------------------------------------------------------------------

    def _shelf(self, slot: Slot, number: int, where: str) -> None:
        """Read the headers of a shelf's cells.

        Raises: Corruption, UnknownVersion, OSError.
        """
        data = shelf_data(slot.chunk)
        if (
            data is None
            or not is_cut(data)
            or (slot.chunk[1:] != (0, 0, slot_index(self._geometry, slot.address)))
        ):
            raise Corruption(f"{where}: the slot header names shelf {slot.chunk}")
        shelf = Shelf(slot, data, self._geometry.slot_bytes)
        cells = range(data)
        headers = self._disk.read_many([(shelf.cell_address(one), PLACE_BYTES) for one in cells])
        self._space.add_used()
        self._shelves.append(shelf)
        for cell, header in enumerate(headers):
            place = f"{where} cell {cell}"
            try:
                found = CellHeader.unpack(header, place)
                if found is None:
                    shelf.free.append(cell)
                    continue
                found.check_place(self._disk_id, slot.segment, number, cell, data, place)
                if split_part(found.shard)[1] is None:
                    raise Corruption(f"{place}: the cell header names chunk {found.shard}")
                self._enter(Cell(found.shard, shelf, cell, found.copy), place)
            except (Corruption, LocalProtocolError) as exc:
                self.damaged.append(exc.message)
                self._note_unreadable(shelf.cell_address(cell))
                log.error("store.cell.damaged", cell=place, reason=exc.message)

    def _note_unreadable(self, address: int) -> None:
        """Remember which shard may lie in a cell whose header is damaged."""
        described = self._disk.read(address + PLACE_BYTES, DESCRIPTOR_BYTES)
        try:
            self.unreadable.add(Descriptor.unpack(described, "").shard)
        except TorusError:
            self.blind = True

    def _free_older(self, older: Slot, where: str) -> None:
        """Mark the slot of a copy that was replaced: the power went before that was done."""
        self._disk.write(older.address, FREED_SLOT)
        self._replaced.add(older.segment)
        if isinstance(older, Cell):
            older.shelf.free.append(older.number)
        else:
            self._space.release(older.address)
        log.info("store.slot.older_copy_freed", slot=where, chunk=str(older.chunk))

    def finish(self) -> list[Shelf]:
        """Make the marks durable, before a slot is given out.

        A shelf in which nothing lies, because the power went before something was durable there
        or after the last cell was freed, is a free slot.

        Returns: the shelves.  Raises: OSError.
        """
        for shelf in self._shelves:
            if shelf.empty:
                self._disk.write(shelf.slot.address, FREED_SLOT)
                self._replaced.add(shelf.slot.segment)
        for segment in sorted(self._replaced):
            self._disk.sync(segment)
        for shelf in self._shelves:
            if shelf.empty:
                self._space.release(shelf.slot.address)
        return [shelf for shelf in self._shelves if not shelf.empty]

    def _read_header(
        self, address: int, segment: int, number: int, where: str
    ) -> SlotHeader | None:
        """Return a slot's header; None for a free slot.

        A header that is all zeroes before a chunk's first record was lost: it rotted, or the
        power went before it was on disk.  The record says which chunk it is.

        Raises: Corruption, UnknownVersion, OSError.
        """
        data = self._disk.read(address, limits.SLOT_HEADER_BYTES)
        if data != UNUSED_SLOT:
            return SlotHeader.unpack(data, where)
        chunk = chunk_behind(lambda size: self._disk.read(address, size), self._geometry.slot_bytes)
        if chunk is None:
            return None
        header = SlotHeader(self._disk_id, segment, number, chunk)
        self._disk.write(address, header.pack())
        log.warning("store.slot.header_restored", slot=where, chunk=str(chunk))
        return header
