"""Who is in the cluster, who of them is up, and which ring holds: followed, never asked for.

Decides how registrations, members and rings become one picture, and what that picture is while
the metadata store is away: the last one known, with the time since when.  It decides neither
where data goes (torus.ring) nor who is put out (torus.daemon.coordinator).

Implements docs/operations-cluster.md, "Nodes, disks and members".
"""

import asyncio
import base64
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torus.clock import Clock
from torus.errors import Corruption, NotFound, TorusError, Unavailable, UnknownVersion
from torus.log import get_logger
from torus.metadata.base import Event, Listing
from torus.metadata.following import Following
from torus.metadata.keys import GATEWAYS, MEMBERS, NODES, RING, RING_HEAD, RING_VERSIONS, ring_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Gateway, Member, Node, RingHead, RingVersion

if TYPE_CHECKING:
    from torus.ring.table import Ring

log = get_logger("torus.membership")

FIRST_RING = 1  # what a span of ring version 0 means: written before there was a ring
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Place:
    """A disk as it can be reached from here."""

    disk_id: str
    node_id: str
    host: str
    zone: str
    address: str | None  # of its node's peer protocol, unix:PATH or HOST:PORT; None: not up
    state: str  # as `schema.Member.state`; "waiting" for a disk that nobody made a member
    instance_id: str = ""  # of the node's process; empty: not up
    weight: int = 1

    @property
    def up(self) -> bool:
        """Say whether its node is registered and counts this disk among those that work."""
        return self.address is not None


class ClusterView(Protocol):
    """What users of a membership need of it; `torus.testing.membership` has one that stands."""

    on_change: list[Callable[[], None]]
    """Called without arguments after the picture changed, or the metadata store went away or
    came back; they must not raise or wait."""

    @property
    def head(self) -> RingHead | None:
        """Return which ring version holds; None before there is a ring."""

    @property
    def has_ring(self) -> bool:
        """Say whether there is a ring."""

    @property
    def ring(self) -> "Ring":
        """Return the ring that holds now.  Raises: Unavailable before there is one."""

    @property
    def away_since_ns(self) -> int | None:
        """Return since when (monotonic) the metadata store is away; None: it is not."""

    def disks(self) -> Mapping[str, Place]:
        """Return all disks that are members or registered, by id; a new mapping at a change."""

    def ring_at(self, version: int) -> "Ring":
        """Return a version of the ring; 0 is the first.

        Raises: NotFound for one that is not known here: see `fetch_ring`; Corruption.
        """

    async def fetch_ring(self, version: int) -> "Ring":
        """Return a version of the ring, read from the metadata when it is not known yet.

        Raises: NotFound when there is none, Unavailable, Corruption.
        """


class Rings:
    """The versions of the ring that are known, unpacked when somebody asks."""

    def __init__(self) -> None:
        self._packed: dict[int, bytes] = {}
        self._unpacked: dict[int, Ring] = {}

    def versions(self) -> tuple[int, ...]:
        """Return the known versions, rising."""
        return tuple(sorted(self._packed))

    def add(self, value: RingVersion) -> None:
        """Learn a version; it never changes."""
        if value.version not in self._packed:
            self._packed[value.version] = base64.b64decode(value.table)

    def forget(self, version: int) -> None:
        """Forget a version that no span names any more."""
        self._packed.pop(version, None)
        self._unpacked.pop(version, None)

    def get(self, version: int) -> "Ring":
        """Return a version; 0 is the first.  Raises: NotFound, Corruption."""
        version = version or FIRST_RING
        found = self._unpacked.get(version)
        if found is None:
            packed = self._packed.get(version)
            if packed is None:
                raise NotFound(f"ring version {version} is not known here")
            from torus.ring.codec import unpack

            found = self._unpacked[version] = unpack(packed)
        return found


class Membership:
    """The cluster as its metadata says it is, followed from `start` to `close`."""

    def __init__(
        self, metadata: AsyncMetadata, clock: Clock, *, machine: str | None = None
    ) -> None:
        """``machine`` is the boot id of this host's kernel; None: ask it."""
        self._metadata = metadata
        self._clock = clock
        self._machine = _machine_boot_id() if machine is None else machine
        self._nodes: dict[str, Node] = {}
        self._members: dict[str, Member] = {}
        self._gateways: dict[str, Gateway] = {}
        self._places: Mapping[str, Place] = {}
        self._marks = 0  # changes of members, for what places do not show
        self._head: RingHead | None = None
        self._rings = Rings()
        self._away: dict[str, int] = {}  # who cannot reach the metadata store: since when
        self._takers: dict[str, Callable[[str, bytes | None], None]] = {}
        self.on_change: list[Callable[[], None]] = []
        self._followings = [
            self._follow(NODES, self._on_node),
            self._follow(MEMBERS, self._on_member),
            self._follow(RING, self._on_ring),
            self._follow(GATEWAYS, self._on_gateway),
        ]

    async def start(self) -> None:
        """Read the picture once and follow its changes.  Raises: Unavailable, Corruption."""
        for following in self._followings:
            await following.start()
        self._rebuild()

    async def close(self) -> None:
        """Stop following; idempotent.  The last picture stays."""
        await asyncio.gather(*(following.stop() for following in self._followings))

    # --- the picture --------------------------------------------------------------------

    @property
    def away_since_ns(self) -> int | None:
        """Return since when (monotonic) the metadata store is away; None: it is not."""
        return min(self._away.values(), default=None)

    @property
    def head(self) -> RingHead | None:
        """Return which ring version holds; None before there is a ring."""
        return self._head

    @property
    def has_ring(self) -> bool:
        """Say whether there is a ring."""
        return self._head is not None

    @property
    def ring(self) -> "Ring":
        """Return the ring that holds now.  Raises: Unavailable before there is one."""
        if self._head is None:
            raise Unavailable(
                "the cluster has no ring yet", hint="start a node: it makes the first one"
            )
        return self._rings.get(self._head.version)

    def ring_at(self, version: int) -> "Ring":
        """Return a version of the ring; 0 is the first.

        Raises: NotFound for one that is not known here: see `fetch_ring`; Corruption.
        """
        return self._rings.get(version)

    async def fetch_ring(self, version: int) -> "Ring":
        """Return a version of the ring, read from the metadata when it is not known yet.

        Raises: NotFound when there is none, Unavailable, Corruption.
        """
        version = version or FIRST_RING
        if version not in self._rings.versions():
            entry = await self._metadata.get(ring_key(version))
            if entry is None:
                raise NotFound(f"there is no ring version {version}")
            self._rings.add(RingVersion.from_bytes(entry.value, entry.key))
        return self._rings.get(version)

    def disks(self) -> Mapping[str, Place]:
        """Return all disks that are members or registered, by id; a new mapping at a change."""
        return self._places

    def nodes(self) -> Mapping[str, Node]:
        """Return the registrations of nodes that are up, by node id."""
        return self._nodes

    def members(self) -> Mapping[str, Member]:
        """Return all members by disk id."""
        return self._members

    def gateways(self) -> Mapping[str, Gateway]:
        """Return the registrations of gateways that are up, by their id."""
        return self._gateways

    def note_away(self, who: str, *, away: bool) -> None:
        """Learn that ``who`` of this process finds the metadata store away, or back."""
        if away == (who in self._away):
            return
        if away:
            self._away[who] = self._clock.monotonic_ns()
        else:
            del self._away[who]
        self._changed()

    # --- following ----------------------------------------------------------------------

    def _follow(self, prefix: str, take: Callable[[str, bytes | None], None]) -> Following:
        async def on_events(events: Sequence[Event]) -> None:
            self._take((event.key, event.value) for event in events)

        async def on_gap(listing: Listing) -> None:
            listed = {entry.key for entry in listing.entries}
            gone = [(key, None) for key in self._keys(prefix) if key not in listed]
            self._take([*gone, *((entry.key, entry.value) for entry in listing.entries)])

        def on_away(error: TorusError | None) -> None:
            self.note_away(prefix, away=error is not None)

        self._takers[prefix] = take
        return Following(
            self._metadata, prefix, on_events, on_gap, on_away=on_away, on_start=on_gap
        )

    def _take(self, changes: Iterable[tuple[str, bytes | None]]) -> None:
        before = (self._places, self._head, self._marks)
        for key, value in changes:
            take = self._takers[key[: key.index("/") + 1]]
            try:
                take(key, value)
            except (Corruption, UnknownVersion) as exc:
                # a newer torus may have written it; what it said before is still the best guess
                log.error("membership.unreadable", key=key, error=str(exc))
        self._rebuild()
        if before != (self._places, self._head, self._marks):
            self._changed()

    def _changed(self) -> None:
        for callback in tuple(self.on_change):
            callback()

    def _keys(self, prefix: str) -> list[str]:
        if prefix == NODES:
            return [prefix + node for node in self._nodes]
        if prefix == MEMBERS:
            return [prefix + disk for disk in self._members]
        if prefix == GATEWAYS:
            return [prefix + gateway for gateway in self._gateways]
        versions = [ring_key(version) for version in self._rings.versions()]
        return versions + ([RING_HEAD] if self._head is not None else [])

    def _on_node(self, key: str, value: bytes | None) -> None:
        node_id = key.removeprefix(NODES)
        if value is None:
            self._nodes.pop(node_id, None)
        else:
            self._nodes[node_id] = Node.from_bytes(value, key)

    def _on_gateway(self, key: str, value: bytes | None) -> None:
        gateway_id = key.removeprefix(GATEWAYS)
        if value is None:
            self._gateways.pop(gateway_id, None)
        else:
            self._gateways[gateway_id] = Gateway.from_bytes(value, key)

    def _on_member(self, key: str, value: bytes | None) -> None:
        disk_id = key.removeprefix(MEMBERS)
        known = self._members.get(disk_id)
        if value is None:
            self._members.pop(disk_id, None)
        else:
            self._members[disk_id] = Member.from_bytes(value, key)
        self._marks += known != self._members.get(disk_id)

    def _on_ring(self, key: str, value: bytes | None) -> None:
        if key == RING_HEAD:
            self._head = None if value is None else RingHead.from_bytes(value, key)
        elif key.startswith(RING_VERSIONS):
            if value is None:
                self._rings.forget(int(key.removeprefix(RING_VERSIONS), 16))
            else:
                self._rings.add(RingVersion.from_bytes(value, key))

    def _rebuild(self) -> None:
        places = places_of(self._nodes.values(), self._members.values(), self._machine)
        if places != self._places:
            self._places = places


def places_of(nodes: Iterable[Node], members: Iterable[Member], machine: str) -> dict[str, Place]:
    """Return every disk that a node registered or that is a member.

    ``machine`` is the boot id of this host's kernel: nodes of the same machine are reached
    through their unix socket, if it can be seen from here.
    """
    holders = {disk: node for node in nodes for disk in node.disks or (node.node_id,)}
    places: dict[str, Place] = {}
    for member in members:
        node = holders.pop(member.disk_id, None)
        address = None if node is None else _address(node, machine)
        places[member.disk_id] = Place(
            member.disk_id, member.node_id, member.host if node is None else node.host,
            member.zone, address, member.state, "" if node is None else node.instance_id,
            member.weight,
        )  # fmt: skip
    for disk, node in holders.items():
        places[disk] = Place(
            disk, node.node_id, node.host, "", _address(node, machine), "waiting",
            node.instance_id,
        )  # fmt: skip
    return places


def _address(node: Node, machine: str) -> str:
    """Return where a node is reached from this machine."""
    near = node.machine_boot_id == machine and node.peer_address.startswith("unix:")
    if near and (not node.peer_tcp or os.path.exists(node.peer_address.removeprefix("unix:"))):
        return node.peer_address
    return node.peer_tcp or node.peer_address


def _machine_boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""  # then every node is reached as one of another host is
