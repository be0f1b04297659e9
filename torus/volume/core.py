"""What the parts of an attached volume share: its map, its log, its chunks, its fate."""

from collections.abc import Callable

from torus._fast.blockmap import BlockMap
from torus._fast.record import RecordBuilder
from torus.cluster.chunks import Chunks
from torus.errors import DiskFailed, TorusError
from torus.log import get_logger
from torus.metadata.schema import VolumeSpec
from torus.volume.family import Family
from torus.volume.log import Log
from torus.volume.pins import Pins
from torus.volume.spans import Spans
from torus.volume.view import View

log = get_logger("torus.volume")


class Core(View):
    """One attached volume.  Used from one event loop."""

    def __init__(
        self,
        spec: VolumeSpec,
        epoch: int,
        family: Family,
        blocks: BlockMap,
        journal: Log,
        chunks: Chunks,
        cache_bytes: int,
        pins: Pins,
    ) -> None:
        super().__init__(spec.name, blocks, family, chunks, cache_bytes)
        self.spec = spec
        self.epoch = epoch
        self.journal = journal
        self.pins = pins
        self.failure: TorusError | None = None
        journal.on_chunk = self.enter_chunk
        self.on_failure: Callable[[TorusError], None] | None = None  # called once, with it
        self.hold_leaves = False  # a record is being made
        self.last_data_lsn = journal.lsn
        self.checkpoint_lsn = journal.lsn
        self.log_bytes_at_checkpoint = 0
        self.client_bytes = 0  # written by clients since the attach
        self.collected_bytes = 0  # written again by the collector

    @property
    def spans(self) -> Spans:
        """The spans of the volume's own log."""
        return self.family.own

    @spans.setter
    def spans(self, spans: Spans) -> None:
        self.family = Family(spans, self.family.ancestors)
        self.chunks.learn(spans.volume, spans)

    def enter(self, record: RecordBuilder) -> None:
        """Enter a record of data, the last of the log, into the map."""
        record.apply(self.blocks)
        self.last_data_lsn = self.journal.lsn

    def fail(self, error: TorusError) -> None:
        """Stop serving: every later call raises ``error``."""
        if self.failure is None:
            self.failure = error
            log.error("volume.failed", volume=self.spec.name, epoch=self.epoch, error=str(error))
            if self.on_failure is not None:
                self.on_failure(error)

    def check(self) -> None:
        """Refuse work on a volume that has failed or was lost to another writer.

        Raises: the error that ended it.
        """
        if self.failure is not None:
            raise self.failure

    def check_reads(self) -> None:
        """Refuse reads of a volume that was lost; a failed disk may still be read.

        Raises: the error that ended it.
        """
        if self.failure is not None and not isinstance(self.failure, DiskFailed):
            raise self.failure

    def enter_chunk(self, sequence: int) -> None:
        """Make a chunk that the log has just opened known to the map and the compiled path."""
        self.blocks.open_sequence(sequence)
        self.note_place(sequence)

    def shrink_cache(self) -> None:
        """Drop clean leaves beyond the cache's size, unless a record is being made: the leaves
        that it will change must stay until it is in the map."""
        if not self.hold_leaves:
            self.drop_leaves()

    @property
    def log_bytes(self) -> int:
        """Bytes appended since the last checkpoint."""
        return self.journal.appended_bytes - self.log_bytes_at_checkpoint

    @property
    def dirty(self) -> bool:
        """True when there is data that the last checkpoint does not cover."""
        return self.last_data_lsn > self.checkpoint_lsn
