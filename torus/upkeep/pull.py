"""Pulling one copy: who has the longest, fetch it, check it, install it, check it again.

Decides what a copy must be before it is installed: whole up to where the chunk is known to
reach, put together from several copies if need be.  Implements docs/upkeep.md, "Which copy is
right".
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from torus import limits
from torus._fast.crc import checksum
from torus.cluster.local import LocalChunks
from torus.errors import Corruption, TorusError, Unavailable
from torus.format.assembled import assemble
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.content import FIRST, Presence
from torus.store.store import Store
from torus.upkeep.content import Inspected, inspect
from torus.upkeep.pace import Pace
from torus.upkeep.peers import Peers
from torus.upkeep.plan import Want

log = get_logger("torus.upkeep")


@dataclass(slots=True)
class Pulled:
    """What became of a pull."""

    moving: bool = False  # nothing lacks: clients go first
    bytes: int = 0  # that came from others
    installed: bool = False
    everybody: bool = True  # all sources answered


@dataclass(slots=True)
class Gathered:
    """The copies of a chunk that were read so far."""

    contents: list[bytes] = field(default_factory=list)
    whole: bytes = b""
    furthest: int = 0  # where a record stands that none of them has reached

    @property
    def end(self) -> int:
        """Return how far they are whole."""
        return FIRST + len(self.whole)

    def add(self, chunk: ChunkId, content: bytes, found: Inspected) -> None:
        """Take one more copy; not on the event loop: it may take milliseconds."""
        self.contents.append(content)
        self.furthest = max(self.furthest, found.furthest)
        if len(self.contents) == 1:
            self.whole = content[: found.end - FIRST]
        else:
            self.whole = assemble(chunk, self.contents)

    def reaches(self, exact: int | None, known: int) -> bool:
        """Say whether this is the whole chunk; ``known``: as far as somebody said it goes."""
        if exact is not None:
            return self.end == exact
        return self.end >= known and self.furthest < self.end


class Puller:
    """Pulls copies to one disk."""

    def __init__(self, store: Store, chunks: LocalChunks, peers: Peers, pace: Pace) -> None:
        self._store = store
        self._chunks = chunks
        self._peers = peers
        self._pace = pace
        self._slot_bytes = chunks.slot_bytes

    async def pull(self, want: Want) -> Pulled:
        """Have the chunk here, as long as anybody has it; durable on return.

        Raises: Corruption when nobody has it whole; Unavailable when nobody who has it answers;
            Fenced, PoolFull, DiskFailed, Busy of the own disk.
        """
        chunk, exact = want.chunk, want.exact
        own = Gathered()
        if want.here:
            await self.read_own(chunk, exact, own)
            if exact is not None and own.reaches(exact, exact):
                await self.keep(chunk)
                return Pulled()
        pulled = Pulled(want.moves)
        ends = await self.ask_ends(chunk, want.sources, pulled)
        known = max(ends.values(), default=0)
        if want.here and known and own.reaches(exact, known):
            await self.keep(chunk)
            return pulled
        if want.here and not ends and pulled.everybody:
            pulled.everybody = False  # to be looked at again when somebody comes back
            return pulled
        if not ends:
            raise Unavailable(f"nobody who may have chunk {chunk} answers")
        gathered, source = await self.gather(want, own, ends, pulled)
        # It may have been deleted meanwhile: then nothing is to come back.
        peer = await self._peers.get(source)
        await peer.read([(chunk, FIRST, limits.SECTOR_BYTES)])
        epoch = max(want.epoch, chunk.epoch)
        await self._chunks.install(chunk, epoch, gathered.end, gathered.whole)
        await self._check(chunk, gathered)
        pulled.installed = True
        return pulled

    async def keep(self, chunk: ChunkId) -> None:
        """Make a copy durable that is whole: a disk that its span lost may never have been asked
        to, and from now on it counts.

        Raises: DiskFailed.
        """
        slot = self._store.slots.get(chunk)
        if slot is not None:
            await self._store.sync_segments({slot.segment})

    async def read_own(self, chunk: ChunkId, exact: int | None, own: Gathered) -> None:
        """Take the copy that is here, if it can be read."""
        size = (exact or self._slot_bytes) - FIRST
        await self._pace.turn(size)
        try:
            [content] = await self._chunks.read([(chunk, FIRST, size)])
        except Corruption:
            return  # as good as not here: install replaces it
        await self._store.in_pool(take_copy, own, content, chunk, exact)

    async def ask_ends(
        self, chunk: ChunkId, sources: Sequence[str], pulled: Pulled
    ) -> dict[str, int]:
        """Return how far the copies of those reach who have one."""

        async def ask(source: str) -> tuple[str, int]:
            peer = await self._peers.get(source)
            [found] = await peer.examine([chunk])
            return source, found.end if found.state is Presence.PRESENT else 0

        await self._pace.turn(0, len(sources), moving=pulled.moving)
        answers = await asyncio.gather(*map(ask, sources), return_exceptions=True)
        ends: dict[str, int] = {}
        for answer in answers:
            if isinstance(answer, TorusError):
                pulled.everybody = False
            elif isinstance(answer, BaseException):
                raise answer
            elif answer[1]:
                ends[answer[0]] = answer[1]
        return ends

    async def gather(
        self, want: Want, own: Gathered, ends: dict[str, int], pulled: Pulled
    ) -> tuple[Gathered, str]:
        """Fetch copies, the longest first, until they make the whole chunk.

        Returns: them, and the last source.
        Raises: Corruption when they do not; Unavailable when that cannot be told.
        """
        chunk, exact = want.chunk, want.exact
        known = max(ends.values())
        problem: TorusError | None = None
        for source in sorted(ends, key=lambda one: -ends[one]):
            try:
                content = await self._fetch(source, chunk, exact, own, pulled)
            except TorusError as exc:
                problem = exc
                continue
            await self._store.in_pool(take_copy, own, content, chunk, exact)
            if own.reaches(exact, known):
                return own, source
        if problem is not None:
            raise problem
        raise Corruption(
            f"chunk {chunk} is whole up to {own.end} in {len(ends)} copies, but goes on to "
            f"{exact or max(known, own.furthest)}",
            hint="run 'torus check' for what is damaged",
        )

    async def _fetch(
        self, source: str, chunk: ChunkId, exact: int | None, own: Gathered, pulled: Pulled
    ) -> bytes:
        """Read a copy, in pieces, from where the own one ends.

        Raises: TorusError.
        """
        peer, parts = await self._peers.get(source), [own.whole]
        at, stop = own.end, exact or self._slot_bytes
        while at < stop:
            size = min(limits.REPAIR_PIECE_BYTES, stop - at)
            await self._pace.turn(size, moving=pulled.moving)
            [piece] = await peer.read([(chunk, at, size)])
            parts.append(piece)
            pulled.bytes += size
            at += size
        return b"".join(parts)

    async def _check(self, chunk: ChunkId, gathered: Gathered) -> None:
        """Compare what lies on the disk now with what was meant to.

        Raises: Corruption.
        """
        [found] = await self._chunks.examine([chunk], afresh=True)
        if found.state is not Presence.PRESENT or found.end < gathered.end:
            raise Corruption(f"chunk {chunk} was installed up to {gathered.end}, found {found}")
        if found.end == gathered.end and found.crc != checksum(gathered.whole):
            raise Corruption(f"chunk {chunk} was installed and differs: {found}")


def take_copy(gathered: Gathered, content: bytes, chunk: ChunkId, exact: int | None) -> None:
    """Inspect a copy and add it to the others; not on the event loop."""
    gathered.add(chunk, content, inspect(content, chunk, exact))
