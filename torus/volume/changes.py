"""What changed between two maps: ranges of blocks that lie elsewhere, or nowhere any more.

Decides when two maps mean the same: when they name the same place in the same log.  Chunks are
never rewritten, so the same place is the same data; the other way round a block that was
written again with what it held counts as changed.  Leaves that both maps share are not read.
"""

from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.mapdiff import diff_leaf, differing_leaves
from torus.volume.family import Family
from torus.volume.leaves import LEAF_BLOCKS
from torus.volume.view import View

_LEAVES = 256  # looked for at once
_NO_MEMBER = 0xFFFF


@dataclass(frozen=True, slots=True)
class Change:
    """A range of bytes that is not what it was; multiples of 512.

    ``mapped``: it has data now; otherwise it reads as zeroes.
    """

    offset: int
    length: int
    mapped: bool


async def changes(
    base: View | None, view: View, size_bytes: int, start: int = 0
) -> AsyncIterator[Change]:
    """Yield, in order and joined, what ``view`` changed since ``base``, from byte ``start`` on.

    Without a base: all that has data.  ``size_bytes`` is the size of ``view``.  Neither map may
    change meanwhile.

    Raises: Corruption, Unavailable.
    """
    last: Change | None = None
    async for block, count, kind in _pieces(base, view, start // limits.BLOCK_BYTES):
        first = max(block * limits.BLOCK_BYTES, start)
        end = min((block + count) * limits.BLOCK_BYTES, size_bytes)
        if first >= end:
            continue
        if last is not None and (last.offset + last.length, last.mapped) == (first, bool(kind)):
            last = Change(last.offset, end - last.offset, last.mapped)
            continue
        if last is not None:
            yield last
        last = Change(first, end - first, bool(kind))
    if last is not None:
        yield last


async def _pieces(base: View | None, view: View, start: int) -> AsyncIterator[tuple[int, int, int]]:
    """Yield (block, count, 1: data or 0: nothing any more) of each leaf that differs."""
    size = view.blocks.size_blocks
    before = BlockMap(size, 0) if base is None else base.blocks
    names = None if base is None else member_names(base.family, view.family)
    sides = [view] if base is None else [view, base]
    first = start // LEAF_BLOCKS
    while leaves := differing_leaves(before, view.blocks, first, _LEAVES, names):
        for leaf in leaves:
            if leaf * LEAF_BLOCKS >= size:
                return
            block = leaf * LEAF_BLOCKS
            while cold := [side for side in sides if _is_cold(side, block)]:
                for side in cold:  # who reads the same map may drop leaves meanwhile
                    await side.load(block, min(LEAF_BLOCKS, side.blocks.size_blocks - block))
            for piece in diff_leaf(before, view.blocks, leaf, names):
                yield piece
            for side in sides:
                side.shrink_cache()
        first = leaves[-1] + 1


def _is_cold(view: View, block: int) -> bool:
    count = min(LEAF_BLOCKS, view.blocks.size_blocks - block)
    return count > 0 and bool(view.blocks.missing(block, count, 1))


def member_names(base: Family, view: Family) -> bytes | None:
    """Return how family ``view`` calls the members of ``base``; see `torus._fast.mapdiff`."""
    if base.volumes == view.volumes:
        return None
    place = {volume: number for number, volume in enumerate(view.volumes)}
    return array("H", [place.get(volume, _NO_MEMBER) for volume in base.volumes]).tobytes()
