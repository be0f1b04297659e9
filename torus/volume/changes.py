"""What changed between two maps: ranges of blocks that lie elsewhere, or nowhere any more.

Decides when two maps mean the same: when they name the same place in the same log.  Chunks are
never rewritten, so the same place is the same data; the other way round a block that was
written again with what it held counts as changed.  Leaves that both maps share are not read.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from torus import limits
from torus.volume.leaves import LEAF_BLOCKS, UNIT
from torus.volume.view import View

_WINDOW_LEAVES = 1024  # looked at together: one directory, 4 GiB of addresses
_BLOCK_UNITS = limits.BLOCK_BYTES // UNIT
_SAME, _DATA, _ZERO = 0, 1, 2
_Place = tuple[int, ...]  # volume, sequence, offset


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
    async for change in _pieces(base, view, start // limits.BLOCK_BYTES):
        if last is not None and _adjoin(last, change):
            last = Change(last.offset, last.length + change.length, last.mapped)
            continue
        if last is not None and (clipped := _clip(last, start, size_bytes)) is not None:
            yield clipped
        last = change
    if last is not None and (clipped := _clip(last, start, size_bytes)) is not None:
        yield clipped


def _adjoin(left: Change, right: Change) -> bool:
    return left.offset + left.length == right.offset and left.mapped == right.mapped


def _clip(change: Change, start: int, size_bytes: int) -> Change | None:
    first, end = max(change.offset, start), min(change.offset + change.length, size_bytes)
    return Change(first, end - first, change.mapped) if first < end else None


async def _pieces(base: View | None, view: View, start: int) -> AsyncIterator[Change]:
    size = view.blocks.size_blocks
    first = start // LEAF_BLOCKS
    while first * LEAF_BLOCKS < size:
        end = (first // _WINDOW_LEAVES + 1) * _WINDOW_LEAVES
        count = min(end * LEAF_BLOCKS, size) - first * LEAF_BLOCKS
        for leaf in _different(base, view, first, count):
            block = leaf * LEAF_BLOCKS
            now = await _places(view, block, min(LEAF_BLOCKS, size - block))
            was = [None] * len(now) if base is None else await _places(base, block, len(now))
            for change in _compare(was, now, block):
                yield change
        first = end


def _different(base: View | None, view: View, first: int, count: int) -> list[int]:
    """Return the leaves of a window that may differ."""
    sides = [_stored(side, first, count) for side in (base, view) if side is not None]
    if any(side is not None and side.blocks.leaf_count for side in (base, view)):
        leaves = range(first, first + -(-count // LEAF_BLOCKS))  # some may be in memory only
        return [leaf for leaf in leaves if len(sides) < 2 or not _shared(leaf, *sides)]
    found = set().union(*sides)
    return sorted(leaf for leaf in found if len(sides) < 2 or not _shared(leaf, *sides))


def _shared(leaf: int, was: dict[int, _Place], now: dict[int, _Place]) -> bool:
    return leaf in now and was.get(leaf) == now[leaf]


def _stored(view: View, first: int, count: int) -> dict[int, _Place]:
    """Return where the leaves of a window lie that are not in memory."""
    begin, size = first * LEAF_BLOCKS, view.blocks.size_blocks
    if begin >= size:
        return {}
    volumes = view.family.volumes
    return {
        index: (volumes[base], sequence, offset)
        for index, sequence, offset, _, _, base in view.blocks.missing(
            begin, min(count, size - begin)
        )
    }


async def _places(view: View, block: int, count: int) -> list[_Place | None]:
    """Return where each block of a leaf lies."""
    found: list[_Place | None] = [None] * count
    here = min(count, view.blocks.size_blocks - block)
    if here <= 0:
        return found
    await view.load(block, here)
    volumes = view.family.volumes
    for start, length, sequence, offset, base in view.blocks.runs(block, here):
        volume = volumes[base]
        for number in range(length):
            found[start - block + number] = (volume, sequence, offset + number * _BLOCK_UNITS)
    view.shrink_cache()
    return found


def _compare(
    was: Sequence[_Place | None], now: Sequence[_Place | None], block: int
) -> list[Change]:
    found: list[Change] = []
    if was == now:
        return found
    begin, state = 0, _SAME
    for at in range(len(now) + 1):
        if at == len(now):
            new = -1
        elif was[at] == now[at]:
            new = _SAME
        else:
            new = _ZERO if now[at] is None else _DATA
        if new != state:
            if state != _SAME:
                offset = (block + begin) * limits.BLOCK_BYTES
                length = (at - begin) * limits.BLOCK_BYTES
                found.append(Change(offset, length, state == _DATA))
            begin, state = at, new
    return found
