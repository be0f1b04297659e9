"""On which disks a chunk lies: where it was written, and where it may have moved since.

Decides from rings and spans alone; who of them can be reached is `torus.cluster.pool`'s, what is
right when they disagree is the reader's.  Implements docs/replication.md, "Where a chunk lies".
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from torus.cluster.membership import FIRST_RING, ClusterView
from torus.errors import NotFound, TorusError, Unavailable
from torus.ids import ChunkId
from torus.log import get_logger
from torus.metadata.schema import Span
from torus.redundancy.scheme import Scheme

log = get_logger("torus.placement")


class Written(NamedTuple):
    """Under what a span was written."""

    ring: int
    excluded: frozenset[str]
    open: bool
    copies: int


class Placement:
    """The disks of the chunks of one volume and its ancestors."""

    def __init__(self, view: ClusterView, scheme: Scheme, former: Sequence[Scheme] = ()) -> None:
        """``scheme``: of what is written from now on; ``former``: those before, beginning with that
        of the spans that name no number of copies."""
        self._view = view
        self._scheme = scheme
        self._first_copies = (*former, scheme)[0].copies
        self._parts = max(one.disks_needed for one in (*former, scheme))
        self._sharded = any(one.erasure for one in (*former, scheme))
        self._spans: dict[tuple[int, int, int], Written] = {}

    @property
    def scheme(self) -> Scheme:
        """Return how chunks are to be kept."""
        return self._scheme

    @property
    def copies(self) -> int:
        """Return how many copies a chunk is to have that is written."""
        return self._scheme.copies

    @property
    def parts(self) -> int:
        """Return on how many disks of a ring a chunk has been at most."""
        return self._parts

    @property
    def sharded(self) -> bool:
        """Tell whether some of the chunks may lie in shards."""
        return self._sharded

    def follow(self, scheme: Scheme) -> None:
        """Keep chunks in another way; those of known spans lie where they were written."""
        self._scheme = scheme
        self._parts = max(self._parts, scheme.disks_needed)
        self._sharded |= scheme.erasure

    def learn(self, volume: int, spans: Iterable[Span], *, writing: bool = True) -> None:
        """Learn where the chunks of a log were written.

        ``writing``: this process is the log's writer.  For any other the span that was open when
        it looked may be closed by now, and its chunks may have moved.
        """
        for span in spans:
            is_open = writing and span.last is None
            copies = span.copies or self._first_copies
            written = Written(span.ring, frozenset(span.excluded), is_open, copies)
            self._spans[volume, span.epoch, span.tag] = written
            self._parts = max(self._parts, copies)

    def copies_of(self, chunk: ChunkId) -> int:
        """Return how many copies a chunk was written with."""
        written = self._spans.get(chunk[:3])
        return self.copies if written is None else written.copies

    def knows(self, chunk: ChunkId) -> bool:
        """Tell whether a chunk's span is known."""
        return chunk[:3] in self._spans

    def is_open(self, chunk: ChunkId) -> bool:
        """Tell whether the chunk's span is open: then every one of its disks had to have every
        record that was answered."""
        written = self._spans.get(chunk[:3])
        return written is not None and written.open

    async def fetch(self, chunk: ChunkId) -> None:
        """Have the ring known that a chunk was written under, which may be newer than the picture
        of the cluster here.

        Raises: Unavailable, also for a chunk of the open span whose ring is forgotten.
        """
        written = self._spans.get(chunk[:3])
        if written is not None:
            try:
                await self._view.fetch_ring(written.ring)
            except NotFound as exc:
                if not written.open:
                    return  # its chunks may have moved anyway: everybody is asked
                raise Unavailable(
                    f"where chunk {chunk} lies cannot be told: {exc.message}"
                ) from exc

    def written_to(self, chunk: ChunkId) -> list[str]:
        """Return the disks that a chunk's span places it on, the first ones first.

        Raises: Unavailable when that cannot be told.
        """
        written = self._spans.get(chunk[:3])
        if written is None:
            raise Unavailable(f"where chunk {chunk} was written is not known here")
        ring = self._view.ring_at(written.ring)
        owners = ring.owners(chunk, written.copies, written.excluded)
        return [member.disk_id for member in owners]

    def covers(self, chunk: ChunkId, disks: Collection[str]) -> bool:
        """Tell whether ``disks`` are all that a chunk was written to; no, where that ring is
        forgotten.

        Raises: Unavailable when the chunk's span is not known.
        """
        try:
            return all(disk in disks for disk in self.written_to(chunk))
        except NotFound:
            return False

    def owners(self, chunk: ChunkId) -> list[str]:
        """Return the disks that must have a chunk, or had to: those of the present ring, then
        those of its span."""
        owners: list[str] = []
        try:
            if not self.is_open(chunk):  # open chunks never move
                present = self._view.ring.owners(chunk, self.copies)
                owners += [member.disk_id for member in present]
            owners += self.written_to(chunk)
        except TorusError as exc:
            log.debug("placement.unknown", chunk=str(chunk), error=str(exc))
        return list(dict.fromkeys(owners))

    def sharers(self, chunk: ChunkId, shards: int) -> list[str]:
        """Return the disks of the present ring that a chunk's shards belong on, by position."""
        if not self._view.has_ring:
            return []
        return [member.disk_id for member in self._view.ring.owners(chunk, shards)]

    def stays_on(self, chunk: ChunkId, disk_id: str) -> bool:
        """Tell whether a chunk was written to a disk and belongs there still; no, where the ring
        is forgotten that it was written under.

        Raises: Unavailable when that cannot be told.
        """
        try:
            if disk_id not in self.written_to(chunk):
                return False
        except NotFound:
            return False
        present = self._view.ring.owners(chunk, self.copies)
        return self.is_open(chunk) or any(one.disk_id == disk_id for one in present)

    def ever(self, chunk: ChunkId) -> list[str]:
        """Return the disks that may still have a chunk or a shard of it: its owners, and those of
        the rings since it was written, which may not have given it up yet; all disks where one
        of these rings is not known."""
        disks = self.owners(chunk)
        written = self._spans.get(chunk[:3])
        # A chunk in whole copies moves when its span is closed; into shards it goes before that.
        moves = written is not None and (not written.open or self._parts > written.copies)
        if written is not None and moves and self._view.has_ring:
            for version in range(max(written.ring, FIRST_RING), self._view.ring.version + 1):
                try:
                    between = self._view.ring_at(version).owners(chunk, self._parts)
                except TorusError:
                    return list(self._view.disks())  # a version that was forgotten
                disks += [member.disk_id for member in between]
        return list(dict.fromkeys(disks))
