"""Where the compiled read path finds a volume's chunks: in files that this process has open.

These are the files of this process's own disks, or of other processes of this host
(`torus.cluster.nearby`).  Decides whether a whole copy or shards are looked for there.  Whether
bytes are right is decided by the map's checksums, as for every other read.

Implements docs/replication.md, "Reading".
"""

from typing import TYPE_CHECKING

from torus._fast.blockio import BlockIo
from torus.cluster.chunks import Place
from torus.cluster.near_columns import NearColumns
from torus.format.shard import PAYLOAD_OFFSET
from torus.ids import ChunkId, shard_id

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool
    from torus.cluster.replicated_reads import CopyReads
    from torus.cluster.replicated_writes import OpenChunks

_SAME_HOST = 1  # a distance of the pool


class FilePlaces:
    """The places of one volume's chunks, and of its ancestors'."""

    def __init__(
        self, pool: "DiskPool", reads: "CopyReads", opened: "OpenChunks", *, near: bool
    ) -> None:
        """``near``: this process has disks."""
        self._pool = pool
        self._reads = reads
        self._open = opened
        self._near = near
        self.io: BlockIo | None = pool.here.io if near else None
        if not near and pool.nearby is not None:
            self.io = pool.nearby.io
            shards = reads.shards
            shards.near = NearColumns(pool.nearby, self._address, shards.places)

    def place(self, chunk: ChunkId, known: Place | None = None) -> Place | None:
        """Return where `io` finds a chunk, see `Chunks.place`."""
        if self._near:
            whole = self._pool.here.place(chunk, self._open.lost)
            if whole is not None:
                return whole
        if self._reads.shards.places.expected(chunk):
            return self._shards(chunk, known)
        disk_id = self._reads.best(chunk)
        return None if disk_id is None else self._address(chunk, disk_id)

    def _shards(self, chunk: ChunkId, known: Place | None) -> Place | None:
        """Return the size of shards and the addresses of their payloads, as far as they are
        known; asks for those that are not."""
        placed = self._reads.shards.placed(chunk)
        if placed is None:
            return None
        stripe, disks = placed
        found: list[int | None] = [None] * stripe.data
        if isinstance(known, tuple) and known[0] == stripe.shard_bytes:
            found = list(known[1 : stripe.data + 1])
        for number in range(stripe.data):
            disk_id = disks.get(number)
            if found[number] is None and disk_id is not None:
                address = self._address(shard_id(chunk, number), disk_id)
                found[number] = None if address is None else address + PAYLOAD_OFFSET
        return None if found.count(None) == stripe.data else (stripe.shard_bytes, *found)

    def _address(self, part: ChunkId, disk_id: str) -> int | None:
        """Return where a part of a chunk lies; None: it is not there, or not known yet."""
        if self._near:
            return self._pool.here.address(part, disk_id, self._open.lost)
        nearby = self._pool.nearby
        if nearby is None or self._pool.distance(disk_id) != _SAME_HOST:
            return None
        disk = self._pool.connected(disk_id)
        return None if disk is None else nearby.place(part, disk)
