"""Doing what one disk's look found: in which order, and what is concluded from how it ends.

Decides that what is rarest comes first, that a change of the ring ends the work at its next step,
and which failures are tried again.  Implements docs/upkeep.md.
"""

from collections.abc import Callable, Sequence

from torus import limits
from torus.clock import Clock
from torus.cluster.local import LocalChunks
from torus.errors import Corruption, DiskFailed, PoolFull, TorusError
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.store import Store
from torus.upkeep.found import Found, Picture
from torus.upkeep.giveup import GiveUp
from torus.upkeep.pace import Pace, side_by_side
from torus.upkeep.peers import Peers
from torus.upkeep.plan import Surplus, Want
from torus.upkeep.progress import Progress, Rate
from torus.upkeep.pull import Pulled, Puller
from torus.upkeep.shard_giveup import ShardGiveUp
from torus.upkeep.shard_plan import PartSurplus, PartWant, part_id
from torus.upkeep.shard_pull import ShardPuller, TooLong
from torus.upkeep.shard_survey import ShardSurvey
from torus.upkeep.survey import Survey

log = get_logger("torus.upkeep")
_DAMAGED_MAX = 65536


class Work:
    """What one disk pulls and gives up."""

    def __init__(
        self,
        store: Store,
        chunks: LocalChunks,
        peers: Peers,
        pace: Pace,
        clock: Clock,
        survey: Survey,
        shard_survey: ShardSurvey,
        progress: Progress,
    ) -> None:
        self._store = store
        self._clock = clock
        self._survey = survey
        self._shard_survey = shard_survey
        self._slot_bytes = chunks.slot_bytes
        self._puller = Puller(store, chunks, peers, pace)
        self.giveup = GiveUp(store, chunks, peers, pace)
        self.shard_puller = ShardPuller(store, chunks, peers, pace, self._puller)
        self._shard_giveup = ShardGiveUp(store, chunks, peers, pace, self.giveup)
        self.progress = progress
        self.rate = Rate()
        self.unsure: set[ChunkId] = set()  # verified while somebody was silent
        self.damaged: set[ChunkId] = set()  # nobody has them whole
        self.again = False  # something was found out that changes what is to be done
        self.lacking: tuple[ChunkId, ...] = ()  # should be here, and too few others have them

    def count(self, found: Found) -> None:
        """Tell how much is to be done."""
        progress = self.progress
        lacking: dict[int, int] = {}
        few = (want for want in found.wants if not want.here and want.good < want.copies)
        self.lacking = tuple(id_of(want) for want in few)
        progress.moving_bytes = progress.doubtful_bytes = 0
        for want in found.wants:
            size = self._size(want)
            if want.here:
                progress.doubtful_bytes += size
            elif want.good >= want.copies:
                progress.moving_bytes += size
            else:
                lacking[want.good] = lacking.get(want.good, 0) + size
        progress.lacking_bytes = lacking
        progress.surplus_bytes = self._slot_bytes * len(found.surplus)
        progress.encoding_bytes = 0
        for one in found.parts_surplus:
            if one.part is None and not one.todo.copies:
                progress.encoding_bytes += self._slot_bytes
            else:
                progress.surplus_bytes += self._size(one)

    def _size(self, one: Want | PartWant | PartSurplus) -> int:
        """Return the space that a part takes."""
        if isinstance(one, Want) or one.part is None:
            return self._slot_bytes
        return self._slot_bytes // max(one.scheme.data, 1)

    async def do(self, picture: Picture, found: Found, still: Callable[[], bool]) -> bool:
        """Pull, then give up; True when something is left that has to wait.

        ``still``: says whether the round may go on.
        Raises: DiskFailed.
        """
        self.again = False
        queue = iter(sorted(found.wants, key=lambda want: want.urgency))
        left = [found.waiting > 0]

        async def pull_some() -> None:
            for want in queue:
                if not still():
                    return
                left[0] |= not await self._pull(want)

        workers = min(limits.REPAIR_PARALLEL, len(found.wants))
        await side_by_side(pull_some() for _ in range(workers))
        left[0] |= await self._give_up(picture, found.surplus, still)
        return await self._give_up_parts(picture, found.parts_surplus, still) or left[0]

    async def _give_up_parts(
        self, picture: Picture, surplus: Sequence[PartSurplus], still: Callable[[], bool]
    ) -> bool:
        """Give up what lies elsewhere as it is to lie; True when something is left.

        Raises: DiskFailed.
        """
        due = [one for one in surplus if one.todo.ready]
        left = False
        for first in range(0, len(due), limits.UPKEEP_DROP_CHUNKS):
            if not still():
                return False
            batch = due[first : first + limits.UPKEEP_DROP_CHUNKS]
            done = await self._shard_giveup.give_up(batch, picture.placement, still)
            self.progress.dropped_chunks += done.dropped
            left |= done.dropped < len(batch)
        return left

    async def _give_up(
        self, picture: Picture, surplus: Sequence[Surplus], still: Callable[[], bool]
    ) -> bool:
        """Give up what all owners have; True when something is left.

        Raises: DiskFailed.
        """
        placement = picture.placement
        due = await self._survey.ripe(surplus, picture)
        left = len(due) < len(surplus)
        for first in range(0, len(due), limits.UPKEEP_DROP_CHUNKS):
            if not still():
                return False
            batch = due[first : first + limits.UPKEEP_DROP_CHUNKS]
            done = await self.giveup.give_up(batch, placement, still)
            gone = done.dropped + len(done.strays)
            self.progress.dropped_chunks += done.dropped
            self.progress.suspect_chunks += len(done.strays)
            self.progress.surplus_bytes -= gone * self._slot_bytes
            left |= gone < len(batch)
        return left

    async def _pull(self, want: Want | PartWant) -> bool:
        """Pull one part; False when it has to be tried again.

        Raises: DiskFailed of the own disk.
        """
        try:
            pulled = await self._pulled(want)
        except TooLong:
            self._shard_survey.note_long(want.chunk)
            self.again = True
            return True
        except DiskFailed:
            self._store.check_disk()  # the own one: this ends the upkeep
            return False
        except Corruption as exc:
            if len(self.damaged) < _DAMAGED_MAX:
                self.damaged.add(id_of(want))
            self.progress.damaged_chunks = len(self.damaged)
            self.progress.failed(exc.message)
            log.error("upkeep.chunk.damaged", chunk=str(want.chunk), reason=exc.message)
            return False
        except PoolFull as exc:
            self.progress.failed(exc.message)
            return False
        except TorusError as exc:
            self.progress.failed(exc.message)
            log.info("upkeep.pull.failed", chunk=str(want.chunk), reason=str(exc))
            return False
        self._survey.doubted.discard(id_of(want))
        # The last chunk of a span is compared though no copy of it may be short.
        if (want.doubtful or want.here) and id_of(want) == want.chunk:
            self._survey.verified.add(want.chunk)
            if not pulled.everybody:
                self.unsure.add(want.chunk)
        if pulled.installed:
            self.progress.pulled_chunks += 1
            self.progress.built_shards += id_of(want) != want.chunk
        self._done(want, pulled.bytes)
        return True

    async def _pulled(self, want: Want | PartWant) -> Pulled:
        if isinstance(want, PartWant):
            return await self.shard_puller.pull(want)
        return await self._puller.pull(want)

    def _done(self, want: Want | PartWant, count: int) -> None:
        progress, slot = self.progress, self._size(want)
        progress.pulled_bytes += count
        self.rate.add(self._clock.monotonic_ns(), count)
        if want.here:
            progress.doubtful_bytes -= slot
        elif want.good >= want.copies:
            progress.moving_bytes -= slot
        else:
            progress.lacking_bytes[want.good] -= slot


def id_of(want: Want | PartWant) -> ChunkId:
    """Return what is pulled."""
    return want.chunk if isinstance(want, Want) else part_id(want.chunk, want.part)


def encodes(want: Want | PartWant) -> bool:
    """Say whether a shard is made of a chunk that has all its whole copies: nothing lacks."""
    return isinstance(want, PartWant) and want.encodes
