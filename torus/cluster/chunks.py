"""What a volume's log needs from where its chunks lie: one interface, near and far.

`LocalChunks` (torus.cluster.local) calls a store of this process, `PeerChunks`
(torus.cluster.peer) asks a disk of a node through the peer protocol; both are one disk.  The
rules are those of design section 4; both are held to them by the same contract test.
`VolumeChunks` (torus.cluster.replicated) keeps the copies of one volume's chunks on many disks.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from torus._fast.blockio import BlockIo
from torus._fast.record import RecordBuilder
from torus.ids import ChunkId
from torus.metadata.schema import Span, VolumeSpec
from torus.store.content import Examined, Presence, Reopened

__all__ = [
    "Check",
    "ChunkWriter",
    "Chunks",
    "ChunksOf",
    "DiskChunks",
    "DiskWriter",
    "Examined",
    "Place",
    "Presence",
    "Reopened",
    "chunks_of",
]

Place = int | tuple[int | None, ...]
"""Where the compiled read path finds a chunk: the address of its slot; of one in shards a tuple,
as `torus._fast.datapath.Datapath` takes it."""

InThread = Callable[[Callable[[], bytes | None]], asyncio.Future[bytes | None]]
"""Runs a read that may block; the future has its result."""

Check = Callable[[int, bytes], bool]
"""Tells whether the bytes that came for the n-th piece of a read are right."""


class ChunkWriter(Protocol):
    """Appends records to one open chunk."""

    @property
    def immediate(self) -> bool:
        """Tell whether `append_now` appends: nothing here waits."""

    def append_now(self, index: int, offset: int, record: RecordBuilder) -> bool:
        """Append without waiting; False when this place can only be reached by waiting.

        Raises: as `append`.
        """

    async def append(self, index: int, offset: int, record: RecordBuilder) -> None:
        """Append a finished record; it is in the page cache of its node on return.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable, LocalProtocolError; Corruption when its
        node restarted since the chunk was opened.
        """


class DiskWriter(ChunkWriter, Protocol):
    """Appends records to one open chunk of one disk."""

    @property
    def boot_id(self) -> int:
        """Return under which boot id of the disk the chunk was opened."""

    def append_soon(self, index: int, offset: int, record: bytes) -> asyncio.Future[int] | None:
        """Send a finished record at once; None when that takes waiting, or an answer may take
        longer than a replica's: `append_bytes`.

        The future gets the boot id of the disk that has it.
        """

    def sync_soon(self) -> asyncio.Future[int] | None:
        """Send a sync of the chunk at once, on the connection that `append_soon` uses, which
        serves it behind the records that were sent before; None when that takes waiting.

        The future gets the boot id under which the chunk is durable.
        """

    async def append_bytes(self, index: int, offset: int, record: bytes) -> None:
        """Append a finished record's bytes; the same object may go to many disks.

        Raises: as `append`.
        """


class Chunks(Protocol):
    """The chunks of a cluster, as one volume's writer sees them."""

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot: no chunk is longer."""

    @property
    def chunk_bytes(self) -> int:
        """Up to which offset in its slot a chunk is filled that is written now."""

    @property
    def io(self) -> BlockIo | None:
        """Direct access, when the chunks are in this process."""

    @property
    def in_thread(self) -> InThread | None:
        """What makes a read of the files behind `io` that may wait for the disk; None where other
        disks may have the bytes sooner, so that `read_soon` decides."""

    def open_now(self, chunk: ChunkId, *, from_reserve: bool) -> ChunkWriter | None:
        """Open a new chunk without waiting; None when that takes waiting.

        Raises: Fenced, PoolFull, DiskFailed.
        """

    async def open(self, chunk: ChunkId, *, from_reserve: bool) -> ChunkWriter:
        """Open a new chunk for appending.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """

    def place(self, chunk: ChunkId, known: Place | None = None) -> Place | None:
        """Return where `io` finds a chunk; None when it does not.

        ``known``: what was returned before, some shards of which are missing.
        """

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        """Make all that was appended to ``chunks`` durable.

        Raises: DiskFailed, Unavailable; Corruption when a node restarted since the appends.
        """

    def sync_soon(self, chunks: Iterable[ChunkId]) -> asyncio.Future[None] | None:
        """Return the future of `sync` where that needs no coroutine, else None.

        Raises: as `sync`; so does the future.
        """

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        """Return the bytes of each (chunk, offset, size), unverified.

        Raises: Corruption when a chunk is not there or cannot be read, Unavailable.
        """

    async def read_checked(
        self, reads: Sequence[tuple[ChunkId, int, int]], check: Check
    ) -> list[bytes]:
        """Return the bytes of each (chunk, offset, size); where ``check(n, bytes)`` is false for
        one copy another is tried, and the first that came is returned when none is right: the
        caller checks again and says what is wrong with it.

        Raises: as `read`.
        """

    def read_soon(
        self, read: tuple[ChunkId, int, int], check: Callable[[bytes], bool]
    ) -> asyncio.Future[bytes | None] | None:
        """Return the future of one piece that passes the check, where another process has it and
        no coroutine is needed; None, now or as its result: `read_checked`.
        """

    async def fence(self, volume: int, epoch: int) -> None:
        """Refuse older epochs of ``volume`` from now on, durably.

        Raises: Fenced when there is a newer one, DiskFailed, Unavailable.
        """

    async def scan(self, chunk: ChunkId, epoch: int, offset: int) -> bytes | None:
        """Fence and read in one step: the chunk's bytes from ``offset`` to its slot's end.

        Returns: None when the chunk was never there: a positive answer, never a guess.
        Raises: Fenced, DiskFailed, Unavailable.
        """

    def is_certain(self, chunk: ChunkId) -> bool:
        """Tell whether every disk that should have a scanned chunk answered: if not, what is
        missing in it may be there."""

    async def settle(self, ends: Mapping[ChunkId, int]) -> None:
        """Make scanned chunks durable up to these offsets wherever they should be and can be:
        who scans later finds no less.

        Raises: Fenced, DiskFailed, Unavailable when not one disk has a chunk durably.
        """

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        """Free ``chunks``; returns how many were there.

        Raises: Fenced, DiskFailed, Unavailable.
        """

    async def list(self, volume: int) -> Sequence[ChunkId]:
        """Return the chunks of ``volume`` that exist.

        Raises: DiskFailed, Unavailable.
        """

    async def survey(self, volume: int) -> tuple[Sequence[ChunkId], bool]:
        """Return the chunks of ``volume`` that are known to exist, and whether that is all: a
        disk that cannot be asked may have others.

        Raises: DiskFailed, Unavailable.
        """

    def space(self) -> tuple[int, int] | None:
        """Return (slots that ordinary writes may still take, slots in all) of the disk that new
        chunks go to; None when that takes asking."""

    async def wait_for_space(self) -> None:
        """Return when slots may have become free, or after about a second."""

    # --- copies -------------------------------------------------------------------------

    @property
    def replicated(self) -> bool:
        """Tell whether disks may be lost without the log: if not, nothing below has a meaning."""

    @property
    def lost(self) -> bool:
        """Tell whether a disk failed that the open span needs: nothing may be answered before
        `secure` has returned."""

    async def secure(self) -> bool:
        """Make all that was appended durable on enough disks of each chunk, waiting for them if
        need be; return whether another span is needed: until that is published, nothing may be
        answered.  Nobody may append meanwhile.

        Raises: Fenced; Unavailable after `stop`.
        """

    def new_span(self) -> tuple[int, tuple[str, ...], int]:
        """Return the ring version that a new span is to be written under, the disks that it
        leaves out, and how many copies its chunks have; (0, (), 0) where there is no ring."""

    @property
    def missing(self) -> frozenset[str]:
        """Return the disks that may have less of the open span than the others, or of the one
        that was taken over."""

    def begin_span(self) -> None:
        """Learn that the span was closed where the log is and another one published."""

    def learn(self, volume: int, spans: Iterable[Span]) -> None:
        """Learn where the chunks of a log were written."""

    def follow(self, spec: VolumeSpec) -> None:
        """Learn what the volume is to be like: its redundancy holds from the next span on."""

    async def better_span(self) -> None:
        """Return when a new span would be better than the open one: the ring changed, or a disk
        that is left out is back.  Never, where there is one disk."""

    @property
    def waiting(self) -> str:
        """Return why nothing is answered at the moment, for people; empty: it is."""

    def stop_waiting(self) -> None:
        """Let what waits for disks end with Unavailable, now and later."""

    async def stop(self) -> None:
        """End what works for the volume in the background, and what waits; idempotent."""


class DiskChunks(Chunks, Protocol):
    """The chunks of one disk, near or far."""

    @property
    def disk_id(self) -> str:
        """Return which disk this is."""

    @property
    def boot_id(self) -> int:
        """Return the newest boot id of the disk that is known."""

    def place(self, chunk: ChunkId, known: Place | None = None) -> int | None:
        """Return the address of a whole copy, or of a shard's cell; None when it is not here, or
        not known yet."""

    async def open(self, chunk: ChunkId, *, from_reserve: bool) -> DiskWriter:
        """Open a new chunk for appending; again is no error while it has no record.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """

    def writer(self, chunk: ChunkId, boot_id: int) -> DiskWriter:
        """Return what appends to a chunk that was opened, or reopened, under ``boot_id``; by this
        way to the disk, whatever way it was opened by."""

    async def ping(self) -> None:
        """Return when the disk's node answers.

        Raises: Unavailable.
        """

    async def room(self) -> tuple[int, int]:
        """Return (slots that ordinary writes may still take, slots in all), as they are now.

        Raises: Unavailable.
        """

    def read_many_soon(
        self, reads: Sequence[tuple[ChunkId, int, int]], size: int
    ) -> asyncio.Future[list[bytes]] | None:
        """Return the future of a read of ``size`` bytes that was sent at once; None: `read`."""

    def sync_many_soon(self, chunks: Sequence[ChunkId]) -> asyncio.Future[int] | None:
        """Return the future of a sync that was sent at once: the boot id under which the chunks
        are durable; None: `sync`."""

    async def reopen(self, chunk: ChunkId, epoch: int) -> Reopened | None:
        """Find where a chunk's valid records end, so that appending goes on there, also with the
        writer of before, which has the present boot id then; idempotent.

        Returns: None when the chunk is positively not here.
        Raises: Fenced, DiskFailed, Unavailable; Corruption when it may lie in a slot that cannot
            be read, or has lost what was answered.
        """

    async def install(self, chunk: ChunkId, epoch: int, end: int, content: bytes) -> None:
        """Have a copy of ``chunk`` with the records ``content`` (bytes from the first record to
        ``end``), durable on return.

        Raises: Fenced, Corruption when ``content`` is not that, PoolFull, DiskFailed, Unavailable.
        """

    async def examine(self, chunks: Sequence[ChunkId]) -> Sequence[Examined]:
        """Say of each chunk whether it is here and what it holds.

        Raises: DiskFailed, Unavailable.
        """


ChunksOf = Callable[[VolumeSpec], Chunks]
"""Returns the chunks of a volume, for one writer or reader of it, who calls `Chunks.stop`."""


def chunks_of(chunks: Chunks | ChunksOf) -> ChunksOf:
    """Return what gives every volume ``chunks``, unless that is a `ChunksOf` already."""
    if callable(chunks):
        return chunks
    return lambda _spec: chunks
