"""How far the data of a cluster has moved to where the ring wants it; stopping and going on.

Decides that a node that does not answer is shown as such.  Nothing is moved here: each disk does
that for itself.

Implements docs/upkeep.md, "What can be seen".
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torus.clock import SystemClock
from torus.cluster.membership import Membership, Place
from torus.config import CommonConfig
from torus.daemon.dialing import Dialing, tls_files
from torus.daemon.owners_elsewhere import alive_in
from torus.daemon.upkeep import ASK_UPKEEP, documents_of
from torus.errors import Busy, NotFound, TorusError, Unavailable
from torus.ids import ChunkId
from torus.limits import CATALOG_ATTEMPTS_MAX, PEER_REQUEST_TIMEOUT_S
from torus.metadata.base import Expect, MetadataStore, Put
from torus.metadata.keys import RING_HEAD
from torus.metadata.loop import AsyncMetadata
from torus.metadata.open import open_metadata
from torus.metadata.schema import Head, Owner, RingHead
from torus.volume.catalog_async import AsyncCatalog

_ASK_S = 3.0
_ASKED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class DiskState:
    """The upkeep of one disk; ``report`` is None where ``problem`` says why."""

    place: Place
    report: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The upkeep of all disks."""

    head: RingHead
    disks: tuple[DiskState, ...]

    @property
    def settled(self) -> bool:
        """Say whether every disk that is up has all it should have under the present ring, and
        nothing too much."""
        return all(
            one.report is not None
            and one.report["settled"]
            and one.report["ring"] == self.head.version
            and not one.report["surplus_bytes"]
            and not one.report["degraded_bytes"]
            for one in self.disks
            if one.place.up
        )

    def total(self, name: str) -> int:
        """Return the sum of one counter over all disks that answered."""
        return sum(int(one.report[name] or 0) for one in self.disks if one.report is not None)

    def lacking(self) -> dict[int, int]:
        """Return the bytes that lack copies, by how many good ones are left."""
        return self._by_copies("lacking_bytes")

    def degraded(self) -> dict[int, int]:
        """Return the bytes with a copy on a disk that is not up, by how many owners are."""
        return self._by_copies("degraded_bytes")

    def _by_copies(self, name: str) -> dict[int, int]:
        found: dict[int, int] = {}
        for one in self.disks:
            for copies, count in (one.report or {}).get(name, {}).items():
                found[int(copies)] = found.get(int(copies), 0) + int(count)
        return {copies: count for copies, count in sorted(found.items()) if count}

    @property
    def seconds_left(self) -> float | None:
        """Return how long the slowest disk will need; None: nobody can tell."""
        left = [
            one.report["seconds_left"]
            for one in self.disks
            if one.report is not None and one.report["pending_bytes"]
        ]
        if not left:
            return 0.0
        return None if any(seconds is None for seconds in left) else max(left)


class Watching:
    """A cluster that is looked at again and again; an asynchronous context."""

    def __init__(self, common: CommonConfig) -> None:
        self._common = common

    async def __aenter__(self) -> "Watching":
        """Raises: NotFound without a cluster or a ring; Unavailable, Corruption, ConfigError."""
        clock, tls = SystemClock(), tls_files(self._common)
        store = open_metadata(self._common.meta_url, clock, create=False)
        self._metadata = AsyncMetadata(store)
        self._membership = Membership(self._metadata, clock)
        try:
            cluster = await AsyncCatalog(self._metadata, clock).get_cluster()
            self._dialing = Dialing(cluster, tls, "torus")
            await self._membership.start()
            if self._membership.head is None:
                raise no_ring()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go of everything."""
        await self._membership.close()
        await self._metadata.close()

    async def look(self) -> ClusterState:
        """Return how it is now."""
        head = self._membership.head
        if head is None:
            raise no_ring()
        places = self._membership.disks().values()
        nodes: dict[str, list[Place]] = {}
        for place in places:
            if place.state != "removed":
                nodes.setdefault(place.node_id, []).append(place)
        turns = asyncio.Semaphore(_ASKED_AT_ONCE)
        found = await asyncio.gather(*(self._node(turns, disks) for disks in nodes.values()))
        states = [state for some in found for state in some]
        states.sort(key=lambda state: (state.place.node_id, state.place.disk_id))
        return ClusterState(head, tuple(states))

    async def head(self, volume: int) -> Head | None:
        """Return a volume's head; None without it.  Raises: Unavailable, Corruption."""
        try:
            return (await AsyncCatalog(self._metadata, SystemClock()).get_by_id(volume)).head
        except NotFound:
            return None

    def is_gone(self, owner: Owner) -> bool:
        """Tell whether the process that has a volume is certainly not there any more."""
        return alive_in(self._membership)(owner) is False

    async def ask(self, place: Place, question: bytes) -> bytes:
        """Ask the upkeep of a disk's node.  Raises: Unavailable, and what it answers."""
        try:
            async with asyncio.timeout(_ASK_S):
                peer = await self._dialing.asking(place, _ASK_S)
                try:
                    return await peer.report(question)
                finally:
                    await peer.close()
        except TimeoutError as exc:
            raise Unavailable(f"node {place.node_id} did not answer in {_ASK_S:g} s") from exc

    async def parts_on(self, place: Place, volume: int) -> Sequence[ChunkId]:
        """Return the parts of a volume that a disk has.  Raises: Unavailable, DiskFailed."""
        peer = await self._dialing.asking(place, PEER_REQUEST_TIMEOUT_S)
        try:
            return await peer.list(volume)
        finally:
            await peer.close()

    async def _node(self, turns: asyncio.Semaphore, places: list[Place]) -> list[DiskState]:
        """Ask one node about all its disks."""
        up = [place for place in places if place.up]
        if not up:
            return [DiskState(place, None, "it is not up") for place in places]
        async with turns:
            try:
                documents = documents_of(await self.ask(up[0], ASK_UPKEEP))
            except TorusError as exc:
                return [DiskState(place, None, exc.message) for place in places]
        by_disk = {one["disk_id"]: one for one in documents}
        return [
            DiskState(place, by_disk.get(place.disk_id),
                      "" if place.disk_id in by_disk else "its node has no such disk")
            for place in places
        ]  # fmt: skip


def no_ring() -> NotFound:
    """Return what to say where there is no ring."""
    return NotFound(
        "there is no ring: this is a single machine, or no node was started yet",
        hint="start nodes with --meta etcd://HOST:2379",
    )


def set_paused(store: MetadataStore, *, paused: bool) -> RingHead:
    """Let data move, or not; return the ring's head.

    Raises: NotFound without a ring, Busy, Unavailable.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        entry = store.get(RING_HEAD)
        if entry is None:
            raise no_ring()
        head = RingHead.from_bytes(entry.value, entry.key)
        if head.paused == paused:
            return head
        wanted = replace(head, paused=paused)
        if store.commit((Expect(RING_HEAD, entry.revision),), (Put(RING_HEAD, wanted.to_bytes()),)):
            return wanted
    raise Busy("the ring was changed by others again and again", hint="try again")
