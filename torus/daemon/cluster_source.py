"""The cluster's metrics, as one process sees it."""

from collections.abc import Callable, Iterable

from torus.cluster.membership import Membership
from torus.daemon.metrics import Sample
from torus.daemon.reports import ClusterStatus

STATES = ("in", "waiting", "draining", "out", "removed")


class ClusterSource:
    """Nodes, disks, the ring and the metadata store."""

    def __init__(self, membership: Membership, status: Callable[[], ClusterStatus]) -> None:
        self._membership = membership
        self._status = status

    def samples(self) -> Iterable[Sample]:
        """Return the present values."""
        places = self._membership.disks().values()
        status = self._status()
        yield Sample("torus_cluster_nodes_up", len(self._membership.nodes()))
        yield Sample("torus_cluster_nodes", len({place.node_id for place in places}))
        for state in STATES:
            found = [place for place in places if place.state == state]
            yield Sample("torus_cluster_disks", len(found), (state,))
            yield Sample("torus_cluster_disks_up", sum(place.up for place in found), (state,))
        yield Sample("torus_ring_version", status.ring_version or 0)
        yield Sample("torus_ring_frozen", int(bool(status.ring_frozen)))
        yield Sample("torus_ring_paused", int(status.ring_paused))
        yield Sample("torus_coordinator", int(status.coordinator))
        yield Sample("torus_node_registered", int(status.registered))
        yield Sample("torus_metadata_away_seconds", status.metadata_away_s or 0)
