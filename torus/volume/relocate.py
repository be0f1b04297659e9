"""One step of a collection: blocks that still live, written again at the end of the log.

Runs in the write queue, where nothing else changes the map: a block is found current in the
same step in which its copy gets its place.  A copy is an ordinary record of data.
"""

from torus import limits
from torus._fast.collect import Survivors
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.clock import Clock
from torus.errors import Corruption, PoolFull, Unavailable
from torus.volume.core import Core
from torus.volume.writes import Work


class Relocation(Work):
    """Appends one record of survivors, unless none is current any more."""

    __slots__ = ("_began_ns", "_clock", "_core", "_most", "_reserve", "_survivors", "moved_bytes",
                 "problem", "waited_ns")  # fmt: skip

    def __init__(
        self, core: Core, survivors: Survivors, clock: Clock, *, most_bytes: int, reserve: bool
    ) -> None:
        """``reserve``: the last slots of the pool may be used."""
        super().__init__()
        self._core = core
        self._survivors = survivors
        self._clock = clock
        self._most = most_bytes
        self._reserve = reserve
        self._began_ns = clock.monotonic_ns()
        self.moved_bytes = 0
        self.waited_ns = 0  # for its turn in the queue
        self.problem: Corruption | Unavailable | None = None  # a map page that cannot be read

    async def run(self) -> None:
        """Append one record and enter it into the map.

        Raises: PoolFull, Fenced, DiskFailed, Unavailable (of the append).
        """
        core, survivors = self._core, self._survivors
        self.waited_ns = self._clock.monotonic_ns() - self._began_ns
        try:
            for block, count in survivors.cold(core.blocks):
                await core.load(block, count)
        except (Corruption, Unavailable) as exc:
            self.problem = exc
            return
        record = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, limits.RECORD_EXTENTS_MAX)
        while not survivors.done:
            survivors.fill(core.blocks, record, self._room, self._most)
            if not record.empty:
                break
            if not survivors.done:
                await self._next_chunk()
        if record.empty:
            return
        await core.journal.append(record, KIND_DATA)
        record.apply(core.blocks)
        core.last_data_lsn = core.journal.lsn
        self.moved_bytes = record.payload_size
        core.collected_bytes += record.payload_size

    @property
    def _room(self) -> int:
        journal = self._core.journal
        return 0 if journal.reserved and not self._reserve else journal.room

    async def _next_chunk(self) -> None:
        try:
            await self._core.journal.next_chunk(from_reserve=False)
        except PoolFull:
            if not self._reserve:
                raise
            await self._core.journal.next_chunk(from_reserve=True)
