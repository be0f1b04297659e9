"""What a round goes by, and what a look at a volume finds.  Pure."""

from dataclasses import dataclass, field

from torus.ids import ChunkId
from torus.upkeep.placement import Placement
from torus.upkeep.plan import Log, Surplus, Want
from torus.upkeep.shard_plan import PartSurplus, PartWant


@dataclass(slots=True)
class Picture:
    """What a round goes by."""

    placement: Placement
    up: frozenset[str]  # disks that can be asked
    members: frozenset[str]  # disks that may have something, up or not


@dataclass(slots=True)
class Found:
    """What is to be done for one volume."""

    wants: list[Want | PartWant] = field(default_factory=list)
    surplus: list[Surplus] = field(default_factory=list)
    parts_surplus: list[PartSurplus] = field(default_factory=list)
    suspects: list[ChunkId] = field(default_factory=list)
    unknown: int = 0  # chunks that somebody who is silent may have
    waiting: int = 0  # of ``parts_surplus``, those that others are about to make surplus

    @property
    def idle(self) -> bool:
        """Say whether all is as it should be."""
        return not (
            self.wants or self.surplus or self.parts_surplus or self.suspects or self.unknown
        )

    @property
    def asleep(self) -> bool:
        """Say whether nothing can be done before somebody comes back or the volume is attached."""
        ready = any(one.todo.ready for one in self.parts_surplus)
        return not (self.wants or self.surplus or self.waiting or ready)

    def unfinished(self, log: Log) -> int:
        """Return how many parts of closed spans' chunks are to be made or given up.

        What a writer fills meanwhile, in its open span, is not counted: there is always some.
        Nor are suspects, which stay until the volume is attached again.
        """
        open_spans = {(one.epoch, one.tag) for one in log.spans if one.last is None}
        left_out = set(self.suspects)
        parts = (*self.wants, *self.parts_surplus)
        return sum(
            one.chunk not in left_out and (one.chunk.epoch, one.chunk.tag) not in open_spans
            for one in parts
        )

    def add(self, other: "Found") -> None:
        """Take over what was found elsewhere."""
        self.wants += other.wants
        self.surplus += other.surplus
        self.parts_surplus += other.parts_surplus
        self.suspects += other.suspects
        self.unknown += other.unknown
        self.waiting += other.waiting
