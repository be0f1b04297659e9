"""Places where chunks lie, for tests: one store, called directly or through the peer protocol."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from tests.contract.certificates import make_certificates
from torus import limits
from torus._fast.blockio import PythonIo
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.clock import SystemClock
from torus.cluster.local import LocalChunks
from torus.cluster.peer import PeerChunks
from torus.format.identity import DiskIdentity
from torus.ids import ChunkId
from torus.net.address import Address, TcpAddress, UnixAddress
from torus.net.listener import Listener
from torus.net.tls import TlsFiles
from torus.node.server import PeerServer, listen_for_peers
from torus.node.service import PeerService
from torus.store.disk import Bytes, PosixDisk
from torus.store.pool import ThreadPool
from torus.store.store import Store

SLOT_BYTES = 64 * limits.KIB
SLOTS = 16
CLUSTER = "c1" * 16
DISK = "d1" * 16
FIRST = limits.SLOT_HEADER_BYTES
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class _DiskIo(PythonIo):
    """The compiled path through Python's methods, which can fail on demand."""

    def set_file(self, segment: int, fd: int) -> None:
        return


class FaultyDisk(PosixDisk):
    """A data directory whose writes or syncs fail while ``broken`` names them."""

    def __init__(self, path: Path, identity: DiskIdentity) -> None:
        super().__init__(path)
        self.use_geometry(identity.geometry)
        self.io = _DiskIo(self)  # type: ignore[assignment]
        self.broken: set[str] = set()

    def _fail(self, what: str) -> None:
        if what in self.broken:
            raise OSError(errno.EIO, "injected")

    def read_now(self, address: int, size: int) -> bytes | None:
        return self.read(address, size)

    def write(self, address: int, data: Bytes) -> None:
        self._fail("write")
        super().write(address, data)

    def sync_soon(self, segment: int) -> None:
        """Let the pool call `sync`, which may be broken."""

    def sync(self, segment: int) -> None:
        self._fail("sync")
        super().sync(segment)


class Place:
    """One store in a folder, on a loop of its own, and the `Chunks` that reach it."""

    def __init__(self, kind: str, loop: str, folder: Path, sockets: Path) -> None:
        self.kind = kind
        self.address: Address = UnixAddress(str(sockets / "peer"))
        self.secret = ""
        self.tls: TlsFiles | None = None
        if kind in ("tcp", "tls"):
            self.address, self.secret = TcpAddress("127.0.0.1", 0), "ab" * 32
        if kind == "tls":
            self.tls = make_certificates(sockets)["node"]
        self._loop = loop
        self._folder = folder
        self.boot_id = 1000
        self.cluster, self.disk_id = CLUSTER, DISK
        self.retry_s, self.timeout_s = 5.0, 20.0
        self.silence_s: float | None = None
        self.make_service: Callable[[Store], PeerService] = PeerService

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        """Start, run ``scenario`` with a deadline, take everything down."""

        async def bounded() -> None:
            async with asyncio.timeout(60):
                await self.start()
                try:
                    self.chunks = await self.reach()
                    await scenario()
                finally:
                    if isinstance(getattr(self, "chunks", None), PeerChunks):
                        await self.chunks.close()  # type: ignore[attr-defined]
                    await self.stop()

        with asyncio.Runner(loop_factory=LOOPS[self._loop]) as runner:
            runner.run(bounded())

    async def start(self) -> None:
        """Open the store, and serve it when it is reached from afar."""
        identity = DiskIdentity(self.disk_id, self.cluster, SLOT_BYTES, SLOTS, 0)
        self.disk = FaultyDisk(self._folder, identity)
        self.pool = ThreadPool(2, "store")
        self.store = Store(
            self.disk, identity, self.pool, SystemClock(), self.boot_id,
            size_bytes=SLOT_BYTES * SLOTS,
        )  # fmt: skip
        self.store.open()
        self.listener: Listener | None = None
        if self.kind != "local":
            self.service = self.make_service(self.store)
            self.server = PeerServer(self.cluster, [self.service], secret=self.secret, name="node")
            self.service.server = self.server  # type: ignore[attr-defined]
            self.listener = await listen_for_peers(self.address, self.server, tls=self.tls)
            self.address = self.listener.address

    async def stop(self) -> None:
        """Close what `start` opened."""
        if self.listener is not None:
            self.listener.close()
            await self.server.close()
        await self.store.close()
        self.pool.close()

    async def restart(self) -> None:
        """Open the disk anew, under another boot id."""
        await self.stop()
        self.boot_id += 1
        await self.start()
        if self.kind == "local":
            self.chunks = LocalChunks(self.store)

    async def reach(self) -> LocalChunks | PeerChunks:
        """Return the chunks as a writer sees them."""
        if self.kind == "local":
            return LocalChunks(self.store)
        return await PeerChunks.connect(
            self.address, CLUSTER, name="test", timeout_s=self.timeout_s, retry_s=self.retry_s,
            secret=self.secret, tls=self.tls, silence_s=self.silence_s,
        )  # fmt: skip


def record(chunk: ChunkId, index: int, offset: int, *, fill: int = 1, blocks: int = 1) -> bytes:
    """Return a finished record's bytes; see `build`."""
    return build(chunk, index, offset, fill=fill, blocks=blocks).tobytes()


def build(
    chunk: ChunkId, index: int, offset: int, *, fill: int = 1, blocks: int = 1
) -> RecordBuilder:
    """Return a finished record of ``blocks`` blocks full of the byte ``fill``."""
    builder = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, 4)
    builder.add_data(7, bytes([fill]) * (blocks * limits.BLOCK_BYTES))
    builder.finish(KIND_DATA, chunk, index, index + 1, 0, offset)
    return builder
