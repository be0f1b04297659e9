"""Telling all nodes to scrub, or one that runs alone; and how far they are.

Decides that a node that does not answer is shown as such, that the order to begin reaches those
that do, and that a pause is in the metadata before anybody is told of it.  What is looked at,
each disk decides for itself.

Implements docs/scrub.md, "Telling it".
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from torus.clock import SystemClock
from torus.cluster.membership import Membership, Place
from torus.cluster.peer import PeerChunks
from torus.config import CommonConfig, is_shared
from torus.daemon.dialing import Dialing, tls_files
from torus.daemon.reach import live_node
from torus.daemon.scrub import BEGIN, LOOK, SHOW, scrub_documents, scrub_question
from torus.daemon.scrub_pause import end_pause, set_pause
from torus.errors import TorusError, Unavailable
from torus.metadata.loop import AsyncMetadata
from torus.metadata.open import open_metadata
from torus.metadata.schema import Cluster
from torus.net.address import parse_address
from torus.upkeep.scrub_shown import summary
from torus.upkeep.scrub_state import DEEP, LIGHT
from torus.volume.catalog_async import AsyncCatalog

_ASK_S = 3.0
_ASKED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class NodeScrubbed:
    """What one node said; ``disks`` is None where ``problem`` says why."""

    node_id: str
    host: str
    disks: tuple[dict[str, Any], ...] | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What all nodes said."""

    nodes: tuple[NodeScrubbed, ...]

    @property
    def disks(self) -> list[dict[str, Any]]:
        """Return the disks that were spoken of."""
        return [disk for node in self.nodes for disk in node.disks or ()]

    @property
    def silent(self) -> list[NodeScrubbed]:
        """Return the nodes that did not answer."""
        return [node for node in self.nodes if node.disks is None]

    @property
    def going_on(self) -> bool:
        """Tell whether a tour that a person asked for is not over yet."""
        return any(
            disk["asked"] and disk["state"] != "paused" and not disk["problem"]
            for disk in self.disks
        )

    @property
    def running(self) -> bool:
        """Tell whether any disk is on a tour."""
        return any(disk["state"] in (LIGHT, DEEP) for disk in self.disks)

    def summary(self) -> dict[str, Any]:
        """Return what all found together."""
        return summary(self.disks)


class ScrubAsking:
    """The way to all nodes; an asynchronous context."""

    def __init__(self, common: CommonConfig) -> None:
        self._common = common
        self._clock = SystemClock()
        self._membership: Membership | None = None

    async def __aenter__(self) -> "ScrubAsking":
        """Raises: NotFound without a cluster; Unavailable, Corruption, ConfigError."""
        clock, common = self._clock, self._common
        async with AsyncExitStack() as stack:
            store = open_metadata(common.meta_url, clock, create=False)
            self._metadata = AsyncMetadata(store)
            stack.push_async_callback(self._metadata.close)
            self._catalog = AsyncCatalog(self._metadata, clock)
            self._cluster: Cluster = await self._catalog.get_cluster()
            if is_shared(common.meta_url):
                self._dialing = Dialing(self._cluster, tls_files(common), "torus")
                self._membership = Membership(self._metadata, clock)
                stack.push_async_callback(self._membership.close)
                await self._membership.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go of everything."""
        await self._stack.aclose()

    async def volumes(self, names: Sequence[str]) -> list[int]:
        """Return the ids of volumes.  Raises: NotFound."""
        return [(await self._catalog.get(name)).spec.volume for name in names]

    async def pause(self) -> Scrubbed:
        """Let no disk scrub, whether it is up or not; return what the nodes that are say.

        Raises: Unavailable, Corruption.
        """
        await set_pause(self._metadata, self._clock)
        return await self._let_know()

    async def resume(self) -> Scrubbed:
        """Let all disks scrub; return what the nodes that are up say.

        Raises: Unavailable, Corruption.
        """
        await end_pause(self._metadata)
        return await self._let_know()

    async def _let_know(self) -> Scrubbed:
        if self._membership is None and await live_node(self._metadata) is None:
            return Scrubbed(())  # it looks when it starts
        return await self.tell(LOOK)

    async def begin(self, volumes: Sequence[int], *, deep: bool) -> Scrubbed:
        """Have all disks begin a tour, which ends a pause; return what the nodes say.

        Raises: as `tell`.
        """
        await end_pause(self._metadata)
        return await self.tell(BEGIN, volumes, deep=deep)

    async def tell(
        self, action: str = SHOW, volumes: Sequence[int] = (), *, deep: bool = False
    ) -> Scrubbed:
        """Give an order, or only ask, and return what the nodes say.

        Raises: Unavailable on a single machine whose node does not run.
        """
        question = scrub_question(action, volumes, deep=deep)
        if self._membership is None:
            return Scrubbed((await self._alone(question),))
        nodes: dict[str, list[Place]] = {}
        for place in self._membership.disks().values():
            if place.state != "removed":
                nodes.setdefault(place.node_id, []).append(place)
        turns = asyncio.Semaphore(_ASKED_AT_ONCE)
        found = await asyncio.gather(
            *(self._node(turns, places, question) for _, places in sorted(nodes.items()))
        )
        return Scrubbed(tuple(found))

    async def _alone(self, question: bytes) -> NodeScrubbed:
        node = await live_node(self._metadata)
        if node is None:
            raise Unavailable(
                "no node is running: its disk is scrubbed while it does",
                hint="start it with 'torus node'; 'torus check' verifies a stopped one",
            )
        peer = await PeerChunks.connect(
            parse_address(node.peer_address), self._cluster.cluster_id, secret=self._cluster.secret
        )
        try:
            disks = scrub_documents(await peer.report(question))
        finally:
            await peer.close()
        return NodeScrubbed(node.node_id, node.host, tuple(disks))

    async def _node(
        self, turns: asyncio.Semaphore, places: list[Place], question: bytes
    ) -> NodeScrubbed:
        first = places[0]
        up = [place for place in places if place.up]
        if not up:
            return NodeScrubbed(first.node_id, first.host, None, "it is not up")
        problem = f"no answer in {_ASK_S:g} s"
        async with turns:
            try:
                async with asyncio.timeout(_ASK_S):
                    peer = await self._dialing.asking(up[0], _ASK_S)
                    try:
                        disks = scrub_documents(await peer.report(question))
                    finally:
                        await peer.close()
                return NodeScrubbed(first.node_id, first.host, tuple(disks))
            except TimeoutError:
                pass
            except TorusError as exc:
                problem = exc.message
        return NodeScrubbed(first.node_id, first.host, None, problem)
