"""Finding out what a disk lacks: comparing volumes with what is here, and asking the others.

Carries out `torus.upkeep.plan`: one volume at a time, a piece of a span between two turns of the
event loop.  Others are asked only about what the disk itself cannot tell.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from torus import limits
from torus.errors import TorusError
from torus.ids import ChunkId, volume_of
from torus.log import get_logger
from torus.store.content import Presence
from torus.store.store import Store
from torus.upkeep.found import Found, Picture
from torus.upkeep.peers import Peers
from torus.upkeep.plan import (
    Closed,
    Log,
    Look,
    Surplus,
    Verdict,
    Want,
    closed_spans,
    is_degraded,
    judge,
    look,
    may_witness,
)

log = get_logger("torus.upkeep")
_ASK_ALL_DISKS = 16  # in a small cluster everybody is asked for everything


class Suspicions:
    """Chunks that were deleted while somebody was away, and since which epoch that is known."""

    def __init__(self) -> None:
        self._since: dict[ChunkId, int] = {}

    def cleared(self, chunk: ChunkId, epoch: int) -> bool:
        """Say whether the volume was attached since: who did would have deleted the chunk."""
        since = self._since.get(chunk)
        return since is not None and epoch > since

    def note(self, chunks: Iterable[ChunkId], epoch: int) -> None:
        """Suspect chunks of a volume whose newest writer has ``epoch``."""
        for chunk in chunks:
            self._since.setdefault(chunk, epoch)

    def keep(self, volumes: AbstractSet[int]) -> None:
        """Forget those of other volumes."""
        self._since = {
            chunk: epoch for chunk, epoch in self._since.items() if chunk.volume in volumes
        }


class Survey:
    """Looks at volumes for one disk."""

    def __init__(self, store: Store, peers: Peers) -> None:
        self._store = store
        self.peers = peers
        self._disk = store.identity.disk_id
        self.settled: set[tuple[int, tuple[int, int, int, int | None]]] = set()
        self.suspicions = Suspicions()
        self.verified: set[ChunkId] = set()  # here, and as long as everybody's
        self.doubted: set[ChunkId] = set()  # here, and found damaged

    def forget(self) -> None:
        """Look at everything again: the ring changed, or the time has come."""
        self.settled.clear()

    def doubt(self, chunk: ChunkId) -> None:
        """Compare a copy that is here with the others at the next look."""
        self.verified.discard(chunk)
        self.doubted.add(chunk)
        self.look_again(volume_of(chunk))

    def look_again(self, volume: int) -> None:
        """Forget that a volume's chunks lie as they should."""
        self.settled = {one for one in self.settled if one[0] != volume}

    async def volume(self, picture: Picture, wanted: Log) -> Found:
        """Compare one volume's closed chunks with what is here.

        Raises: DiskFailed of the own disk.
        """
        self._store.check_disk()
        here = set(self._store.chunks_of(wanted.volume))
        found = Found()
        for closed in closed_spans(wanted):
            if (wanted.volume, closed.key) in self.settled:
                continue
            seen = await self._span(picture, wanted, closed, here)
            part = await self._ask(picture, wanted, closed, seen)
            if part.idle:
                self.settled.add((wanted.volume, closed.key))
            found.add(part)
        self.suspicions.note(found.suspects, wanted.epoch)
        return found

    async def degraded(self, picture: Picture, wanted: Log) -> dict[int, int]:
        """Return how many chunks here have owners that are not up, by how many are.

        Each chunk is counted by one disk.
        """
        found: dict[int, int] = {}
        if all(one.disk_id in picture.up for one in picture.placement.members):
            return found
        closed = {(one.span.epoch, one.span.tag): one for one in closed_spans(wanted)}
        for number, chunk in enumerate(self._store.chunks_of(wanted.volume)):
            if chunk[1:3] not in closed:
                continue
            owners = picture.placement.owners(chunk, wanted.copies)
            left = is_degraded(self._disk, owners, picture.up)
            if left is not None:
                found[left] = found.get(left, 0) + 1
            if number % limits.UPKEEP_LOOK_CHUNKS == 0:
                await asyncio.sleep(0)
        return found

    async def _span(
        self, picture: Picture, wanted: Log, closed: Closed, here: AbstractSet[ChunkId]
    ) -> Look:
        sound = not self._store.damaged
        seen = Look()
        for first in range(closed.span.first, closed.last + 1, limits.UPKEEP_LOOK_CHUNKS):
            piece = range(first, min(first + limits.UPKEEP_LOOK_CHUNKS, closed.last + 1))
            part = look(wanted, closed, piece, here, picture.placement, self._disk, sound=sound)
            seen.lacking += part.lacking
            seen.doubtful += [one for one in part.doubtful if one not in self.verified]
            seen.surplus += part.surplus
            if self.doubted:
                ids = [closed.chunk(wanted.volume, sequence) for sequence in piece]
                seen.doubtful += [
                    one
                    for one in ids
                    if one in self.doubted
                    and one in here
                    and one not in part.doubtful
                    and self._disk in picture.placement.owners(one, wanted.copies)
                ]
            await asyncio.sleep(0)
        return seen

    async def _ask(self, picture: Picture, wanted: Log, closed: Closed, seen: Look) -> Found:
        """Turn what was seen into what is to be done."""
        found = Found()
        copies = wanted.copies
        found.surplus = [
            Surplus(chunk, closed.exact(chunk.sequence), copies) for chunk in seen.surplus
        ]
        if not seen.lacking and not seen.doubtful:
            return found
        for chunk in seen.doubtful:
            may = picture.placement.ever(chunk, closed.span, wanted.reach)
            others = picture.up if may is None else may & picture.up
            sources = tuple(sorted(others - {self._disk}))
            found.wants.append(
                Want(
                    chunk, wanted.epoch, closed.exact(chunk.sequence), sources, True, 0, copies,
                    doubtful=True,
                )
            )  # fmt: skip
        if seen.lacking:
            reach = wanted.reach
            ever = {chunk: self.reasons(picture, closed, chunk, reach) for chunk in seen.lacking}
            await self._lacking(picture, wanted, closed, seen.lacking, ever, found)
        return found

    def reasons(
        self, picture: Picture, closed: Closed, chunk: ChunkId, copies: int
    ) -> AbstractSet[str]:
        """Return the other disks that may have a chunk."""
        ever = None
        if len(picture.members) > _ASK_ALL_DISKS:
            ever = picture.placement.ever(chunk, closed.span, copies)
        return (picture.members if ever is None else ever & picture.members) - {self._disk}

    async def _lacking(
        self,
        picture: Picture,
        wanted: Log,
        closed: Closed,
        lacking: Sequence[ChunkId],
        ever: Mapping[ChunkId, AbstractSet[str]],
        found: Found,
    ) -> None:
        everybody = set().union(*(ever[chunk] for chunk in lacking))
        lists = await self.lists_of(everybody & picture.up, wanted.volume)
        holders = {
            chunk: [disk for disk in ever[chunk] if chunk in lists.get(disk, ())]
            for chunk in lacking
        }
        witnesses = await self._witnesses(picture, wanted, closed, holders, lists)
        for chunk in lacking:
            silent = [disk for disk in ever[chunk] if disk not in lists]
            verdict = judge(
                holders[chunk],
                silent,
                witnesses.get(chunk, ()),
                cleared=self.suspicions.cleared(chunk, wanted.epoch),
            )
            if verdict is Verdict.PULL:
                sources = tuple(sorted(holders[chunk]))
                exact = closed.exact(chunk.sequence)
                found.wants.append(
                    Want(
                        chunk, wanted.epoch, exact, sources, False, len(sources), wanted.copies,
                        doubtful=closed.doubtful(chunk.sequence, self._disk, picture.placement),
                    )
                )  # fmt: skip
            elif verdict is Verdict.SUSPECT:
                found.suspects.append(chunk)
            elif verdict is Verdict.UNKNOWN:
                found.unknown += 1

    async def lists_of(
        self, disks: AbstractSet[str], volume: int
    ) -> dict[str, AbstractSet[ChunkId]]:
        """Return the chunks of a volume on each disk; one that gives no answer is left out."""
        limit = asyncio.Semaphore(limits.UPKEEP_ASKED_AT_ONCE)

        async def ask(disk: str) -> AbstractSet[ChunkId]:
            async with limit:
                peer = await self.peers.get(disk)
                return set(await peer.list(volume))

        asked = sorted(disks)
        answers = await asyncio.gather(*map(ask, asked), return_exceptions=True)
        lists: dict[str, AbstractSet[ChunkId]] = {}
        for disk, answer in zip(asked, answers, strict=True):
            if isinstance(answer, TorusError):
                log.debug("upkeep.disk.silent", disk=disk, reason=str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                lists[disk] = answer
        return lists

    async def ripe(self, surplus: Sequence[Surplus], picture: Picture) -> list[Surplus]:
        """Return those of ``surplus`` that may go as far as the owners' lists tell: that all owners
        have, or none.

        Whether they go is decided by what the owners answer, for which each reads its copy.  While
        data moves most owners have none yet, and reading all others' again and again would cost
        more than moving.
        """
        by_volume: dict[int, list[tuple[Surplus, set[str]]]] = {}
        for one in surplus:
            owners = set(picture.placement.owners(one.chunk, one.copies))
            if owners <= picture.up:
                by_volume.setdefault(one.chunk.volume, []).append((one, owners))
        ripe: list[Surplus] = []
        for volume, owned in by_volume.items():
            lists = await self.lists_of(set().union(*(owners for _, owners in owned)), volume)
            for one, owners in owned:
                having = [one.chunk in lists[owner] for owner in owners if owner in lists]
                if len(having) == len(owners) and (all(having) or not any(having)):
                    ripe.append(one)
        return ripe

    async def _witnesses(
        self,
        picture: Picture,
        wanted: Log,
        closed: Closed,
        holders: Mapping[ChunkId, Sequence[str]],
        lists: Mapping[str, AbstractSet[ChunkId]],
    ) -> dict[ChunkId, list[str]]:
        """Return who says with certainty that a chunk is not there, of those who had it.

        Who does not answer is no witness.
        """
        placement = picture.placement
        asked: dict[str, list[ChunkId]] = {}
        for chunk, having in holders.items():
            if not having:
                continue
            for disk in placement.owners(chunk, wanted.floor):
                if disk == self._disk or disk not in lists or chunk in lists[disk]:
                    continue
                if may_witness(closed, chunk, placement, disk, wanted.floor):
                    asked.setdefault(disk, []).append(chunk)
        return await self.absent(asked)

    async def absent(self, asked: Mapping[str, Sequence[ChunkId]]) -> dict[ChunkId, list[str]]:
        """Return who of the disks says with certainty that it has not what it is asked for."""
        found: dict[ChunkId, list[str]] = {}
        for disk, chunks in asked.items():
            for first in range(0, len(chunks), limits.UPKEEP_EXAMINED_AT_ONCE):
                part = chunks[first : first + limits.UPKEEP_EXAMINED_AT_ONCE]
                try:
                    peer = await self.peers.get(disk)
                    answers = await peer.examine(part)
                except TorusError as exc:
                    log.debug("upkeep.disk.silent", disk=disk, reason=str(exc))
                    break
                for answer in answers:
                    if answer.state is Presence.ABSENT:
                        found.setdefault(answer.chunk, []).append(disk)
        return found
