"""What differs between two maps (see mapdiff.pyx).

`members` says how map `b` calls the members of the family that map `a` names: native u16 for
each member of `a`, 0xFFFF for one that is not in the family of `b`.  None: both maps are of the
same volume.  The maps may differ in size: beyond the end of one, what the other maps differs.
"""

from torus._fast.blockmap import BlockMap

def differing_leaves(
    a: BlockMap, b: BlockMap, first_leaf: int, limit: int, members: bytes | None = None
) -> list[int]:
    """Leaves from `first_leaf` on, at most `limit`, that may differ (indexes, ascending).

    All others are equal: absent in both, or clean and stored as one and the same page.  Fewer
    than `limit`: there are no more.

    Raises: LookupError before all directories are loaded, ValueError (odd bytes in members).
    """

def diff_leaf(
    a: BlockMap, b: BlockMap, leaf_index: int, members: bytes | None = None
) -> list[tuple[int, int, int]]:
    """The runs (block, count, kind) of one leaf that differ; kind 1: data in `b`, 0: a hole.

    A block that lies at another place in `b` differs, also when it was only moved there.

    Raises: LookupError when the leaf is stored but not in memory, ValueError as above.
    """
