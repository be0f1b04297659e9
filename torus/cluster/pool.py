"""The disks of the cluster as this process reaches them, and a volume's chunks over them.

Decides when a disk is connected to and how soon again after a failure; who is in the cluster is
`torus.cluster.membership`'s, what a failure means for a volume is `torus.cluster.replicated`'s.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, runtime_checkable

from torus import limits
from torus.clock import Clock
from torus.cluster.chunks import Chunks, DiskChunks
from torus.cluster.here import DisksHere
from torus.cluster.membership import ClusterView, Place
from torus.cluster.nearby import NearbyFiles
from torus.cluster.replicated import VolumeChunks
from torus.errors import TorusError, Unavailable
from torus.log import get_logger
from torus.metadata.schema import VolumeSpec

log = get_logger("torus.pool")

_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0

Connect = Callable[[Place], Awaitable[DiskChunks]]
"""Connects to a disk that is up: a `PeerChunks` that does not try again by itself."""


@runtime_checkable
class _Closable(Protocol):
    async def close(self) -> None: ...


class _Far:
    """One disk of another process."""

    __slots__ = ("address", "chunks", "lock", "pause_s", "refused", "until_ns")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.chunks: DiskChunks | None = None
        self.address: str | None = None
        self.pause_s = 0.0
        self.until_ns = 0
        self.refused: TorusError | None = None


class DiskPool:
    """The disks of a cluster.  Used from one event loop; `close` it."""

    def __init__(
        self,
        view: ClusterView,
        local: Mapping[str, DiskChunks],
        connect: Connect,
        clock: Clock,
        *,
        host: str = "",
        slot_bytes: int = limits.SLOT_BYTES,
        nearby: NearbyFiles | None = None,
    ) -> None:
        """``local``: the disks of this process, by id; the mapping may change.  ``host`` is this
        one: disks of the same host are near.  ``nearby`` reads their files; it is closed here."""
        self.nearby = nearby
        self.view = view
        self.local = local
        self.here = DisksHere(local)
        self.clock = clock
        self.host = host
        self.slot_bytes = slot_bytes
        self._connect = connect
        self._far: dict[str, _Far] = {}
        self._closed = False

    def chunks_of(self, spec: VolumeSpec) -> Chunks:
        """Return the chunks of a volume for one writer or reader; it calls `Chunks.stop`.

        Without a ring they are all on the one disk of this process.

        Raises: Unavailable without a ring and a disk.
        """
        if not self.view.has_ring:
            if len(self.local) == 1:
                return next(iter(self.local.values()))
            raise Unavailable(
                "the cluster has no ring yet", hint="start a node: it makes the first one"
            )
        return VolumeChunks(self, spec)

    # --- disks --------------------------------------------------------------------------

    def near(self, disk_id: str) -> DiskChunks | None:
        """Return a disk of this process."""
        return self.local.get(disk_id)

    def connected(self, disk_id: str) -> DiskChunks | None:
        """Return a disk of another process if it is connected where it is now."""
        far = self._far.get(disk_id)
        place = self.view.disks().get(disk_id)
        if far is None or place is None or far.address != place.address:
            return None
        return far.chunks

    def one_for_each_node(self) -> dict[str, DiskChunks]:
        """Return a disk of every other node that is connected, by id."""
        places, nodes = self.view.disks(), set[str]()
        found: dict[str, DiskChunks] = {}
        for disk_id in self._far:
            chunks = self.connected(disk_id)
            if chunks is not None and places[disk_id].node_id not in nodes:
                nodes.add(places[disk_id].node_id)
                found[disk_id] = chunks
        return found

    def is_up(self, disk_id: str) -> bool:
        """Tell whether a disk is here, or its node says that it has it and it works."""
        if disk_id in self.local:
            return True
        place = self.view.disks().get(disk_id)
        return place is not None and place.address is not None

    def distance(self, disk_id: str) -> int:
        """Return 0 for a disk of this process, 1 for one of this host, 2 for others."""
        if disk_id in self.local:
            return 0
        place = self.view.disks().get(disk_id)
        return 1 if place is not None and place.host == self.host else 2

    async def get(self, disk_id: str) -> DiskChunks:
        """Return a disk, connected.

        Raises: Unavailable when it is not up or could not be connected to a moment ago; what
            connecting raises.
        """
        near = self.local.get(disk_id)
        if near is not None:
            return near
        place = self.view.disks().get(disk_id)
        if place is None or place.address is None:
            raise Unavailable(f"disk {disk_id} is not up")
        far = self._far.setdefault(disk_id, _Far())
        if far.chunks is not None and far.address == place.address:
            return far.chunks
        async with far.lock:
            if far.chunks is None or far.address != place.address:
                await self._open(far, place)
            assert far.chunks is not None
            return far.chunks

    async def _open(self, far: _Far, place: Place) -> None:
        if self._closed:
            raise Unavailable("this process is stopping")
        now_ns = self.clock.monotonic_ns()
        if far.refused is not None and far.address == place.address and now_ns < far.until_ns:
            raise far.refused
        old, far.chunks, far.address = far.chunks, None, place.address
        if old is not None:
            await _close(old)
        try:
            far.chunks = await self._connect(place)
        except TorusError as exc:
            far.pause_s = min(max(2 * far.pause_s, _PAUSE_FIRST_S), _PAUSE_MAX_S)
            far.until_ns = self.clock.monotonic_ns() + int(far.pause_s * 1e9)
            far.refused = exc
            log.info("pool.disk.unreachable", disk=place.disk_id, error=str(exc))
            raise
        far.pause_s, far.refused = 0.0, None

    async def close(self) -> None:
        """Hang up everywhere; idempotent."""
        self._closed = True
        if self.nearby is not None:
            await self.nearby.close()
        for far in self._far.values():
            async with far.lock:
                chunks, far.chunks = far.chunks, None
                if chunks is not None:
                    await _close(chunks)


async def _close(chunks: DiskChunks) -> None:
    if isinstance(chunks, _Closable):
        await chunks.close()
