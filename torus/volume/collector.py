"""The collection of one attached volume's garbage.

Carries out plans (`torus.volume.collect_plan`): reads victims, has what lives in them written
again through the write queue, asks for a checkpoint.  It deletes nothing: a victim that has
nothing live left is found dead by the checkpoint like any other chunk.  So an error anywhere
costs a round, never data, and a victim that could not be emptied simply stays.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from torus import limits
from torus._fast.collect import Survivors
from torus.clock import Clock
from torus.errors import Corruption, PoolFull, ShuttingDown, TorusError, Unavailable
from torus.log import get_logger
from torus.volume.checkpoint import Checkpointer
from torus.volume.collect_pace import Pacer
from torus.volume.collect_plan import Bounds, Plan, plan, plan_all, utilisation
from torus.volume.collect_read import VictimReader
from torus.volume.core import Core
from torus.volume.leaves import LEAF_BLOCKS, UNIT
from torus.volume.relocate import Relocation
from torus.volume.writes import WriteQueue

log = get_logger("torus.collect")

BLOCK = limits.BLOCK_BYTES
_LOOK_S = 60.0  # trims make garbage without a byte of log


@dataclass(slots=True)
class Collected:
    """What a collection did."""

    rounds: int = 0
    victims: int = 0
    moved_bytes: int = 0
    chunks_before: int = 0
    chunks_after: int = 0
    utilisation_before: float = 1.0
    utilisation_after: float = 1.0
    rotten: list[int] = field(default_factory=list)  # bytes of the volume that cannot be read
    problem: str = ""  # why it ended early


class Collector:
    """Collects one volume: in the background, and when it is told to.  One round at a time."""

    def __init__(
        self,
        core: Core,
        queue: WriteQueue,
        checkpointer: Checkpointer,
        clock: Clock,
        *,
        rate_bytes: int = 0,
        target: float = limits.GC_TARGET_PERCENT / 100,
    ) -> None:
        """``rate_bytes``: what the background may move per second; 0 leaves it out."""
        self._core = core
        self._queue = queue
        self._checkpointer = checkpointer
        self._clock = clock
        self._target = target
        self._pacer = Pacer(rate_bytes) if rate_bytes else None
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._seen_bytes = 0
        self._stuck: dict[int, int] = {}  # chunks that were not emptied, and what lives there
        self._quiet_lsn = 0  # of the log when the background last found nothing more to do
        self._reader = VictimReader(core)
        self._emptying: set[int] = set()  # victims whose map pages are still where they were
        self._emptied = 0  # victims since the last checkpoint of ours
        self._lsn = 0  # of the last record that we wrote
        self.total = Collected()
        self._task: asyncio.Task[None] | None = None
        if self._pacer is not None:
            self._task = asyncio.ensure_future(self._run())
            self._task.add_done_callback(self._ended)

    # --- when ---------------------------------------------------------------------------

    def consider(self) -> None:
        """Wake the background task when enough was written since it looked last; cheap."""
        appended = self._core.journal.appended_bytes
        if appended - self._seen_bytes >= limits.GC_LOOK_BYTES or self._queue.blocked:
            self._wake.set()

    def request(self) -> None:
        """Wake the background task: space is short."""
        self._quiet_lsn = -1
        self._wake.set()

    def ask_stop(self) -> None:
        """End what is under way at its next step; nothing is put into the write queue then."""
        self._stop.set()
        self._wake.set()

    async def stop(self) -> None:
        """Stop, and wait until everything has; idempotent."""
        self.ask_stop()
        if self._task is not None:
            await asyncio.wait([self._task])
        async with self._lock:
            return

    async def _run(self) -> None:
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._wake.wait(), _LOOK_S)
            except TimeoutError:
                pass
            self._wake.clear()
            if self._stop.is_set() or self._core.failure is not None:
                return
            if self._core.journal.lsn == self._quiet_lsn:
                continue
            async with self._lock:
                await self._guarded(self._background, self.total)
            self._seen_bytes = self._core.journal.appended_bytes
            self._quiet_lsn = self._core.journal.lsn

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._core.fail(TorusError(f"the collector ended: {error!r}"))

    async def _background(self, done: Collected) -> None:
        if self._worth_checkpoint():
            await self._checkpoint()
        bounds = self._bounds()  # not what is written from now on: there is an end to this
        while not self._stop.is_set():
            short = self._short
            found = self._plan(self._target, limits.GC_ROUND_CHUNKS, bounds)
            if not found.victims:
                if self._emptied == 0:
                    return
            else:
                await self._round(found, done, paced=not short)
            if short or not found.victims or self._emptied >= limits.GC_DEAD_CHUNKS_MAX:
                await self._checkpoint(urgent=short)

    def _worth_checkpoint(self) -> bool:
        """Tell whether what is worth collecting is kept from it by being replayed."""
        return (
            not self._plan(self._target, 1, self._bounds()).victims
            and bool(self.dry_run().victims)
            and (self._short or self._core.log_bytes >= limits.GC_CHECKPOINT_LOG_BYTES)
        )

    # --- what is asked for --------------------------------------------------------------

    def dry_run(self, target: float | None = None) -> Plan:
        """Return what a collection would empty now, in one round: it begins with a checkpoint,
        so nothing but the open chunk is left out for being replayed."""
        bounds = replace(self._bounds(), before=self._core.journal.chunk.sequence)
        return self._worth(target or self._target, limits.GC_ROUND_CHUNKS_MAX, bounds)

    async def collect(
        self,
        *,
        target: float | None = None,
        chunks_max: int = limits.GC_ROUND_CHUNKS_MAX,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Collected:
        """Collect until the log is used to ``target``, or nothing more is worth it.

        ``progress(moved bytes, bytes to move)`` is called after each step.
        Returns: what was done; ``problem`` says why it ended early.
        Raises: the volume's failure.
        """
        goal = target or self._target

        async def work(done: Collected) -> None:
            bounds = self._bounds()
            while not self._stop.is_set():
                found = self._worth(goal, chunks_max, bounds)
                if not found.victims:
                    return
                await self._round(found, done, progress=progress)
                await self._checkpoint()

        return await self._told(work)

    async def defragment(
        self,
        *,
        chunks_max: int = limits.GC_ROUND_CHUNKS_MAX,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Collected:
        """Write everything that no snapshot pins anew, in the order of addresses.

        Raises: the volume's failure.
        """

        async def work(done: Collected) -> None:
            bounds, after = self._bounds(), 0
            while not self._stop.is_set():
                counts = self._core.blocks.usage.counts()
                most = self._affordable_units
                found = plan_all(
                    counts, bounds, after=after, chunks_max=chunks_max, live_units_max=most
                )
                if not found.victims:
                    return
                await self._round(found, done, progress=progress)
                await self._checkpoint()
                after = found.victims[-1]

        return await self._told(work)

    async def _told(self, work: Callable[[Collected], Awaitable[None]]) -> Collected:
        """Do what somebody asked for, between two checkpoints: only what is older than the
        first can be a victim, and only the one after the last finds the victims dead."""
        self._core.check()
        async with self._lock:
            done = Collected(chunks_before=self._chunks, utilisation_before=self._utilisation)

            async def whole(done: Collected) -> None:
                await self._checkpoint()
                await work(done)
                if self._stop.is_set():
                    raise ShuttingDown("the volume is being closed")
                await self._checkpoint()
                await self._checkpointer.delete_due(at_once=True)

            await self._guarded(whole, done)
            done.chunks_after, done.utilisation_after = self._chunks, self._utilisation
        self._core.check()
        return done

    # --- one round ----------------------------------------------------------------------

    async def _guarded(self, work: Callable[[Collected], Awaitable[None]], done: Collected) -> None:
        """Do it; an error ends it with nothing deleted."""
        try:
            await work(done)
        except ShuttingDown:
            done.problem = "the volume was closed"
        except (PoolFull, Corruption, Unavailable) as exc:
            done.problem = str(exc)
            log.warning("collect.ended_early", volume=self._core.name, error=str(exc))
        except TorusError as exc:
            self._core.fail(exc)

    async def _round(
        self,
        found: Plan,
        done: Collected,
        *,
        paced: bool = False,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Empty the victims of a plan."""
        began_ns = self._clock.monotonic_ns()
        moved_before = done.moved_bytes
        candidates = await self._reader.candidates(found.victims, self._stop.is_set)
        total = found.live_units * UNIT
        while candidates.left and not self._stop.is_set():
            survivors = await self._reader.survivors(candidates, alone=self._alone)
            done.rotten += [block * BLOCK for block in survivors.rotten]
            while not survivors.done and not self._stop.is_set():
                await self._step(survivors, done, paced=paced)
                progress(done.moved_bytes - moved_before, total)
        self._emptying.update(found.victims)
        self._note_stuck(found.victims)
        done.rounds += 1
        done.victims += len(found.victims)
        self._emptied += len(found.victims)
        log.debug(
            "collect.round",
            volume=self._core.name,
            victims=len(found.victims),
            moved=done.moved_bytes - moved_before,
            utilisation=round(found.utilisation, 3),
            milliseconds=(self._clock.monotonic_ns() - began_ns) // 1_000_000,
        )

    async def _step(self, survivors: Survivors, done: Collected, *, paced: bool) -> None:
        """Have one record written, when the budget allows it."""
        core, pacer = self._core, self._pacer if paced else None
        if pacer is not None:
            delay_ns = pacer.delay_ns(self._clock.monotonic_ns())
            if delay_ns and await self._stopped_within(delay_ns / 1e9):
                return
        # Alone, whole records; beside clients, short ones: those who come meanwhile wait.
        most = limits.RECORD_PAYLOAD_BYTES_MAX if self._alone else limits.GC_STEP_BYTES
        step = Relocation(core, survivors, most_bytes=most)
        came_ns = self._clock.monotonic_ns()
        await asyncio.sleep(0)  # clients first; how long that takes tells how they are
        waited_ns = self._clock.monotonic_ns() - came_ns
        # Between two turns of the event loop nobody waits for the write queue.
        if core.path is None or not self._queue.idle or not step.run_now():
            await self._queue.put(step)
        self._queue.note_progress()
        self._lsn = core.journal.lsn
        if step.problem is not None:
            raise step.problem
        done.moved_bytes += step.moved_bytes
        if pacer is not None:
            pacer.moved(step.moved_bytes, waited_ns, self._clock.monotonic_ns())

    @property
    def _alone(self) -> bool:
        """True when nobody wrote since our last step."""
        return self._core.journal.lsn == self._lsn

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _checkpoint(self, *, urgent: bool = False) -> None:
        """Have the map forget the victims: the checkpoint after that finds them dead."""
        emptied = await self._rewrite_pages()
        await self._checkpointer.write(urgent=urgent)
        if emptied and urgent:
            await self._checkpointer.write(urgent=True)
        self._emptied = 0

    async def _rewrite_pages(self) -> bool:
        """Have the next checkpoint write the map pages that lie in victims elsewhere.

        Returns: whether there are victims.
        """
        core, checkpointer = self._core, self._checkpointer
        if not self._emptying:
            return False
        while True:
            try:
                leaves = core.blocks.mark_pages_dirty(self._emptying)
                break
            except LookupError:
                await checkpointer.write()  # one is under way: its pages lie elsewhere anyway
        for index in leaves:
            await core.load(index * LEAF_BLOCKS, 1)
            core.blocks.touch_leaf(index)
        self._emptying.clear()
        return True

    def _note_stuck(self, victims: tuple[int, ...]) -> None:
        """Remember the victims that still have something live: rot, or what damage hides.

        They are left alone until something else in them dies.
        """
        for sequence in victims:
            self._stuck.pop(sequence, None)
            if units := self._core.blocks.live(sequence):
                self._stuck[sequence] = units

    # --- figures ------------------------------------------------------------------------

    def _bounds(self) -> Bounds:
        core, root = self._core, self._checkpointer.head.root
        before = 0 if root is None else root.replay_sequence
        before = min(before, core.journal.chunk.sequence)
        return Bounds(core.chunks.chunk_bytes // UNIT, before, core.pins.through)

    def _worth(self, target: float, chunks_max: int, bounds: Bounds) -> Plan:
        """Return a plan; without victims that do not free a chunk, unless space is short."""
        found = self._plan(target, chunks_max, bounds)
        return found if found.worth or self._short else found.nothing()

    def _plan(self, target: float, chunks_max: int, bounds: Bounds) -> Plan:
        counts = self._core.blocks.usage.counts()
        return plan(
            counts,
            bounds,
            target=target,
            chunks_max=chunks_max,
            live_units_max=self._affordable_units,
            skipped=[one for one, units in self._stuck.items() if counts.get(one) == units],
        )

    @property
    def _affordable_units(self) -> int | None:
        """What a round may write before anything is freed by it; None: whatever it takes."""
        space = self._core.chunks.space()
        if space is None:
            return None
        return max(1, space[0] // 2) * (self._core.chunks.slot_bytes // UNIT)

    @property
    def _short(self) -> bool:
        """True when space is so short that clients' comfort comes second."""
        space = self._core.chunks.space()
        short = space is not None and space[0] * 100 < space[1] * limits.GC_SHORT_PERCENT
        return short or self._queue.blocked > 0

    @property
    def _chunks(self) -> int:
        return len(self._core.blocks.usage.counts())

    @property
    def _utilisation(self) -> float:
        return utilisation(self._core.blocks.usage.counts(), self._bounds())
