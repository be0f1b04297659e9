"""When a disk scrubs, how fast, and what people may tell it: begin, or nothing at all for now.

Decides that a light tour begins a day after the last, a deep one a week after the last and is
paced to need no longer than that; that one that a person asked for goes before and faster; that
what could not be repaired is looked at again; and when all that is written down.

Implements docs/scrub.md, "When".
"""

import asyncio
from collections.abc import Callable, Sequence

from torus import limits
from torus.clock import Clock
from torus.errors import DiskFailed, PoolFull, TorusError
from torus.log import get_logger
from torus.metadata.schema import ScrubPause
from torus.store.store import Store
from torus.upkeep.budget import Budget
from torus.upkeep.pace import Pace, nobody_is_slow
from torus.upkeep.progress import Rate
from torus.upkeep.scrub import DiskScrub
from torus.upkeep.scrub_state import DEEP, FILE_NAME, LIGHT, ScrubState, Tour

log = get_logger("torus.scrub")
_NS = 10**9


def read_state(store: Store) -> ScrubState:
    """Return what a disk remembers; nothing where that cannot be read."""
    try:
        data = store.disk.read_file(FILE_NAME)
        return ScrubState() if data is None else ScrubState.from_bytes(data)
    except (OSError, ValueError) as exc:
        log.warning("scrub.memory.lost", disk=store.identity.disk_id, reason=str(exc))
        return ScrubState()


def due(state: ScrubState, now_ns: int, *, by_itself: bool = True) -> Tour | None:
    """Return the tour that goes on now, or begins; None when none is due.

    ``by_itself``: also what nobody asked for.
    """
    asked = [one for one in state.tours if one.asked]
    if asked or not by_itself:
        return asked[-1] if asked else None
    for depth, every_s in ((LIGHT, limits.SCRUB_LIGHT_S), (DEEP, limits.SCRUB_DEEP_S)):
        known = [one for one in state.tours if one.depth == depth and not one.asked]
        if known:
            return known[-1]
        last = state.last.get(depth)
        # A tour that is still to begin was noted by a clock that was set back since.
        if last is None or not 0 <= now_ns - last.began_ns < every_s * _NS:
            tour = Tour(depth == DEEP, False, (), now_ns)
            state.tours.append(tour)
            return tour
    return None


def rate_of(used_bytes: int, tour: Tour, rate_bytes: int | None) -> int:
    """Return the bytes that a tour may read in a second.

    ``rate_bytes``: what the operator set; None: as much as it takes.
    """
    if rate_bytes:
        return rate_bytes
    if tour.asked:
        return limits.SCRUB_RATE_BYTES_ASKED
    return max(limits.SCRUB_RATE_BYTES_MIN, int(used_bytes / limits.SCRUB_DEEP_S))


class ScrubTimes:
    """Runs the tours of one disk, from `start` to `close`."""

    def __init__(
        self,
        scrub: DiskScrub,
        clock: Clock,
        *,
        rate_bytes: int | None = None,
        clients_slow: Callable[[], bool] = nobody_is_slow,
    ) -> None:
        """``rate_bytes``: per second; None: what it takes; 0: only what is asked for."""
        self.scrub = scrub
        self.state = scrub.state
        self.pause: ScrubPause | None = None  # as the metadata says
        self.going_on: Tour | None = None
        self.problem = ""  # why it does not go on
        self.total = 0  # parts that the tour has, as far as is known
        self._rate = Rate()
        self._store = scrub.store
        self._clock = clock
        self._rate_bytes = rate_bytes
        self._clients_slow = clients_slow
        self._told = asyncio.Event()
        self._saved_ns = self._rechecked_ns = clock.monotonic_ns()
        self._ordered = False  # what people said is not written down yet
        self._task: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, when those who waited for the node have been served."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.problem = f"{type(error).__name__}: {error}"
            log.error("scrub.crashed", disk=self._store.identity.disk_id, exception=error)

    async def close(self) -> None:
        """End it where it is, and remember where that was; idempotent."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        if self._store.failure is None:
            try:
                await self.save()
            except TorusError as exc:
                log.warning("scrub.memory.not_saved", reason=str(exc))

    async def _run(self) -> None:
        wait_s = limits.SCRUB_FIRST_S
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._told.wait()
            except TimeoutError:
                pass
            self._told.clear()
            wait_s = limits.SCRUB_RECHECK_S
            try:
                await self.step()
                self.problem = ""
            except DiskFailed as exc:
                self.problem = exc.message
                log.warning("scrub.ended", disk=self._store.identity.disk_id, reason=str(exc))
                return
            except TorusError as exc:
                self.problem = exc.message
                log.info("scrub.given_up", reason=str(exc))

    async def step(self) -> None:
        """Look again at what is damaged, then end what tours are due.

        Raises: DiskFailed, Unavailable.
        """
        await self._recheck(0)
        while self.pause is None:
            tour = self._due()
            if tour is None:
                break
            await self._tour(tour)
        await self._save_now_and_then()

    async def between(self) -> None:
        """Do what is due between two parts of a tour.  Raises: DiskFailed, Unavailable."""
        await self._save_now_and_then()
        await self._recheck(limits.SCRUB_RECHECK_S)

    async def _recheck(self, every_s: float) -> None:
        now_ns = self._clock.monotonic_ns()
        if self.pause is None and now_ns - self._rechecked_ns >= every_s * _NS:
            self._rechecked_ns = now_ns
            await self.scrub.recheck()

    async def _tour(self, tour: Tour) -> None:
        used = len(self._store.chunks()) * self._store.geometry.slot_bytes
        rate = rate_of(used, tour, self._rate_bytes)
        budget = Budget(rate, limits.SCRUB_OPERATIONS * (5 if tour.asked else 1))
        pace = Pace(budget, self._clock, self._clients_slow)
        self.going_on = tour
        self.total = tour.chunks + len(self.scrub.parts(tour))
        try:
            if await self.scrub.tour(tour, _Saving(self, pace), lambda: self._may(tour)):
                self.scrub.ended(tour)
                log.info("scrub.ended", depth=tour.depth, chunks=tour.chunks, found=tour.found)
                await self.save()
        finally:
            self.going_on = None

    def _may(self, tour: Tour) -> bool:
        return self.pause is None and self._due() is tour

    def _due(self) -> Tour | None:
        return due(self.state, self._clock.wall_ns(), by_itself=self._rate_bytes != 0)

    @property
    def rate_bytes(self) -> float:
        """Return how many bytes are read in a second at present."""
        return self._rate.per_second(self._clock.monotonic_ns())

    def reading(self, count: int) -> None:
        """Note that so many bytes are about to be read."""
        self._rate.add(self._clock.monotonic_ns(), count)

    # --- what people say ----------------------------------------------------------------

    def begin(self, volumes: Sequence[int], *, deep: bool) -> None:
        """Begin a tour over some volumes, or all, before everything else.

        The same tour again is no other one; a deep one takes the place of a light one.
        """
        wanted = tuple(sorted(set(volumes)))
        for one in self.state.tours:
            if one.asked and one.volumes == wanted and one.deep >= deep:
                break
        else:
            self.state.tours = [one for one in self.state.tours if one.volumes != wanted or
                                not one.asked]  # fmt: skip
            self.state.tours.append(Tour(deep, True, wanted, self._clock.wall_ns()))
        self._ordered = True
        self._told.set()

    def obey(self, pause: ScrubPause | None) -> None:
        """Let nothing be read from now on; with None, go on."""
        if pause != self.pause:
            self.pause = pause
            self._told.set()

    # --- memory -------------------------------------------------------------------------

    async def save(self) -> None:
        """Write down what is known; durable on return.  Raises: DiskFailed."""
        self._saved_ns, self._ordered = self._clock.monotonic_ns(), False
        data = self.state.to_bytes()
        try:
            await self._store.in_pool(self._store.disk.replace_file, FILE_NAME, data)
        except OSError as exc:
            error = self._store.translate(exc, "note how far the scrub is")
            if not isinstance(error, PoolFull):
                raise error from exc

    async def _save_now_and_then(self) -> None:
        age_ns = self._clock.monotonic_ns() - self._saved_ns
        if self._ordered or age_ns >= limits.SCRUB_SAVE_S * _NS:
            await self.save()


class _Saving(Pace):
    """A pace that does what is due between the steps of a tour."""

    def __init__(self, times: ScrubTimes, pace: Pace) -> None:
        self._times = times
        self._pace = pace

    async def turn(self, count: int, operations: int = 1, *, moving: bool = False) -> None:
        await self._times.between()
        await self._pace.turn(count, operations, moving=moving)
        self._times.reading(count)
