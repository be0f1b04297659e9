"""What others have of the chunks of a disk that cannot be asked: counted before it is forgotten.

Decides which copies count: those of disks that are up and are asked now.  A chunk that nobody
has counts as deleted where a witness says so (`torus.upkeep.plan.may_witness`), else as one that
may lie on the lost disk alone.  A copy that may be short counts if no longer one is found.

Implements docs/operations-cluster.md, "Draining and removing".
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torus import limits
from torus.clock import SystemClock
from torus.cluster.chunks import DiskChunks
from torus.cluster.membership import Membership
from torus.config import CommonConfig
from torus.daemon.dialing import Dialing, tls_files
from torus.errors import NotFound, TorusError
from torus.ids import ChunkId, shard_id
from torus.metadata.loop import AsyncMetadata
from torus.metadata.open import open_metadata
from torus.ring.table import slot_of
from torus.store.content import Examined, Presence
from torus.upkeep.heads import log_of
from torus.upkeep.placement import FIRST_RING, Placement, Ring
from torus.upkeep.plan import Closed, Log, closed_spans, may_witness
from torus.upkeep.shard_plan import Part, chances
from torus.volume.catalog_ask import READY, Volume
from torus.volume.catalog_async import AsyncCatalog

_ASK_S = 5.0
_ASKED_AT_ONCE = 64


@dataclass(slots=True)
class Elsewhere:
    """What others have of the chunks that lost disks may have."""

    chunks: int = 0  # that were looked for
    few: int = 0  # that others have, fewer times than they should
    last: int = 0  # that nobody is known to have
    volumes: list[str] = field(default_factory=list)  # whose chunks those are
    silent: dict[str, str] = field(default_factory=dict)  # disks that could not be asked, and why


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk that a lost disk may have, and who else lists it."""

    chunk: ChunkId
    closed: Closed
    holders: tuple[str, ...]  # of whole copies, or of enough shards
    good: int  # how many disks have to be lost until nobody has it
    sharded: bool  # its shards alone are enough


async def look_elsewhere(common: CommonConfig, lost: AbstractSet[str]) -> Elsewhere:
    """Count the chunks that ``lost`` disks may have and others do not.

    Raises: Unavailable, NotFound, Corruption, ConfigError.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        metadata = AsyncMetadata(open_metadata(common.meta_url, clock, create=False))
        stack.push_async_callback(metadata.close)
        catalog = AsyncCatalog(metadata, clock)
        dialing = Dialing(await catalog.get_cluster(), tls_files(common), "torus")
        membership = Membership(metadata, clock)
        stack.push_async_callback(membership.close)
        await membership.start()
        found = Elsewhere()
        if not membership.has_ring:
            return found
        volumes = [one for one in await catalog.list() if one.spec.state == READY]
        placement = await _placement(membership, volumes)
        peers = await _connect(stack, membership, dialing, lost, found)
        for volume in volumes:
            await Count(placement, peers, lost, found).volume(volume)
        return found


async def _placement(membership: Membership, volumes: Iterable[Volume]) -> Placement:
    newest = membership.ring.version
    named = [span.ring or FIRST_RING for one in volumes for span in one.head.spans]
    rings: dict[int, Ring] = {newest: membership.ring}
    for version in range(min(named, default=newest), newest):
        try:
            rings[version] = await membership.fetch_ring(version)
        except NotFound:
            continue  # removed, because no volume named it
    return Placement(rings, newest, slot_of)


async def _connect(
    stack: AsyncExitStack,
    membership: Membership,
    dialing: Dialing,
    lost: AbstractSet[str],
    found: Elsewhere,
) -> dict[str, DiskChunks]:
    """Connect to all disks that are up and stay."""
    turns = asyncio.Semaphore(_ASKED_AT_ONCE)
    peers: dict[str, DiskChunks] = {}

    async def one(disk: str) -> None:
        async with turns:
            try:
                peer = await dialing.asking(membership.disks()[disk], _ASK_S)
            except TorusError as exc:
                found.silent[disk] = exc.message
                return
        stack.push_async_callback(peer.close)
        peers[disk] = peer

    places = membership.disks().items()
    await asyncio.gather(*(one(disk) for disk, place in places if place.up and disk not in lost))
    return peers


class Count:
    """The counting of one volume."""

    def __init__(
        self,
        placement: Placement,
        peers: Mapping[str, DiskChunks],
        lost: AbstractSet[str],
        found: Elsewhere,
    ) -> None:
        """``peers``: the disks that can be asked; ``found`` is added to."""
        self._placement = placement
        self._peers = peers
        self._lost = lost
        self._found = found
        self._copies = 1
        self._log = Log(0, 0, 1, ())

    async def volume(self, volume: Volume) -> None:
        """Count the chunks of one volume."""
        self._log = log = log_of(volume)
        self._copies = log.copies
        lists = await self._lists(volume.spec.volume)
        before = self._found.last
        chunks = [
            *self._closed(log, lists),
            *(one for one in self._open(log, lists) if not one.holders),
        ]
        self._found.chunks += len(chunks)
        doubtful = [one for one in chunks if one.holders and self._is_doubtful(one)]
        for one in chunks:
            if one.holders and not self._is_doubtful(one):
                self._found.few += one.good < self._wanted()
        await self._compare(doubtful)
        await self._ask_witnesses([one for one in chunks if not one.holders], lists)
        if self._found.last > before:
            self._found.volumes.append(volume.spec.name)

    def _wanted(self) -> int:
        """Return how many copies there can be without the lost disks."""
        members = self._placement.members
        nodes = {one.node_id for one in members if one.disk_id not in self._lost}
        return min(self._copies, len(nodes))

    # --- which chunks -------------------------------------------------------------------

    def _closed(self, log: Log, lists: Mapping[str, AbstractSet[ChunkId]]) -> list[_Chunk]:
        """Return the chunks of closed spans that a lost disk may have."""
        chunks = []
        after = dict(pairwise(log.spans))
        for closed in closed_spans(log):
            if closed.failed is None and closed.span in after:
                # who takes over makes all durable on who answers; others are left out or noted
                failed = frozenset((*after[closed.span].excluded, *closed.span.short))
                closed = replace(closed, failed=failed)
            for sequence in range(closed.span.first, closed.last + 1):
                chunk = closed.chunk(log.volume, sequence)
                ever = self._placement.ever(chunk, closed.span, log.reach)
                if ever is None or ever & self._lost:
                    chunks.append(_look(log, chunk, closed, lists))
        return chunks

    def _open(self, log: Log, lists: Mapping[str, AbstractSet[ChunkId]]) -> list[_Chunk]:
        """Return the chunks of the open span that can lie on lost disks alone.

        What one disk of its placement has is all that was answered: the others need not be asked.
        """
        chunks: list[_Chunk] = []
        for span in log.spans:
            if span.last is not None:
                continue
            closed = Closed(span, span.first, None)
            listed = {chunk for chunks_of in lists.values() for chunk in chunks_of}
            known = [c.sequence for c in listed if (c.epoch, c.tag) == (span.epoch, span.tag)]
            for sequence in range(span.first, max(known, default=span.first - 1) + 2):
                chunk = closed.chunk(log.volume, sequence)
                written = self._placement.written(chunk, span, log.copies)
                if written is None or set(written) <= self._lost:
                    chunks.append(_look(log, chunk, closed, lists))
        return chunks

    def _is_doubtful(self, one: _Chunk) -> bool:
        sequence, placement = one.chunk.sequence, self._placement
        if one.sharded:
            return False
        return any(one.closed.doubtful(sequence, disk, placement) for disk in one.holders)

    # --- asking -------------------------------------------------------------------------

    async def _lists(self, volume: int) -> dict[str, AbstractSet[ChunkId]]:
        async def one(disk: str, peer: DiskChunks) -> None:
            try:
                lists[disk] = set(await peer.list(volume))
            except TorusError as exc:
                self._found.silent[disk] = exc.message

        lists: dict[str, AbstractSet[ChunkId]] = {}
        await asyncio.gather(*(one(disk, peer) for disk, peer in self._peers.items()))
        return lists

    async def _compare(self, chunks: Sequence[_Chunk]) -> None:
        """Count the copies of chunks that may be short on some disks."""
        asked: dict[str, list[ChunkId]] = {}
        for one in chunks:
            for disk in one.holders:
                asked.setdefault(disk, []).append(one.chunk)
        said = await self._examine(asked)
        for one in chunks:
            ends = {
                disk: answer.end
                for disk in one.holders
                if (answer := said.get((disk, one.chunk))) is not None
                and answer.state is Presence.PRESENT
            }
            exact = one.closed.exact(one.chunk.sequence)
            failed = one.closed.failed or frozenset()
            longest = max(ends.values(), default=0)
            good = [
                disk
                for disk, end in ends.items()
                if (end == longest if exact is None else end >= exact)
            ]
            # a replica that failed may be the longest that is left, and short all the same
            if exact is None and failed.issuperset(good):
                good = []
            self._found.last += not good
            self._found.few += 0 < len(good) < self._wanted()

    async def _ask_witnesses(
        self, chunks: Sequence[_Chunk], lists: Mapping[str, AbstractSet[ChunkId]]
    ) -> None:
        """Count the chunks that nobody has and nobody saw deleted."""
        asked: dict[str, list[ChunkId]] = {}
        for one in chunks:
            for disk, listed in lists.items():
                if _parts(self._log, one.chunk, listed):
                    continue
                if may_witness(one.closed, one.chunk, self._placement, disk, self._log.floor):
                    asked.setdefault(disk, []).append(one.chunk)
        said = await self._examine(asked)
        deleted = {chunk for (_, chunk), one in said.items() if one.state is Presence.ABSENT}
        self._found.last += sum(one.chunk not in deleted for one in chunks)

    async def _examine(
        self, asked: Mapping[str, Sequence[ChunkId]]
    ) -> dict[tuple[str, ChunkId], Examined]:
        """Ask disks about chunks; who does not answer is not in the result."""

        async def one(disk: str, chunks: Sequence[ChunkId]) -> None:
            try:
                for first in range(0, len(chunks), limits.UPKEEP_EXAMINED_AT_ONCE):
                    part = chunks[first : first + limits.UPKEEP_EXAMINED_AT_ONCE]
                    for answer in await self._peers[disk].examine(part):
                        said[disk, answer.chunk] = answer
            except TorusError as exc:
                self._found.silent[disk] = exc.message

        said: dict[tuple[str, ChunkId], Examined] = {}
        await asyncio.gather(*(one(disk, chunks) for disk, chunks in asked.items()))
        return said


def _parts(log: Log, chunk: ChunkId, listed: AbstractSet[ChunkId]) -> frozenset[Part]:
    """Return the parts of a chunk that a disk lists."""
    numbers = range(max(one.shards for one in log.schemes))
    parts: list[Part] = [number for number in numbers if shard_id(chunk, number) in listed]
    return frozenset([*parts, None] if chunk in listed else parts)


def _look(
    log: Log, chunk: ChunkId, closed: Closed, lists: Mapping[str, AbstractSet[ChunkId]]
) -> _Chunk:
    """Return what others have of a chunk."""
    parts = {disk: _parts(log, chunk, listed) for disk, listed in lists.items()}
    whole = tuple(disk for disk, having in parts.items() if None in having)
    shards = {disk: having - {None} for disk, having in parts.items() if having - {None}}
    enough = bool(shards) and chances(log, shards) > 0
    holders = tuple(dict.fromkeys((*whole, *shards))) if enough else whole
    return _Chunk(chunk, closed, holders, chances(log, parts), enough)
