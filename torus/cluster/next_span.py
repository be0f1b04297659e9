"""On which disks a volume's next span may be: whom it leaves out, and whether enough are left.

Decides that no span is opened for which too few disks would be left, when a disk that was left
out is tried again, and which disks may have less of a span that ends than the others.

Implements docs/replication.md, "A copy fails".
"""

import asyncio
from typing import TYPE_CHECKING

from torus import limits
from torus.cluster.placement import Placement
from torus.cluster.quorum import Takeover
from torus.cluster.replicated_writes import OpenChunks

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool

NOBODY: frozenset[str] = frozenset()


class NextSpan:
    """What the writer of one volume knows of disks that the next span can be on."""

    def __init__(
        self,
        pool: "DiskPool",
        placement: Placement,
        opened: OpenChunks,
        takeover: Takeover,
        min_copies: int,
    ) -> None:
        self._pool = pool
        self._placement = placement
        self._open = opened
        self._takeover = takeover
        self.min_copies = min_copies
        self._left_out: dict[str, tuple[float, float]] = {}  # disk: (until, how long)
        self._back: set[str] = set()  # of those, who has answered since
        self.usable: set[str] = set()  # lost for the open span, but not for another

    def excluded(self) -> frozenset[str] | None:
        """Return whom a new span leaves out; None when too few disks are left then.

        A disk that was left out is so until it was seen to answer: the membership
        says for some seconds that a dead one is up, and each span on it would be lost at once.
        """
        ring = self._pool.view.ring
        absent = self._absent()
        resting = self._left_out.keys() - self._back
        members = {member.disk_id for member in ring.members}
        excluded = frozenset((absent | resting) & members)
        return excluded if self._left(excluded) >= self.least else None

    @property
    def least(self) -> int:
        """Return without how many nodes nothing is written: there must be enough for the copies,
        and for as many shards as reading takes."""
        return max(self.min_copies, self._placement.scheme.data)

    def _left(self, excluded: frozenset[str]) -> int:
        members = self._pool.view.ring.members
        nodes = {one.node_id for one in members if one.weight and one.disk_id not in excluded}
        return len(nodes)

    def _nodes(self, excluded: frozenset[str]) -> int:
        """Return how many disks each slot of the newest ring has at least without these: each on
        another node."""
        return min(self._left(excluded), self._placement.copies)

    def _absent(self) -> frozenset[str]:
        """Return the members of the ring that are lost, silent or not up."""
        return frozenset(
            disk
            for member in self._pool.view.ring.members
            if ((disk := member.disk_id) in self._open.lost and disk not in self.usable)
            or disk in self._takeover.unreachable
            or not self._pool.is_up(disk)
        )

    def place(self) -> tuple[int, tuple[str, ...]]:
        """Return the ring version that a new span is written under, and whom it leaves out.

        Nobody while too few disks are left without those that cannot be had: a span that names
        too few can never be written, nor can anybody who takes over ask where it ends.
        """
        excluded = self.excluded()
        if excluded is None:  # it takes no chunk until some of its disks are back
            excluded = NOBODY
        return self._pool.view.ring.version, tuple(sorted(excluded))

    # --- disks that rest ----------------------------------------------------------------

    def missed(self) -> list[str]:
        """Return the disks that rest and are not lost, where a span had too few copies without."""
        excluded = self.excluded()
        if excluded is not None and self._nodes(excluded) == self._placement.copies:
            return []
        return [disk for disk in self._left_out if disk not in self._open.lost]

    def call_back(self, disk_id: str) -> None:
        """Let a disk be used again that rests."""
        self._left_out[disk_id] = 0.0, self._left_out[disk_id][1]
        self._back.add(disk_id)

    def answers(self, disk_id: str) -> None:
        """Learn that a disk that was left out answers again."""
        self._back.add(disk_id)

    def rest_s(self, disk_id: str) -> float:
        """Return for how long a disk rests still; negative when it may be tried again."""
        return self._left_out.get(disk_id, (0.0, 0.0))[0] - asyncio.get_running_loop().time()

    def begun(self, excluded: frozenset[str]) -> None:
        """Learn that a span has begun that leaves these out."""
        now_s = asyncio.get_running_loop().time()
        self._back -= excluded
        for disk in {*self._left_out}.difference(excluded):
            if now_s > sum(self._left_out[disk]):  # back for longer than it was left out
                del self._left_out[disk]
        for disk in excluded:
            until_s, rest_s = self._left_out.get(disk, (0.0, 0.0))
            if until_s <= now_s:
                rest_s = min(
                    max(2 * rest_s, limits.REPLICA_RETURN_FIRST_S), limits.REPLICA_RETURN_MAX_S
                )
                self._left_out[disk] = now_s + rest_s, rest_s
        self.usable.clear()
