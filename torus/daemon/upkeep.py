"""The upkeep of a node, constructed: its disks, its way to others, and whether all have settled.

Decides which connections upkeep uses: its own, so that a copy of 4 MiB does not stand before a
client's read.

Implements docs/upkeep.md.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from torus import limits
from torus.clock import Clock
from torus.cluster.chunks import DiskChunks
from torus.cluster.local import LocalChunks
from torus.cluster.membership import ClusterView, Place
from torus.cluster.peer import PeerChunks
from torus.cluster.pool import DiskPool
from torus.daemon.background import Background
from torus.daemon.client_voice import PullersVoice
from torus.daemon.dialing import Dialing
from torus.daemon.spread import Spread, spread_of
from torus.daemon.volume_changes import VolumeChanges
from torus.errors import LocalProtocolError, TorusError, Unavailable
from torus.log import get_logger
from torus.metadata.loop import AsyncMetadata
from torus.redundancy.scheme import parse
from torus.ring.table import slot_of
from torus.store.store import Store
from torus.upkeep.budget import Budget
from torus.upkeep.disk import DiskUpkeep
from torus.upkeep.heads import Heads
from torus.upkeep.mend import Mender
from torus.upkeep.node import NodeUpkeep
from torus.upkeep.pace import Pace, nobody_is_slow

log = get_logger("torus.upkeep")
ASK_UPKEEP = json.dumps({"ask": "upkeep"}).encode()
_SETTLED_LOOK_S = 2.0


class PeersOfNode:
    """The other disks, as the disks of this node reach them; a `torus.upkeep.peers.Peers`."""

    def __init__(
        self,
        view: ClusterView,
        local: Mapping[str, DiskChunks],
        node: NodeUpkeep,
        dialing: Dialing,
        clock: Clock,
    ) -> None:
        async def connect(place: Place) -> DiskChunks:
            return await dialing.asking(place, limits.UPKEEP_ANSWER_S)

        self._node = node
        self.pool = DiskPool(view, local, connect, clock)

    async def get(self, disk_id: str) -> DiskChunks:
        """Return a disk, connected.  Raises: Unavailable, and what connecting raises."""
        return await self.pool.get(disk_id)

    async def ask(self, disk_id: str, question: bytes) -> bytes:
        """Ask the upkeep of the node that has a disk.

        Raises: Unavailable, and what the other one answers.
        """
        if disk_id in self._node.disks:
            return await self._node.answer(question)
        peer = await self.pool.get(disk_id)
        if not isinstance(peer, PeerChunks):
            raise Unavailable(f"disk {disk_id} of this node has no upkeep")
        return await peer.report(question)

    async def close(self) -> None:
        """Hang up; idempotent."""
        await self.pool.close()


class ClusterSettled(Background):
    """Whether every disk of the ring has all that the ring wants it to have, asked for by the
    coordinator alone: one question to each node, while something may be moving."""

    def __init__(self, view: ClusterView, node: NodeUpkeep, peers: PeersOfNode) -> None:
        super().__init__()
        self._view = view
        self._node = node
        self._peers = peers
        self._known_version = 0  # which every disk has settled under
        self._asked = asyncio.Event()

    def settled(self) -> bool:
        """Return what is known now; where it is not known the disks are asked, for later."""
        head = self._view.head
        if head is None or self._known_version == head.version:
            return True
        self._asked.set()
        return False

    async def _run(self) -> None:
        while True:
            await self._asked.wait()
            try:
                await self._look()
            except TorusError as exc:
                log.debug("upkeep.settled.unknown", reason=str(exc))
            await asyncio.sleep(_SETTLED_LOOK_S)
            self._asked.clear()

    async def _look(self) -> None:
        head = self._view.head
        if head is None:
            return
        places = self._view.disks()
        members = [member.disk_id for member in self._view.ring.members]
        nodes = {places[disk].node_id: disk for disk in members if disk in places and
                 places[disk].up}  # fmt: skip
        found = await asyncio.gather(*(self._documents(disk) for disk in nodes.values()))
        states = {one["disk_id"]: one for documents in found for one in documents}
        for disk in members:
            if disk not in places or not places[disk].up:
                continue  # who puts it out of the ring is about to
            one = states.get(disk)
            if one is None or not one["settled"] or one["ring"] != head.version:
                return
        self._known_version = head.version
        log.info("upkeep.settled", ring=head.version)

    async def _documents(self, disk: str) -> list[dict[str, Any]]:
        return documents_of(await self._peers.ask(disk, ASK_UPKEEP))


def documents_of(answer: bytes) -> list[dict[str, Any]]:
    """Return what a node says of its disks' upkeep.  Raises: Unavailable."""
    try:
        disks = json.loads(answer)["disks"]
        for one in disks:
            one["disk_id"], one["settled"], one["ring"]
    except (ValueError, KeyError, TypeError) as exc:
        raise Unavailable("a node's report on its upkeep cannot be read") from exc
    return list(disks)


class RunningUpkeep:
    """What `start_upkeep` started."""

    def __init__(
        self,
        node: NodeUpkeep,
        cluster: ClusterSettled,
        menders: Mapping[str, Mender] | None = None,
        spreads: Callable[[], list[Spread]] = list,
    ) -> None:
        self.node = node
        self.spreads = spreads  # what the ring has for each volume in shards
        self.cluster = cluster
        self.menders = menders or {}  # by disk: for what the scrub finds

    def settled(self) -> bool:
        """Say whether no disk of the cluster has to pull anything, for the coordinator."""
        return self.cluster.settled()

    async def answer(self, question: bytes) -> bytes:
        """Answer a question of another node's upkeep.

        Raises: RemoteProtocolError for one that is not known, NotFound, DiskFailed.
        """
        return await self.node.answer(question)

    def documents(self) -> list[dict[str, Any]]:
        """Return how far the disks of this node are."""
        return self.node.documents()

    def needs(self, disk_id: str) -> int:
        """Return how many bytes lie on a disk of this node.  Raises: NotFound."""
        return self.node.needs(disk_id)


async def start_upkeep(
    stack: AsyncExitStack,
    stores: Mapping[str, Store],
    view: ClusterView,
    metadata: AsyncMetadata,
    dialing: Dialing,
    clock: Clock,
    *,
    rate_bytes: int = limits.REPAIR_RATE_BYTES_DEFAULT,
    clients_slow: Callable[[], bool] = nobody_is_slow,
) -> RunningUpkeep:
    """Begin the upkeep of a node's disks; ``stack`` ends it, before stores and metadata close.

    The caller hands the questions of other nodes (REPORT) to `RunningUpkeep.answer`.
    ``rate_bytes``: what each disk may pull in a second; 0: nothing, but questions are answered.
    """
    if rate_bytes < 0:
        raise LocalProtocolError(f"a rate of {rate_bytes} bytes is not possible")
    node = NodeUpkeep(clock)
    local: dict[str, DiskChunks] = {disk: LocalChunks(store) for disk, store in stores.items()}
    peers = PeersOfNode(view, local, node, dialing, clock)
    stack.push_async_callback(peers.close)
    heads = Heads(metadata, clock)
    menders: dict[str, Mender] = {}
    for disk, store in stores.items():
        pace = Pace(Budget(max(rate_bytes, 1)), clock, clients_slow, node.clients_hurt)
        chunks = LocalChunks(store)
        upkeep = DiskUpkeep(store, chunks, view, peers, heads, clock, pace, slot_of)
        node.disks[disk] = upkeep
        menders[disk] = Mender(store, chunks, view, peers, pace, upkeep, slot_of)
    stack.push_async_callback(node.close)
    cluster = ClusterSettled(view, node, peers)
    stack.push_async_callback(cluster.close)
    changes = VolumeChanges(metadata, node.poke, node.rest_s)
    if rate_bytes:
        for one in node.disks.values():
            one.start()
        stack.push_async_callback(changes.stop)
        await changes.start()
    cluster.start()
    voice = PullersVoice(node, peers.pool, clock)
    stack.push_async_callback(voice.close)
    voice.start()

    def spreads() -> list[Spread]:
        if not view.has_ring:
            return []
        redundancies = changes.redundancies()
        known = {one: spread_of(view.ring, parse(one)) for one in set(redundancies)}
        return [known[one] for one in redundancies]

    return RunningUpkeep(node, cluster, menders, spreads)
