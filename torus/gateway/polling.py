"""When a connection looks for its next request before it goes back to the event loop, and when it
has the loop look for it without sleeping.

Decides who may do so, and for how long: only a connection that was alone in the last turn, only
while that pays (a client that takes longer to think is left to the event loop), and never for
more than a bounded number of requests on end.
"""

import asyncio
import socket

from torus import limits
from torus._fast.frame import RequestBatch
from torus._fast.socketio import receive_soon, send_now
from torus.clock import Clock


class Turns:
    """Which connection was served last, of all connections of a server."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: object = None


class Poller:
    """The direct way to one connection's socket, beside the transport."""

    __slots__ = (
        "_awake_until_ns",
        "_batch",
        "_fd",
        "_misses",
        "_rounds",
        "_skip",
        "_transport",
        "_turns",
    )

    def __init__(self, transport: asyncio.Transport, batch: RequestBatch, turns: Turns) -> None:
        sock: socket.socket | None = transport.get_extra_info("socket")
        secured = transport.get_extra_info("sslcontext") is not None
        self._fd = -1 if sock is None or secured else sock.fileno()
        self._transport = transport
        self._batch = batch
        self._turns = turns
        self._misses = 0
        self._skip = 0
        self._rounds = 0
        self._awake_until_ns = 0  # what `linger` does ends then; 0: it does nothing

    def begin_turn(self, nbytes: int) -> None:
        """The event loop has brought ``nbytes``; somebody else's turn in between, or a client
        that moves much at a time and keeps both sides busy anyway, is no case for polling."""
        if self._awake_until_ns:
            self._awake_until_ns = 0
            self._misses = 0
        alone = self._turns.last is self
        self._turns.last = self
        wanted = alone and nbytes <= limits.NBD_POLL_BYTES_MAX
        self._rounds = 0 if wanted else limits.NBD_POLL_ROUNDS_MAX

    def receive(self) -> int:
        """Return the bytes of the next requests, received into the batch; 0: go to the loop."""
        if self._transport.is_closing():
            return 0  # the descriptor's number may soon be another connection's
        if not self._is_due():
            return 0
        self._rounds += 1
        try:
            received = receive_soon(self._fd, self._batch, limits.NBD_POLL_NS)
        except BufferError:
            # The buffer has to grow, which it cannot while the transport still holds it.
            return 0
        if received:
            self._misses = 0
        else:
            self._missed()
        return received

    def linger(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        """Keep the event loop awake for a moment, after a reply that had to be waited for: what
        else it serves goes on meanwhile."""
        if self._turns.last is not self or self._awake_until_ns or not self._is_due():
            return
        self._awake_until_ns = clock.monotonic_ns() + limits.NBD_POLL_NS
        loop.call_soon(self._stay_awake, loop, clock)

    def _stay_awake(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        if not self._awake_until_ns:
            return
        if clock.monotonic_ns() < self._awake_until_ns:
            loop.call_soon(self._stay_awake, loop, clock)
        else:
            self._awake_until_ns = 0
            self._missed()

    def _is_due(self) -> bool:
        """Tell whether it is to be tried this time."""
        if self._fd < 0 or self._rounds >= limits.NBD_POLL_ROUNDS_MAX:
            return False
        if self._skip:
            self._skip -= 1
            return False
        return True

    def _missed(self) -> None:
        """The longer it has not paid, the rarer it is tried."""
        self._misses += 1
        self._skip = min(1 << self._misses, limits.NBD_POLL_SKIP_MAX)

    def send(self, data: bytes) -> None:
        """Send ``data``, what fits at once and the rest through the transport, in order."""
        if self._fd < 0 or self._transport.get_write_buffer_size() or self._transport.is_closing():
            self._transport.write(data)
            return
        sent = send_now(self._fd, data)
        if sent < len(data):
            self._transport.write(memoryview(data)[sent:] if sent else data)
