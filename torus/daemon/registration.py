"""A node makes itself known: its registration, and its disks as members of the cluster.

Decides what a second process with the same node id is told, which disks become members by
themselves, and which are refused because they were removed.

Implements docs/operations-cluster.md, "Nodes, disks and members".
"""

from collections.abc import Callable
from dataclasses import replace

from torus import limits
from torus.clock import Clock
from torus.config import NodeConfig
from torus.daemon.leased_key import LeasedKey
from torus.daemon.node_disks import NodeDisks
from torus.errors import Busy, Corruption, ForeignData, Unavailable, UnknownVersion
from torus.limits import GIB
from torus.log import get_logger
from torus.metadata.base import Expect, Put
from torus.metadata.keys import member_key, node_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Member, Node
from torus.volume.owner import is_alive

log = get_logger("torus.node")

IN, WAITING, DRAINING, OUT, REMOVED = "in", "waiting", "draining", "out", "removed"


class Registration:
    """A node's registration under a lease."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        clock: Clock,
        node: Callable[[], Node],
        *,
        ttl_s: float = limits.NODE_LEASE_S,
    ) -> None:
        """``node`` makes the registration as it should read now."""
        self._node = node
        self._ttl_s = ttl_s
        self.key = LeasedKey(
            metadata, clock, node_key(node().node_id), lambda: node().to_bytes(),
            ttl_s=ttl_s, is_mine=self._is_mine,
        )  # fmt: skip

    def _is_mine(self, value: bytes) -> bool:
        """Tell of a registration under this id whether it is this process's or a dead one's."""
        try:
            found = Node.from_bytes(value, "nodes/")
        except (Corruption, UnknownVersion):
            return False
        return found.instance_id == self._node().instance_id or is_alive(found) is False

    async def start(self) -> None:
        """Register and stay registered.

        Raises: Busy when another process has this node's id; Unavailable.
        """
        other = await self.key.claim(2 * self._ttl_s)
        if other is not None:
            node = Node.from_bytes(other.value, other.key)
            raise Busy(
                f"node {node.node_id} is running already: pid {node.pid} on {node.host} with "
                f"{', '.join(node.data_dirs)}",
                hint="a copied data directory cannot be used: begin with an empty one",
            )
        self.key.start()

    async def close(self) -> None:
        """Unregister; idempotent."""
        await self.key.close()


async def join(
    metadata: AsyncMetadata, clock: Clock, config: NodeConfig, disks: NodeDisks, host: str
) -> None:
    """Make the disks of a node members, or bring what is known of them up to date.

    Raises: ForeignData for a disk that was removed from the cluster; Unavailable, Corruption.
    """
    for disk_id, store in disks.stores.items():
        fresh = Member(
            disk_id=disk_id,
            node_id=disks.node_id,
            host=host,
            zone=config.zone or "",
            weight=config.weight or weight_of(store.identity.size_bytes),
            size_bytes=store.identity.size_bytes,
            state=IN if config.join else WAITING,
            since_ns=clock.wall_ns(),
        )
        await _settle(metadata, fresh, config)


def weight_of(size_bytes: int) -> int:
    """Return a disk's share of the chunks: its size in GiB, at least 1."""
    return max(1, size_bytes // GIB)


async def _settle(metadata: AsyncMetadata, fresh: Member, config: NodeConfig) -> None:
    key = member_key(fresh.disk_id)
    for _ in range(limits.CATALOG_ATTEMPTS_MAX):
        entry = await metadata.get(key)
        wanted = fresh
        if entry is not None:
            known = Member.from_bytes(entry.value, key)
            wanted = renewed(known, fresh, zone=config.zone, weight=config.weight)
            if known.state == WAITING and config.join:
                wanted = replace(wanted, state=IN, since_ns=fresh.since_ns)
            if wanted == known:
                return
        expect = Expect(key, 0 if entry is None else entry.revision)
        if await metadata.commit((expect,), (Put(key, wanted.to_bytes()),)) is not None:
            log.info(
                "member.known", disk=wanted.disk_id, state=wanted.state, zone=wanted.zone,
                weight=wanted.weight,
            )  # fmt: skip
            return
    raise Unavailable(f"member {fresh.disk_id} is changed by somebody else all the time")


def renewed(known: Member, fresh: Member, *, zone: str | None, weight: int | None) -> Member:
    """Return a member as it is after its node started again; what the operator set stays.

    The weight follows the size as long as nobody set another.

    Raises: ForeignData when it was removed.
    """
    if known.state == REMOVED:
        raise ForeignData(
            f"disk {known.disk_id} was removed from the cluster: {known.reason}",
            hint="empty its data directory to add it again, as a new disk",
        )
    if weight is None:
        by_size = known.weight == weight_of(known.size_bytes)
        weight = fresh.weight if by_size else known.weight
    return replace(
        known,
        node_id=fresh.node_id,
        host=fresh.host,
        size_bytes=fresh.size_bytes,
        zone=known.zone if zone is None else zone,
        weight=weight,
    )
