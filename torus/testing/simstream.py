"""One end of a simulated connection: asyncio's transport above, a kernel's buffers below.

What happens between the two ends is decided in `torus.testing.simnet`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torus.testing.simloop import SimProcess

if TYPE_CHECKING:
    from torus.testing.simnet import SimNetwork

KERNEL_BYTES = 256 * 1024  # of a receive buffer
_HIGH_BYTES, _LOW_BYTES = 64 * 1024, 16 * 1024  # asyncio's own for a transport's buffer


class Pipe:
    """One direction of a connection."""

    def __init__(self, sender: "SimTransport", receiver: "SimTransport") -> None:
        self.sender = sender
        self.receiver = receiver
        self.unsent: deque[bytes] = deque()  # in the sender's process and kernel
        self.unsent_bytes = 0
        self.flying = 0
        self.arrives_s = 0.0
        self.ended = False  # the sender will send no more: an end of file follows the bytes
        self.cut_since_s: float | None = None


class SimTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: "SimNetwork", process: SimProcess, number: int) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.number = number
        self.out: Pipe
        self.into: Pipe
        self.protocol: Any = None
        self.arrived: deque[bytes] = deque()  # in the kernel, not read yet
        self.arrived_bytes = 0
        self.eof = False
        self.open = True  # the process may use it
        self.closing = False
        self.known = True  # the kernel knows the connection
        self._reading = True
        self._paused = False
        self._pumping = False

    # --- what a protocol may do ---------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self._reading

    def get_write_buffer_size(self) -> int:
        return self.out.unsent_bytes

    def set_write_buffer_limits(self, high: Any = None, low: Any = None) -> None:
        return

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._read_soon()

    def write(self, data: Any) -> None:
        if self.closing or not data:
            return
        pipe = self.out
        pipe.unsent.append(bytes(data))
        pipe.unsent_bytes += len(data)
        self.network.send(pipe)
        if pipe.unsent_bytes > _HIGH_BYTES and not self._paused:
            self._paused = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(bytes(piece) for piece in list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if self.closing:
            return
        self.closing = True
        self._reading = False
        self.out.ended = True
        self.network.send(self.out)
        if not self.out.unsent_bytes:
            self._end_soon(None)

    def abort(self) -> None:
        if not self.open:
            return
        self.closing = True
        self.network.reset(self)
        self._end_soon(None)

    # --- what its kernel does -----------------------------------------------------------

    def drained(self) -> None:
        """Bytes have left: tell the protocol, or end what was only waiting for that."""
        if not self.open:
            return
        if self._paused and self.out.unsent_bytes <= _LOW_BYTES:
            self._paused = False
            self._in_process(self._resume_writing)
        if self.closing and not self.out.unsent_bytes:
            self._end_soon(None)

    def _resume_writing(self) -> None:
        if self.open and self.protocol is not None:
            self.protocol.resume_writing()

    def receive(self, data: bytes) -> None:
        """Take bytes into the kernel's buffer."""
        self.arrived.append(data)
        self.arrived_bytes += len(data)
        self._read_soon()

    def received_eof(self) -> None:
        self.eof = True
        self._read_soon()

    def received_reset(self) -> None:
        """The connection is gone, with what was not read yet."""
        self.known = False
        self.closing = True
        self._end_soon(ConnectionResetError(104, "Connection reset by peer"))

    def _in_process(self, callback: Callable[..., object], *arguments: object) -> None:
        self.process.call_soon(callback, *arguments)

    def _read_soon(self) -> None:
        if not self._pumping and self.open and self._reading:
            self._pumping = True
            self._in_process(self._read)

    def _read(self) -> None:
        self._pumping = False
        while self.open and self._reading and not self.closing and self.arrived:
            data = self.arrived.popleft()
            if len(data) > 1 and self.network.rng.random() < self.network.weather.split:
                place = self.network.rng.randrange(1, len(data))
                self.arrived.appendleft(data[place:])
                data = data[:place]
            taken = self._give(data)
            self.arrived_bytes -= taken
            self.network.send(self.into)  # there is room again
        if self.eof and not self.arrived and self._reading and self.open and not self.closing:
            if not self.protocol.eof_received():
                self.close()

    def _give(self, data: bytes) -> int:
        if not isinstance(self.protocol, asyncio.BufferedProtocol):
            self.protocol.data_received(data)
            return len(data)
        buffer = memoryview(self.protocol.get_buffer(len(data)))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        if size < len(data):
            self.arrived.appendleft(data[size:])
        self.protocol.buffer_updated(size)
        return size

    def _end_soon(self, error: Exception | None) -> None:
        if self.open:
            self.open = False
            self._in_process(self._end, error)

    def _end(self, error: Exception | None) -> None:
        protocol, self.protocol = self.protocol, None
        self.network.forget(self)
        if protocol is not None:
            protocol.connection_lost(error)

    def die(self, *, power: bool) -> None:
        """The process is gone; without ``power`` its kernel closes the connection."""
        self.open = False
        self.closing = True
        self.protocol = None
        if power:
            self.known = False
        else:
            self.network.reset(self)
