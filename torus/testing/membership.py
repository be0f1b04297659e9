"""A membership that stands until a test changes it: no metadata store behind it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torus.cluster.membership import FIRST_RING, Place
from torus.errors import NotFound, Unavailable
from torus.metadata.schema import RingHead

if TYPE_CHECKING:
    from torus.ring.table import Ring


class StaticMembership:
    """A `torus.cluster.membership.ClusterView` of fixed places and rings."""

    def __init__(self, places: Iterable[Place] = (), ring: "Ring | None" = None) -> None:
        self._places = {place.disk_id: place for place in places}
        self._rings: dict[int, Ring] = {} if ring is None else {ring.version: ring}
        self._head = None if ring is None else RingHead(ring.version)
        self._away_since_ns: int | None = None
        self.on_change: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    # --- what a test changes ------------------------------------------------------------

    def set_place(self, place: Place) -> None:
        """Add a disk or change one."""
        self._places = {**self._places, place.disk_id: place}
        self._changed()

    def set_down(self, *disks: str) -> None:
        """Let disks be not up."""
        for disk in disks:
            self.set_place(replace(self._places[disk], address=None, instance_id=""))

    def set_ring(self, ring: "Ring") -> None:
        """Let a ring hold from now on; the former ones stay known."""
        self._rings[ring.version] = ring
        self.set_head(RingHead(ring.version))

    def set_head(self, head: RingHead) -> None:
        """Change which ring holds, or that data does not move."""
        self._head = head
        self._changed()

    def set_away(self, since_ns: int | None) -> None:
        """Let the metadata store be away, or back."""
        self._away_since_ns = since_ns
        self._changed()

    def _changed(self) -> None:
        for callback in tuple(self.on_change):
            callback()

    # --- ClusterView --------------------------------------------------------------------

    @property
    def head(self) -> RingHead | None:
        """Return which ring version holds."""
        return self._head

    @property
    def has_ring(self) -> bool:
        """Say whether there is a ring."""
        return self._head is not None

    @property
    def ring(self) -> "Ring":
        """Return the ring that holds now.  Raises: Unavailable."""
        if self._head is None:
            raise Unavailable("the cluster has no ring yet")
        return self.ring_at(self._head.version)

    @property
    def away_since_ns(self) -> int | None:
        """Return since when the metadata store is away."""
        return self._away_since_ns

    def disks(self) -> Mapping[str, Place]:
        """Return all disks by id."""
        return self._places

    def ring_at(self, version: int) -> "Ring":
        """Return a version of the ring.  Raises: NotFound."""
        try:
            return self._rings[version or FIRST_RING]
        except KeyError as exc:
            raise NotFound(f"ring version {version} is not known here") from exc

    async def fetch_ring(self, version: int) -> "Ring":
        """Return a version of the ring.  Raises: NotFound."""
        return self.ring_at(version)
