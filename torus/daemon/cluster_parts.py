"""What a process needs to be part of a cluster: the membership, the way to every disk, and on a
node the registration and the coordinator.

Decides the order in which these parts come up.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from torus.clock import Clock
from torus.cluster.chunks import DiskChunks
from torus.cluster.local import LocalChunks
from torus.cluster.membership import Membership
from torus.cluster.nearby import NearbyFiles
from torus.cluster.pool import DiskPool
from torus.config import CommonConfig, NodeConfig
from torus.daemon.cluster_source import ClusterSource
from torus.daemon.coordinator import Coordinating
from torus.daemon.dialing import Dialing, tls_files
from torus.daemon.metrics import Source
from torus.daemon.node_disks import NodeDisks
from torus.daemon.registration import Registration, join
from torus.daemon.reports import ClusterStatus
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Cluster, Node


@dataclass(frozen=True, slots=True)
class Way:
    """How a process reaches the disks of its cluster."""

    membership: Membership
    dialing: Dialing
    pool: DiskPool


async def way_into(
    stack: AsyncExitStack,
    metadata: AsyncMetadata,
    clock: Clock,
    common: CommonConfig,
    cluster: Cluster,
    *,
    name: str,
    local: Mapping[str, DiskChunks],
) -> Way:
    """Follow the cluster and be ready to reach its disks; ``stack`` ends both.

    ``name`` is what nodes see in their logs, ``local`` the disks of this process.

    Raises: Unavailable, Corruption, ConfigError.
    """
    dialing = Dialing(cluster, tls_files(common), name)
    membership = Membership(metadata, clock)
    stack.push_async_callback(membership.close)
    await membership.start()
    nearby = None if local else NearbyFiles()
    pool = DiskPool(
        membership, local, dialing.replica, clock, host=socket.gethostname(), nearby=nearby
    )
    stack.push_async_callback(pool.close)
    return Way(membership, dialing, pool)


class ClusterParts:
    """A node's part in its cluster."""

    way: Way
    registration: Registration
    coordinator: Coordinating

    def __init__(self, metadata: AsyncMetadata, clock: Clock, config: NodeConfig) -> None:
        self._metadata = metadata
        self._clock = clock
        self._config = config

    @property
    def membership(self) -> Membership:
        """Return who is in the cluster."""
        return self.way.membership

    async def start(
        self,
        stack: AsyncExitStack,
        cluster: Cluster,
        disks: NodeDisks,
        node: Callable[[], Node],
    ) -> None:
        """Follow the cluster, join it, be known; ``node`` makes the registration.

        Raises: Busy when another process has this node's id; ForeignData for a disk that was
            removed; Unavailable, Corruption.
        """
        local = {disk: LocalChunks(store) for disk, store in disks.stores.items()}
        self.way = await way_into(
            stack, self._metadata, self._clock, self._config.common, cluster,
            name=disks.node_id, local=local,
        )  # fmt: skip
        self.registration = Registration(self._metadata, self._clock, node)
        self.registration.key.on_away = lambda away: self.membership.note_away("lease", away=away)
        stack.push_async_callback(self.registration.close)
        await self.registration.start()
        await join(self._metadata, self._clock, self._config, disks, node().host)
        self.coordinator = Coordinating(
            self._metadata, self._clock, self.membership, node(),
            auto_out_s=self._config.auto_out_s,
            settled=lambda: False,  # before upkeep runs nobody knows
        )  # fmt: skip
        stack.push_async_callback(self.coordinator.close)
        self.coordinator.start()

    async def refresh(self) -> None:
        """Let the registration say what is so now.  Raises: Unavailable."""
        await self.registration.key.refresh()

    def away_since_s(self) -> float | None:
        """Return for how many seconds the metadata store is away; None: it is not."""
        since_ns = self.membership.away_since_ns
        return None if since_ns is None else (self._clock.monotonic_ns() - since_ns) / 1e9

    def problems(self) -> list[str]:
        """Return a sentence for each thing of this node's that is not well."""
        away_s = self.away_since_s()
        if away_s is None:
            return []
        return [
            f"the metadata store is away since {away_s:.0f} s: reads, writes and flushes go on; "
            "attaching, snapshots, ring changes and deletions wait"
        ]

    def status(self) -> ClusterStatus:
        """Return the state for `torus status`."""
        disks = self.membership.disks().values()
        head = self.membership.head
        return ClusterStatus(
            coordinator=self.coordinator.elected,
            disks_up=sum(disk.up for disk in disks),
            disks=len(disks),
            ring_version=None if head is None else head.version,
            ring_frozen="" if head is None else head.frozen,
            ring_paused=head is not None and head.paused,
            metadata_away_s=self.away_since_s(),
            registered=self.registration.key.held,
        )

    def sources(self) -> Sequence[Source]:
        """Return where the cluster's metrics come from."""
        return (ClusterSource(self.membership, self.status),)
