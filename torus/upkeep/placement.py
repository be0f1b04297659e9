"""Where chunks belong and belonged: the owners in the newest ring and in those before.  Pure.

Decides which disk had a chunk for certain and never a reason to give it up, so that its "not
here" is a witness of a deletion.  Implements docs/upkeep.md, "What should be where" and "Deleted
chunks that come back".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torus.ids import ChunkId
from torus.metadata.schema import Span

FIRST_RING = 1  # what version 0 of a span means
_SLOTS = 1 << 16
_YES, _NO = 1, 2
Slots = Callable[[ChunkId], int]


class Disk(Protocol):
    """A disk of a ring."""

    @property
    def disk_id(self) -> str:
        """Its id."""

    @property
    def node_id(self) -> str:
        """The node that it belongs to."""


class Ring(Protocol):
    """What is needed of `torus.ring.table.Ring`."""

    @property
    def version(self) -> int:
        """Its number; they rise."""

    @property
    def members(self) -> Sequence[Disk]:
        """All disks of it."""

    def order(
        self, slot: int, count: int, excluded: frozenset[str] = frozenset()
    ) -> Sequence[Disk]:
        """Return the first ``count`` owners of a slot without the excluded disks."""


class Placement:
    """The rings from the oldest that is known to the newest."""

    def __init__(self, rings: Mapping[int, Ring], newest: int, slot_of: Slots) -> None:
        """``rings`` by version; ``newest`` is one of them, others may be missing."""
        self.version = newest
        self.rings = dict(rings)
        self._slot_of = slot_of
        self._owners: dict[tuple[int, int, int], tuple[str, ...]] = {}
        self._owned: dict[tuple[str, int, int], bytearray] = {}  # by slot: see `owned_since`

    @property
    def members(self) -> Sequence[Disk]:
        """Return the disks of the newest ring."""
        return self.rings[self.version].members

    def was_member(self, disk: str, version: int) -> bool:
        """Say whether a disk was in a version of the ring; False where that is not known."""
        ring = self.rings.get(version or FIRST_RING)
        return ring is not None and any(one.disk_id == disk for one in ring.members)

    def owners(self, chunk: ChunkId, copies: int) -> tuple[str, ...]:
        """Return the disks that have to have a chunk, the first one first."""
        return self._at(self.version, self._slot_of(chunk), copies)

    def wanted(self, disk: str, chunk: ChunkId, copies: int) -> int:
        """Return how many owners must have a chunk before ``disk``, which is none, gives it up.

        All of them, and as many as there should be copies; fewer only where there are not
        enough nodes and the disk's own node has a copy: another one there is worth nothing.
        """
        ring = self.rings[self.version]
        nodes = {one.node_id for one in ring.members if one.disk_id == disk}
        owners = ring.order(self._slot_of(chunk), copies)
        if any(one.node_id in nodes for one in owners):
            return len(owners)
        return max(copies, len(owners))

    def slot_of(self, chunk: ChunkId) -> int:
        """Return the slot of a chunk."""
        return self._slot_of(chunk)

    def owned_since(self, disk: str, slot: int, copies: int, first: int) -> bool:
        """Say whether a disk is an owner of a slot in every version from ``first`` on.

        False where a version is not known.  Remembered by slot: it is asked for every chunk.
        """
        known = self._owned.get((disk, copies, first))
        if known is None:
            known = self._owned[disk, copies, first] = bytearray(_SLOTS)
        answer = known[slot]
        if not answer:
            owned = all(
                version in self.rings and disk in self._at(version, slot, copies)
                for version in range(first, self.version + 1)
            )
            answer = known[slot] = _YES if owned else _NO
        return answer == _YES

    def written(self, chunk: ChunkId, span: Span, copies: int) -> tuple[str, ...] | None:
        """Return the disks that a chunk was written to; None when that ring is not known."""
        ring = self.rings.get(span.ring or FIRST_RING)
        if ring is None:
            return None
        if not span.excluded:
            return self._at(ring.version, self._slot_of(chunk), copies)
        order = ring.order(self._slot_of(chunk), copies, frozenset(span.excluded))
        return tuple(one.disk_id for one in order)

    def ever(self, chunk: ChunkId, span: Span, copies: int) -> set[str] | None:
        """Return the disks that had a reason to have a chunk; None when a ring is not known."""
        written = self.written(chunk, span, copies)
        if written is None:
            return None
        found = set(written)
        slot = self._slot_of(chunk)
        for version in range(span.ring or FIRST_RING, self.version + 1):
            if version not in self.rings:
                return None
            found.update(self._at(version, slot, copies))
        return found

    def stayed(self, disk: str, chunk: ChunkId, span: Span, copies: int) -> bool:
        """Say whether a chunk was written to a disk that is its owner since.

        False where a ring is not known: nothing follows from what cannot be told.
        """
        if disk in span.excluded:
            return False
        if span.excluded and disk not in (self.written(chunk, span, copies) or ()):
            return False
        return self.owned_since(disk, self._slot_of(chunk), copies, span.ring or FIRST_RING)

    def _at(self, version: int, slot: int, copies: int) -> tuple[str, ...]:
        key = (version, slot, copies)
        found = self._owners.get(key)
        if found is None:
            order = self.rings[version].order(slot, copies)
            found = self._owners[key] = tuple(one.disk_id for one in order)
        return found
