"""What is done for copies beside reading and writing: deletions, and repairs of bad copies.

Decides what becomes of a deletion whose disk is away: it is told again while the volume is
attached, and is an orphan afterwards (docs/operations.md, "Orphans").  Everything here may be
lost without harm.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torus import limits
from torus.cluster.answers import ask_all, cancel
from torus.cluster.chunks import DiskChunks
from torus.cluster.placement import Placement
from torus.errors import Corruption, Fenced, TorusError
from torus.format.logend import headers_beyond
from torus.format.shard import PLACE_BYTES
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.content import Presence

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool

log = get_logger("torus.replicas")

FIRST = limits.SLOT_HEADER_BYTES
_DELETE_S = 10.0  # for each request that a deletion takes
_AGAIN_S = 5.0


class Care:
    """The deletions and repairs of one volume."""

    def __init__(self, pool: "DiskPool", placement: Placement) -> None:
        self._pool = pool
        self._placement = placement
        self._undeleted: dict[str, set[ChunkId]] = {}
        self._epochs: dict[int, int] = {}
        self._repairs: deque[tuple[ChunkId, str, str, Callable[[], Awaitable[None]]]] = deque()
        self._wanted: set[tuple[ChunkId, str]] = set()
        self._deleting: asyncio.Task[None] | None = None
        self._repairing: asyncio.Task[None] | None = None
        self._stopping = False
        self.repaired = 0

    @property
    def undeleted(self) -> int:
        """Return how many copies are still to be deleted on disks that are away."""
        return sum(len(chunks) for chunks in self._undeleted.values())

    # --- deleting -----------------------------------------------------------------------

    async def delete(self, volume: int, epoch: int, chunks: Sequence[ChunkId]) -> int:
        """Delete on every disk that may have a copy; return how many chunks were somewhere.

        Raises: Fenced.
        """
        self._epochs[volume] = epoch
        by_disk: dict[str, list[ChunkId]] = {}
        everybody = self._pool.view.disks()
        for chunk in chunks:
            # Where a stray of another time was written is not known.
            disks = self._placement.ever(chunk) if self._placement.knows(chunk) else everybody
            for disk in disks:
                by_disk.setdefault(disk, []).append(chunk)
        requests = 1 + max(map(len, by_disk.values()), default=0) // limits.PEER_CHUNKS_MAX
        found = await ask_all(
            {disk: self._delete_on(disk, volume, epoch, some) for disk, some in by_disk.items()},
            _DELETE_S * requests,
        )
        count = 0
        for disk, answer in found.items():
            if isinstance(answer, TorusError):
                self._later(disk, by_disk[disk], answer)
            else:
                count += answer
        return min(-(-count // self._placement.parts), len(chunks))

    async def _delete_on(
        self, disk_id: str, volume: int, epoch: int, chunks: Sequence[ChunkId]
    ) -> int:
        disk = await self._pool.get(disk_id)
        return await disk.delete(volume, epoch, chunks)

    def _later(self, disk_id: str, chunks: Sequence[ChunkId], reason: TorusError) -> None:
        room = max(0, limits.REPLICA_UNDELETED_MAX - self.undeleted)
        log.info("replicas.not_deleted", disk=disk_id, chunks=len(chunks), reason=str(reason))
        self._undeleted.setdefault(disk_id, set()).update(chunks[:room])
        if self._deleting is None and not self._stopping:
            self._deleting = asyncio.ensure_future(self._delete_again())
            self._deleting.add_done_callback(_report)

    async def _delete_again(self) -> None:
        while self._undeleted:
            await asyncio.sleep(_AGAIN_S)
            for disk_id in [disk for disk in self._undeleted if self._pool.is_up(disk)]:
                chunks = self._undeleted.pop(disk_id)
                try:
                    for volume in {chunk.volume for chunk in chunks}:
                        some = [chunk for chunk in chunks if chunk.volume == volume]
                        await self._delete_on(disk_id, volume, self._epochs[volume], some)
                except Fenced:
                    return  # what is garbage is another owner's to say
                except TorusError:
                    self._undeleted.setdefault(disk_id, set()).update(chunks)
        self._deleting = None

    # --- repairing ----------------------------------------------------------------------

    def repair(self, chunk: ChunkId, bad: str, good: str, epoch: int) -> None:
        """Give the disk ``bad`` the copy that ``good`` has, in the background; as the holder of
        ``epoch``, without which nothing is done."""
        if self._placement.stays_on(chunk, bad):  # else it may be on its way, or have gone
            self._soon(chunk, bad, good, epoch, partial(self._repair, chunk, bad, good, epoch))

    def repair_shard(
        self, shard: ChunkId, bad: str, remake: Callable[[], Awaitable[bytes]], epoch: int
    ) -> None:
        """Write a damaged shard again, as `repair` does; ``remake`` makes it of others."""
        self._soon(shard, bad, "others", epoch, partial(self._rewrite, shard, bad, remake, epoch))

    def _soon(
        self, part: ChunkId, bad: str, good: str, epoch: int, work: Callable[[], Awaitable[None]]
    ) -> None:
        if epoch == 0 or self._stopping or (part, bad) in self._wanted:
            return
        if len(self._repairs) >= limits.REPLICA_REPAIRS_MAX:
            return
        self._wanted.add((part, bad))
        self._repairs.append((part, bad, good, work))
        if self._repairing is None:
            self._repairing = asyncio.ensure_future(self._repair_all())
            self._repairing.add_done_callback(_report)

    async def _repair_all(self) -> None:
        while self._repairs:
            chunk, bad, good, work = self._repairs.popleft()
            try:
                await work()
                self.repaired += 1
                log.warning("replicas.copy.repaired", chunk=str(chunk), disk=bad, source=good)
            except TorusError as exc:
                log.warning("replicas.copy.bad", chunk=str(chunk), disk=bad, error=str(exc))
            self._wanted.discard((chunk, bad))
        self._repairing = None

    async def _repair(self, chunk: ChunkId, bad: str, good: str, epoch: int) -> None:
        source = await self._pool.get(good)
        [found] = await source.examine([chunk])
        if found.state != Presence.PRESENT or found.end <= FIRST:
            return
        [content] = await source.read([(chunk, FIRST, found.end - FIRST)])
        target = await self._pool.get(bad)
        if await self._goes_on(target, chunk, found.end):
            raise Corruption(
                f"chunk {chunk} is whole up to {found.end} on disk {good}, and goes on behind "
                f"that on disk {bad}: neither copy may replace the other",
                hint="run 'torus check' for what is damaged",
            )
        await target.install(chunk, epoch, found.end, content)

    async def _rewrite(
        self, shard: ChunkId, bad: str, remake: Callable[[], Awaitable[bytes]], epoch: int
    ) -> None:
        content = await remake()
        target = await self._pool.get(bad)
        await target.install(shard, epoch, PLACE_BYTES + len(content), content)

    async def _goes_on(self, disk: DiskChunks, chunk: ChunkId, end: int) -> bool:
        """Tell whether records of a chunk stand behind offset ``end`` of a disk's copy."""
        if end >= self._pool.slot_bytes:
            return False
        try:
            [rest] = await disk.read([(chunk, end, self._pool.slot_bytes - end)])
        except Corruption:
            return False  # it is not there
        return any(headers_beyond(rest, 0, chunk, end))

    async def stop(self) -> None:
        """End both; idempotent."""
        self._stopping = True
        await cancel(*[task for task in (self._deleting, self._repairing) if task is not None])


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("replicas.care.ended", error=repr(error))
