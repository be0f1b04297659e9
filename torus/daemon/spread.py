"""Whether a ring has nodes and zones enough for the parts of a volume's chunks.  Pure.

Decides what counts as too few: fewer nodes with weight than parts, so that not all of them can
be made; and, where the operator named zones, one whose loss takes more parts than may be lost.

Implements docs/operations-cluster.md, "Health".
"""

from dataclasses import dataclass

from torus.redundancy.scheme import Scheme
from torus.ring.share import most_in_a_zone
from torus.ring.table import Ring


@dataclass(frozen=True, slots=True)
class Spread:
    """What a ring has for one redundancy."""

    scheme: Scheme
    nodes: int  # with weight
    zones: int  # that these are in
    zone_parts: int  # of a chunk's parts, the most that stand in one zone

    @property
    def nodes_missing(self) -> int:
        """Return how many nodes more it takes; 0: none."""
        return max(0, self.scheme.disks_needed - self.nodes)

    @property
    def zone_is_fatal(self) -> bool:
        """Tell whether shards are lost for good with one of several zones."""
        return self.scheme.erasure and self.zones > 1 and self.zone_parts > self.scheme.parity

    @property
    def zones_needed(self) -> int:
        """Return how many zones with nodes enough bear the loss of one."""
        return -(-self.scheme.shards // self.scheme.parity)


def spread_of(ring: Ring, scheme: Scheme) -> Spread:
    """Return what ``ring`` has for chunks of this redundancy."""
    inside = [member for member in ring.members if member.weight]
    return Spread(
        scheme,
        nodes=len({member.node_id for member in inside}),
        zones=len({member.zone for member in inside}),
        zone_parts=most_in_a_zone(ring.members, scheme.disks_needed),
    )
