"""Repairing one damaged copy from the others, and comparing a whole one with another disk's.

Decides who is asked, and when a chunk is beyond repair: only when everybody who is a member was
up and nobody had it whole.  A silent disk is waited for.

Implements docs/scrub.md, "Repair".
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from torus.cluster.local import LocalChunks
from torus.cluster.membership import ClusterView
from torus.errors import Corruption, DiskFailed, TorusError
from torus.ids import PARTS_MAX, ChunkId, shard_id, whole_id
from torus.log import get_logger
from torus.store.content import Examined, Presence
from torus.store.store import Store
from torus.upkeep.pace import Pace
from torus.upkeep.peers import Peers
from torus.upkeep.placement import Slots
from torus.upkeep.plan import Want
from torus.upkeep.pull import Puller
from torus.upkeep.scrub_logs import VolumeLog

log = get_logger("torus.scrub")
_GONE = "removed"  # state of a disk that has nothing any more
_ASKED_MAX = 16  # disks: in a small cluster everybody


class Outcome(Enum):
    """What became of a repair."""

    TRIED = "tried"  # it is to be looked at again
    WAITING = "waiting"  # somebody who may have it whole is silent
    LOST = "lost"  # nobody has it whole


class Upkeep(Protocol):
    """What is needed of `torus.upkeep.disk.DiskUpkeep`."""

    def doubt(self, part: ChunkId) -> None:
        """Compare a part with the others soon."""

    @property
    def lacking(self) -> Sequence[ChunkId]:
        """Return the parts that should be here, were not at the last look, and can be had."""


class Mender:
    """Repairs the copies of one disk."""

    def __init__(
        self,
        store: Store,
        chunks: LocalChunks,
        view: ClusterView,
        peers: Peers,
        pace: Pace,
        upkeep: Upkeep,
        slot_of: Slots,
    ) -> None:
        self._disk = store.identity.disk_id
        self._view = view
        self._peers = peers
        self._chunks = chunks
        self._puller = Puller(store, chunks, peers, pace)
        self._slot_of: Callable[[ChunkId], int] = slot_of
        self.upkeep = upkeep

    async def mend(self, chunk: ChunkId, log_of: VolumeLog, exact: int | None) -> Outcome:
        """Have a copy here as whole as anybody has it.

        Raises: DiskFailed, PoolFull, Fenced, Busy of the own disk.
        """
        members = [one for one in self._view.disks().values() if one.state != _GONE]
        all_up = all(one.address is not None for one in members)
        sources = tuple(self._sources(chunk))
        want = Want(chunk, log_of.epoch, exact, sources, True, 0, log_of.copies, doubtful=True)
        try:
            pulled = await self._puller.pull(want)
        except DiskFailed:
            return Outcome.TRIED  # the caller looks whether it is the own one
        except Corruption as exc:
            log.error("scrub.chunk.damaged", chunk=str(chunk), reason=exc.message)
            return Outcome.LOST if all_up else Outcome.WAITING
        except TorusError as exc:
            log.info("scrub.repair.waits", chunk=str(chunk), reason=exc.message)
            return Outcome.WAITING
        if pulled.installed:
            return Outcome.TRIED
        lost = all_up and (pulled.everybody or await self._nobody_has(chunk, sources))
        return Outcome.LOST if lost else Outcome.WAITING

    async def _nobody_has(self, chunk: ChunkId, sources: Sequence[str]) -> bool:
        """Tell whether all others answer, and none has a record of a chunk."""
        for disk in sources:
            try:
                peer = await self._peers.get(disk)
                [found] = await peer.examine([chunk])
            except TorusError as exc:
                log.debug("scrub.peer.silent", disk=disk, reason=str(exc))
                return False
            if found.state is Presence.PRESENT and found.records:
                return False
        return True

    def _sources(self, chunk: ChunkId) -> list[str]:
        up = [disk for disk, one in self._view.disks().items() if one.address is not None]
        others = sorted(disk for disk in up if disk != self._disk)
        if len(others) <= _ASKED_MAX:
            return others
        order = self._view.ring.order(self._slot_of(chunk), _ASKED_MAX)
        return [one.disk_id for one in order if one.disk_id in others]

    async def is_lost(self, part: ChunkId) -> bool:
        """Tell whether nobody can make a chunk any more that may lie in shards.

        False as long as a disk is silent, somebody has a whole copy, or K shards are left.
        """
        members = [one for one in self._view.disks().values() if one.state != _GONE]
        if any(one.address is None for one in members):
            return False
        chunk = whole_id(part)
        ids = [chunk, *(shard_id(chunk, number) for number in range(PARTS_MAX))]
        answers = list(await self._chunks.examine(ids))
        for disk in self._sources(chunk):
            try:
                peer = await self._peers.get(disk)
                answers += await peer.examine(ids)
            except TorusError as exc:
                log.debug("scrub.peer.silent", disk=disk, reason=str(exc))
                return False
        left: dict[tuple[int, int, int], set[ChunkId]] = {}
        for one in answers:
            if one.state is Presence.PRESENT and one.records:
                if one.chunk == chunk:
                    return False
                left.setdefault((one.records, one.end, one.crc), set()).add(one.chunk)
        return all(len(shards) < records >> 8 for (records, _, _), shards in left.items())

    async def compare(self, chunk: ChunkId, copies: int) -> Examined | None:
        """Return what the next owner that is up has of a chunk; None when nobody says it."""
        ring = self._view.ring
        owners = [one.disk_id for one in ring.order(self._slot_of(chunk), copies)]
        if self._disk not in owners:
            return None
        own = owners.index(self._disk)
        places = self._view.disks()
        for disk in [*owners[own + 1 :], *owners[:own]]:
            if disk not in places or places[disk].address is None:
                continue
            try:
                peer = await self._peers.get(disk)
                [found] = await peer.examine([chunk])
            except TorusError as exc:
                log.debug("scrub.peer.silent", disk=disk, reason=str(exc))
                continue
            if found.state is Presence.PRESENT:
                return found
        return None
