"""What a process needs to be part of a cluster: the membership, the way to every disk, and on a
node the registration and the coordinator.

Decides which metadata stores make a cluster, and the order in which these parts come up.
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from torus.clock import Clock
from torus.cluster.membership import Membership
from torus.config import NodeConfig
from torus.daemon.cluster_source import ClusterSource
from torus.daemon.coordinator import Coordinating
from torus.daemon.metrics import Source
from torus.daemon.node_disks import NodeDisks
from torus.daemon.registration import Registration, join
from torus.daemon.reports import ClusterStatus
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Node


class ClusterParts:
    """A node's part in its cluster."""

    registration: Registration
    coordinator: Coordinating

    def __init__(self, metadata: AsyncMetadata, clock: Clock, config: NodeConfig) -> None:
        self._metadata = metadata
        self._clock = clock
        self._config = config
        self.membership = Membership(metadata, clock)

    async def start(
        self, stack: AsyncExitStack, disks: NodeDisks, node: Callable[[], Node]
    ) -> None:
        """Follow the cluster, join it, be known; ``node`` makes the registration.

        Raises: Busy when another process has this node's id; ForeignData for a disk that was
            removed; Unavailable, Corruption.
        """
        stack.push_async_callback(self.membership.close)
        await self.membership.start()
        self.registration = Registration(self._metadata, self._clock, node)
        self.registration.key.on_away = lambda away: self.membership.note_away("lease", away=away)
        stack.push_async_callback(self.registration.close)
        await self.registration.start()
        await join(self._metadata, self._clock, self._config, disks, node().host)
        self.coordinator = Coordinating(
            self._metadata, self._clock, self.membership, node(),
            auto_out_s=self._config.auto_out_s,
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
