"""The upkeep of one disk: when it looks, what it does in which order, when it is done.

Decides that a round is made after changes and now and then, that what is rarest comes first,
that a change of the ring ends a round at its next step, and what counts as settled.  Implements
docs/upkeep.md.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torus import limits
from torus.clock import Clock
from torus.cluster.local import LocalChunks
from torus.cluster.membership import ClusterView
from torus.errors import Corruption, DiskFailed, NotFound, PoolFull, TorusError
from torus.ids import ChunkId, volume_of
from torus.log import get_logger
from torus.redundancy.scheme import Scheme
from torus.store.store import Store
from torus.upkeep.found import Found, Picture
from torus.upkeep.giveup import GiveUp
from torus.upkeep.heads import Heads
from torus.upkeep.pace import Pace, side_by_side
from torus.upkeep.peers import DAMAGED, Confirmed, Copy, Peers
from torus.upkeep.placement import FIRST_RING, Placement, Ring, Slots
from torus.upkeep.plan import Log, Surplus, Want
from torus.upkeep.progress import Progress, Rate, as_document
from torus.upkeep.pull import Pulled, Puller
from torus.upkeep.shard_giveup import ShardGiveUp
from torus.upkeep.shard_plan import PartSurplus, PartWant, part_id
from torus.upkeep.shard_pull import ShardPuller, TooLong
from torus.upkeep.shard_survey import ShardSurvey
from torus.upkeep.survey import Survey

log = get_logger("torus.upkeep")
_GONE = "removed"  # state of a disk that has nothing any more
_DAMAGED_MAX = 65536


@dataclass(frozen=True, slots=True)
class Times:
    """When a disk looks, in seconds."""

    settle_s: float = limits.UPKEEP_SETTLE_S
    retry_s: float = limits.UPKEEP_RETRY_S  # at most
    round_s: float = limits.UPKEEP_ROUND_S
    encode_s: float = limits.UPKEEP_ENCODE_S


class DiskUpkeep:
    """Keeps one disk as the ring wants it, from `start` to `close`."""

    def __init__(
        self,
        store: Store,
        chunks: LocalChunks,
        view: ClusterView,
        peers: Peers,
        heads: Heads,
        clock: Clock,
        pace: Pace,
        slot_of: Slots,
        times: Times | None = None,
    ) -> None:
        """``slot_of``: that of the ring, `torus.ring.table.slot_of`."""
        self.disk_id = store.identity.disk_id
        self._store = store
        self._view = view
        self._heads = heads
        self._clock = clock
        self._pace = pace
        self._slot_of = slot_of
        self._times = times or Times()
        self._survey = Survey(store, peers)
        self._puller = Puller(store, chunks, peers, pace)
        self._giveup = GiveUp(store, chunks, peers, pace)
        self._shard_survey = ShardSurvey(store, chunks, self._survey)
        self._shard_puller = ShardPuller(store, chunks, peers, pace, self._puller)
        self._shard_giveup = ShardGiveUp(store, chunks, peers, pace, self._giveup)
        self._schemes: dict[int, tuple[Scheme, ...]] = {}
        self._encoding = False  # chunks of an open span become shards
        self._slot_bytes = chunks.slot_bytes
        self._placement: Placement | None = None
        self._up: frozenset[tuple[str, str]] = frozenset()
        self._unsure: set[ChunkId] = set()  # verified while somebody was silent
        self._damaged: set[ChunkId] = set()  # nobody has them whole
        self.lacking: tuple[ChunkId, ...] = ()  # should be here, and too few others have them
        self._full_round_ns: int | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._rate = Rate()
        self.progress = Progress(self.disk_id)

    # --- life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: a first round soon, then whenever something changes."""
        self._view.on_change.append(self.poke)
        self._changed.set()
        self._task = asyncio.get_running_loop().create_task(self._keep_running())

    async def close(self) -> None:
        """End it where it is; idempotent."""
        if self.poke in self._view.on_change:
            self._view.on_change.remove(self.poke)
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def poke(self) -> None:
        """Look again soon: something changed."""
        self._changed.set()

    async def _keep_running(self) -> None:
        """Run rounds for good: an error of this code costs a round, never the upkeep.

        A disk whose upkeep ended in silence would never be settled, and the ring never change.
        """
        while True:
            rounds = asyncio.get_running_loop().create_task(self._run())
            try:
                await asyncio.wait([rounds])
            finally:
                rounds.cancel()
                await asyncio.wait([rounds])
            error = rounds.exception()
            if error is None:
                return
            self.progress.failed(f"{type(error).__name__}: {error}")
            log.error("upkeep.crashed", disk=self.disk_id, exception=error)
            self._changed.set()
            await asyncio.sleep(self._times.retry_s)

    async def _run(self) -> None:
        wait_s = self._times.round_s
        retry_s = self._times.settle_s
        while True:
            try:
                async with asyncio.timeout(wait_s):  # wait_for may swallow a cancellation
                    await self._changed.wait()
                await asyncio.sleep(self._times.settle_s)
            except TimeoutError:
                pass
            try:
                done = await self.round()
            except DiskFailed as exc:
                self.progress.failed(exc.message)
                self.progress.state, self.progress.settled = "failed", False
                log.warning("upkeep.ended", disk=self.disk_id, reason=str(exc))
                return
            except TorusError as exc:
                self.progress.failed(exc.message)
                log.info("upkeep.round.given_up", disk=self.disk_id, reason=str(exc))
                done = False
            times = self._times
            rest_s = min(times.round_s, times.encode_s) if self._encoding else times.round_s
            wait_s = rest_s if done else retry_s
            retry_s = self._times.settle_s if done else min(2 * retry_s, self._times.retry_s)

    # --- what others want to know -------------------------------------------------------

    def document(self) -> dict[str, object]:
        """Return the progress as JSON."""
        self.progress.share = round(self._pace.budget.share, 3)
        return as_document(self.progress, self._rate.per_second(self._clock.monotonic_ns()))

    def settled(self) -> bool:
        """Say whether this disk has all that the newest ring wants it to have, as far as
        anybody has it; what it has too much does not count."""
        head = self._view.head
        return (
            head is not None
            and self.progress.settled
            and self.progress.ring == head.version
            and not self._changed.is_set()
        )

    def needs(self) -> int:
        """Return how many bytes of known volumes lie here: what removing the disk would take."""
        return self._store.usage.used * self._slot_bytes

    async def confirm(self, copies: Sequence[Copy]) -> list[Confirmed]:
        """Answer another disk that wants to give copies up.  Raises: DiskFailed."""
        answers = await self._giveup.confirm(copies)
        for copy, answer in zip(copies, answers, strict=True):
            if answer.state == DAMAGED:
                self.doubt(copy.chunk)
        return answers

    def doubt(self, part: ChunkId) -> None:
        """Compare a part that is here with the others': it was found damaged."""
        self._survey.doubt(part)
        self._shard_survey.look_again(volume_of(part))
        self._changed.set()

    def is_damaged(self, part: ChunkId) -> bool:
        """Tell whether nobody had a part whole at the last look."""
        return part in self._damaged

    # --- a round ------------------------------------------------------------------------

    async def round(self) -> bool:
        """Look at all volumes and do what is to be done; True when nothing is left.

        Raises: DiskFailed of the own disk, Unavailable.
        """
        self._changed.clear()
        head = self._view.head
        if head is None:
            self.progress.state = "no ring"
            return True
        self.progress.state = "looking"
        logs = await self._heads.read()
        picture = await self._picture(logs)
        self._forget_old(picture, logs)
        found, more = await self._look(picture, logs)
        wants = found.wants
        progress = self.progress
        progress.suspect_chunks, progress.unknown_chunks = len(found.suspects), found.unknown
        progress.damaged_chunks = len(self._damaged)
        progress.ring = picture.placement.version
        self._count(found)
        progress.settled = not more and all(want.here for want in wants)
        if head.paused:
            progress.state = "paused"
            return found.asleep
        progress.state = "settled" if found.asleep else "working"
        left = await self._work(picture, found)
        progress.rounds += 1
        progress.last_round_ns = self._clock.wall_ns()
        if not self._changed.is_set() and (more or (wants and not left)):
            self._changed.set()  # what was done is looked at again
        progress.state = "waiting" if left else "settled"
        return not left

    async def _look(self, picture: Picture, logs: Sequence[Log]) -> tuple[Found, bool]:
        """Return what is to be done, and whether there is more than that.

        Raises: DiskFailed.
        """
        total, more = Found(), False
        degraded: dict[int, int] = {}
        self.progress.unfinished = {}
        self._encoding = any(
            one.sharded and any(span.last is None for span in one.spans) for one in logs
        )
        for one in logs:
            survey: Survey | ShardSurvey = self._shard_survey if one.sharded else self._survey
            found = await survey.volume(picture, one)
            found.wants = [want for want in found.wants if _id(want) not in self._damaged]
            if one.sharded:
                parts = len(found.wants) + len(found.parts_surplus)
                self.progress.note_unfinished(one.volume, parts)
            total.add(found)
            for copies, count in (await survey.degraded(picture, one)).items():
                degraded[copies] = degraded.get(copies, 0) + count * self._slot_bytes
            if len(total.wants) > limits.UPKEEP_WORK_MAX:
                more = True
                break
        self.progress.degraded_bytes = degraded
        return total, more

    async def _picture(self, logs: Iterable[Log]) -> Picture:
        """Return who is there and where chunks belong.

        Raises: Unavailable, Corruption.
        """
        newest: Ring = self._view.ring
        rings: dict[int, Ring] = {newest.version: newest}
        named = {span.ring or FIRST_RING for one in logs for span in one.spans}
        first = min(named, default=newest.version)
        recent = range(max(first, newest.version - limits.UPKEEP_RINGS), newest.version)
        known = {} if self._placement is None else self._placement.rings
        for version in sorted({*named, *recent} - {newest.version}):
            try:
                rings[version] = known.get(version) or await self._view.fetch_ring(version)
            except NotFound:
                continue  # what follows from it is not known then
        places = self._view.disks()
        return Picture(
            Placement(rings, newest.version, self._slot_of),
            frozenset(disk for disk, place in places.items() if place.address is not None),
            frozenset(disk for disk, place in places.items() if place.state != _GONE),
        )

    def _forget_old(self, picture: Picture, logs: Sequence[Log]) -> None:
        """Drop what was concluded under other circumstances."""
        now_ns = self._clock.monotonic_ns()
        up = frozenset(
            (disk, place.instance_id)
            for disk, place in self._view.disks().items()
            if place.address is not None
        )
        due_ns = (self._full_round_ns or 0) + int(self._times.round_s * 1e9)
        changed = (
            self._placement is None
            or self._placement.version != picture.placement.version
            or bool(up - self._up)
        )
        if changed or self._full_round_ns is None or now_ns >= due_ns:
            self._survey.forget()
            self._shard_survey.forget()
            self._survey.verified -= self._unsure
            self._unsure.clear()
            self._damaged.clear()
            self._full_round_ns = now_ns
            self._survey.verified = {
                one for one in self._survey.verified if one in self._store.slots
            }
            self._survey.suspicions.keep({one.volume for one in logs})
        self._placement, self._up = picture.placement, up
        schemes = {one.volume: one.schemes for one in logs}
        for volume, now in schemes.items():
            if self._schemes.get(volume, now) != now:  # it is to be kept in another way
                self._survey.look_again(volume)
                self._shard_survey.look_again(volume)
        self._schemes = schemes

    def _count(self, found: Found) -> None:
        progress = self.progress
        lacking: dict[int, int] = {}
        few = (want for want in found.wants if not want.here and want.good < want.copies)
        self.lacking = tuple(_id(want) for want in few)
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
        progress.surplus_bytes += sum(map(self._size, found.parts_surplus))

    def _size(self, one: Want | PartWant | PartSurplus) -> int:
        """Return the space that a part takes."""
        if isinstance(one, Want) or one.part is None:
            return self._slot_bytes
        return self._slot_bytes // max(one.scheme.data, 1)

    # --- doing it -----------------------------------------------------------------------

    def _still(self, picture: Picture) -> Callable[[], bool]:
        """Return what says whether a round may go on."""

        def still() -> bool:
            head = self._view.head
            return (
                head is not None and head.version == picture.placement.version and not head.paused
            )

        return still

    async def _work(self, picture: Picture, found: Found) -> bool:
        """Pull, then give up; True when something is left that has to wait.

        Raises: DiskFailed.
        """
        still = self._still(picture)
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
        due = [one for one in surplus if set(placement.owners(one.chunk, one.copies)) <= picture.up]
        left = len(due) < len(surplus)
        for first in range(0, len(due), limits.UPKEEP_DROP_CHUNKS):
            if not still():
                return False
            batch = due[first : first + limits.UPKEEP_DROP_CHUNKS]
            done = await self._giveup.give_up(batch, placement, still)
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
            self._changed.set()
            return True
        except DiskFailed:
            self._store.check_disk()  # the own one: this ends the upkeep
            return False
        except Corruption as exc:
            if len(self._damaged) < _DAMAGED_MAX:
                self._damaged.add(_id(want))
            self.progress.damaged_chunks = len(self._damaged)
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
        self._survey.doubted.discard(_id(want))
        if want.doubtful and _id(want) == want.chunk:
            self._survey.verified.add(want.chunk)
            if not pulled.everybody:
                self._unsure.add(want.chunk)
        if pulled.installed:
            self.progress.pulled_chunks += 1
            self.progress.built_shards += _id(want) != want.chunk
        self._done(want, pulled.bytes)
        return True

    async def _pulled(self, want: Want | PartWant) -> Pulled:
        if isinstance(want, PartWant):
            return await self._shard_puller.pull(want)
        return await self._puller.pull(want)

    def _done(self, want: Want | PartWant, count: int) -> None:
        progress, slot = self.progress, self._size(want)
        progress.pulled_bytes += count
        self._rate.add(self._clock.monotonic_ns(), count)
        if want.here:
            progress.doubtful_bytes -= slot
        elif want.good >= want.copies:
            progress.moving_bytes -= slot
        else:
            progress.lacking_bytes[want.good] -= slot


def _id(want: Want | PartWant) -> ChunkId:
    """Return what is pulled."""
    return want.chunk if isinstance(want, Want) else part_id(want.chunk, want.part)
