"""Metadata contexts of volumes and snapshots: what BLOCK_STATUS tells beyond the data.

Decides what each context says of a block, and how much of a map one request may bring in.
Which contexts an export has is `torus.volume.served_contexts`' business.

Implements docs/nbd.md, "Metadata contexts".
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from torus._fast.blockmap import BlockMap
from torus.nbd.contexts import STATE_CHANGED
from torus.volume.leaves import LEAF_BLOCKS
from torus.volume.reads import BLOCK, _clip, _merge
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.view import View

_LOADS_MAX = 64  # leaves that one request may bring into memory, in each map
_LEAVES_MAX = 1024  # leaves that one request looks at: 4 GiB

Run = tuple[int, int, int, int, int]  # block, count, sequence, offset, base
States = Callable[[int, int], list[tuple[int, int]]]  # (block, count) -> [(blocks, flags)]


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

    async def extents(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return (bytes, depth) extents."""
        blocks = self._view.blocks
        return await _walk((self._view,), offset, length, limit, lambda b, n: depths(blocks, b, n))


class ChangedSince:
    """torus:changed-since: whether a block may differ from the one in an older snapshot.

    Every extent is right at the moment when it is looked at.  What lies elsewhere than it did
    counts as changed: a block that was written with equal content, or moved by a collection or
    by flattening, does so too; one that differs always does.
    """

    def __init__(self, older: SnapshotVolume, newer: View) -> None:
        self.older = older
        self._newer = newer

    async def extents(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return (bytes, STATE_CHANGED or 0) extents."""
        views = (self.older.view, self._newer)
        older, newer = (view.blocks for view in views)
        return await _walk(views, offset, length, limit, lambda b, n: changes(older, newer, b, n))


def depths(blocks: BlockMap, block: int, count: int) -> list[tuple[int, int]]:
    """Return (blocks, depth) of a range whose leaves are in memory."""
    found: list[tuple[int, int]] = []
    at = block
    for first, length, _, _, base in _runs(blocks, block, count):
        if first > at:
            _merge(found, first - at, 0)
        _merge(found, length, base + 1)
        at = first + length
    if at < block + count:
        _merge(found, block + count - at, 0)
    return found


def changes(older: BlockMap, newer: BlockMap, block: int, count: int) -> list[tuple[int, int]]:
    """Return (blocks, STATE_CHANGED or 0) of a range whose leaves are in memory in both."""
    before, after = _runs(older, block, count), _runs(newer, block, count)
    if before == after:
        return [(count, 0)]
    edges = {block, block + count}
    for first, length, *_ in (*before, *after):
        edges |= {first, first + length}
    at = sorted(edges)
    found: list[tuple[int, int]] = []
    old, new = _Cursor(before), _Cursor(after)
    for start, end in pairwise(at):
        same = old.place(start) == new.place(start)
        _merge(found, end - start, 0 if same else STATE_CHANGED)
    return found


class _Cursor:
    """Where blocks lie, asked for in ascending order."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._index = 0

    def place(self, block: int) -> tuple[int, int, int] | None:
        while self._index < len(self._runs):
            first, count, sequence, offset, base = self._runs[self._index]
            if block < first:
                return None
            if block < first + count:
                return sequence, offset + 8 * (block - first), base
            self._index += 1
        return None


def _runs(blocks: BlockMap, block: int, count: int) -> list[Run]:
    """Return the mapped runs of a range; what lies beyond the map's end is not mapped."""
    count = min(count, blocks.size_blocks - block)
    return blocks.runs(block, count) if count > 0 else []


async def _load(view: View, block: int, count: int) -> bool:
    """Bring the leaves of a range into memory; tell whether any was missing."""
    count = min(count, view.blocks.size_blocks - block)
    if count <= 0 or not view.blocks.missing(block, count, 1):
        return False
    await view.load(block, count)
    return True


async def _walk(
    views: Sequence[View], offset: int, length: int, limit: int, states: States
) -> list[tuple[int, int]]:
    """Return what ``states`` says of a range, leaf by leaf, with the maps' leaves in memory.

    Raises: Corruption, Unavailable, the volume's failure.
    """
    for view in views:
        view.check_reads()
    block, stop = offset // BLOCK, -(-(offset + length) // BLOCK)
    found: list[tuple[int, int]] = []
    loads = leaves = 0
    while block < stop and len(found) <= limit and loads < _LOADS_MAX and leaves < _LEAVES_MAX:
        count = min(stop, block - block % LEAF_BLOCKS + LEAF_BLOCKS) - block
        loaded = True
        while loaded:  # while one map's leaf is awaited, the other's may be dropped
            loaded = any([await _load(view, block, count) for view in views])
            loads += loaded
        for blocks, flags in states(block, count):
            _merge(found, blocks * BLOCK, flags)
        block += count
        leaves += 1
    for view in views:
        view.shrink_cache()
    return _clip(found, offset, length)[:limit]
