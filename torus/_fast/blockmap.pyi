"""The map of one volume: 4 KiB block -> where its newest copy lies in the volume's log.

Sizes and counts are in blocks and offsets in 512-byte units unless named otherwise.  A leaf
is 1024 blocks.  "Cold" = stored in the log but not in memory: calls that need a cold leaf
raise LookupError and change nothing; `missing` names the pages to read for `load_leaf`.
Ranges outside the volume raise ValueError.  For one thread.
"""

from collections.abc import Set as AbstractSet
from typing import Self, final

from torus._fast.familytree import FamilyTree

_Place = tuple[int, int, int, int, int, int]  # leaf index, sequence, offset, size, crc, base

@final
class BlockMap(FamilyTree):
    @classmethod
    def from_root(cls, root: bytes, cache_bytes: int, base: int = 0) -> Self:
        """Open the map of a root page; usable when `unloaded` has become empty.

        base: the member of the family whose log holds the root.  All that the root and its
        pages name is then said as the volume says it, `base` members further.  The usage of
        another member is not taken over: it starts empty.

        Raises: Corruption, UnknownVersion.
        """

    def unloaded(self) -> list[tuple[str, int, int, int, int, int, int]]:
        """Pages still to load: ("directory" | "usage", index, sequence, offset, size, crc, base).

        base: the member of the family whose log holds the page.
        """

    def load_directory(self, index: int, page: bytes) -> None:
        """Raises: Corruption, UnknownVersion, LookupError when it is not waited for."""

    def load_usage(self, index: int, page: bytes) -> None:
        """Raises: Corruption, UnknownVersion, LookupError when it is not waited for."""

    # --- blocks
    def set(self, block: int, crcs: bytes, sequence: int, offset: int) -> None:
        """Map len(crcs)/4 blocks; block i lies at offset + 8*i.  crcs: native u32 each.

        Raises: ValueError, LookupError (cold leaf, or the chunk is not open).
        """

    def clear(self, block: int, count: int) -> None: ...
    def get(self, block: int) -> tuple[int, int, int, int] | None:
        """(sequence, offset, base, crc); None when unmapped."""

    def entries_crc(self, block: int, count: int) -> bytes:
        """The CRCs of the blocks, native u32 each; 0 where unmapped."""

    def runs(self, block: int, count: int) -> list[tuple[int, int, int, int, int]]:
        """Mapped runs (block, count, sequence, offset, base), whole in address and chunk."""

    def extents(self, block: int, count: int, limit: int) -> tuple[list[tuple[int, bool]], int]:
        """At most `limit` extents (blocks, mapped), alternating, and where they end.

        They end early at a cold leaf: load it and go on from there.
        """

    def resize(self, size_blocks: int) -> None:
        """Grow, or clear what lies beyond and shrink."""

    # --- leaves in and out of memory
    def missing(self, block: int, count: int, limit: int | None = None) -> list[_Place]:
        """The cold leaves of a range, at most `limit`."""

    def load_leaf(
        self,
        index: int,
        page: bytes,
        sequence: int | None = None,
        offset: int | None = None,
        base: int = 0,
    ) -> bool:
        """Take a stored leaf in; False when it is not wanted (any more).

        Give the place that `missing` named: between reading the page and this call the leaf
        may have been loaded, written elsewhere and evicted, and the page be an old one.

        Raises: Corruption, UnknownVersion.
        """

    def evict(self, target_bytes: int | None = None) -> int:
        """Free clean leaves until resident_bytes <= target (default cache_bytes).

        Returns the bytes freed.  Leaves used since the last pass go last.
        """

    def oldest_dirty(self, count: int) -> list[int]:
        """Up to `count` dirty leaves, those first that have waited longest."""

    @property
    def leaf_count(self) -> int:
        """Leaves in memory."""

    @property
    def resident_bytes(self) -> int:
        """Memory of leaves and of their frozen copies; directories (24 KiB per 4 GiB) apart."""

    @property
    def dirty_bytes(self) -> int: ...

    # --- live units (512 bytes) per chunk
    def open_sequence(self, sequence: int) -> None:
        """A chunk now exists; nothing happens when it does already."""

    def drop_sequence(self, sequence: int) -> None:
        """A chunk is gone.  Raises: ValueError when the map still needs it."""

    def live(self, sequence: int) -> int | None:
        """Live units of a chunk; None when it does not exist."""

    def dead(self, first: int, last: int) -> list[int]:
        """Chunks of first..last, both included, with no live unit; none after a fault."""

    def dead_unassigned(self, first: int, last: int) -> list[int]:
        """Those of `dead` whose era is 0."""

    def era(self, sequence: int) -> int:
        """The era that a dead chunk was given; 0: none, or it is not dead, or not there.

        Eras are stored with the live units.  A chunk that gets a live unit again, or goes, has
        lost its era.
        """

    def set_era(self, sequence: int, era: int) -> None:
        """Raises: LookupError when the chunk is not dead, ValueError beyond 32 bits."""

    def adopt_usage(self, current: Self, era: int) -> None:
        """Make this map, which a snapshot's root was, the next map of its volume.

        `current` is the map that it takes over from; both are fully loaded but for leaves and
        have no checkpoint under way; no leaf of this one is dirty.  The chunks are those of
        `current`, their live units those of this map.  A chunk that is dead in both keeps
        the era that `current` knows; one that is dead only here gets `era`.  All usage pages
        are dirty then, and the chunks that hold those of either map stay pinned until the
        end of the next checkpoint.

        Raises: Corruption (a chunk that this map needs is gone, or counts do not add up);
        LookupError, ValueError.  Nothing has changed then.
        """

    def pinned_sequences(self) -> AbstractSet[int]:
        """Chunks that hold usage pages, which `live` does not count; the root's is not known."""

    def live_units(self) -> int: ...
    def verify(self) -> None:
        """Recount everything in memory; for tests.  Raises: AssertionError."""
