"""The disks of this process as the compiled read path sees them: as one.

Decides nothing about which copy is read: where this process has one, it says at which address.
"""

from collections.abc import Collection, Mapping

from torus._fast.blockio import BlockIo, ManyIo
from torus.cluster.chunks import DiskChunks
from torus.errors import TorusError
from torus.ids import ChunkId

_PART_SHIFT = 56  # an address of `ManyIo`: the disk's number above it
_PARTS_MAX = 256


class DisksHere:
    """The places of chunks on any disk of this process; the mapping of disks may change."""

    def __init__(self, disks: Mapping[str, DiskChunks]) -> None:
        self._disks = disks
        self.io = ManyIo()
        self._parts: dict[str, tuple[int, BlockIo]] = {}

    def place(self, chunk: ChunkId, without: Collection[str]) -> int | None:
        """Return a chunk's address for `io`, on a disk that is not among ``without``; None where
        this process does not have it."""
        for disk_id in self._disks:
            found = self.address(chunk, disk_id, without)
            if found is not None:
                return found
        return None

    def address(self, part: ChunkId, disk_id: str, without: Collection[str]) -> int | None:
        """Return the address of a chunk, or of a shard's cell, on one disk; as `place`."""
        disk = self._disks.get(disk_id)
        if disk is None or disk_id in without:
            return None
        try:
            place = disk.place(part)
        except TorusError:
            return None
        number = None if place is None else self._number(disk_id, disk.io)
        return None if place is None or number is None else number << _PART_SHIFT | place

    def _number(self, disk_id: str, io: BlockIo | None) -> int | None:
        """Return a disk's number; one that was opened anew keeps it."""
        number, known = self._parts.get(disk_id, (len(self._parts), None))
        if io is None or number >= _PARTS_MAX:
            return None
        if io is not known:
            self.io.set_part(number, io)
            self._parts[disk_id] = number, io
        return number
