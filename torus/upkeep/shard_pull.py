"""Having one part of a chunk here that may lie in shards: who has what, fetch, make, install.

Decides which content is right (the one that reaches furthest), and what a part is made of: the
own whole copy, the same shard of another disk, a whole copy of another disk, K shards, in this
order.  Implements docs/upkeep.md, "Shards".
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from torus import limits
from torus.cluster.local import LocalChunks
from torus.errors import AlreadyExists, Corruption, TorusError, Unavailable
from torus.format.shard import DESCRIPTOR_BYTES, Descriptor, open_shard
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.content import FIRST, Examined, Presence
from torus.store.store import Store
from torus.upkeep.pace import Pace
from torus.upkeep.peers import Peers
from torus.upkeep.plan import Want
from torus.upkeep.pull import Gathered, Pulled, Puller
from torus.upkeep.shard_content import (
    Version,
    cut_shard,
    data_range,
    fits,
    make_shard,
    shard_content_bytes,
    whole_content,
)
from torus.upkeep.shard_plan import Part, PartWant, part_id
from torus.upkeep.shard_sources import ShardSource, Sources, groups_of, note_source

log = get_logger("torus.upkeep")


Way = Callable[[], Awaitable[bytes]]
"""Makes a shard; raises TorusError when it cannot."""


class TooLong(Exception):
    """A chunk does not fit into shards: it stays in whole copies."""


class ShardPuller:
    """Makes parts of chunks on one disk."""

    def __init__(
        self, store: Store, chunks: LocalChunks, peers: Peers, pace: Pace, copies: Puller
    ) -> None:
        """``copies`` pulls whole copies of the same disk."""
        self._store = store
        self._chunks = chunks
        self._peers = peers
        self._pace = pace
        self._copies = copies
        self._disk = store.identity.disk_id
        self._slot_bytes = chunks.slot_bytes

    async def pull(self, want: PartWant) -> Pulled:
        """Have the part here; durable on return.

        Raises: TooLong; Corruption when nobody has the chunk whole; Unavailable when nobody who
            has it answers; Fenced, PoolFull, DiskFailed, Busy of the own disk.
        """
        if want.part is None:
            return await self._pull_whole(want)
        pulled = Pulled(want.moves)
        own = Gathered()
        if None in want.mine:
            await self._copies.read_own(want.chunk, want.exact, own)
        alone = bool(own.contents) and own.reaches(want.exact, own.end)
        if alone and not want.doubtful and own.end > FIRST:
            await self._put(want, await self._make(want, own.whole), pulled)
            return pulled
        sources = await self._examine(want, pulled)
        shard = await self._best(want, own, sources, pulled)
        if shard is not None:
            await self._put(want, shard, pulled)
        return pulled

    # --- which content ------------------------------------------------------------------

    async def _examine(self, want: PartWant, pulled: Pulled) -> Sources:
        """Ask what others' parts are worth; all shards only where there is no whole copy."""
        whole = any(None in parts for _, parts in want.sources)

        def due(part: Part) -> bool:
            return part is None or part == want.part or not whole

        found = await self._examine_some(want, pulled, due)
        if whole and not found.ends:
            rest = await self._examine_some(want, pulled, lambda part: not due(part))
            found.shards += rest.shards
        return found

    async def _examine_some(
        self, want: PartWant, pulled: Pulled, due: Callable[[Part], bool]
    ) -> Sources:
        asked = {
            disk: [part for part in sorted(parts, key=str) if due(part)]
            for disk, parts in want.sources
        }

        async def ask(disk: str, parts: list[Part]) -> list[tuple[str, Part, Examined]]:
            peer = await self._peers.get(disk)
            answers = await peer.examine([part_id(want.chunk, part) for part in parts])
            return [(disk, part, one) for part, one in zip(parts, answers, strict=True)]

        asked = {disk: parts for disk, parts in asked.items() if parts}
        await self._pace.turn(0, len(asked), moving=pulled.moving)
        answers = await asyncio.gather(
            *(ask(disk, parts) for disk, parts in asked.items()), return_exceptions=True
        )
        found = Sources()
        for answer in answers:
            if isinstance(answer, TorusError):
                pulled.everybody = False
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for disk, part, one in answer:
                    note_source(found, disk, part, one)
        return found

    async def _best(
        self, want: PartWant, own: Gathered, sources: Sources, pulled: Pulled
    ) -> bytes | None:
        """Return the wanted shard of the content that is right; None: the one here is.

        Raises: TooLong, Corruption, Unavailable and what reading raises.
        """
        exact = want.exact
        wholes = [end if exact is None else min(end, exact) for end in sources.ends.values()]
        groups = groups_of(sources.shards, exact)
        end = max([*wholes, own.end, *(version.end for _, version in groups)])
        if want.here and await self._here_is(want, end):
            return None
        ways: list[Way] = []
        if own.contents and own.reaches(exact, end):
            ways.append(partial(self._make, want, own.whole))
        for one in sources.shards:
            same = one.number == want.part and one.scheme == want.scheme
            if same and one.version.end == end and not want.here:
                ways.append(partial(self._fetch_shard, want, one, pulled))
        if sources.ends:
            if not want.here:
                ways += self._ways_of_range(want, sources, end, pulled)
            ways.append(partial(self._make_of_copies, want, own, sources, pulled))
        for (_, version), parts in groups.items():
            if version.end == end:
                ways.append(partial(self._make_of_shards, want, parts, version, pulled))
        return await self._first(want, ways, pulled)

    async def _first(self, want: PartWant, ways: list[Way], pulled: Pulled) -> bytes:
        """Return what the first way that works gives.

        Raises: Unavailable where somebody who is silent, or a deletion, may be the reason.
        """
        problem: TorusError | None = None
        for way in ways:
            try:
                return await way()
            except TorusError as exc:
                log.info("upkeep.shard.not_made", chunk=str(want.chunk), reason=exc.message)
                problem = exc
        if problem is None or not pulled.everybody:
            raise Unavailable(
                f"shard {want.part} of chunk {want.chunk} cannot be made of what answers"
            ) from problem
        await self._check_there(want, None)
        raise problem

    async def _here_is(self, want: PartWant, end: int) -> bool:
        """Say whether the shard here is whole and reaches further than what it can be made of.

        One that does not is made again, and kept if it is the same.
        """
        [found] = await self._chunks.examine([part_id(want.chunk, want.part)], afresh=True)
        return found.state is Presence.PRESENT and found.records > 0 and found.end > end

    # --- what it is made of -------------------------------------------------------------

    async def _make(self, want: PartWant, content: bytes) -> bytes:
        """Return the shard of the whole content."""
        assert want.part is not None
        if not fits(FIRST + len(content), want.scheme, self._slot_bytes):
            raise TooLong(str(want.chunk))
        made: bytes = await self._store.in_pool(
            make_shard, want.chunk, content, want.scheme, want.part, self._slot_bytes
        )
        return made

    def _ways_of_range(
        self, want: PartWant, sources: Sources, end: int, pulled: Pulled
    ) -> list[Way]:
        """Return how a data shard is made of its bytes alone; whoever gives a whole copy up
        compares what came of it with the verified content."""
        assert want.part is not None
        if want.part >= want.scheme.data or want.exact not in (None, end):
            return []
        if not fits(end, want.scheme, self._slot_bytes):
            raise TooLong(str(want.chunk))
        return [
            partial(self._make_of_range, want, disk, Version(end, sources.crcs[disk]), pulled)
            for disk, there in sources.ends.items()
            if there == end
        ]

    async def _make_of_range(
        self, want: PartWant, disk: str, version: Version, pulled: Pulled
    ) -> bytes:
        assert want.part is not None
        first, size = data_range(version.end, want.scheme, want.part, self._slot_bytes)
        piece = b""
        if size:
            [piece] = await self._read(disk, want.chunk, first, size, pulled)
        return cut_shard(want.chunk, want.scheme, want.part, version, piece, self._slot_bytes)

    async def _make_of_copies(
        self, want: PartWant, own: Gathered, sources: Sources, pulled: Pulled
    ) -> bytes:
        plain = _as_copy(want, tuple(sources.ends))
        gathered, _ = await self._copies.gather(plain, own, sources.ends, pulled)
        return await self._make(want, gathered.whole)

    async def _fetch_shard(self, want: PartWant, one: ShardSource, pulled: Pulled) -> bytes:
        """Return a shard as it lies on another disk, verified.  Raises: Corruption, others."""
        shard = part_id(want.chunk, one.number)
        size = shard_content_bytes(one.version.end, one.scheme, one.number, self._slot_bytes)
        [content] = await self._read(one.disk, shard, FIRST, size, pulled)
        found: Descriptor = await self._store.in_pool(open_shard, content, shard, self._slot_bytes)
        if (found.content_end, found.content_crc) != one.version:
            raise Corruption(f"shard {shard} on disk {one.disk} was changed while it was read")
        return content

    async def _make_of_shards(
        self, want: PartWant, parts: dict[int, ShardSource], version: Version, pulled: Pulled
    ) -> bytes:
        content = await self._content_of(want, parts, version, pulled)
        return await self._make(want, content)

    async def _content_of(
        self, want: PartWant, parts: dict[int, ShardSource], version: Version, pulled: Pulled
    ) -> bytes:
        """Return the content that K of these shards give, those with data first.

        Raises: Corruption, Unavailable.
        """
        scheme = next(iter(parts.values())).scheme
        got: dict[int, memoryview] = {}
        for number in sorted(parts):
            try:
                shard = await self._fetch_shard(want, parts[number], pulled)
            except TorusError as exc:
                log.info("upkeep.shard.unreadable", chunk=str(want.chunk), reason=exc.message)
                continue
            got[number] = memoryview(shard)[DESCRIPTOR_BYTES:]
            if len(got) == scheme.data:
                content: bytes = await self._store.in_pool(
                    whole_content, got, scheme, version, self._slot_bytes
                )
                return content
        raise Unavailable(
            f"of chunk {want.chunk} {len(got)} shards can be read, {scheme.data} are needed"
        )

    async def _read(
        self, disk: str, part: ChunkId, offset: int, size: int, pulled: Pulled
    ) -> list[bytes]:
        peer = await self._peers.get(disk)
        pieces = []
        for at in range(offset, offset + size, limits.REPAIR_PIECE_BYTES):
            count = min(limits.REPAIR_PIECE_BYTES, offset + size - at)
            await self._pace.turn(count, moving=pulled.moving)
            [piece] = await peer.read([(part, at, count)])
            pieces.append(piece)
            pulled.bytes += count
        return [b"".join(pieces)]

    # --- a whole copy -------------------------------------------------------------------

    async def _pull_whole(self, want: PartWant) -> Pulled:
        """Have a whole copy: of whole copies while there are some, else of shards."""
        holders = tuple(disk for disk, parts in want.sources if None in parts)
        if holders:
            try:
                return await self._copies.pull(_as_copy(want, holders))
            except (Corruption, Unavailable) as exc:
                log.info("upkeep.copy.not_pulled", chunk=str(want.chunk), reason=exc.message)
        own = Gathered()
        if None in want.mine:
            await self._copies.read_own(want.chunk, want.exact, own)
        if own.end > FIRST and own.reaches(want.exact, own.end):
            await self._copies.keep(want.chunk)
            return Pulled()
        pulled = Pulled(want.moves)
        sources = await self._examine_some(want, pulled, lambda part: part is not None)
        await self._add_own(want, sources)
        groups = groups_of(sources.shards, want.exact)
        end = max((version.end for _, version in groups), default=0)
        for (_, version), parts in groups.items():
            if version.end == end:
                content = await self._content_of(want, parts, version, pulled)
                await self._check_there(want, next(iter(parts.values())))
                epoch = max(want.epoch, want.chunk.epoch)
                await self._chunks.install(want.chunk, epoch, version.end, content)
                pulled.installed = True
                return pulled
        raise Unavailable(f"chunk {want.chunk} cannot be made of the shards that answer")

    async def _add_own(self, want: PartWant, sources: Sources) -> None:
        """Count the shards of this disk as well, where a whole copy is made of shards."""
        own = [part for part in want.mine if part is not None]
        found = await self._chunks.examine([part_id(want.chunk, part) for part in own])
        for part, one in zip(own, found, strict=True):
            note_source(sources, self._disk, part, one)

    # --- putting it there ---------------------------------------------------------------

    async def _put(self, want: PartWant, content: bytes, pulled: Pulled) -> None:
        """Install a shard and verify what lies there.

        Raises: Unavailable when the chunk was deleted meanwhile, Corruption, and what `install`
            raises.
        """
        shard = part_id(want.chunk, want.part)
        await self._check_there(want, None)
        epoch = max(want.epoch, want.chunk.epoch)
        try:
            await self._chunks.install(shard, epoch, FIRST + len(content), content)
        except AlreadyExists as exc:
            raise Unavailable(exc.message) from exc  # the other one goes first
        described = Descriptor.unpack(content, f"shard {shard}")
        [found] = await self._chunks.examine([shard], afresh=True)
        wanted = Version(described.content_end, described.content_crc)
        if found.state is not Presence.PRESENT or (found.end, found.crc) != wanted:
            raise Corruption(f"shard {shard} was installed and differs: {found}")
        pulled.installed = True

    async def _check_there(self, want: PartWant, source: ShardSource | None) -> None:
        """Make sure that a part of the chunk is left: what was deleted meanwhile is not to come
        back.

        Raises: Unavailable.
        """
        own = any(part_id(want.chunk, part) in self._store.slots for part in want.mine)
        if own:
            return
        others = want.sources if source is None else [
            one for one in want.sources if one[0] == source.disk
        ]  # fmt: skip
        for disk, parts in others:
            part = next(iter(parts))
            try:
                peer = await self._peers.get(disk)
                await peer.read([(part_id(want.chunk, part), FIRST, limits.SECTOR_BYTES)])
            except TorusError:
                continue
            return
        raise Unavailable(f"no part of chunk {want.chunk} is left: it was deleted")


def _as_copy(want: PartWant, sources: tuple[str, ...]) -> Want:
    """Return what is to be pulled as a whole copy."""
    return Want(
        want.chunk, want.epoch, want.exact, sources, None in want.mine, want.good, want.copies,
        want.doubtful,
    )  # fmt: skip
