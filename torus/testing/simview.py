"""The cluster's picture as each simulated process has it: the same for all, but not at once.

Rings are built once for each set of members and shared by all runs of a test process.
"""

import random
from dataclasses import replace
from functools import lru_cache

from torus.cluster.membership import Place
from torus.metadata.schema import RingHead
from torus.ring.builder import first_ring
from torus.ring.member import RingMember
from torus.ring.table import Ring
from torus.testing.membership import StaticMembership
from torus.testing.simloop import SimLoop, SimProcess


@lru_cache(maxsize=64)
def _first(members: tuple[RingMember, ...]) -> Ring:
    return first_ring(members)


@lru_cache(maxsize=64)
def ring_of(members: tuple[RingMember, ...], version: int) -> Ring:
    """Return a version of the ring.

    It owes nothing to the version before: slots move at once that move in stages else.  What
    holds for that holds for less, and few rings have to be built.
    """
    return replace(_first(members), version=version)


def _follow(view: StaticMembership, ring: Ring) -> None:
    """Learn of a ring; news of an older one that comes late changes nothing."""
    if view.head is None or view.head.version < ring.version:
        view.set_ring(ring)


class Authority:
    """Who knows the truth, and tells every process a little later."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.places: dict[str, Place] = {}
        self.members: tuple[RingMember, ...] = ()
        self.rings: dict[int, Ring] = {}
        self.head: RingHead | None = None
        self.late_s: tuple[float, ...] = (0.0, 0.01, 0.2)  # at most, of news
        self._views: list[tuple[SimProcess, StaticMembership]] = []

    @property
    def ring(self) -> Ring:
        """Return the newest ring."""
        assert self.head is not None
        return self.rings[self.head.version]

    def view(self, process: SimProcess) -> StaticMembership:
        """Return the picture of a process, which follows the truth from now on."""
        view = StaticMembership(self.places.values())
        for version, ring in self.rings.items():
            if self.head is not None and version <= self.head.version:
                view.set_ring(ring)
        self._views = [(one, its) for one, its in self._views if one.alive]
        self._views.append((process, view))
        return view

    def set_place(self, place: Place) -> None:
        """Change where a disk is reached, or that it is not."""
        self.places[place.disk_id] = place
        self._tell(lambda view: view.set_place(self.places[place.disk_id]))

    def set_members(self, members: tuple[RingMember, ...]) -> bool:
        """Begin another version of the ring; False: it is the same."""
        if self.members == members:
            return False
        self.members = members
        ring = ring_of(members, len(self.rings) + 1)
        self.rings[ring.version] = ring
        self.head = RingHead(ring.version)
        self._tell(lambda view: _follow(view, ring))
        return True

    def _tell(self, change) -> None:  # type: ignore[no-untyped-def]
        for process, view in self._views:
            if process.alive:
                late_s = self.rng.choice(self.late_s) * self.rng.random()
                process.call_at(self.loop.time() + late_s, change, view)
