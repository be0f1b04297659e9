"""A look at the whole cluster: what the metadata says of it, and what its disks say.

Decides how long a disk is waited for, and that one that does not answer is shown as such and
never an error of who asked.

Implements docs/cli.md, "torus node list" and "torus status".
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torus.clock import SystemClock
from torus.cluster.membership import Membership, Place
from torus.config import CommonConfig
from torus.daemon.dialing import Dialing, tls_files
from torus.errors import TorusError
from torus.metadata.keys import COORDINATOR
from torus.metadata.loop import AsyncMetadata
from torus.metadata.open import open_metadata
from torus.metadata.schema import Cluster, Coordinator, Member, Node, RingHead
from torus.ring.table import Ring
from torus.volume.catalog_ask import Volume
from torus.volume.catalog_async import AsyncCatalog
from torus.wire.messages import StatusIs

ASK_S = 2.0
ASKED_AT_ONCE = 64
NODE_QUESTION = b'{"ask":"node"}'


@dataclass(frozen=True, slots=True)
class DiskView:
    """One disk as it was found."""

    place: Place
    member: Member | None  # None: registered, but nobody made it a member
    answer: StatusIs | None  # None: not asked, or it did not answer
    problem: str  # why it did not, or what it says is wrong; empty: all is well

    @property
    def size_bytes(self) -> int:
        """Return its limit."""
        if self.answer is None:
            return 0 if self.member is None else self.member.size_bytes
        return self.answer.space.limit * self.answer.space.slot_bytes

    @property
    def used_bytes(self) -> int | None:
        """Return what it holds; None when it could not be asked."""
        if self.answer is None:
            return None
        return self.answer.space.used * self.answer.space.slot_bytes

    @property
    def free_bytes(self) -> int | None:
        """Return what it can still take; None when it could not be asked."""
        if self.answer is None:
            return None
        space = self.answer.space
        return max(0, space.limit - space.used - space.reserve - space.quarantined) * (
            space.slot_bytes
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """The cluster at one moment."""

    cluster: Cluster
    nodes: Mapping[str, Node]  # those that are registered, by id
    disks: tuple[DiskView, ...]  # by node and disk id
    head: RingHead | None
    ring: Ring | None
    coordinator: Coordinator | None
    volumes: tuple[Volume, ...]
    statuses: Mapping[str, dict[str, Any]]  # by node: `reports.NodeStatus` of those that answer
    upkeep: tuple[dict[str, Any], ...]  # what each disk that answers still has to do

    def node_ids(self) -> list[str]:
        """Return all nodes, registered or known by their disks."""
        return sorted({*self.nodes, *(disk.place.node_id for disk in self.disks)})

    def disks_of(self, node_id: str) -> list[DiskView]:
        """Return the disks of one node."""
        return [disk for disk in self.disks if disk.place.node_id == node_id]


async def look_around(common: CommonConfig, *, ask: bool = True) -> Survey:
    """Return the cluster as it is now; with ``ask``, its disks are asked, too.

    Raises: NotFound without a cluster; Unavailable, Corruption, ConfigError.
    """
    clock = SystemClock()
    tls = tls_files(common)
    metadata = AsyncMetadata(open_metadata(common.meta_url, clock, create=False))
    try:
        catalog = AsyncCatalog(metadata, clock)
        cluster = await catalog.get_cluster()
        membership = Membership(metadata, clock)
        await membership.start()
        try:
            volumes = await catalog.list()
            entry = await metadata.get(COORDINATOR)
            dialing = Dialing(cluster, tls, "torus")
            places = sorted(membership.disks().values(), key=lambda one: (one.node_id, one.disk_id))
            answers = await _ask_all(dialing, places) if ask else {}
            reports = await _ask_nodes(dialing, places) if ask else {}
            return Survey(
                cluster=cluster,
                nodes=dict(membership.nodes()),
                disks=tuple(_view(one, membership.members(), answers) for one in places),
                head=membership.head,
                ring=membership.ring if membership.has_ring else None,
                coordinator=None
                if entry is None
                else Coordinator.from_bytes(entry.value, entry.key),
                volumes=tuple(volumes),
                statuses={node: one["status"] for node, one in reports.items()},
                upkeep=tuple(disk for one in reports.values() for disk in one["upkeep"]),
            )
        finally:
            await membership.close()
    finally:
        await metadata.close()


def _view(
    place: Place, members: Mapping[str, Member], answers: Mapping[str, StatusIs | str]
) -> DiskView:
    answer = answers.get(place.disk_id)
    member = members.get(place.disk_id)
    if isinstance(answer, str):
        return DiskView(place, member, None, answer)
    if answer is None:
        return DiskView(place, member, None, "")
    problem = answer.failure
    if not problem and answer.damaged_slots:
        problem = f"{answer.damaged_slots} damaged slots"
    return DiskView(place, member, answer, problem)


async def _ask_nodes(dialing: Dialing, places: Iterable[Place]) -> dict[str, dict[str, Any]]:
    """Return what each node that answers says of itself and of the upkeep of its disks."""
    turns = asyncio.Semaphore(ASKED_AT_ONCE)

    async def one(place: Place) -> tuple[str, dict[str, Any]] | None:
        async with turns:
            try:
                async with asyncio.timeout(ASK_S):
                    chunks = await dialing.asking(place, ASK_S)
                    try:
                        answer = json.loads(await chunks.report(NODE_QUESTION))
                    finally:
                        await chunks.close()
            except (TimeoutError, TorusError, ValueError):
                return None  # what its disks say tells why
        if not isinstance(answer, dict) or not isinstance(answer.get("status"), dict):
            return None
        return place.node_id, {"status": answer["status"], "upkeep": answer.get("upkeep") or []}

    first = {place.node_id: place for place in reversed(list(places)) if place.up}
    found = await asyncio.gather(*(one(place) for place in first.values()))
    return dict(pair for pair in found if pair is not None)


async def _ask_all(dialing: Dialing, places: Iterable[Place]) -> dict[str, StatusIs | str]:
    """Return what each disk that is up says of itself, or why it says nothing."""
    turns = asyncio.Semaphore(ASKED_AT_ONCE)

    async def one(place: Place) -> tuple[str, StatusIs | str]:
        async with turns:
            try:
                async with asyncio.timeout(ASK_S):
                    chunks = await dialing.asking(place, ASK_S)
                    try:
                        return place.disk_id, await chunks.status()
                    finally:
                        await chunks.close()
            except TimeoutError:
                return place.disk_id, f"no answer in {ASK_S:g} s"
            except TorusError as exc:
                return place.disk_id, exc.message

    return dict(await asyncio.gather(*(one(place) for place in places if place.up)))
