"""Upkeep and scrub of a simulated node: the real ones, with times of seconds.

Constructs what `torus.daemon.upkeep` and `torus.daemon.scrub` construct in a node, in the node's
process; tells the judge before a part is taken away, and of an error that ends one of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from torus import limits
from torus.cluster.local import LocalChunks
from torus.cluster.membership import Place
from torus.cluster.peer import PeerChunks
from torus.daemon.dialing import Dialing
from torus.daemon.upkeep import PeersOfNode
from torus.errors import TorusError
from torus.ids import ChunkId
from torus.node.service import PeerService
from torus.ring.table import slot_of
from torus.store.store import Store
from torus.testing.membership import StaticMembership
from torus.testing.simnode import SimNode
from torus.testing.simpeer import connect
from torus.testing.simstore import SimMetadataClient
from torus.upkeep.budget import Budget
from torus.upkeep.disk import DiskUpkeep, Times
from torus.upkeep.heads import Heads
from torus.upkeep.mend import Mender
from torus.upkeep.node import NodeUpkeep
from torus.upkeep.pace import Pace
from torus.upkeep.scrub import DiskScrub, Logs
from torus.upkeep.scrub_logs import read_logs
from torus.upkeep.scrub_times import ScrubTimes, read_state

_UNLIMITED = 1 << 50
_HEADS_S = 0.1
TIMES = Times(settle_s=0.05, retry_s=0.4, round_s=4.0, encode_s=0.8)


class Judge(Protocol):
    """Who watches."""

    def dropping(self, disk: str, parts: Iterable[ChunkId]) -> None:
        """Learn what is about to be taken away."""

    def deleting(self, chunks: Iterable[ChunkId]) -> None:
        """Learn what an owner deletes."""


class WatchedChunks(LocalChunks):
    """The chunks of a disk, for its upkeep."""

    def __init__(self, store: Store, judge: Judge) -> None:
        super().__init__(store)
        self._judge = judge

    async def drop(self, chunks: Iterable[ChunkId]) -> int:
        """Take parts away."""
        parts = list(chunks)
        self._judge.dropping(self.disk_id, parts)
        return await super().drop(parts)


class SimDialing(Dialing):
    """Connects over the simulated network."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def asking(self, place: Place, timeout_s: float) -> PeerChunks:
        """Connect for a question."""
        assert place.address is not None
        return await connect(
            place.address, place.disk_id, self._name, timeout_s=timeout_s, retry_s=0.0
        )


async def _loudly(work: Awaitable[None], who: str, wrong: Callable[[str], None]) -> None:
    """Do what runs in the background; what ends it, and is no error of torus, is told."""
    try:
        await work
    except (TorusError, asyncio.CancelledError):
        raise
    except Exception as exc:
        wrong(f"{who} crashed: {exc!r}")
        raise


class LoudUpkeep(DiskUpkeep):
    """An upkeep whose mistakes do not stay unheard."""

    wrong: Callable[[str], None]

    async def _run(self) -> None:
        await _loudly(super()._run(), f"the upkeep of disk {self.disk_id[-2:]}", self.wrong)


class LoudScrub(ScrubTimes):
    """A scrub whose mistakes do not stay unheard."""

    wrong: Callable[[str], None]

    async def _run(self) -> None:
        await _loudly(super()._run(), "a scrub", self.wrong)


class NodeBackground:
    """What a node does beside serving, from one start to its end."""

    def __init__(
        self,
        node: SimNode,
        view: StaticMembership,
        metadata: SimMetadataClient,
        judge: Judge,
        wrong: Callable[[str], None],
    ) -> None:
        self._node = node
        self._view = view
        self._metadata = metadata
        self._judge = judge
        self._wrong = wrong
        self.upkeep = NodeUpkeep(node.clock)
        self.scrubs: dict[str, ScrubTimes] = {}

    async def start(self, stores: Sequence[Store], services: Sequence[PeerService]) -> None:
        """Begin."""
        node, clock = self._node, self._node.clock
        assert node.process is not None
        dialing = SimDialing(node.process.name)
        peers = PeersOfNode(self._view, node.local, self.upkeep, dialing, clock)
        heads = Heads(self._metadata, clock, _HEADS_S)  # type: ignore[arg-type]
        for store in stores:
            self._watch_deletions(store)
            pace = Pace(Budget(_UNLIMITED, _UNLIMITED), clock)
            chunks = WatchedChunks(store, self._judge)
            upkeep = LoudUpkeep(
                store, chunks, self._view, peers, heads, clock, pace, slot_of, TIMES
            )
            upkeep.wrong = self._wrong
            self.upkeep.disks[upkeep.disk_id] = upkeep
            mender = Mender(store, chunks, self._view, peers, pace, upkeep, slot_of)
            state = await store.in_pool(read_state, store)
            scrub = DiskScrub(store, self._logs, clock, state, mender)
            times = self.scrubs[upkeep.disk_id] = LoudScrub(scrub, clock, rate_bytes=_UNLIMITED)
            times.wrong = self._wrong
        for service in services:
            service.on_report = self.upkeep.answer
        for disk, upkeep_of in self.upkeep.disks.items():
            upkeep_of.start()
            self.scrubs[disk].start()

    async def _logs(self) -> Logs:
        return await read_logs(self._metadata)  # type: ignore[arg-type]

    def _watch_deletions(self, store: Store) -> None:
        delete = store.delete

        async def watched(volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
            wanted = list(chunks)
            store.fences.check(volume, epoch)
            self._judge.deleting(wanted)
            return await delete(volume, epoch, wanted)

        store.delete = watched  # type: ignore[method-assign]


def scaled() -> dict[str, float]:
    """Return the limits of upkeep and scrub for a world in which seconds are days."""
    return {
        "SCRUB_FIRST_S": 0.6,
        "SCRUB_LIGHT_S": 3.0,
        "SCRUB_DEEP_S": 4.0,
        "SCRUB_RECHECK_S": 0.6,
        "SCRUB_SAVE_S": 1.0,
        "SCRUB_OPERATIONS": _UNLIMITED,
        "UPKEEP_ROUND_S": TIMES.round_s,
        "UPKEEP_ANSWER_S": 2.0,
    }


assert TIMES.round_s < limits.UPKEEP_ROUND_S
