"""The writer of one chunk on another process's node.

Decides what is sent at once and what takes waiting; what is sent again is `torus.cluster.peer`'s.
"""

import asyncio
from typing import TYPE_CHECKING

from torus import limits
from torus._fast.record import RecordBuilder
from torus.ids import ChunkId

if TYPE_CHECKING:
    from torus.cluster.peer import PeerChunks


class PeerWriter:
    """One open chunk on a node; an append always waits for the network."""

    __slots__ = ("__weakref__", "_chunk", "_peer", "boot_id")
    immediate = False

    def __init__(self, peer: "PeerChunks", chunk: ChunkId, boot_id: int) -> None:
        self._peer = peer
        self._chunk = chunk
        self.boot_id = boot_id

    def append_now(self, index: int, offset: int, record: RecordBuilder) -> bool:
        """Return False: the node can only be reached by waiting."""
        return False

    async def append(self, index: int, offset: int, record: RecordBuilder) -> None:
        """Append a finished record, which is copied before the first wait.

        After a lost connection the same record is sent again, as long as the node is the one
        that has the records before it.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable, LocalProtocolError; Corruption when
        the node restarted since the chunk was opened.
        """
        await self._peer.append(self._chunk, index, offset, record.tobytes(), self.boot_id)

    def append_soon(self, index: int, offset: int, record: bytes) -> asyncio.Future[int] | None:
        """See `DiskWriter.append_soon`; the future's errors are those of `append`."""
        if self._peer.append_patience_s > limits.REPLICA_SILENCE_S:
            return None
        return self._peer.append_soon(self._chunk, index, offset, record, self.boot_id)

    def sync_soon(self) -> asyncio.Future[int] | None:
        """See `DiskWriter.sync_soon`; the future's errors are those of `sync`."""
        return self._peer.sync_many_soon([self._chunk])

    async def append_bytes(self, index: int, offset: int, record: bytes) -> None:
        """Append a finished record's bytes; the same object may go to many disks.

        Raises: as `append`.
        """
        await self._peer.append(self._chunk, index, offset, record, self.boot_id)
