"""Metadata contexts of volumes and snapshots: what BLOCK_STATUS tells beyond the data.

Decides what each context says of a block, and how much of a map one request may bring in.
Which contexts an export has is `torus.volume.served_contexts`' business.

Implements docs/nbd.md, "Metadata contexts".
"""

from collections.abc import Sequence
from typing import Protocol

from torus._fast.blockmap import BlockMap
from torus._fast.mapdiff import diff_leaf, differing_leaves
from torus.nbd.contexts import STATE_CHANGED
from torus.volume.leaves import LEAF_BLOCKS
from torus.volume.reads import BLOCK, _clip, _merge
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.view import View

_LOADS_MAX = 64  # leaves that one request may bring into memory
_LEAVES_MAX = 1024  # leaves that differ, of those that one request looks into: 5 ms

Extents = list[tuple[int, int]]


class ReportsStatus(Protocol):
    """What can tell base:allocation."""

    async def block_status(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return (bytes, base:allocation flags) extents."""


class Allocation:
    """base:allocation of a volume or snapshot."""

    def __init__(self, export: ReportsStatus) -> None:
        self._export = export

    async def extents(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return (bytes, HOLE | ZERO or 0) extents."""
        return await self._export.block_status(offset, length, limit)


class AllocationDepth:
    """qemu:allocation-depth: 0 nowhere, 1 in the volume's own log, n in that of its n-1st origin.

    The number is that of the log where the block lies: a snapshot and its volume share one.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    async def extents(self, offset: int, length: int, limit: int) -> Extents:
        """Return (bytes, depth) extents.

        Raises: Corruption, Unavailable, the volume's failure.
        """
        view = self._view
        view.check_reads()
        block, stop = offset // BLOCK, -(-(offset + length) // BLOCK)
        found: Extents = []
        loads = 0
        while block < stop and len(found) <= limit:
            extents, block = view.blocks.depths(block, stop - block, limit + 1)
            for count, depth in extents:
                _merge(found, count * BLOCK, depth)
            if block < stop and view.blocks.missing(block, 1):
                if loads == _LOADS_MAX:
                    break
                loads += 1
                await view.load(block, 1)
        view.shrink_cache()
        return _clip(found, offset, length)[:limit]


class ChangedSince:
    """torus:changed-since: whether a block may differ from the one in an older snapshot.

    Every extent is right at the moment when it is looked at.  What lies elsewhere than it did
    counts as changed: a block that was written with equal content, or moved by a collection or
    by flattening, does so too; one that differs always does.
    """

    def __init__(self, older: SnapshotVolume, newer: View) -> None:
        self.older = older
        self._newer = newer

    async def extents(self, offset: int, length: int, limit: int) -> Extents:
        """Return (bytes, STATE_CHANGED or 0) extents.

        Raises: Corruption, Unavailable, the volume's failure.
        """
        older, newer = self.older.view, self._newer
        newer.check_reads()
        block, stop = offset // BLOCK, -(-(offset + length) // BLOCK)
        found: Extents = []
        loads = leaves = 0
        while block < stop and len(found) <= limit and loads < _LOADS_MAX and leaves < _LEAVES_MAX:
            differing = differing_leaves(older.blocks, newer.blocks, block // LEAF_BLOCKS, 1)
            start = differing[0] * LEAF_BLOCKS if differing else stop
            if block < start:
                _merge(found, (min(start, stop) - block) * BLOCK, 0)
                block = start
                continue
            while await _load(older, start) | await _load(newer, start):
                loads += 1  # and look again: one may have been dropped while the other came
            block = _compare_leaf(found, older.blocks, newer.blocks, block, stop)
            leaves += 1
        older.shrink_cache()
        newer.shrink_cache()
        return _clip(found, offset, length)[:limit]


def _compare_leaf(found: Extents, older: BlockMap, newer: BlockMap, block: int, stop: int) -> int:
    """Add the extents of one leaf from ``block`` on; return the first block behind them."""
    leaf = block // LEAF_BLOCKS
    end = min((leaf + 1) * LEAF_BLOCKS, stop)
    for first, count, _ in diff_leaf(older, newer, leaf):
        changed, last = max(first, block), min(first + count, end)
        if changed >= last:
            continue
        if block < changed:
            _merge(found, (changed - block) * BLOCK, 0)
        _merge(found, (last - changed) * BLOCK, STATE_CHANGED)
        block = last
    if block < end:
        _merge(found, (end - block) * BLOCK, 0)
    return end


async def _load(view: View, block: int) -> bool:
    """Bring the leaf of a block into memory; tell whether it was missing."""
    if block >= view.blocks.size_blocks or not view.blocks.missing(block, 1):
        return False
    await view.load(block, 1)
    return True
