"""One step of a collection: blocks that still live, written again at the end of the log.

Runs in the write queue, where nothing else changes the map: a block is found current in the
same step in which its copy gets its place.  A copy is an ordinary record of data.
"""

from torus import limits
from torus._fast.collect import Survivors
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.errors import Corruption, PoolFull, Unavailable
from torus.volume.core import Core
from torus.volume.items import Work


class Relocation(Work):
    """Appends one record of survivors, unless none is current any more."""

    __slots__ = ("_core", "_most", "_record", "_survivors", "moved_bytes", "problem")

    def __init__(self, core: Core, survivors: Survivors, *, most_bytes: int) -> None:
        super().__init__()
        self._core = core
        self._survivors = survivors
        self._most = most_bytes
        self._record = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, limits.RECORD_EXTENTS_MAX)
        self.moved_bytes = 0
        self.problem: Corruption | Unavailable | None = None  # a map page that cannot be read

    def run_now(self) -> bool:
        """Do it without waiting, while the write queue is idle; False when that is impossible.

        Raises: PoolFull, Fenced, DiskFailed.
        """
        core, journal = self._core, self._core.journal
        if self._survivors.cold(core.blocks) or (journal.room and not journal.immediate):
            return False
        while self._fill():
            try:
                opened = journal.next_chunk_now(from_reserve=False)
            except PoolFull:
                opened = journal.next_chunk_now(from_reserve=True)
            if not opened or not journal.immediate:
                return False
        if not self._record.empty:
            appended = journal.append_now(self._record, KIND_DATA)
            assert appended, "an immediate log appends without waiting"
            self._apply()
        return True

    async def run(self) -> None:
        """Append one record and enter it into the map.

        Raises: PoolFull, Fenced, DiskFailed, Unavailable (of the append).
        """
        core, journal = self._core, self._core.journal
        try:
            for block, count in self._survivors.cold(core.blocks):
                await core.load(block, count)
        except (Corruption, Unavailable) as exc:
            self.problem = exc
            return
        while self._fill():
            try:
                await journal.next_chunk(from_reserve=False)
            except PoolFull:
                await journal.next_chunk(from_reserve=True)
        if not self._record.empty:
            await journal.append(self._record, KIND_DATA)
            self._apply()

    def _fill(self) -> bool:
        """Put what is current into the record; True when it takes a new chunk first.

        The last slots of the pool may be used: this is how space is freed.
        """
        survivors, record = self._survivors, self._record
        survivors.fill(self._core.blocks, record, self._core.journal.room, self._most)
        return record.empty and not survivors.done

    def _apply(self) -> None:
        core, record = self._core, self._record
        core.enter(record)
        self.moved_bytes = record.payload_size
        core.collected_bytes += record.payload_size
