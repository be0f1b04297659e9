"""One volume as a disk of a kernel: what the end of a connection means, on a kernel of our own."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from torus.daemon import kernel_device
from torus.daemon.kernel_device import Ending, KernelDevice
from torus.errors import Busy, DiskFailed, Fenced, NotFound, Unavailable
from torus.gateway.handed import HandedConnection
from torus.gateway.server import NbdServer
from torus.nbd import constants as nbd
from torus.net.netlink_nbd import DeviceOptions
from torus.testing.memory_export import MemoryExport, MemoryExports
from torus.testing.nbd_client import request_bytes

SIZE = 1 << 20
REQUEST = struct.Struct(">IHHQQI")


class FakeKernel:
    """A driver that keeps the sockets it was given, as the kernel does."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket | None] = []
        self.options: DeviceOptions | None = None
        self.sizes: list[int] = []
        self.calls: list[str] = []
        self.refuse: Exception | None = None

    def connect(self, descriptors: Sequence[int], options: DeviceOptions) -> None:
        self.calls.append("connect")
        if self.refuse is not None:
            raise self.refuse
        self.options = options
        self.sockets = [socket.socket(fileno=os.dup(one)) for one in descriptors]

    def reconnect(self, descriptors: Sequence[int]) -> None:
        self.calls.append("reconnect")
        if self.refuse is not None:
            raise self.refuse
        for descriptor in descriptors:
            if None in self.sockets:
                place = self.sockets.index(None)
                self.sockets[place] = socket.socket(fileno=os.dup(descriptor))

    def resize(self, size_bytes: int, block_bytes: int) -> None:
        self.sizes.append(size_bytes)

    def disconnect(self) -> None:
        self.calls.append("disconnect")
        for sock in self.sockets:
            if sock is not None:
                sock.send(request_bytes(nbd.NBD_CMD_DISC))

    def drop(self, place: int) -> None:
        """Give a connection up, as after a request that took too long."""
        sock = self.sockets[place]
        assert sock is not None
        sock.close()
        self.sockets[place] = None

    async def ask(self, place: int, *words: int, payload: bytes = b"") -> tuple[int, bytes]:
        """Send (command, offset, length); return the error and what a READ brought."""
        sock = self.sockets[place]
        assert sock is not None
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        command, offset, length = words
        await loop.sock_sendall(sock, request_bytes(command, offset, length, payload=payload))
        header = await _exactly(sock, 16)
        _, error, _ = struct.unpack(">IIQ", header)
        want = length if command == nbd.NBD_CMD_READ and not error else 0
        return error, await _exactly(sock, want)


async def _exactly(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = await asyncio.get_running_loop().sock_recv(sock, size - len(received))
        if not piece:
            raise ConnectionError("closed")
        received += piece
    return received


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop go on until it is so."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 10
    while not condition():
        assert loop.time() < deadline, "it never came to be"
        await asyncio.sleep(0)


class World:
    """A server over one export, a kernel, and the device between them."""

    def __init__(self, **options: object) -> None:
        self.disk = MemoryExport("disk", SIZE)
        self.exports = MemoryExports(self.disk)
        self.server = NbdServer(self.exports)
        self.kernel = FakeKernel()
        self.served: list[HandedConnection] = []
        self.resized: list[int] = []
        self.device = KernelDevice(
            self, self.disk, "disk", 10_007, self.kernel,
            connections=int(options.get("connections", 1)),  # type: ignore[call-overload]
            block_bytes=4096, dead_timeout_s=9, backend="torus:x", on_resized=self.resized.append,
        )  # fmt: skip

    async def serve_socket(self, *arguments: Any) -> HandedConnection:
        self.served.append(await self.server.serve_socket(*arguments))
        return self.served[-1]

    async def close(self) -> None:
        await self.device.close()
        for sock in self.kernel.sockets:
            if sock is not None:
                sock.close()
        await self.server.close()


def run(scenario: object) -> None:
    """Run a scenario over a new world on an event loop."""

    async def main() -> None:
        await asyncio.wait_for(scenario(), 20)  # type: ignore[operator]

    asyncio.run(main())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_device, "_REPAIR_S", (0.0,))


def test_the_kernel_reads_and_writes() -> None:
    """Simple replies without a handshake; the kernel is told size, sectors, flags and owner."""

    async def scenario() -> None:
        world = World(connections=2)
        await world.device.connect(again=False)
        options = world.kernel.options
        assert options is not None
        assert (options.size_bytes, options.block_bytes, options.backend) == (SIZE, 4096, "torus:x")
        assert options.timeout_s == 0, "a slow request is no dead connection"
        assert options.dead_timeout_s == 9
        assert options.server_flags & nbd.NBD_FLAG_SEND_FLUSH
        assert options.server_flags & nbd.NBD_FLAG_CAN_MULTI_CONN
        assert not options.server_flags & nbd.NBD_FLAG_SEND_DF
        written = await world.kernel.ask(0, nbd.NBD_CMD_WRITE, 4096, 4096, payload=b"a" * 4096)
        assert written == (0, b"")
        assert await world.kernel.ask(1, nbd.NBD_CMD_READ, 4096, 4096) == (0, b"a" * 4096)
        await world.close()

    run(scenario)


def test_disconnect_of_the_kernel_is_the_end() -> None:
    """DISC on every connection: detached; on one of two: not yet."""

    async def scenario() -> None:
        world = World(connections=2)
        await world.device.connect(again=False)
        one, two = world.kernel.sockets
        assert one is not None
        assert two is not None
        one.send(request_bytes(nbd.NBD_CMD_DISC))
        await until(lambda: len(world.device._alive) < 2)
        assert not world.device.ended.done()
        two.send(request_bytes(nbd.NBD_CMD_DISC))
        assert await world.device.ended == (Ending.DETACHED, None)
        assert world.kernel.calls == ["connect"]
        await world.close()

    run(scenario)


def test_a_connection_that_the_kernel_gave_up_is_replaced() -> None:
    """The kernel closes a socket without a word: it gets a new one, the others stay."""

    async def scenario() -> None:
        world = World(connections=2)
        await world.device.connect(again=False)
        world.kernel.drop(1)
        await until(
            lambda: not ("reconnect" not in world.kernel.calls or None in world.kernel.sockets)
        )
        assert await world.kernel.ask(1, nbd.NBD_CMD_READ, 0, 4096) == (0, bytes(4096))
        assert not world.device.ended.done()
        await world.close()

    run(scenario)


def test_a_connection_that_was_given_up_is_not_served() -> None:
    """What the kernel asked on a connection before it shut it down was asked again elsewhere, and
    may be older than what was written since: it is not carried out any more."""

    async def scenario() -> None:
        world = World(connections=2)
        await world.device.connect(again=False)
        given_up = world.kernel.sockets[0]
        assert given_up is not None
        # the gateway is not reading it just now, as when too much is in flight
        slow = world.served[0]
        slow._transport.pause_reading()
        given_up.send(request_bytes(nbd.NBD_CMD_WRITE, 0, 4096, payload=b"old!" * 1024))
        given_up.shutdown(socket.SHUT_RDWR)
        world.kernel.drop(0)
        new = b"new!" * 1024
        assert await world.kernel.ask(1, nbd.NBD_CMD_WRITE, 0, 4096, payload=new) == (0, b"")
        slow._transport.resume_reading()
        await until(lambda: None not in world.kernel.sockets)
        assert await world.kernel.ask(0, nbd.NBD_CMD_READ, 0, 4096) == (0, new)
        await world.close()

    run(scenario)


def test_a_device_that_is_gone_is_not_repaired() -> None:
    """The kernel has the device no more: detached."""

    async def scenario() -> None:
        world = World()
        await world.device.connect(again=False)
        world.kernel.refuse = NotFound("/dev/nbd7 is not connected")
        world.kernel.drop(0)
        ending, why = await world.device.ended
        assert ending is Ending.DETACHED
        assert isinstance(why, NotFound)
        await world.close()

    run(scenario)


def test_what_may_pass_is_not_answered() -> None:
    """A node that is away ends the process, so that the kernel asks the next one; an answer
    would have been an error for the file system."""

    async def scenario() -> None:
        world = World()
        await world.device.connect(again=False)
        world.disk.refuse_now = True
        world.disk.failures["read"] = Unavailable("the node is away")
        with pytest.raises(ConnectionError):
            await world.kernel.ask(0, nbd.NBD_CMD_READ, 0, 4096)
        ending, why = await world.device.ended
        assert ending is Ending.AGAIN
        assert isinstance(why, Unavailable)
        await world.close()

    run(scenario)


def test_what_stays_is_answered() -> None:
    """A failed disk is an error that the file system has to know; the device goes on."""

    async def scenario() -> None:
        world = World()
        await world.device.connect(again=False)
        world.disk.refuse_now = True
        world.disk.failures["read"] = DiskFailed("gone")
        assert (await world.kernel.ask(0, nbd.NBD_CMD_READ, 0, 4096))[0] == nbd.NBD_EIO
        assert not world.device.ended.done()
        await world.close()

    run(scenario)


def test_a_lost_volume_is_the_end() -> None:
    """Fenced: the volume is somebody else's, trying again is of no use."""

    async def scenario() -> None:
        world = World()
        await world.device.connect(again=False)
        world.server.cut_off(world.disk, Fenced("epoch 9 replaced 8"))
        ending, why = await world.device.ended
        assert ending is Ending.LOST
        assert isinstance(why, Fenced)
        await world.close()

    run(scenario)


def test_the_kernel_follows_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole sectors of the new size are told, once."""
    monkeypatch.setattr("torus.limits.ATTACH_SIZE_LOOK_S", 0.001)

    async def scenario() -> None:
        world = World()
        await world.device.connect(again=False)
        world.disk.resize(2 * SIZE + 512)
        await until(lambda: bool(world.resized))
        assert world.kernel.sizes == world.resized == [2 * SIZE]
        await world.close()

    run(scenario)


def test_a_device_of_somebody_else_is_refused() -> None:
    """Busy from the kernel reaches the caller, and nothing stays open."""

    async def scenario() -> None:
        world = World(connections=3)
        world.kernel.refuse = Busy("/dev/nbd7 is in use")
        with pytest.raises(Busy):
            await world.device.connect(again=False)
        await world.close()
        assert world.exports.open_counts == {"disk": 0}

    run(scenario)


def test_a_replaced_gateway_takes_the_device_over() -> None:
    """A second process gives the waiting device new sockets; what was written is there."""

    async def scenario() -> None:
        first = World()
        await first.device.connect(again=False)
        await first.kernel.ask(0, nbd.NBD_CMD_WRITE, 0, 4096, payload=b"b" * 4096)
        await first.device.leave()
        await first.server.close()
        assert not first.device.ended.done()
        first.kernel.drop(0)
        second = KernelDevice(
            NbdServer(first.exports), first.disk, "disk", 10_007, first.kernel, connections=1,
            block_bytes=4096, dead_timeout_s=9, backend="torus:x",
        )  # fmt: skip
        await second.connect(again=True)
        assert await first.kernel.ask(0, nbd.NBD_CMD_READ, 0, 4096) == (0, b"b" * 4096)
        await second.close()
        await first.close()

    run(scenario)


def test_nothing_of_this_machine_was_touched() -> None:
    """The device number of these tests is no device here."""
    assert not Path("/sys/block/nbd10007").exists()
