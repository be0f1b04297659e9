"""A connection of the peer protocol on an asyncio transport: the part both ends share.

Carries bytes between a transport and a `torus.wire.connection.Connection`.  What a message means
is decided by the subclasses: `torus.cluster.link` asks, `torus.node.session` answers.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import cast

from torus.wire.connection import Connection
from torus.wire.messages import Buffer

_POST_BYTES = 64 * 1024  # written without waiting for more
_JOIN_BYTES = 96 * 1024  # below this one write of a copy is cheaper than several pieces


class FramedProtocol(asyncio.BufferedProtocol):
    """Receives into the connection's buffer; the subclass takes the messages out."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.transport: asyncio.Transport | None = None
        self.reading = True
        self._corked: list[Buffer] | None = None
        self._corked_bytes = 0
        self._posted: list[bytes] = []
        self._posted_bytes = 0
        self.writable = True

    def pump(self) -> None:
        """Take messages from the connection until there is none, or no room for more."""
        raise NotImplementedError

    def lost(self, error: Exception | None) -> None:
        """The transport is gone; ``error`` is None when it was closed in order."""
        raise NotImplementedError

    def send(self, pieces: Sequence[Buffer]) -> None:
        """Write a frame; dropped when the transport is gone or going."""
        if self._posted:
            self._send_posted()
        if self._corked is not None:
            self._corked += pieces
            self._corked_bytes += sum([len(piece) for piece in pieces])
            if self._corked_bytes >= _POST_BYTES:  # the other side may not be reading
                self.uncork()
                self.cork()
            return
        if self.transport is None or self.transport.is_closing() or not pieces:
            return
        if sum([len(piece) for piece in pieces]) <= _JOIN_BYTES:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)

    def post(self, frame: bytes) -> None:
        """Write a frame together with those that are posted in the same turn of the loop."""
        if not self._posted:
            asyncio.get_running_loop().call_soon(self._send_posted)
        self._posted.append(frame)
        self._posted_bytes += len(frame)
        if self._posted_bytes >= _POST_BYTES:
            self._send_posted()

    def _send_posted(self) -> None:
        posted, self._posted, self._posted_bytes = self._posted, [], 0
        if posted:
            self.send(posted)

    def cork(self) -> None:
        """Keep what is sent from now on, until `uncork`."""
        self._corked, self._corked_bytes = [], 0

    def uncork(self) -> None:
        """Write what was kept, in one go."""
        pieces, self._corked = self._corked, None
        if pieces:
            self.send(pieces)

    def set_reading(self, wanted: bool) -> None:
        """Receive, or leave bytes with the kernel; repeated calls are harmless."""
        if wanted == self.reading or self.transport is None or self.transport.is_closing():
            return
        self.reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; one whose other end vanished is to end some day."""
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self.connection.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of received bytes."""
        self.connection.received(nbytes)
        self.pump()

    def eof_received(self) -> bool:
        """Close: neither end has more to say to one that stopped talking."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the subclass; no method of the transport is called after this."""
        self.connection.close()
        self.transport = None
        self.lost(exc)

    def pause_writing(self) -> None:
        """The other side reads slowly: take no more requests from it."""
        self.writable = False
        self.pump()

    def resume_writing(self) -> None:
        """The other side has caught up."""
        self.writable = True
        self.pump()
