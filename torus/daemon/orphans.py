"""Orphan rounds: chunks on this node's disk that belong to nobody any more.

Decides which chunks those are (`judge`, pure) and when they may go: only those that were
nobody's in two complete rounds, at different revisions of the metadata and an interval apart.
What cannot be read, is damaged, contradicts itself or changes meanwhile ends the round with
nothing deleted: unknown is never dead.  What a volume's own writer finds dead is not this
module's; orphans are what a kill left of that.

Implements docs/operations.md, "Orphans".
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torus import limits
from torus.clock import Clock
from torus.daemon.background import Background
from torus.errors import Corruption, TorusError, Unavailable
from torus.ids import ChunkId, volume_of, whole_id
from torus.log import get_logger
from torus.metadata.base import Entry
from torus.metadata.keys import LOST, NEXT_VOLUME, SNAPSHOTS, VOLUMES
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import NextVolume, RootRef, Snapshot
from torus.store.store import Store
from torus.volume.catalog_ask import READY, Volume, read_volume
from torus.volume.spans import Spans

log = get_logger("torus.orphans")


@dataclass(frozen=True, slots=True)
class Known:
    """What the metadata says of all volumes."""

    revision: int
    next_volume: int
    volumes: dict[int, Volume]
    snapshots: tuple[Snapshot, ...]
    lost: frozenset[int] = frozenset()  # volumes that could not be recovered

    def named(self) -> set[int]:
        """Return the volumes that something still refers to, whether they exist or not."""
        bases = [volume.head.base for volume in self.volumes.values()]
        bases += [snapshot.base for snapshot in self.snapshots]
        return {
            *self.volumes,
            *self.lost,
            *(base.volume for base in bases if base is not None),
            *(snapshot.volume for snapshot in self.snapshots),
        }


def judge(
    chunks: Iterable[ChunkId], known: Known, fence: Callable[[int], int]
) -> dict[int, set[ChunkId]]:
    """Return the chunks that nobody can need, by volume; a shard is needed as its chunk is.

    ``fence(volume)`` is the newest epoch that this disk was told of.  A volume that is gone
    leaves nothing; one that nobody has heard of may be newer than the metadata, and is left
    alone.  Of a volume that exists only chunks of epochs before its head's are judged: whoever
    writes now has a newer one, and all that older ones left is in the head's spans or was cut
    off from the log.

    Raises: Corruption when a volume's head contradicts its snapshots.
    """
    orphans: dict[int, set[ChunkId]] = {}
    named = known.named()
    found: dict[int, list[ChunkId]] = {}
    for chunk in chunks:
        found.setdefault(volume_of(chunk), []).append(chunk)
    for number, own in found.items():
        volume = known.volumes.get(number)
        if volume is not None:
            spans = _spans(volume, known.snapshots)
            trusted = volume.spec.state == READY and fence(number) <= volume.head.epoch
            gone = {
                chunk
                for chunk in own
                if trusted and chunk.epoch < volume.head.epoch and not _has(spans, chunk)
            }
        else:
            trusted = 0 < number < known.next_volume and number not in named
            gone = set(own) if trusted else set()
        if gone:
            orphans[number] = gone
    return orphans


def _spans(volume: Volume, snapshots: Iterable[Snapshot]) -> Spans:
    """Return a volume's spans, if they have every root that they must have.

    Raises: Corruption.
    """
    number, head = volume.spec.volume, volume.head
    spans = Spans(number, head.spans)
    roots: list[RootRef | None] = [head.root]
    roots += [one.root for one in snapshots if one.volume == number]
    for root in roots:
        if root is not None:
            spans.chunk(root.sequence)
    return spans


def _has(spans: Spans, chunk: ChunkId) -> bool:
    try:
        return spans.chunk(chunk.sequence) == whole_id(chunk)
    except Corruption:
        return False


async def read_known(metadata: AsyncMetadata) -> Known:
    """Read all volumes and snapshots.

    The next volume's id comes first: what is made while the rest is read counts as unknown.

    Raises: Unavailable, Corruption, UnknownVersion.
    """
    entry = await metadata.get(NEXT_VOLUME)
    next_volume = 0 if entry is None else NextVolume.from_bytes(entry.value, entry.key).next_id
    listing = await metadata.list(VOLUMES)
    by_volume: dict[str, dict[str, Entry]] = {}
    for found in listing.entries:
        by_volume.setdefault(found.key.rpartition("/")[0], {})[found.key] = found
    volumes = [read_volume(entries) for entries in by_volume.values()]
    snapshots = [
        Snapshot.from_bytes(found.value, found.key)
        for found in (await metadata.list(SNAPSHOTS)).entries
    ]
    lost = (await metadata.list(LOST)).entries
    return Known(
        listing.revision,
        next_volume,
        {volume.spec.volume: volume for volume in volumes},
        tuple(snapshots),
        frozenset(int(found.key.rpartition("/")[2], 16) for found in lost),
    )


class OrphanRounds(Background):
    """The rounds over one disk: one soon, when those who waited for the node have been served, and
    one every interval."""

    def __init__(
        self,
        store: Store,
        metadata: AsyncMetadata,
        clock: Clock,
        interval_s: float = limits.ORPHAN_INTERVAL_S,
    ) -> None:
        super().__init__()
        self._store = store
        self._metadata = metadata
        self._clock = clock
        self._interval_s = interval_s
        self._seen: dict[ChunkId, tuple[int, int]] = {}  # first seen at (revision, time)

    async def _run(self) -> None:
        await asyncio.sleep(min(limits.ORPHAN_FIRST_S, self._interval_s))
        while True:
            try:
                await self.round()
            except TorusError as exc:
                log.warning("orphans.round.given_up", error=str(exc))
            await asyncio.sleep(self._interval_s)

    async def round(self) -> int:
        """Look through the disk once; return how many orphans were deleted.

        Raises: TorusError of any kind; nothing was deleted then that was not certain.
        """
        now_ns = self._clock.monotonic_ns()
        self._store.check_disk()
        known = await read_known(self._metadata)
        orphans = judge(self._store.chunks(), known, self._store.fences.get)
        seen = {
            chunk: self._seen.get(chunk, (known.revision, now_ns))
            for chunks in orphans.values()
            for chunk in chunks
        }
        due_ns = now_ns - int(self._interval_s * 1e9)
        certain: dict[int, set[ChunkId]] = {}
        for chunk, (revision, first_ns) in seen.items():
            if revision < known.revision and first_ns <= due_ns:
                certain.setdefault(volume_of(chunk), set()).add(chunk)
        if certain:
            await self._check_again(certain, known)
        count = 0
        for volume, chunks in certain.items():
            owner = known.volumes.get(volume)
            epoch = self._store.fences.get(volume) if owner is None else owner.head.epoch
            count += await self._store.delete(volume, epoch, sorted(chunks))
            log.info("orphans.deleted", volume=volume, chunks=len(chunks), gone=owner is None)
        self._seen = seen
        return count

    async def _check_again(self, certain: dict[int, set[ChunkId]], known: Known) -> None:
        """Refuse to go on when anything about these volumes changed since it was read."""
        again = await read_known(self._metadata)
        for volume, chunks in certain.items():
            if again.volumes.get(volume) != known.volumes.get(volume):
                raise Unavailable(f"volume {volume} changed during the round")
            if judge(chunks, again, self._store.fences.get).get(volume) != chunks:
                raise Unavailable(f"chunks of volume {volume} are somebody's again")
