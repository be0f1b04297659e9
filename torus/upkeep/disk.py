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
from torus.errors import DiskFailed, NotFound, TorusError
from torus.ids import ChunkId, volume_of
from torus.log import get_logger
from torus.redundancy.scheme import Scheme
from torus.store.store import Store
from torus.upkeep.found import Found, Picture
from torus.upkeep.heads import Heads
from torus.upkeep.pace import Pace
from torus.upkeep.peers import DAMAGED, Confirmed, Copy, Peers
from torus.upkeep.placement import FIRST_RING, Placement, Ring, Slots
from torus.upkeep.plan import Log
from torus.upkeep.progress import Progress, as_document
from torus.upkeep.shard_survey import ShardSurvey
from torus.upkeep.survey import Survey
from torus.upkeep.work import Work, encodes, id_of

log = get_logger("torus.upkeep")
_GONE = "removed"  # state of a disk that has nothing any more


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
        self._shard_survey = ShardSurvey(store, chunks, self._survey)
        self._schemes: dict[int, tuple[Scheme, ...]] = {}
        self._encoding = False  # chunks of an open span become shards
        self._slot_bytes = chunks.slot_bytes
        self._placement: Placement | None = None
        self._up: frozenset[tuple[str, str]] = frozenset()
        self._full_round_ns: int | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._look_s = 0.0  # what the last look took
        self.progress = Progress(self.disk_id)
        self._work = Work(
            store, chunks, peers, pace, clock, self._survey, self._shard_survey, self.progress
        )

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
        self.progress.moving_share = round(self.moving_share(), 3)
        return as_document(self.progress, self._work.rate.per_second(self._clock.monotonic_ns()))

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

    @property
    def rest_s(self) -> float:
        """Return how long to rest between two looks for chunks that became full: looking is to
        take a small part of the time, whatever there is to look at."""
        rest_s = self._look_s / limits.UPKEEP_LOOK_SHARE
        return min(max(rest_s, self._times.settle_s), self._times.encode_s)

    def moving_share(self) -> float:
        """Return the share of the rate at which something moves now; 0.0: nothing does."""
        return self._pace.budget.moving.now(self._clock.monotonic_ns())

    def needs(self) -> int:
        """Return how many bytes of known volumes lie here: what removing the disk would take."""
        return self._store.usage.used * self._slot_bytes

    async def confirm(self, copies: Sequence[Copy]) -> list[Confirmed]:
        """Answer another disk that wants to give copies up.  Raises: DiskFailed."""
        answers = await self._work.giveup.confirm(copies)
        for copy, answer in zip(copies, answers, strict=True):
            if answer.state == DAMAGED:
                self.doubt(copy.chunk)
        return answers

    def doubt(self, part: ChunkId) -> None:
        """Compare a part that is here with the others': it was found damaged."""
        self._survey.doubt(part)
        self._shard_survey.look_again(volume_of(part))
        self._changed.set()

    @property
    def lacking(self) -> Sequence[ChunkId]:
        """Return the parts that should be here, were not at the last look, and can be had."""
        return self._work.lacking

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
        began_ns = self._clock.monotonic_ns()
        logs = await self._heads.read()
        picture = await self._picture(logs)
        self._forget_old(picture, logs)
        found, more = await self._look(picture, logs)
        self._look_s = (self._clock.monotonic_ns() - began_ns) / 1e9
        wants = found.wants
        progress = self.progress
        progress.suspect_chunks, progress.unknown_chunks = len(found.suspects), found.unknown
        progress.damaged_chunks = len(self._work.damaged)
        progress.ring = picture.placement.version
        self._work.count(found)
        progress.settled = not more and all(want.here or encodes(want) for want in wants)
        if head.paused:
            progress.state = "paused"
            return found.asleep
        progress.state = "settled" if found.asleep else "working"
        left = await self._work.do(picture, found, self._still(picture))
        progress.rounds += 1
        progress.last_round_ns = self._clock.wall_ns()
        if self._work.again or more or (wants and not left):
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
            found.wants = [want for want in found.wants if id_of(want) not in self._work.damaged]
            if one.sharded:
                self.progress.note_unfinished(one.volume, found.unfinished(one))
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
            self._survey.verified -= self._work.unsure
            self._work.unsure.clear()
            self._work.damaged.clear()
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

    def _still(self, picture: Picture) -> Callable[[], bool]:
        """Return what says whether a round may go on."""

        def still() -> bool:
            head = self._view.head
            return (
                head is not None and head.version == picture.placement.version and not head.paused
            )

        return still
