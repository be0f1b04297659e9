"""A store for other processes: what each request of the peer protocol does.

Decides what is checked before anything is stored or read on a peer's behalf: a record must be
whole and be what the request says it is, a range must lie in its chunk.  Nothing else is decided
here: the rules of appending, fencing and deleting are the store's.  Implements
docs/protocol.md, "Messages".
"""

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from typing import Any

from torus import limits
from torus._fast.peerframe import read_done_now
from torus._fast.record import RecordReader
from torus.cluster.local import LocalChunks
from torus.errors import Corruption, LocalProtocolError, Unavailable
from torus.ids import ChunkId
from torus.node.session import Outcome
from torus.store.appender import Appender
from torus.store.content import Bytes
from torus.store.store import Store
from torus.wire import messages as m

Chunk = tuple[int, int, int, int]  # a ChunkId, or what compares like one
_APPENDERS_MAX = 1024
_NO_LISTING: tuple[int, list[ChunkId]] = (0, [])  # no volume has this id
_READ_NOW_BYTES_MAX = 1 * limits.MIB  # more is copied by a thread of the pool


class PeerService:
    """Serves one disk to any number of peers; made and used on one event loop."""

    by_kind = True

    def __init__(self, store: Store, *, name: str = "") -> None:
        """``name`` is what peers see in their logs: the node's id."""
        self._store = store
        self._chunks = LocalChunks(store)
        self.hello = m.Hello(
            bytes.fromhex(store.identity.cluster_id), bytes.fromhex(store.identity.disk_id),
            store.boot_id, store.geometry.slot_bytes, limits.PEER_FRAME_BYTES_MAX,
            limits.PEER_IN_FLIGHT_BYTES_MAX, limits.PEER_IN_FLIGHT_REQUESTS_MAX, name,
        )  # fmt: skip
        store.grow_ahead()  # a peer that opens a chunk has little patience
        self.refused_records = 0
        self._appenders: dict[Chunk, Appender] = {}
        self._listing = _NO_LISTING
        self.boot_id = store.boot_id
        self.on_report: Callable[[bytes], Awaitable[bytes]] | None = None
        self._serve: dict[type, Callable[[Any], Outcome]] = {
            m.Open: self._open,
            m.Append: self._append,
            m.Sync: self._sync,
            m.Read: self._read,
            m.Fence: self._fence,
            m.Scan: self._scan,
            m.Delete: self._delete,
            m.List: self._list,
            m.Space: self._space,
            m.Status: self._status,
            m.Reopen: self._reopen,
            m.Install: self._install,
            m.Examine: self._examine,
            m.Ping: self._ping,
            m.Report: self._report,
        }

    def serve(self, request: m.Request) -> Outcome:
        """Carry a request out: its answer, or a coroutine when that takes waiting.

        Raises: TorusError; so may the coroutine.
        """
        return self._serve[type(request)](request)

    # --- requests that are answered at once ----------------------------------------------

    def _open(self, request: m.Open) -> Outcome:
        writer = self._chunks.open_now(request.chunk, from_reserve=request.from_reserve)
        return self._open_later(request) if writer is None else m.Opened(self._store.boot_id)

    async def _open_later(self, request: m.Open) -> m.Opened:
        await self._chunks.open(request.chunk, from_reserve=request.from_reserve)
        return m.Opened(self._store.boot_id)

    def _append(self, request: m.Append) -> m.Appended:
        self.append(request.chunk, request.index, request.offset, request.record)
        return m.Appended(self.boot_id)

    def append(self, chunk: Chunk, index: int, offset: int, record: Bytes) -> None:
        """Append a record that a peer sent; it is in the page cache on return.

        Raises: Corruption when the bytes are not the record they are said to be, each checksum
        included; else as `Appender.append`.
        """
        reader = RecordReader(record, chunk, offset, index)
        if not reader.advance() or not reader.payload_ok or reader.end != offset + len(record):
            self._refuse(reader, chunk, index, offset, len(record))
        appender = self._appenders.get(chunk)
        if appender is None or not appender.is_open:
            appender = self._store.appender(ChunkId(*chunk))
            if len(self._appenders) >= _APPENDERS_MAX:
                self._appenders.clear()
            if appender.is_open:
                self._appenders[ChunkId(*chunk)] = appender
        appender.append_bytes(index, offset, record)

    def _refuse(
        self, reader: RecordReader, chunk: Chunk, index: int, offset: int, size: int
    ) -> None:
        if reader.problem is not None:
            problem = reader.problem
        elif not reader.payload_ok:
            problem = "payload checksum is wrong"
        else:
            problem = f"{offset + size - reader.end} bytes follow it"
        self.refused_records += 1
        raise Corruption(
            f"record {index} for chunk {ChunkId(*chunk)} at {offset} was refused: {problem}"
        )

    def read_now(self, request: int, reads: list[tuple[Chunk, int, int]]) -> bytes | None:
        """Return the frame that answers a READ; None when that takes waiting, or an error."""
        slots, most = self._store.slots, self._store.geometry.slot_bytes
        places, total = [], 0
        for chunk, offset, size in reads:
            slot = slots.get(chunk)  # type: ignore[call-overload]
            if slot is None or offset + size > (slot.room or most):
                return None
            places.append((slot.address + offset, size))
            total += size
        if total > _READ_NOW_BYTES_MAX or len(reads) > limits.PEER_READS_MAX:
            return None
        try:
            return read_done_now(request, self._store.disk.io, places)
        except OSError:
            return None

    def sync_now(self, chunks: list[Chunk]) -> asyncio.Future[None] | None:
        """Return the future of a SYNC; None when that takes a coroutine.

        Raises: as `Store.sync`.
        """
        return self._store.sync_soon(chunks)  # type: ignore[arg-type]

    def _list(self, request: m.List) -> m.Listed:
        self._store.check_disk()
        start = 0
        if request.after is None or self._listing[0] != request.volume:
            # Sorted once for all pages: a TiB has 262,144 chunks.
            self._listing = (request.volume, sorted(self._store.chunks_of(request.volume)))
        chunks = self._listing[1]
        if request.after is not None:
            start = bisect_right(chunks, request.after)
        stop = start + request.limit
        page, more = chunks[start:stop], len(chunks) > stop
        if not more:
            self._listing = _NO_LISTING
        return m.Listed(page, more)

    def _status(self, request: m.Status) -> m.StatusIs:
        failure = self._store.failure
        return m.StatusIs(
            self._store.boot_id,
            self._usage(),
            len(self._store.damaged),
            "" if failure is None else failure.message,
        )

    def _ping(self, request: m.Ping) -> m.Pong:
        return m.Pong(self._store.boot_id)

    def _usage(self) -> m.SpaceIs:
        usage = self._store.usage
        return m.SpaceIs(
            usage.limit, usage.used, usage.reserve, usage.quarantined, usage.slot_bytes
        )

    def _report(self, request: m.Report) -> Outcome:
        if self.on_report is None:
            raise Unavailable("this node has no background work that could be asked")
        return self._report_later(self.on_report(bytes(request.question)))

    async def _report_later(self, answer: Awaitable[bytes]) -> m.Reported:
        return m.Reported(await answer)

    # --- requests that wait -------------------------------------------------------------

    async def _sync(self, request: m.Sync) -> m.Synced:
        await self._chunks.sync(request.chunks)
        return m.Synced(self._store.boot_id)

    async def _read(self, request: m.Read) -> m.ReadDone:
        for chunk, offset, size in request.reads:
            self._check_range(chunk, offset, size)
        return m.ReadDone(await self._chunks.read(request.reads))

    async def _fence(self, request: m.Fence) -> m.Fenced:
        await self._chunks.fence(request.volume, request.epoch)
        return m.Fenced(self._store.boot_id)

    async def _scan(self, request: m.Scan) -> m.Scanned:
        self._check_range(request.chunk, request.offset, 0)
        content = await self._chunks.scan(request.chunk, request.epoch, request.offset)
        return m.Scanned(content)

    async def _delete(self, request: m.Delete) -> m.Deleted:
        return m.Deleted(await self._chunks.delete(request.volume, request.epoch, request.chunks))

    async def _space(self, request: m.Space) -> m.SpaceIs:
        await self._chunks.wait_for_space()
        return self._usage()

    async def _reopen(self, request: m.Reopen) -> m.Reopened:
        found = await self._chunks.reopen(request.chunk, request.epoch)
        if found is None:
            return m.Reopened(self._store.boot_id, False, 0, 0, 0)
        return m.Reopened(found.boot_id, True, found.next_index, found.end, found.lsn)

    async def _install(self, request: m.Install) -> m.Installed:
        await self._chunks.install(request.chunk, request.epoch, request.end, request.content)
        return m.Installed(self._store.boot_id)

    async def _examine(self, request: m.Examine) -> m.Examined:
        found = await self._chunks.examine(request.chunks, afresh=request.afresh)
        return m.Examined([(int(one.state), *one[2:]) for one in found])

    def _check_range(self, chunk: ChunkId, offset: int, size: int) -> None:
        slot_bytes = self._store.geometry.slot_bytes
        if offset + size > slot_bytes:
            raise LocalProtocolError(
                f"{size} bytes at {offset} of chunk {chunk} end behind its slot of {slot_bytes}"
            )
