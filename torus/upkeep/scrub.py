"""The scrub of one disk: it reads again what lies here, tells damage, and has it repaired.

Decides the order of a tour (by id, so that it goes on behind the last part that was looked at),
what is looked at, and what becomes of damage: a lost slot header is written again, a copy is
pulled from the others, a shard is left to upkeep, and what nobody has whole is reported.

Implements docs/scrub.md.
"""

from collections.abc import Awaitable, Callable, Mapping

from torus import limits
from torus.clock import Clock
from torus.errors import Corruption, DiskFailed, TorusError
from torus.format.segment import segment_name
from torus.ids import VOLUME_ID_BITS, ChunkId, volume_of
from torus.log import get_logger
from torus.store.scrubbing import SlotBytes, check_segment, read_slot, remember, restore_header
from torus.store.shelves import Cell
from torus.store.store import Store
from torus.upkeep.mend import Mender, Outcome
from torus.upkeep.pace import Pace
from torus.upkeep.scrub_judge import Damage, Judged, Kind, judge_header, judge_slot
from torus.upkeep.scrub_logs import Settled, VolumeLog
from torus.upkeep.scrub_shards import look_at_shard
from torus.upkeep.scrub_state import (
    DEEP,
    FOUND,
    GONE,
    LIGHT,
    LOST,
    REPAIRED,
    WAITING,
    Done,
    ScrubState,
    Tour,
)  # fmt: skip

log = get_logger("torus.scrub")
_LIGHT_BYTES = 3 * limits.SECTOR_BYTES
_SEGMENT, _SLOT = 0, 1  # tags of what is no volume's: their ids begin with 1
_LOG_AGE_S = 30.0  # heads that were read so long ago are read again
Logs = Mapping[int, VolumeLog]


def is_shard(part: ChunkId) -> bool:
    """Tell a shard from a whole copy."""
    return part.volume >> VOLUME_ID_BITS != 0


class DiskScrub:
    """Looks at the parts of one disk; `torus.upkeep.scrub_times` decides when."""

    def __init__(
        self,
        store: Store,
        read_logs: Callable[[], Awaitable[Logs]],
        clock: Clock,
        state: ScrubState,
        mender: Mender | None = None,
    ) -> None:
        """``mender``: None on a single machine, which has no other copies."""
        self.store = store
        self.state = state
        self._read_logs = read_logs
        self._clock = clock
        self._mender = mender
        self._logs: Logs = {}
        self._logs_ns: int | None = None
        self._before: tuple[ChunkId, int] | None = None  # a whole chunk, its last lsn
        self._rechecked: dict[ChunkId, int] = {}  # when; monotonic
        self.bytes = 0  # since the start
        self.chunks = 0

    # --- a tour -------------------------------------------------------------------------

    def parts(self, tour: Tour) -> list[ChunkId]:
        """Return what a tour has still to look at, in its order."""
        cursor = tour.cursor
        return sorted(
            part
            for part in self.store.chunks()
            if (cursor is None or part > cursor)
            and (not tour.volumes or volume_of(part) in tour.volumes)
        )

    async def tour(self, tour: Tour, pace: Pace, going_on: Callable[[], bool]) -> bool:
        """Look at all that is left of a tour; False when ``going_on`` ended it before.

        Raises: DiskFailed; Unavailable when the metadata cannot be had.
        """
        self._before = None
        await self._refresh()
        if tour.cursor is None and not tour.volumes:
            await self._frame()
        for part in self.parts(tour):
            if not going_on():
                return False
            size = self._size(part) if tour.deep else _LIGHT_BYTES
            await pace.turn(size)
            await self._refresh()
            before = sum(self.state.found.values())
            await self.look(part, deep=tour.deep)
            tour.found += sum(self.state.found.values()) - before
            tour.cursor = part
            tour.chunks += 1
            tour.bytes += size
            self.chunks += 1
            self.bytes += size
        self._presence(tour)
        return True

    def _size(self, part: ChunkId) -> int:
        slot = self.store.slots.get(part)
        return slot.room if isinstance(slot, Cell) else self.store.geometry.slot_bytes

    def ended(self, tour: Tour) -> None:
        """Remember the result of a tour that is over."""
        self.state.tours.remove(tour)
        if tour.volumes:
            return
        done = Done(tour.began_ns, self._clock.wall_ns(), tour.chunks, tour.bytes, tour.found)
        for depth in (LIGHT, DEEP) if tour.deep else (LIGHT,):
            self.state.last[depth] = done
        # What the clock began before is done by this one, too.
        self.state.tours = [
            one for one in self.state.tours if (one.deep and not tour.deep) or one.asked
        ]

    async def _refresh(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if self._logs_ns is None or now_ns - self._logs_ns > _LOG_AGE_S * 1e9:
            self._logs = await self._read_logs()
            self._logs_ns = now_ns

    async def _frame(self) -> None:
        """Look at what is no chunk's: segment headers, and slots that were damaged when the disk
        was opened and are not used since."""
        slots = map(self.store.slots.get, self.store.chunks())
        for segment in sorted({slot.segment for slot in slots if slot is not None}):
            part = ChunkId(0, 0, _SEGMENT, segment)
            problem = await check_segment(self.store, segment)
            if problem:
                damage = Damage(Kind.ROTTEN, 0, problem)
                self._note(part, damage, "", segment_name(segment), LOST)
            else:
                self._close(part, REPAIRED)
        known = {part for part in self.state.open if part[:3] == (0, 0, _SLOT)}
        for number, problem in enumerate(self.store.damaged):
            part = ChunkId(0, 0, _SLOT, number)
            kind = Kind.MISPLACED if "belongs to" in problem else Kind.ROTTEN
            self._note(part, Damage(kind, 0, problem), "", problem.partition(":")[0], FOUND)
            known.discard(part)
        for part in known:
            self._close(part, GONE)

    def _presence(self, tour: Tour) -> None:
        """Find what should be here and is not; upkeep has it then."""
        if self._mender is None:
            return
        wanted = set(tour.volumes)
        for part in self._mender.upkeep.lacking:
            if wanted and volume_of(part) not in wanted:
                continue
            name = self._name(part)
            damage = Damage(Kind.MISSING, 0, "it should be here and is not")
            tour.found += part not in self.state.open
            self._note(part, damage, name, "-", WAITING)

    # --- one part -----------------------------------------------------------------------

    async def look(self, part: ChunkId, *, deep: bool) -> None:
        """Look at one part, and have repaired what is wrong with it.

        Raises: DiskFailed.
        """
        try:
            if is_shard(part):
                await self._shard(part, deep=deep)
            else:
                await self._copy(part, deep=deep)
        except DiskFailed:
            self.store.check_disk()  # another one's failure is not an end of this scrub
        except TorusError as exc:
            log.info("scrub.part.later", part=str(part), reason=str(exc))

    async def recheck(self) -> None:
        """Look again at all that could not be repaired.  Raises: DiskFailed, Unavailable."""
        if not self.state.open:
            return
        self._logs_ns = None
        await self._refresh()
        now_ns = self._clock.monotonic_ns()
        for part, found in list(self.state.open.items()):
            if not part.volume:
                continue  # of no volume: at the next tour
            every_s = limits.UPKEEP_ROUND_S if found.state == LOST else 0.0
            if now_ns - self._rechecked.get(part, -(1 << 62)) < every_s * 1e9:
                continue
            self._rechecked[part] = now_ns
            if not self._absent(part):
                await self.look(part, deep=True)
            elif self._mender is None or part not in self._mender.upkeep.lacking:
                self._close(part, GONE)

    def _absent(self, part: ChunkId) -> bool:
        if is_shard(part):
            return False  # looking at it tells
        try:
            return self.store.find(part) is None
        except Corruption:
            return False

    def _settled(self, part: ChunkId) -> Settled | None:
        found = self._logs.get(volume_of(part))
        return None if found is None else found.settled(part)

    async def _copy(self, chunk: ChunkId, *, deep: bool) -> None:
        settled = self._settled(chunk)
        known = chunk in self.state.open
        if await self._read(chunk, settled, deep=deep or known) is not None:
            await self._repair(chunk, settled)
        elif known and await self._goes_on(chunk):
            self._close(chunk, REPAIRED)

    async def _read(self, chunk: ChunkId, settled: Settled | None, *, deep: bool) -> Damage | None:
        """Return what is wrong with a copy here.  A lost header is written again at once."""
        store = self.store
        try:
            read = await read_slot(store, chunk, whole=deep)
        except Corruption as exc:
            damage = Damage(Kind.MISSING, 0, exc.message)
            return self._found(chunk, damage) if settled is not None else None
        if read is None:
            return None
        if not deep:
            header = judge_header(read.data[: limits.SECTOR_BYTES], read.header)
            return None if header is None else await self._read(chunk, settled, deep=True)
        exact = None if settled is None else settled.exact
        judged = await store.in_pool(judge_slot, read.data, read.header, exact, read.known)
        return await self._judged(read, settled, judged)

    async def _judged(
        self, read: SlotBytes, settled: Settled | None, judged: Judged
    ) -> Damage | None:
        chunk = read.header.chunk
        if settled is None and read.known is None:
            # It may be an unflushed end, or nobody's: only its header is certain.
            judged = judged._replace(content=None) if judged.records else judged
            if not judged.records:
                return None
        if judged.content is None:
            if judged.header is not None:
                await self._restore(read, judged.header)
            remember(self.store, read, judged.end, judged.records, judged.crc)
            if settled is not None:
                return await self._long_enough(chunk, judged, settled)
            return None
        remember(self.store, read, judged.end, judged.records, judged.crc)
        return self._found(chunk, judged.content)

    async def _restore(self, read: SlotBytes, damage: Damage) -> None:
        chunk = read.header.chunk
        self._found(chunk, damage)
        if await restore_header(self.store, read):
            self._close(chunk, REPAIRED)

    async def _long_enough(self, chunk: ChunkId, judged: Judged, settled: Settled) -> Damage | None:
        """Compare a copy that is whole in itself with what comes behind it, and with others'."""
        before, self._before = self._before, (chunk, judged.last_lsn)
        if before is not None and before[0] == (*chunk[:3], chunk.sequence - 1):
            if judged.records and judged.first_lsn != before[1] + 1:
                what = f"its last lsn is {before[1]}, the next chunk begins with {judged.first_lsn}"
                self._found(before[0], Damage(Kind.STALE, 0, what))
                await self._repair(before[0], self._settled(before[0]))
        if self._mender is None or settled.exact is not None:
            return None
        log_of = self._logs[chunk.volume]
        other = await self._mender.compare(chunk, log_of.copies)
        if other is None or (other.end, other.crc) == (judged.end, judged.crc):
            return None
        if other.end > judged.end:
            what = f"it ends at {judged.end}, another disk's at {other.end}"
            return self._found(chunk, Damage(Kind.STALE, judged.end, what))
        return None

    # --- repair -------------------------------------------------------------------------

    async def _repair(self, chunk: ChunkId, settled: Settled | None) -> None:
        """Have a damaged copy repaired, and look whether it is."""
        log_of = self._logs.get(chunk.volume)
        outcome = Outcome.LOST
        if self._mender is not None:
            outcome = Outcome.WAITING
            if log_of is not None and settled is not None:
                outcome = await self._mender.mend(chunk, log_of, settled.exact)
                self.store.check_disk()
                if outcome is Outcome.TRIED:
                    outcome = Outcome.WAITING
        self._before = None
        if await self._read(chunk, settled, deep=True) is None and await self._goes_on(chunk):
            self._close(chunk, REPAIRED)
        elif log_of is not None and log_of.erasure:
            self._set_state(chunk, await self._leave_to_upkeep(chunk))  # shards may make it
        else:
            self._set_state(chunk, LOST if outcome is Outcome.LOST else WAITING)

    async def _goes_on(self, chunk: ChunkId) -> bool:
        """Tell whether nothing that lies here says that a stale chunk should be longer."""
        found = self.state.open.get(chunk)
        if found is None or found.kind != Kind.STALE:
            return True
        lsns = []
        for one in (chunk, ChunkId(*chunk[:3], chunk.sequence + 1)):
            read = await read_slot(self.store, one, whole=True)
            if read is None:
                return True  # the next one was freed, or lies elsewhere
            judged = await self.store.in_pool(judge_slot, read.data, read.header, None, read.known)
            lsns.append((judged.first_lsn, judged.last_lsn))
        return not lsns[1][0] or lsns[0][1] + 1 == lsns[1][0]

    async def _shard(self, part: ChunkId, *, deep: bool) -> None:
        """Look at a shard; what is wrong is left to upkeep, which builds it anew."""
        deep = deep or part in self.state.open
        found = await look_at_shard(self.store, part, deep=deep)
        if found is None:
            self._close(part, GONE)
            return
        for damage in found.restored:
            self._found(part, damage)
            self._close(part, REPAIRED)
        if found.damage is None:
            if deep:
                self._close(part, REPAIRED)
        elif self._settled(part) is not None:
            self._found(part, found.damage)
            self._set_state(part, await self._leave_to_upkeep(part))

    async def _leave_to_upkeep(self, part: ChunkId) -> str:
        """Have upkeep look at a part; return whether anybody can make it."""
        if self._mender is None:
            return LOST
        self._mender.upkeep.doubt(part)
        return LOST if await self._mender.is_lost(part) else WAITING

    # --- findings -----------------------------------------------------------------------

    def _name(self, part: ChunkId) -> str:
        found = self._logs.get(volume_of(part))
        return "" if found is None else found.name

    def _found(self, part: ChunkId, damage: Damage) -> Damage:
        slot = self.store.slots.get(part)
        where = "-"
        if slot is not None:
            number = self.store.geometry.slot_of(slot.address)
            cell = f" cell {slot.number}" if isinstance(slot, Cell) else ""
            where = f"{segment_name(slot.segment)} slot {number}{cell} offset {damage.offset}"
        self._note(part, damage, self._name(part), where, FOUND)
        return damage

    def _note(self, part: ChunkId, damage: Damage, name: str, where: str, state: str) -> None:
        new = part not in self.state.open
        found = self.state.note(part, damage, name, where, self._clock.wall_ns())
        if new:
            found.state = state
            log.error(
                "scrub.damage", part=str(part), kind=found.kind, volume=name, where=where,
                what=damage.what,
            )  # fmt: skip

    def _set_state(self, part: ChunkId, state: str) -> None:
        found = self.state.open.get(part)
        if found is not None and found.state != state:
            found.state, found.changed_ns = state, self._clock.wall_ns()
            if state == LOST:
                log.error("scrub.lost", part=str(part), volume=found.name, what=found.what)

    def _close(self, part: ChunkId, state: str) -> None:
        self._rechecked.pop(part, None)
        found = self.state.close(part, state, self._clock.wall_ns())
        if found is not None:
            log.warning("scrub.closed", part=str(part), kind=found.kind, state=state)
