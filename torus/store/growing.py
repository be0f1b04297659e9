"""Segment files: how a disk gets more slots.

Decides when the next segment is made (ahead of need, or now for a caller in need) and how large
it is where the file system has little space left.
"""

import asyncio
import errno
import threading
from collections.abc import Callable

from torus import limits
from torus.errors import PoolFull, TorusError
from torus.format.identity import DiskIdentity
from torus.format.segment import SegmentHeader
from torus.log import get_logger
from torus.store.disk import Disk
from torus.store.pool import Pool
from torus.store.space import Space

log = get_logger("torus.store")


class Growing:
    """The segments of one disk."""

    def __init__(
        self,
        space: Space,
        disk: Disk,
        identity: DiskIdentity,
        pool: Pool,
        translate: Callable[[OSError, str], TorusError],
    ) -> None:
        self._space = space
        self._disk = disk
        self._pool = pool
        self._translate = translate
        self._geometry = identity.geometry
        self._disk_id = bytes.fromhex(identity.disk_id)
        self._cluster_id = bytes.fromhex(identity.cluster_id)
        self._ahead: asyncio.Future[int] | None = None
        self._making = threading.Lock()
        self._newest = -1  # segment whose file exists
        self._newest_slots = 0
        self.segments: set[int] = set()

    def found(self, segment: int) -> None:
        """Count a segment that was there when the disk was opened."""
        self.segments.add(segment)
        self._newest = max(self._newest, segment)

    def now(self) -> None:
        """Make the next segment while the caller waits: the pool had no time to do it ahead.

        Raises: PoolFull, DiskFailed.
        """
        place = self._next()
        if place is None:
            raise PoolFull(f"all {self._space.limit} slots are in use or quarantined")
        try:
            slots = self._make(*place)
        except OSError as exc:
            raise self._translate(exc, f"preallocate segment {place[0]}") from exc
        self._add(place[0], slots)

    def ahead(self) -> None:
        """Start making the next segment in the pool when few free slots are left."""
        if self._space.ready >= limits.SPARE_SLOTS_MIN or self._ahead is not None:
            return
        place = self._next()
        if place is None:
            return
        self._ahead = self._pool.submit(self._make, *place)

        def done(future: asyncio.Future[int]) -> None:
            self._ahead = None
            error = future.exception()
            if error is None:
                if place[0] not in self.segments:
                    self._add(place[0], future.result())
            elif isinstance(error, OSError):
                log.warning("store.segment.not_made", segment=place[0], error=str(error))
            else:
                raise error

        self._ahead.add_done_callback(done)

    async def close(self) -> None:
        """Wait for what is under way; idempotent."""
        if self._ahead is not None:
            await asyncio.wait([self._ahead])

    def _next(self) -> tuple[int, int] | None:
        missing = self._space.limit - self._space.known
        if missing <= 0:
            return None
        segment = max(self.segments, default=-1) + 1
        return segment, min(missing, self._geometry.segment_slots)

    def _make(self, segment: int, slots: int) -> int:
        """Make a segment's file, once: the pool and a caller in need may both ask for it.

        Where the file system has no space for ``slots`` it gets fewer.  Returns: how many.
        """
        slot_bytes = self._geometry.slot_bytes
        with self._making:
            while segment > self._newest:
                header = SegmentHeader(self._disk_id, self._cluster_id, segment, slot_bytes, slots)
                try:
                    self._disk.make_segment(segment, header.pack(), slots * slot_bytes)
                    self._newest, self._newest_slots = segment, slots
                except OSError as exc:
                    if exc.errno not in (errno.ENOSPC, errno.EDQUOT) or slots == 1:
                        raise
                    slots //= 2
            return self._newest_slots

    def _add(self, segment: int, slots: int) -> None:
        self.segments.add(segment)
        for number in range(slots):
            self._space.add_free(self._geometry.address(segment, number))
        log.info("store.segment.made", segment=segment, slots=slots)
