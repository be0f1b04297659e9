"""Opening a disk: every segment's and every slot's header, and what each slot is taken for.

Decides what is quarantined, which of two copies of a chunk is the newer one, and what becomes of
the older.  Implements docs/format.md, "Slots".
"""

from torus import limits
from torus.errors import Corruption
from torus.format.identity import DiskIdentity
from torus.format.segment import FREED_SLOT, UNUSED_SLOT, SegmentHeader, SlotHeader
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.appender import Slot
from torus.store.damage import chunk_behind, chunks_in
from torus.store.disk import Disk
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
        self.damaged: list[str] = []
        self.unreadable: set[ChunkId] = set()  # they may lie in damaged slots

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
                self.unreadable |= chunks_in(self._disk.read(address, header.slot_bytes))
                log.error("store.slot.damaged", slot=where, reason=exc.message)

    def _slot(self, address: int, segment: int, number: int, where: str) -> None:
        found = self._read_header(address, segment, number, where)
        if found is None:
            self._space.add_free(address)
            return
        found.check_place(self._disk_id, segment, number, where)
        slot = Slot(found.chunk, address, segment, found.copy)
        other = self._slots.get(found.chunk)
        if other is not None:
            if other.copy == slot.copy:
                raise Corruption(f"{where}: chunk {found.chunk} lies in two slots")
            older, slot = sorted((other, slot), key=lambda one: one.copy)
            self._free_older(older, where)
        else:
            self._space.add_used()
        self._slots.add(slot)

    def _free_older(self, older: Slot, where: str) -> None:
        """Mark the slot of a copy that was replaced: the power went before that was done."""
        self._disk.write(older.address, FREED_SLOT)
        self._replaced.add(older.segment)
        self._space.add_free(older.address)
        log.info("store.slot.older_copy_freed", slot=where, chunk=str(older.chunk))

    def finish(self) -> None:
        """Make the marks durable, before a slot is given out.  Raises: OSError."""
        for segment in sorted(self._replaced):
            self._disk.sync(segment)

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
