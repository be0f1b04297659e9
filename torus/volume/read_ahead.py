"""Map leaves brought back for somebody who reads on.

Decides when more leaves are loaded than a read needs: when the leaf before is in memory, because
then a neighbour has just been read; twice as many each time as long as it goes on.  Those who
need a leaf that is on its way wait for it.
"""

import asyncio

from torus.errors import TorusError
from torus.volume.leaves import LEAF_BLOCKS
from torus.volume.view import View

LEAVES_FIRST = 4  # 16 MiB of a volume, some 50 KiB of the log
LEAVES_MOST = 64
_LEAF_BYTES = 16 * LEAF_BLOCKS  # about what one takes in memory
_CACHE_PART = 8  # a read ahead takes at most so much of the cache of the map


class ReadAhead:
    """The leaves of one view; used from one event loop."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._most = min(LEAVES_MOST, view.cache_bytes // (_CACHE_PART * _LEAF_BYTES))
        self._width = 0  # leaves of the last read ahead, and
        self._next = 0  # the first that it left
        self._coming: tuple[int, int, asyncio.Future[None]] | None = None  # leaves on their way

    async def load(self, block: int, count: int) -> None:
        """Bring the leaves of a range into memory, and perhaps those that follow.

        Raises: Corruption, Unavailable.
        """
        view = self._view
        while view.blocks.missing(block, count, 1):
            leaf = block // LEAF_BLOCKS
            if self._coming is not None:
                first, stop, done = self._coming
                if first <= leaf < 2 * stop - first:  # it, or what is loaded ahead next
                    await asyncio.shield(done)
                    continue
            if self._coming is None and self._reads_on(leaf):
                await self._load_ahead(leaf, block + count)
            await view.load(block, count)

    def _reads_on(self, leaf: int) -> bool:
        if self._most < LEAVES_FIRST:
            return False
        return leaf in (0, self._next) or not self._view.blocks.missing(
            (leaf - 1) * LEAF_BLOCKS, 1, 1
        )

    async def _load_ahead(self, leaf: int, needed: int) -> None:
        """Load from ``leaf`` on; an error is for those to meet whose own leaves it concerns."""
        view = self._view
        first = leaf * LEAF_BLOCKS
        going_on = leaf == self._next and self._width
        self._width = min(2 * self._width, self._most) if going_on else LEAVES_FIRST
        stop = min(max(needed, first + self._width * LEAF_BLOCKS), view.blocks.size_blocks)
        self._next = -(-stop // LEAF_BLOCKS)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._coming = leaf, self._next, done
        try:
            await view.load(first, stop - first)
        except TorusError:
            return
        finally:
            self._coming = None
            done.set_result(None)
