"""What one node of a cluster does for all: the coordinator's work beside the ring.

Decides when a deletion counts as interrupted, and which versions of the ring go.  Both may be
done by two nodes at once without harm; one does it so that a thousand do not.

Implements docs/operations-cluster.md, "The coordinator".
"""

import asyncio
from collections.abc import Callable
from itertools import pairwise

from torus import limits
from torus.daemon.background import Background
from torus.daemon.reach import Reach, free_volume
from torus.daemon.rings import unused_versions
from torus.errors import TorusError
from torus.log import get_logger
from torus.metadata.base import Delete, Expect
from torus.metadata.keys import RING_HEAD, RING_VERSIONS, ring_key
from torus.metadata.schema import RingHead, RingVersion
from torus.volume.catalog_ask import DELETING

log = get_logger("torus.coordinator")
_LOOKS = 4  # that find a deletion where it was: who began it is gone


class Housekeeping(Background):
    """Looks after what commands and former coordinators left, while ``elected`` says so."""

    def __init__(self, reached: Reach, elected: Callable[[], bool]) -> None:
        super().__init__()
        self._reached = reached
        self._elected = elected
        self._deleting: dict[int, tuple[int, int]] = {}  # volume: its head's revision, looks

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(limits.HOUSEKEEPING_S)
            if not self._elected():
                self._deleting.clear()
                continue
            for step in (self.finish_deletions, self.prune_rings):
                try:
                    await step()
                except TorusError as exc:
                    log.info("coordinator.housekeeping.failed", step=step.__name__, error=str(exc))

    async def finish_deletions(self) -> int:
        """Go on with deletions that did not end for some looks; return how many.

        Raises: Unavailable, Corruption, and what `free_volume` raises.
        """
        deleting = {
            volume.spec.volume: volume
            for volume in await self._reached.catalog.list()
            if volume.spec.state == DELETING
        }
        looks = {}
        for number, volume in deleting.items():
            revision, count = self._deleting.get(number, (0, 0))
            same = revision == volume.head_revision
            looks[number] = (volume.head_revision, count + 1 if same else 1)
        stuck = [deleting[number] for number, (_, count) in looks.items() if count > _LOOKS]
        self._deleting = looks
        for volume in stuck:
            log.info("node.deletion.resumed", volume=volume.spec.name)
            await free_volume(self._reached, volume.spec.name, force=True)
        return len(stuck)

    async def prune_rings(self) -> list[int]:
        """Remove the versions that no span of a volume and no head names; return them.

        One that held less than `RING_KEPT_S` ago stays: an owner that cannot reach the metadata
        store opens its next span under what it knew last, as soon as the store is back.

        Raises: Unavailable, Corruption.
        """
        metadata = self._reached.metadata
        entry = await metadata.get(RING_HEAD)
        if entry is None:
            return []
        head = RingHead.from_bytes(entry.value, entry.key)
        listing = await metadata.list(RING_VERSIONS)
        if len(listing.entries) <= limits.RINGS_KEPT:
            return []
        began = {
            ring.version: ring.created_ns
            for ring in (RingVersion.from_bytes(one.value, one.key) for one in listing.entries)
        }
        kept = sorted(began)
        since_ns = self._reached.clock.wall_ns() - int(limits.RING_KEPT_S * 1e9)
        # a version held until the one behind it was made
        recent = [before for before, after in pairwise(kept) if began[after] > since_ns]
        newest = min([head.version - 1, *recent])
        named = {
            span.ring for volume in await self._reached.catalog.list() for span in volume.head.spans
        }
        removed = []
        for version in unused_versions(kept, head.version, named, newest):
            expect = (Expect(RING_HEAD, entry.revision),)
            if await metadata.commit(expect, (Delete(ring_key(version)),)) is None:
                break
            removed.append(version)
        if removed:
            log.info("coordinator.rings.pruned", versions=removed)
        return removed
