"""A connection that was not negotiated: its other end is in the kernel's hands.

Decides what a failure means to a client that turns every error into a broken file system: what
may pass (a node that is away, a process that stops) ends the connection without an answer, so
that the kernel asks again on the next one; what stays is answered.  A connection that the kernel
gave up is not served any more: what is left in it was asked again on another one, and may be
older than what was written there since.
"""

import asyncio
import select
import socket
from collections.abc import Callable

from torus.errors import PoolFull, TorusError
from torus.gateway.export import Export
from torus.gateway.membership import Gateway, tune_socket
from torus.gateway.transmission import Transmission
from torus.nbd.handshake import Handshake


class HandedConnection(Transmission):
    """The transmission phase on a socket whose other end the kernel has."""

    def __init__(
        self,
        gateway: Gateway,
        transport: asyncio.Transport,
        peer: str,
        export: Export,
        on_gone: "Callable[[HandedConnection], None]",
    ) -> None:
        """``on_gone`` is called once, when the connection is over."""
        super().__init__(gateway, transport, peer, export, Handshake())
        self._on_gone = on_gone
        self.failure: BaseException | None = None
        self._hang_up = select.poll()
        self._hang_up.register(transport.get_extra_info("socket").fileno(), 0)

    @property
    def disconnected(self) -> bool:
        """Whether the client said that it leaves, rather than being lost."""
        return bool(self._batch.ended)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give everything back, then tell."""
        if self._lost:
            return
        super().connection_lost(exc)
        self._on_gone(self)

    def _serve(self) -> None:
        # The kernel shuts a connection down before it asks anew elsewhere, so what is seen to be
        # open here, in this turn of the event loop, has nothing in it that was overtaken.
        if not self._lost and any(events & select.POLLHUP for _, events in self._hang_up.poll(0)):
            self._ending = True
            self._transport.abort()
            return
        super()._serve()

    def _on_served(self, task: asyncio.Future[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, TorusError) and failure.retryable:
            if not isinstance(failure, PoolFull):  # which whoever chose --on-full error wants told
                request = self._in_flight.pop(task)
                self._held_bytes -= request.held_bytes
                self._end_badly(failure)
                return
        super()._on_served(task)

    def _end_badly(self, failure: BaseException) -> None:
        self.failure = self.failure or failure
        super()._end_badly(failure)


class _Nobody(asyncio.BufferedProtocol):
    """Holds a transport until its connection is made; nothing can have come before that."""

    def get_buffer(self, sizehint: int) -> bytearray:
        return bytearray(1)


async def serve_handed(
    gateway: Gateway,
    sock: socket.socket,
    name: str,
    peer: str,
    on_gone: Callable[[HandedConnection], None],
) -> HandedConnection:
    """Serve the export ``name`` on a connected unix socket, simple replies, no handshake.

    The socket belongs to the connection from now on.

    Raises: what ``Exports.open`` raises; the socket is closed then.
    """
    try:
        export = await gateway.exports.open(name)
    except TorusError:
        sock.close()
        raise
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(_Nobody, sock=sock)
    tune_socket(transport)
    connection = HandedConnection(gateway, transport, peer, export, on_gone)
    gateway.members.add(connection)
    gateway.stats.connections += 1
    gateway.stats.connections_open += 1
    transport.set_protocol(connection)
    connection.begin(b"")
    return connection
