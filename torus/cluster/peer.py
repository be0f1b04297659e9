"""The chunks of another process's node, reached through the peer protocol.

Decides when to connect again, what may be asked twice, and when a node's restart means that
records may be gone.  Implements docs/protocol.md, "Loss of a connection" and "Boot ids".
"""

import asyncio
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary

from torus import limits
from torus._fast.blockio import BlockIo
from torus.cluster.asked import Deadlines, split_reads
from torus.cluster.chunks import Place
from torus.cluster.dialing import Dialing, connect
from torus.cluster.link import PeerLink
from torus.cluster.nearby import NearbyFiles
from torus.cluster.one_disk import OneDisk
from torus.cluster.peer_writer import PeerWriter
from torus.cluster.reconnecting import Reconnecting
from torus.errors import (
    RemoteProtocolError,
    Unavailable,
)
from torus.ids import ChunkId
from torus.net.address import Address
from torus.net.tls import TlsFiles
from torus.store.content import Bytes, Examined, Presence, Reopened
from torus.wire import messages as m

_NO_ID = bytes(16)


class _Unflushed:
    """What was appended to a chunk since its last sync: under which boot id, how often."""

    __slots__ = ("appends", "boot_id")

    def __init__(self, boot_id: int) -> None:
        self.boot_id = boot_id
        self.appends = 0


class PeerChunks(Reconnecting, OneDisk):
    """A `Chunks` over one disk of a node; made by `PeerChunks.connect`, closed by its maker."""

    def __init__(self, address: Address, link: PeerLink, dialing: Dialing, retry_s: float) -> None:
        """For `connect`."""
        super().__init__(address, link, dialing, retry_s)
        self.io: BlockIo | None = None
        self._nearby: NearbyFiles | None = None
        self._unflushed: dict[ChunkId, _Unflushed] = {}
        self._writers: WeakValueDictionary[ChunkId, PeerWriter] = WeakValueDictionary()
        self.slot_bytes = link.peer.slot_bytes
        self.append_patience_s = dialing.deadlines.of(m.Append)

    @classmethod
    async def connect(
        cls,
        address: Address,
        cluster_id: str,
        *,
        disk_id: str = "",
        secret: str = "",
        tls: TlsFiles | None = None,
        name: str = "",
        timeout_s: float = limits.PEER_REQUEST_TIMEOUT_S,
        retry_s: float = limits.PEER_RETRY_S,
        silence_s: float | None = None,
    ) -> "PeerChunks":
        """Connect to disk ``disk_id`` (empty: the only one) of the node at ``address``, which must
        be of cluster ``cluster_id`` and know its ``secret``; ``tls`` is for TCP.

        ``name`` is for the node's log.  A request has ``timeout_s`` for its answer; after a lost
        connection it is tried again for ``retry_s``, 0: never.  With ``silence_s`` the connection
        ends when the node says nothing for so long, be it asked anything or not; so long an
        append may take, and `limits.REPLICA_SYNC_S` a sync.

        Raises: Unavailable, PermissionDenied, ForeignData, UnknownVersion, RemoteProtocolError,
        NotFound when the node has no such disk, Busy, ConfigError.
        """
        hello = m.Hello(
            bytes.fromhex(cluster_id), bytes.fromhex(disk_id) or _NO_ID, 0, 0,
            limits.PEER_FRAME_BYTES_MAX, limits.PEER_IN_FLIGHT_BYTES_MAX,
            limits.PEER_IN_FLIGHT_REQUESTS_MAX, name,
        )  # fmt: skip
        dialing = Dialing(hello, secret.encode(), tls, Deadlines(timeout_s, silence_s))
        return cls(address, await connect(address, dialing), dialing, retry_s)

    # --- Chunks -------------------------------------------------------------------------

    def open_now(self, chunk: ChunkId, *, from_reserve: bool) -> None:
        """Return None: the node can only be reached by waiting."""

    async def open(self, chunk: ChunkId, *, from_reserve: bool) -> PeerWriter:
        """Open a new chunk for appending."""
        answer = await self._ask(m.Open(chunk, from_reserve), m.Opened)
        return self.writer(chunk, answer.boot_id)

    def writer(self, chunk: ChunkId, boot_id: int) -> PeerWriter:
        """Return the writer of a chunk that was opened, or reopened, under ``boot_id``."""
        writer = self._writers.get(chunk)
        if writer is None:
            writer = self._writers[chunk] = PeerWriter(self, chunk, boot_id)
        writer.boot_id = boot_id
        return writer

    def read_files(self, nearby: NearbyFiles) -> None:
        """Read chunks from the files of the node, which is on this host, where it hands them
        out; ``nearby`` is closed by its maker."""
        self._nearby, self.io = nearby, nearby.io

    def place(self, chunk: ChunkId, known: Place | None = None) -> int | None:
        """Return the address of a chunk in the node's files, once that is known."""
        return None if self._nearby is None else self._nearby.place(chunk, self)

    async def append(
        self, chunk: ChunkId, index: int, offset: int, record: bytes, boot_id: int
    ) -> None:
        """Append a record's bytes to a chunk that was opened under ``boot_id``.

        Raises: as `PeerWriter.append`.
        """
        sent = self.append_soon(chunk, index, offset, record, boot_id)
        found = await self._unless_lost(sent)
        if found is None:
            request = m.Append(chunk, index, offset, record)
            answer = await self._ask(request, m.Appended, chunk=chunk, boot_id=boot_id)
            found = answer.boot_id
        self._check_boot(chunk, boot_id, found)
        unflushed = self._unflushed.get(chunk)
        if unflushed is None:
            unflushed = self._unflushed[chunk] = _Unflushed(boot_id)
        unflushed.appends += 1

    def append_soon(
        self, chunk: ChunkId, index: int, offset: int, record: bytes, boot_id: int
    ) -> asyncio.Future[int] | None:
        """Send a record, if that is possible at once, to a node that has ``boot_id``; the future
        gets the boot id of the answer."""
        link = self._link
        if link is None or link.failure is not None or link.peer.boot_id != boot_id:
            return None
        return link.append_soon(chunk, index, offset, record)

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        """Make all that was appended to ``chunks`` durable.

        Raises: DiskFailed, Unavailable; Corruption when the node restarted since the appends.
        """
        wanted = tuple(chunks)
        before = {
            chunk: (unflushed.boot_id, unflushed.appends)
            for chunk in wanted
            if (unflushed := self._unflushed.get(chunk)) is not None
        }
        for start in range(0, len(wanted), limits.PEER_CHUNKS_MAX):
            part = wanted[start : start + limits.PEER_CHUNKS_MAX]
            first = next((chunk for chunk in part if chunk in before), None)
            boot_id = None if first is None else before[first][0]
            found = await self._sync_part(part, first, boot_id)
            for chunk in part:
                if chunk in before:
                    self._check_boot(chunk, before[chunk][0], found)
        for chunk, (_, appends) in before.items():
            unflushed = self._unflushed.get(chunk)
            if unflushed is not None and unflushed.appends == appends:
                del self._unflushed[chunk]

    async def _sync_part(
        self, part: Sequence[ChunkId], first: ChunkId | None, boot_id: int | None
    ) -> int:
        link = self._link
        if link is not None and (boot_id is None or link.peer.boot_id == boot_id):
            found = await self._unless_lost(link.sync_soon(part))
            if found is not None:
                return found
        answer = await self._ask(m.Sync(part), m.Synced, chunk=first, boot_id=boot_id)
        return answer.boot_id

    def sync_soon(self, chunks: Iterable[ChunkId]) -> None:
        return None

    def sync_many_soon(self, chunks: Sequence[ChunkId]) -> asyncio.Future[int] | None:
        """Send one SYNC; see `DiskChunks.sync_many_soon`."""
        link = self._link
        if link is None or link.failure is not None or len(chunks) > limits.PEER_CHUNKS_MAX:
            return None
        return link.sync_soon(chunks)

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        """Return the bytes of each (chunk, offset, size), unverified.

        Raises: Corruption when a chunk is not there or cannot be read, Unavailable.
        """
        size = sum([size for _, _, size in reads])
        if size <= limits.PEER_READ_BYTES_MAX and len(reads) <= limits.PEER_READS_MAX:
            return await self._read_part(reads, size)
        parts = list(split_reads(reads))
        found = await asyncio.gather(
            *[self._read_part(part, sum([size for _, _, size in part])) for part in parts]
        )
        return [piece for pieces in found for piece in pieces]

    def read_many_soon(
        self, reads: Sequence[tuple[ChunkId, int, int]], size: int
    ) -> asyncio.Future[list[bytes]] | None:
        """Send one READ of ``size`` bytes; the future gets the pieces as the node sent them."""
        link = self._link
        return None if link is None or link.failure is not None else link.read_soon(reads, size)

    async def _read_part(self, reads: Sequence[tuple[ChunkId, int, int]], size: int) -> list[bytes]:
        link = self._link
        sent = None if link is None else link.read_soon(reads, size)
        pieces = await self._unless_lost(sent)
        if pieces is None:
            answer = await self._ask(m.Read(reads), m.ReadDone)
            pieces = [bytes(piece) for piece in answer.pieces]
        sizes = [len(piece) for piece in pieces]
        if sizes != [size for _, _, size in reads]:
            raise RemoteProtocolError(
                f"node at {self._address} answered a read with pieces of {sizes} bytes"
            )
        return pieces

    async def fence(self, volume: int, epoch: int) -> None:
        """Refuse older epochs of ``volume`` from now on, durably.

        What this process appended under them is no longer its own: it is read anew.
        """
        for chunk in [chunk for chunk in self._unflushed if chunk.volume == volume]:
            del self._unflushed[chunk]
        await self._ask(m.Fence(volume, epoch), m.Fenced)

    async def scan(self, chunk: ChunkId, epoch: int, offset: int) -> bytes | None:
        """Fence and read in one step; None when the chunk was never there.

        What was read may not be durable yet: a later `sync` counts only while the node has not
        been restarted in between.
        """
        boot_id = self._node.boot_id  # before asking: never a later one
        answer = await self._ask(m.Scan(chunk, epoch, offset), m.Scanned)
        if answer.content is None:
            return None
        self._unflushed.setdefault(chunk, _Unflushed(boot_id))
        if len(answer.content) != self.slot_bytes - offset:
            raise RemoteProtocolError(
                f"node at {self._address} answered a scan of {self.slot_bytes - offset} bytes "
                f"with {len(answer.content)}"
            )
        return bytes(answer.content)

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        """Free ``chunks``; return how many were there, or at least how many of them the last
        attempt found when a connection was lost on the way."""
        wanted, count = tuple(chunks), 0
        for start in range(0, len(wanted), limits.PEER_CHUNKS_MAX):
            part = wanted[start : start + limits.PEER_CHUNKS_MAX]
            count += (await self._ask(m.Delete(volume, epoch, part), m.Deleted)).count
            for chunk in part:
                self._unflushed.pop(chunk, None)
        return count

    async def list(self, volume: int) -> Sequence[ChunkId]:
        """Return the chunks of ``volume`` that exist, in order."""
        chunks: list[ChunkId] = []
        after = None
        while True:
            page = await self._ask(m.List(volume, after, limits.PEER_CHUNKS_MAX), m.Listed)
            if page.chunks and after is not None and page.chunks[0] <= after:
                raise RemoteProtocolError(f"node at {self._address} lists chunks out of order")
            chunks += page.chunks
            if not page.more:
                return chunks
            after = page.chunks[-1]

    # --- copies -------------------------------------------------------------------------

    async def reopen(self, chunk: ChunkId, epoch: int) -> Reopened | None:
        """Find where a chunk's valid records end on the node; from then on it takes appends there
        under its present boot id, also of a writer from before.

        Returns: None when the chunk is positively not there.
        Raises: Fenced, DiskFailed, Unavailable, Busy; Corruption when it may be there unreadable.
        """
        answer = await self._ask(m.Reopen(chunk, epoch), m.Reopened)
        self._unflushed.pop(chunk, None)  # what it holds is known anew
        if not answer.found:
            return None
        writer = self._writers.get(chunk)
        if writer is not None:
            writer.boot_id = answer.boot_id
        return Reopened(answer.boot_id, answer.next_index, answer.end, answer.lsn)

    async def install(self, chunk: ChunkId, epoch: int, end: int, content: Bytes) -> None:
        """Have a copy of ``chunk`` on the node, its records ending at ``end``; durable on return.

        Raises: Fenced, Corruption, PoolFull, DiskFailed, Unavailable, Busy, LocalProtocolError.
        """
        await self._ask(m.Install(chunk, epoch, end, content), m.Installed)

    async def examine(
        self, chunks: Sequence[ChunkId], *, afresh: bool = False
    ) -> Sequence[Examined]:
        """Say of each chunk whether the node has it and what it holds.

        Raises: DiskFailed, Unavailable.
        """
        found: list[Examined] = []
        for start in range(0, len(chunks), limits.PEER_EXAMINE_CHUNKS_MAX):
            part = chunks[start : start + limits.PEER_EXAMINE_CHUNKS_MAX]
            answer = await self._ask(m.Examine(part, afresh), m.Examined)
            if len(answer.copies) != len(part):
                raise RemoteProtocolError(f"node at {self._address} examined other chunks")
            for chunk, (state, *rest) in zip(part, answer.copies, strict=True):
                found.append(Examined(chunk, Presence(state), *rest))
        return found

    # --- space --------------------------------------------------------------------------

    def space(self) -> tuple[int, int] | None:
        """Return None: what a node said a while ago may be wrong by now."""
        return None

    async def wait_for_space(self) -> None:
        """Return when slots may have become free, or after about a second."""
        try:
            await self._ask(m.Space(), m.SpaceIs)
        except Unavailable:
            return  # the next request says so itself

    async def room(self) -> tuple[int, int]:
        """Return (slots that ordinary writes may still take, slots in all).

        Raises: Unavailable.
        """
        space = (await self.status()).space
        used = space.used + space.reserve + space.quarantined
        return max(0, space.limit - used), space.limit

    async def ping(self) -> None:
        """Return when the node answers.

        Raises: Unavailable.
        """
        await self._ask(m.Ping(), m.Pong)

    async def report(self, question: bytes) -> bytes:
        """Ask the background work of the disk's node; question and answer are JSON.

        Raises: Unavailable, and what the other side answers.
        """
        return bytes((await self._ask(m.Report(question), m.Reported)).answer)

    async def status(self) -> m.StatusIs:
        """Return how the node's disk is.

        Raises: Unavailable.
        """
        return await self._ask(m.Status(), m.StatusIs)
