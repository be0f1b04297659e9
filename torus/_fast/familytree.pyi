"""In whose log, and in which chunks, the blocks and pages of a map lie (see familytree.pyx).

Calls raise LookupError before all directories and usage pages are loaded.
"""

from collections.abc import Set as AbstractSet

from typing_extensions import disjoint_base

from torus._fast.checkpoint import CheckpointTree

@disjoint_base
class FamilyTree(CheckpointTree):
    # --- pages to be written anew
    def mark_pages_dirty(self, sequences: AbstractSet[int]) -> list[int]:
        """Have the next checkpoint write anew the map pages that lie in these own chunks.

        Directory and usage pages become dirty at once.  Returns the clean leaves (indexes,
        ascending) that are stored there: load each one (`missing`, `load_leaf`) and call
        `touch_leaf`.  Leaves that are dirty already are not named.

        Raises: LookupError while a checkpoint is under way.
        """

    def touch_leaf(self, index: int) -> None:
        """Make a leaf dirty as it is, so that it is written anew.

        Raises: LookupError when it is not in memory.
        """

    # --- ancestors
    def inherited_leaves(self, first_leaf: int, limit: int) -> list[int]:
        """Leaves from `first_leaf` on, at most `limit`, that may need an ancestor's log.

        In memory: those with an inherited block.  Cold: all of them, as only the page can
        tell; load it and ask again.  Fewer than `limit`: there are no more.
        """

    def mark_inherited_dirty(self) -> int:
        """Have the next checkpoint write anew the directories that lie in ancestors' logs.

        Returns how many there are.  Raises: LookupError while a checkpoint is under way.
        """

    def has_inherited_pages(self) -> bool:
        """Whether a stored leaf or directory page lies in an ancestor's log."""

    def depths(self, block: int, count: int, limit: int) -> tuple[list[tuple[int, int]], int]:
        """At most `limit` extents (blocks, depth) and where they end, as `extents` gives them.

        Depth 0: unmapped; 1: in the volume's own log; d + 1: in that of member d.
        """
