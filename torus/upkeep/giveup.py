"""Giving up copies that this disk need not have: mark, ask, compare, drop.

Decides when a copy may go; why copies can never fall below what they should be is in
docs/upkeep.md, "Giving up a copy".  The answers to the same question of other disks are here
too, as the marks are what makes both safe.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torus.cluster.local import LocalChunks
from torus.errors import Corruption, TorusError
from torus.ids import ChunkId, is_shard
from torus.log import get_logger
from torus.store.content import FIRST
from torus.store.store import Store
from torus.upkeep.content import Inspected, inspect
from torus.upkeep.pace import Pace
from torus.upkeep.peers import (
    ABSENT,
    DAMAGED,
    GOOD,
    LEAVING,
    Confirmed,
    Copy,
    Peers,
    confirm_question,
    read_confirmed,
)
from torus.upkeep.placement import Placement
from torus.upkeep.plan import Surplus, may_drop
from torus.upkeep.shard_read import read_shard

log = get_logger("torus.upkeep")


class GivenUp(NamedTuple):
    """What became of copies that were to be given up."""

    dropped: int
    strays: list[ChunkId]  # that no owner has: deleted, or not pulled yet


class GiveUp:
    """The copies of one disk that are leaving, and its answers to others."""

    def __init__(self, store: Store, chunks: LocalChunks, peers: Peers, pace: Pace) -> None:
        self._store = store
        self._chunks = chunks
        self._peers = peers
        self._pace = pace
        self.leaving: set[ChunkId] = set()

    # --- what others ask ----------------------------------------------------------------

    async def confirm(self, copies: Sequence[Copy]) -> list[Confirmed]:
        """Say of each copy whether it is good and stays; good ones are durable on return.

        Raises: DiskFailed.
        """
        self._store.check_disk()
        answers = [await self._confirm(copy) for copy in copies]
        good = [
            copy.chunk
            for copy, answer in zip(copies, answers, strict=True)
            if answer.state == GOOD and copy.chunk in self._store.slots
        ]
        if good:
            await self._store.sync(good)
        # Marks that were set meanwhile count: the asker relies on what holds when it is told.
        return [
            answer if answer.state != GOOD or self.stays(copy.chunk) else Confirmed(LEAVING)
            for copy, answer in zip(copies, answers, strict=True)
        ]

    def stays(self, chunk: ChunkId) -> bool:
        """Say whether a part is here and has no mark."""
        return chunk not in self.leaving and chunk in self._store.slots

    async def _confirm(self, copy: Copy) -> Confirmed:
        if copy.chunk in self.leaving:
            return Confirmed(LEAVING)
        try:
            if self._store.find(copy.chunk) is None:
                return Confirmed(ABSENT)
            if is_shard(copy.chunk):
                return await self._confirm_shard(copy)
            found = await self._inspect(copy.chunk, copy.exact)
        except Corruption:
            return Confirmed(DAMAGED)
        if found.damaged:
            return Confirmed(DAMAGED)
        return Confirmed(GOOD, found.end, found.crc)

    async def _confirm_shard(self, copy: Copy) -> Confirmed:
        found = await read_shard(self._store, self._chunks, copy.chunk)
        if found is None:
            return Confirmed(DAMAGED)
        described, payload = found
        if (described.data, described.parity) != (copy.data, copy.parity):
            return Confirmed(ABSENT)
        return Confirmed(GOOD, described.content_end, described.content_crc, payload)

    async def _inspect(self, chunk: ChunkId, exact: int | None) -> Inspected:
        return (await self.read_whole(chunk, exact))[1]

    async def read_whole(self, chunk: ChunkId, exact: int | None) -> tuple[bytes, Inspected]:
        """Return the bytes of a whole copy, to the end of its slot, and what they hold.

        Raises: Corruption.
        """
        [content] = await self._chunks.read([(chunk, FIRST, self._chunks.slot_bytes - FIRST)])
        return content, await self._store.in_pool(inspect, content, chunk, exact)

    # --- what this disk gives up ----------------------------------------------------------

    async def give_up(
        self, batch: Sequence[Surplus], placement: Placement, still: Callable[[], bool]
    ) -> GivenUp:
        """Drop those of ``batch`` that all owners have.

        ``still``: says whether ``placement`` is that of the newest ring, and nothing is paused.
        Raises: DiskFailed, PoolFull of the own disk.
        """
        own = [one for one in batch if self.stays(one.chunk)]
        self.leaving.update(one.chunk for one in own)
        try:
            # Each owner reads its copy: that is work too, beside their clients.
            await self._pace.turn(len(own) * self._chunks.slot_bytes, len(own), moving=True)
            answers = await self.ask(_questions(own, placement))
            going = [one.chunk for one in own if await self._may_go(one, placement, answers)]
            strays = [one.chunk for one in own if _nobody_has(one, placement, answers)]
            # Between this look and the drop there is no turn of the event loop for a change.
            dropped = await self._chunks.drop(going) if going and still() else 0
            return GivenUp(dropped, strays)
        finally:
            self.leaving.difference_update(one.chunk for one in own)

    async def _may_go(
        self,
        one: Surplus,
        placement: Placement,
        answers: Mapping[tuple[str, ChunkId], Confirmed],
    ) -> bool:
        """Decide about one copy, which is read only if the answers allow it to go."""
        disk = self._store.identity.disk_id
        owners = placement.owners(one.chunk, one.copies)
        good = [_good(answers.get((owner, one.chunk))) for owner in owners]
        if disk in owners or None in good:
            return False
        await self._pace.turn(self._chunks.slot_bytes, moving=True)
        own = await self._inspect_own(one)
        wanted = placement.wanted(disk, one.chunk, one.copies)
        return own is not None and may_drop(own, good, wanted=wanted)

    async def _inspect_own(self, one: Surplus) -> Inspected | None:
        try:
            return await self._inspect(one.chunk, one.exact)
        except Corruption as exc:
            log.warning("upkeep.copy.unreadable", chunk=str(one.chunk), reason=exc.message)
            return None

    async def ask(self, asked: Mapping[str, list[Copy]]) -> dict[tuple[str, ChunkId], Confirmed]:
        """Ask every disk about its parts; who gives no answer is not in the result."""

        async def ask(owner: str, copies: list[Copy]) -> list[Confirmed]:
            answer = await self._peers.ask(owner, confirm_question(owner, copies))
            return read_confirmed(answer, len(copies))

        results = await asyncio.gather(
            *(ask(owner, copies) for owner, copies in asked.items()), return_exceptions=True
        )
        found: dict[tuple[str, ChunkId], Confirmed] = {}
        for (owner, copies), result in zip(asked.items(), results, strict=True):
            if isinstance(result, TorusError):
                log.debug("upkeep.owner.silent", disk=owner, reason=str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                for copy, answer in zip(copies, result, strict=True):
                    found[owner, copy.chunk] = answer
        return found


def _questions(own: Sequence[Surplus], placement: Placement) -> dict[str, list[Copy]]:
    """Return what each owner is asked."""
    asked: dict[str, list[Copy]] = {}
    for one in own:
        for owner in placement.owners(one.chunk, one.copies):
            asked.setdefault(owner, []).append(Copy(one.chunk, one.exact))
    return asked


def _nobody_has(
    one: Surplus, placement: Placement, answers: Mapping[tuple[str, ChunkId], Confirmed]
) -> bool:
    """Say whether every owner said with certainty that it has no copy."""
    owners = placement.owners(one.chunk, one.copies)
    said = [answers.get((owner, one.chunk)) for owner in owners]
    return bool(said) and all(answer is not None and answer.state == ABSENT for answer in said)


def _good(answer: Confirmed | None) -> tuple[int, int] | None:
    if answer is None or answer.state != GOOD:
        return None
    return answer.end, answer.crc
