"""Which disk has which shard of a chunk: guessed from the ring, found by asking.

Decides whether a chunk is looked for in shards or in whole copies first, and whom of several that
have the same shard is asked.  Whether bytes are right is decided where they are read.

Implements docs/replication.md, "Reading shards".
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torus import limits
from torus.cluster.answers import ask_all
from torus.cluster.placement import Placement
from torus.errors import TorusError
from torus.format.shard import PAYLOAD_OFFSET
from torus.ids import PARTS_MAX, ChunkId, shard_id, split_part
from torus.redundancy.scheme import Scheme, erasure
from torus.redundancy.stripe import Stripe
from torus.store.content import FIRST, Examined, Presence

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool

_KNOWN_MAX = 65536  # chunks of which it is remembered who has what
_WHOLE_S = 5.0  # a chunk that was found in whole copies is looked for there so long
_SEARCH_S = 10.0  # disks read what they are asked about


Read = tuple[ChunkId, int, int]
Placed = tuple[Stripe, Mapping[int, str]]
"""How a chunk is cut, and which disk has which shard of it."""


class Content(NamedTuple):
    """What the shards of a chunk were made of."""

    end: int  # offset in a whole copy's slot behind its last record
    crc: int  # CRC-32C of its records


class Shards(NamedTuple):
    """Where the shards of a chunk are thought to be."""

    scheme: Scheme
    disks: Mapping[int, str]  # by number; some may be missing
    content: Content | None = None  # None: it is a guess, and nobody has been asked


class Search(NamedTuple):
    """What asking everybody about a chunk has shown."""

    shards: Shards | None  # None: nobody who answered has one
    silent: frozenset[str]  # disks that did not answer, or cannot tell


class ShardPlaces:
    """The places of the shards of one volume's chunks, and of its ancestors'."""

    def __init__(self, pool: "DiskPool", placement: Placement, volume: int) -> None:
        self._pool = pool
        self._placement = placement
        self._volume = volume
        self._known: OrderedDict[ChunkId, Shards] = OrderedDict()
        self._whole: OrderedDict[ChunkId, float] = OrderedDict()
        self._through: dict[tuple[int, int, int], int] = {}  # newest chunk of a span in shards

    # --- where to look first ------------------------------------------------------------

    def possible(self, chunk: ChunkId) -> bool:
        """Tell whether a chunk may lie in shards at all.  How an ancestor's chunks are kept now
        is not known here."""
        return self._placement.sharded or chunk.volume != self._volume

    def expected(self, chunk: ChunkId) -> bool:
        """Tell whether a chunk is looked for in shards before it is in whole copies.

        A chunk of the open span is whole at first; when a later one was found in shards, it is
        old enough to be, too.
        """
        if chunk in self._known:
            return True
        if not self._placement.scheme.erasure:
            return False
        if self._placement.is_open(chunk):
            return chunk.sequence <= self._through.get(chunk[:3], 0)
        until_s = self._whole.get(chunk)
        return until_s is None or asyncio.get_running_loop().time() >= until_s

    def get(self, chunk: ChunkId) -> Shards | None:
        """Return where a chunk's shards are known or guessed to be; None: nobody can guess."""
        known = self._known.get(chunk)
        return known or self.guess(chunk, self._placement.scheme)

    def guess(self, chunk: ChunkId, scheme: Scheme) -> Shards | None:
        """Return where the ring wants shards of that scheme: a number each, in its order."""
        if not scheme.erasure:
            return None
        return Shards(scheme, dict(enumerate(self._placement.sharers(chunk, scheme.shards))))

    # --- what turned out ----------------------------------------------------------------

    def note(self, chunk: ChunkId, shards: Shards) -> None:
        """Learn that a chunk lies in shards, and where."""
        self._known[chunk] = shards
        self._whole.pop(chunk, None)
        span = chunk[:3]
        self._through[span] = max(self._through.get(span, 0), chunk.sequence)
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)

    def note_whole(self, chunk: ChunkId) -> None:
        """Learn that a chunk lies in whole copies, for now."""
        self._known.pop(chunk, None)
        self._whole[chunk] = asyncio.get_running_loop().time() + _WHOLE_S
        if len(self._whole) > _KNOWN_MAX:
            self._whole.popitem(last=False)

    def forget(self, chunk: ChunkId) -> None:
        """Forget where a chunk is."""
        self._known.pop(chunk, None)
        self._whole.pop(chunk, None)

    # --- asking -------------------------------------------------------------------------

    async def search(self, chunk: ChunkId) -> Search:
        """Ask all disks for shards of a chunk.

        Of shards of different content or schemes those count of which there are most numbers.
        """
        places = self._pool.view.disks()
        disks = {*places, *self._pool.local}
        asked = {disk for disk in disks if self._pool.is_up(disk)}
        found = await ask_all({disk: self._ask(disk, chunk) for disk in asked}, _SEARCH_S)
        silent = {
            disk for disk in disks - asked if disk not in places or places[disk].state != "removed"
        }
        kinds: dict[tuple[int, int, int], dict[int, str]] = {}
        order = self._placement.sharers(chunk, PARTS_MAX)
        for disk in sorted(found, key=lambda one: (self._pool.distance(one), one not in order)):
            answer = found[disk]
            if isinstance(answer, TorusError):
                silent.add(disk)
                continue
            if any(one.state == Presence.UNKNOWN for one in answer):
                silent.add(disk)
            for one in answer:
                number = split_part(one.chunk)[1]
                if one.state == Presence.PRESENT and number is not None and one.records:
                    kinds.setdefault((one.records, one.end, one.crc), {}).setdefault(number, disk)
        if not kinds:
            return Search(None, frozenset(silent))
        best = max(kinds, key=lambda kind: (len(kinds[kind]), kind))
        shards = Shards(erasure(best[0] >> 8, best[0] & 0xFF), kinds[best], Content(*best[1:]))
        return Search(shards, frozenset(silent))

    async def _ask(self, disk_id: str, chunk: ChunkId) -> Sequence[Examined]:
        disk = await self._pool.get(disk_id)
        return await disk.examine([shard_id(chunk, number) for number in range(PARTS_MAX)])


def parts_of(read: Read, placed: Placed | None) -> list[tuple[str, Read]] | None:
    """Return which disk has which piece of a read; None when one of them cannot be asked, or
    nobody knows."""
    if placed is None:
        return None
    (chunk, offset, size), (stripe, disks) = read, placed
    first = offset - FIRST
    if first < 0 or first + size > stripe.content_bytes_max:
        return None
    found = []
    for piece in stripe.locate(first, size):
        disk = disks.get(piece.shard)
        if disk is None:
            return None
        part = shard_id(chunk, piece.shard), PAYLOAD_OFFSET + piece.offset, piece.size_bytes
        found.append((disk, part))
    return found


assert PARTS_MAX <= limits.PEER_CHUNKS_MAX
