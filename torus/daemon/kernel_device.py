"""One volume as a disk of this machine's kernel: its sockets, their loss, its size, its end.

Decides what the end of a connection means: the kernel disconnected the device, it gave one
connection up, or the volume is lost; and what the device is told about itself.  What becomes of
the process then is `torus.daemon.kernel_gateway`'s.

Implements docs/attach.md, "How it survives".
"""

import asyncio
import enum
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Protocol

from torus import limits
from torus.errors import Fenced, NotFound, TorusError
from torus.gateway.handed import HandedConnection
from torus.log import get_logger
from torus.nbd.handshake import transmission_flags
from torus.net import block_device
from torus.net.nbd_ioctl import IoctlDevice
from torus.net.netlink_nbd import DeviceOptions, NbdFamily

log = get_logger("torus.attach")

_REPAIR_S = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)  # between attempts to give the kernel a new socket


class Ending(enum.IntEnum):
    """Why a gateway of the kernel ended: its exit code, read by its supervisor."""

    DETACHED = 0  # the kernel has the device no more
    AGAIN = 90  # a new process may do better; the device waits for it
    LOST = 91  # the volume is somebody else's, or gone; the device was disconnected
    RESTART = 92  # somebody asked for a new process; the device waits for it
    LEFT = 93  # somebody insisted: the device waits, for nobody
    REFUSED = 94  # it could not even begin, and trying again makes no difference
    TAKEN = 95  # that device is in use by somebody else


class Driver(Protocol):
    """How the kernel is told; every call blocks."""

    def connect(self, descriptors: Sequence[int], options: DeviceOptions) -> None:
        """Connect the device.  Raises: Busy, TorusError."""

    def reconnect(self, descriptors: Sequence[int]) -> None:
        """Give it sockets for dead ones.  Raises: NotFound when it is not connected."""

    def resize(self, size_bytes: int, block_bytes: int) -> None:
        """Tell it a new size.  Raises: NotFound when it is not connected."""

    def disconnect(self) -> None:
        """Take its sockets away."""


@dataclass(frozen=True, slots=True)
class NetlinkDriver:
    """Through netlink: a device outlives its sockets."""

    index: int
    backend: str

    def connect(self, descriptors: Sequence[int], options: DeviceOptions) -> None:
        """Connect the device, made if there is none of this index."""
        with NbdFamily() as family:
            family.connect(self.index, descriptors, options)

    def reconnect(self, descriptors: Sequence[int]) -> None:
        """Give it sockets for dead ones."""
        with NbdFamily() as family:
            family.reconnect(self.index, descriptors, self.backend)

    def resize(self, size_bytes: int, block_bytes: int) -> None:
        """Tell it a new size."""
        with NbdFamily() as family:
            family.resize(self.index, size_bytes, block_bytes, self.backend)

    def disconnect(self) -> None:
        """Take its sockets away."""
        with NbdFamily() as family:
            family.disconnect(self.index)


class IoctlDriver:
    """Through ioctl: a device is gone with its sockets."""

    def __init__(self, index: int) -> None:
        self._device = IoctlDevice(index)

    def connect(self, descriptors: Sequence[int], options: DeviceOptions) -> None:
        """Connect the device."""
        self._device.connect(descriptors, options)

    def reconnect(self, descriptors: Sequence[int]) -> None:
        """Raises: NotFound: there is no way."""
        raise NotFound("a device that was connected by ioctl cannot be given new sockets")

    def resize(self, size_bytes: int, block_bytes: int) -> None:
        """Tell it a new size."""
        self._device.resize(size_bytes, block_bytes)

    def disconnect(self) -> None:
        """Take its sockets away."""
        self._device.disconnect()


class Server(Protocol):
    """What is used of `torus.gateway.server.NbdServer`."""

    async def serve_socket(
        self,
        sock: socket.socket,
        name: str,
        peer: str,
        on_gone: Callable[[HandedConnection], None],
    ) -> HandedConnection:
        """Serve an export on a connected socket."""


class Sized(Protocol):
    """What is used of an export."""

    @property
    def size_bytes(self) -> int:
        """The present size."""

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""


class KernelDevice:
    """The connections between one export and one device of the kernel."""

    def __init__(
        self,
        server: Server,
        export: Sized,
        name: str,
        index: int,
        driver: Driver,
        *,
        connections: int,
        block_bytes: int,
        dead_timeout_s: int,
        backend: str,
        on_resized: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._server, self._export, self._name = server, export, name
        self.index, self._driver = index, driver
        self._wanted = connections
        self._block_bytes = block_bytes
        self._dead_timeout_s = dead_timeout_s
        self._backend = backend
        self._on_resized = on_resized
        self.size_bytes = 0  # as the kernel was told
        self._alive: set[HandedConnection] = set()
        self._work: set[asyncio.Task[None]] = set()
        self._repairing = False
        self._leaving = False  # connections that end are no news
        self.ended: asyncio.Future[tuple[Ending, TorusError | None]] = (
            asyncio.get_running_loop().create_future()
        )

    @property
    def path(self) -> str:
        """The device's node."""
        return f"/dev/nbd{self.index}"

    async def connect(self, *, again: bool) -> None:
        """Hand sockets to the kernel: to a free device, or ``again`` to one that waits for them.

        Raises: Busy when the device is somebody else's, NotFound when it does not wait, and what
            opening the volume raises.
        """
        ends = [await self._new_connection() for _ in range(self._wanted)]
        descriptors = [end.fileno() for end in ends]
        try:
            if again:
                await asyncio.to_thread(self._driver.reconnect, descriptors)
                self.size_bytes = block_device.size_of(self.index)
            else:
                options = self._options()
                await asyncio.to_thread(self._driver.connect, descriptors, options)
                self.size_bytes = options.size_bytes
        finally:
            for end in ends:
                end.close()
        await asyncio.to_thread(self._settle)
        if again:
            await self._follow_size()  # it may have changed while nobody was here
        self._start(self._watch_size())

    async def disconnect(self) -> None:
        """Take the device from the kernel; what it still asks fails."""
        self._leaving = True
        try:
            await asyncio.to_thread(self._driver.disconnect)
        except NotFound as gone:
            log.debug("attach.not_connected", device=self.path, error=gone.message)

    async def leave(self, *, briefly: bool = False) -> None:
        """Expect the connections to end: the device is to wait for another process.

        ``briefly``: that one comes at once.  The kernel then looks sooner for what it asked here
        and nobody read; the next process sets the time that it takes else.
        """
        if briefly and self._wanted == 1:
            soon_ms = limits.ATTACH_RESTART_RESEND_MS
            await asyncio.to_thread(block_device.set_queue, self.index, "io_timeout", soon_ms)
        self._leaving = True

    async def close(self) -> None:
        """End what runs beside the connections; idempotent."""
        self._leaving = True
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(self._work)

    # --- connections --------------------------------------------------------------------

    async def _new_connection(self) -> socket.socket:
        """Serve one end of a new pair of sockets; return the other one."""
        ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            for sock in (ours, kernels):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.ATTACH_SOCKET_BYTES)
            connection = await self._server.serve_socket(
                ours, self._name, f"kernel:{self.path}", self._on_gone
            )
        except (TorusError, OSError):
            kernels.close()
            raise
        self._alive.add(connection)
        return kernels

    def _on_gone(self, connection: HandedConnection) -> None:
        self._alive.discard(connection)
        if self._leaving or self.ended.done():
            return
        failure = connection.failure
        if connection.disconnected:
            if not self._alive:
                self._end(Ending.DETACHED, None)
        elif isinstance(failure, Fenced | NotFound):
            self._end(Ending.LOST, failure)
        elif isinstance(failure, TorusError):
            self._end(Ending.AGAIN, failure)
        elif not self._repairing:
            self._start(self._repair())

    async def _repair(self) -> None:
        """Give the kernel new sockets until it has enough, or has the device no more.

        A connection that nobody ended is one that the kernel gave up, because a request took
        longer than its time, or one that it did not take.
        """
        self._repairing = True
        attempt = 0
        try:
            while not self._leaving and len(self._alive) < self._wanted:
                await asyncio.sleep(_REPAIR_S[min(attempt, len(_REPAIR_S) - 1)])
                attempt += 1
                end = await self._new_connection()
                try:
                    await asyncio.to_thread(self._driver.reconnect, [end.fileno()])
                except NotFound as gone:
                    self._end(Ending.DETACHED, gone)
                    return
                finally:
                    end.close()
                log.info("attach.reconnected", device=self.path, attempt=attempt)
                await asyncio.sleep(0)  # a socket that was not taken is seen to be closed now
        except TorusError as failure:
            self._end(Ending.AGAIN, failure)
        finally:
            self._repairing = False

    def _end(self, ending: Ending, why: TorusError | None) -> None:
        if not self.ended.done():
            self.ended.set_result((ending, why))

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if task.cancelled() or (crash := task.exception()) is None:
            return
        log.error("attach.crashed", device=self.path, exception=crash)
        self._end(Ending.AGAIN, crash if isinstance(crash, TorusError) else None)

    # --- what the kernel is told ---------------------------------------------------------

    def _options(self) -> DeviceOptions:
        return DeviceOptions(
            size_bytes=self._whole_blocks(),
            block_bytes=self._block_bytes,
            server_flags=transmission_flags(read_only=self._export.read_only, structured=False),
            backend=self._backend,
            dead_timeout_s=self._dead_timeout_s,
        )

    def _whole_blocks(self) -> int:
        return self._export.size_bytes // self._block_bytes * self._block_bytes

    def _settle(self) -> None:
        """Set what the driver's netlink cannot say; a kernel that refuses goes on without."""
        index = self.index
        most = block_device.queue_value(index, "max_hw_sectors_kb") or limits.ATTACH_REQUEST_KIB
        request_kib = min(most, limits.ATTACH_REQUEST_KIB)
        if block_device.queue_value(index, "max_sectors_kb") != request_kib:
            block_device.set_queue(index, "max_sectors_kb", request_kib)
        if (block_device.queue_value(index, "read_ahead_kb") or 0) < limits.ATTACH_READ_AHEAD_KIB:
            block_device.set_queue(index, "read_ahead_kb", limits.ATTACH_READ_AHEAD_KIB)
        if block_device.queue_value(index, "rotational"):
            block_device.set_queue(index, "rotational", 0)
        # After so long the kernel looks whether a request went out on a socket that is dead by
        # now, and sends it again.  With several connections it takes a request that is only slow
        # for lost, and its connection for dead: then it gets the kernel's own default.
        resend_ms = limits.ATTACH_RESEND_MS if self._wanted == 1 else limits.ATTACH_GIVE_UP_MS
        block_device.set_queue(index, "io_timeout", resend_ms)

    async def _watch_size(self) -> None:
        while True:
            await asyncio.sleep(limits.ATTACH_SIZE_LOOK_S)
            await self._follow_size()

    async def _follow_size(self) -> None:
        size_bytes = self._whole_blocks()
        if size_bytes == self.size_bytes or self._leaving:
            return
        try:
            await asyncio.to_thread(self._driver.resize, size_bytes, self._block_bytes)
        except TorusError as refused:
            log.warning("attach.not_resized", device=self.path, error=refused.message)
            return
        log.info("attach.resized", device=self.path, old=self.size_bytes, new=size_bytes)
        self.size_bytes = size_bytes
        self._on_resized(size_bytes)
