"""A store for other processes: what each request of the peer protocol does.

Decides what is checked before anything is stored or read on a peer's behalf: a record must be
whole and be what the request says it is, a range must lie in its chunk.  Nothing else is decided
here: the rules of appending, fencing and deleting are the store's.  Implements
docs/protocol.md, "Messages".
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from torus import limits
from torus._fast.record import RecordReader
from torus.cluster.local import LocalChunks
from torus.errors import Busy, Corruption, LocalProtocolError, ShuttingDown, TorusError
from torus.ids import ChunkId
from torus.log import get_logger
from torus.net.address import Address, UnixAddress
from torus.net.listener import Listener, listen
from torus.node.session import Outcome, Session
from torus.store.store import Store
from torus.wire import messages as m

log = get_logger("torus.node")
_GOODBYE_TIMEOUT_S = 5.0


class PeerService:
    """Serves one store to any number of peers; made and used on one event loop."""

    def __init__(self, store: Store, *, name: str = "") -> None:
        """``name`` is what peers see in their logs: the node's id."""
        self._store = store
        self._chunks = LocalChunks(store)
        self._sessions: set[Session] = set()
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.hello = m.Hello(
            bytes.fromhex(store.identity.cluster_id), bytes.fromhex(store.identity.disk_id),
            store.boot_id, store.geometry.slot_bytes, limits.PEER_FRAME_BYTES_MAX,
            limits.PEER_IN_FLIGHT_BYTES_MAX, limits.PEER_IN_FLIGHT_REQUESTS_MAX, name,
        )  # fmt: skip
        self.refused_records = 0
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
        }

    @property
    def connections(self) -> int:
        """Peers that are connected."""
        return len(self._sessions)

    def protocol(self) -> Session:
        """Return the protocol of a new connection, for `torus.net.listener.listen`."""
        refusal: TorusError | None = None
        if self._closing:
            refusal = ShuttingDown("the node is shutting down", hint="try again in a moment")
        elif len(self._sessions) >= limits.PEER_CONNECTIONS_MAX:
            refusal = Busy(f"the node has {len(self._sessions)} peers, its most")
        session = Session(self, self._on_ended, refusal)
        self._sessions.add(session)
        self._idle.clear()
        return session

    def _on_ended(self, session: Session) -> None:
        self._sessions.discard(session)
        if not self._sessions:
            self._idle.set()

    async def close(self) -> None:
        """Answer what is under way, refuse what comes, hang up; idempotent.

        The listener is closed before, the store after.
        """
        self._closing = True
        await asyncio.gather(*[session.drain() for session in list(self._sessions)])
        try:
            await asyncio.wait_for(self._idle.wait(), _GOODBYE_TIMEOUT_S)
        except TimeoutError:
            for session in list(self._sessions):
                session.abort()
            await self._idle.wait()

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
        self._verify(request)
        appender = self._store.appender(request.chunk)
        appender.append_bytes(request.index, request.offset, request.record)
        return m.Appended(self._store.boot_id)

    def _verify(self, request: m.Append) -> None:
        """Refuse bytes that are not the record they are said to be, each checksum included."""
        reader = RecordReader(request.record, request.chunk, request.offset, request.index)
        if not reader.advance():
            problem = reader.problem
        elif not reader.payload_ok:
            problem = "payload checksum is wrong"
        elif reader.end != request.offset + len(request.record):
            problem = f"{request.offset + len(request.record) - reader.end} bytes follow it"
        else:
            return
        self.refused_records += 1
        raise Corruption(
            f"record {request.index} for chunk {request.chunk} at {request.offset} was refused: "
            f"{problem}"
        )

    def _list(self, request: m.List) -> m.Listed:
        self._store.check_disk()
        chunks = sorted(self._store.chunks_of(request.volume))
        if request.after is not None:
            after = request.after
            chunks = [chunk for chunk in chunks if chunk > after]
        return m.Listed(chunks[: request.limit], len(chunks) > request.limit)

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


async def listen_for_peers(address: Address, service: PeerService) -> Listener:
    """Accept peers at ``address``; a unix socket is for the node's own user only.

    Raises: Busy, PermissionDenied, UsageError.
    """
    listener = await listen(address, service.protocol)
    if isinstance(address, UnixAddress):
        os.chmod(address.path, 0o600)
    log.info("node.peer.listening", address=str(listener.address))
    return listener
