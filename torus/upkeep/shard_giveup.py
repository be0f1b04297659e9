"""Giving up parts of chunks that lie, or are to lie, in shards.

Decides when a part may go: all that its chunk is to have in the end was confirmed by the disks
that are to have it, of one and the same content, behind this part's mark; and a whole copy goes
only where every shard is what this disk itself makes of its verified records.  Why no step
leaves too few parts is in docs/upkeep.md, "Giving up a copy".
"""

from collections.abc import Callable, Mapping, Sequence

from torus.cluster.local import LocalChunks
from torus.errors import Corruption, TorusError
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.content import FIRST
from torus.store.store import Store
from torus.upkeep.giveup import GivenUp, GiveUp
from torus.upkeep.pace import Pace
from torus.upkeep.peers import ABSENT, GOOD, Confirmed, Copy, Peers, doubt_question
from torus.upkeep.placement import Placement
from torus.upkeep.plan import may_drop
from torus.upkeep.shard_content import Version, digests, fits
from torus.upkeep.shard_plan import PartSurplus, part_id
from torus.upkeep.shard_read import read_shard

log = get_logger("torus.upkeep")
Answers = Mapping[tuple[str, ChunkId], Confirmed]


class ShardGiveUp:
    """Takes parts of one disk away that others make superfluous."""

    def __init__(
        self, store: Store, chunks: LocalChunks, peers: Peers, pace: Pace, copies: GiveUp
    ) -> None:
        """``copies`` keeps the marks of the disk."""
        self._store = store
        self._chunks = chunks
        self._peers = peers
        self._pace = pace
        self._copies = copies
        self._disk = store.identity.disk_id
        self._slot_bytes = chunks.slot_bytes
        self._refused: set[ChunkId] = set()  # parts that did not go the last time

    async def give_up(
        self, batch: Sequence[PartSurplus], placement: Placement, still: Callable[[], bool]
    ) -> GivenUp:
        """Drop those of ``batch`` whose chunks are elsewhere as they are to be.

        ``still``: says whether ``placement`` is that of the newest ring, and nothing is paused.
        Raises: DiskFailed, PoolFull of the own disk.
        """
        own = await self._worth_marking([one for one in batch if self._copies.stays(one.id)])
        marked = [one.id for one in own]
        self._copies.leaving.update(marked)
        try:
            await self._pace.turn(0, len(own), moving=True)
            answers = await self._copies.ask(_questions(own))
            going = [one.id for one in own if await self._may_go(one, placement, answers)]
            self._refused.update(one.id for one in own if one.id not in going)
            # Between this look and the drop there is no turn of the event loop for a change.
            dropped = await self._chunks.drop(going) if going and still() else 0
            return GivenUp(dropped, [])
        finally:
            self._copies.leaving.difference_update(marked)

    async def _worth_marking(self, own: list[PartSurplus]) -> list[PartSurplus]:
        """Leave those out that were refused before and would be again: marks that come to
        nothing make others wait, who may be waited for."""
        again = [one for one in own if one.id in self._refused]
        if not again:
            return own
        self._refused.difference_update(one.id for one in again)
        answers = await self._copies.ask(_questions(again))
        hopeless = set()
        for one in again:
            found = [
                answers.get((disk, part_id(one.chunk, part))) for disk, part in one.todo.confirm
            ]
            if any(answer is None or answer.state != GOOD for answer in found):
                hopeless.add(one.id)
                await self._wake(one, answers)
        self._refused |= hopeless
        return [one for one in own if one.id not in hopeless]

    async def _may_go(self, one: PartSurplus, placement: Placement, answers: Answers) -> bool:
        """Decide about one part, which is read only if the answers allow it to go."""
        todo = one.todo
        found = [answers.get((disk, part_id(one.chunk, part))) for disk, part in todo.confirm]
        good = [None if answer is None or answer.state != GOOD else answer for answer in found]
        if None in good or not good:
            await self._wake(one, answers)
            return False
        sound = [answer for answer in good if answer is not None]
        versions = {Version(answer.end, answer.crc) for answer in sound}
        if len(versions) > 1:
            await self._doubt(one, [answer.end < max(versions).end for answer in sound])
            return False
        [version] = versions
        if todo.copies:
            wanted = placement.wanted(self._disk, one.chunk, one.scheme.copies)
            if len(sound) < wanted:
                return False
        if one.part is None:
            return await self._whole_may_go(one, sound)
        return await self._shard_may_go(one, version, sound)

    # --- what is here -------------------------------------------------------------------

    async def _whole_may_go(self, one: PartSurplus, sound: Sequence[Confirmed]) -> bool:
        """Compare the whole copy here with what was confirmed, shard by shard."""
        await self._pace.turn(self._slot_bytes, moving=True)
        try:
            content, own = await self._copies.read_whole(one.chunk, one.exact)
        except Corruption as exc:
            log.warning("upkeep.copy.unreadable", chunk=str(one.chunk), reason=exc.message)
            return False
        pairs = [(answer.end, answer.crc) for answer in sound]
        end = sound[0].end
        if not may_drop(own, pairs, wanted=len(pairs)):
            if own.end > end or (own.end == end and not own.damaged):
                await self._doubt(one, [True] * len(sound))
            return False
        if one.todo.copies or own.end != end:
            return True
        if not fits(end, one.scheme, self._slot_bytes):
            return False
        records = memoryview(content)[: own.end - FIRST]
        due: list[int] = await self._store.in_pool(digests, records, one.scheme, self._slot_bytes)
        wrong = [
            part is None or answer.payload != due[part]
            for (_, part), answer in zip(one.todo.confirm, sound, strict=True)
        ]
        if any(wrong):
            log.warning("upkeep.shard.differs", chunk=str(one.chunk), shards=str(wrong))
            await self._doubt(one, wrong)
        return not any(wrong)

    async def _shard_may_go(
        self, one: PartSurplus, version: Version, sound: Sequence[Confirmed]
    ) -> bool:
        """Compare the shard here: one of other content that reaches further stays."""
        found = await read_shard(self._store, self._chunks, one.id)
        if found is None:
            return True  # it is of no use to anybody, and all others are there
        described, payload = found
        if described.content_end != version.end:
            return described.content_end < version.end
        if described.content_crc != version.crc:
            return False
        if (described.data, described.parity) != (one.scheme.data, one.scheme.parity):
            return True
        same = [
            answer.payload
            for (_, part), answer in zip(one.todo.confirm, sound, strict=True)
            if part == one.part
        ]
        return all(other == payload for other in same)

    # --- telling others -----------------------------------------------------------------

    async def _doubt(self, one: PartSurplus, wrong: Sequence[bool]) -> None:
        """Ask disks to make their parts again: they are not what this disk has."""
        for (disk, part), bad in zip(one.todo.confirm, wrong, strict=True):
            if bad:
                await self._ask_to_look(disk, Copy(part_id(one.chunk, part), one.exact))

    async def _wake(self, one: PartSurplus, answers: Answers) -> None:
        """Tell disks that have no whole copy that shards of another scheme wait for one."""
        if not one.todo.copies or one.part is None or not one.scheme.erasure:
            return
        for disk, _ in one.todo.confirm:
            answer = answers.get((disk, one.chunk))
            if answer is not None and answer.state == ABSENT:
                await self._ask_to_look(disk, Copy(one.chunk, one.exact))

    async def _ask_to_look(self, disk: str, copy: Copy) -> None:
        try:
            await self._peers.ask(disk, doubt_question(disk, [copy]))
        except TorusError as exc:
            log.debug("upkeep.owner.silent", disk=disk, reason=str(exc))


def _questions(own: Sequence[PartSurplus]) -> dict[str, list[Copy]]:
    """Return what each disk is asked."""
    asked: dict[str, list[Copy]] = {}
    for one in own:
        for disk, part in one.todo.confirm:
            scheme = (0, 0) if part is None else (one.scheme.data, one.scheme.parity)
            copy = Copy(part_id(one.chunk, part), one.exact, *scheme)
            if copy not in (known := asked.setdefault(disk, [])):
                known.append(copy)
    return asked
