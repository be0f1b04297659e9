"""What every connection of one server shares, and who is connected.

Decides nothing; keeps the tasks that outlive a connection from being lost.
"""

import asyncio
import select
import socket
import struct
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torus.clock import Clock
from torus.errors import TorusError
from torus.gateway.counters import GatewayStats
from torus.gateway.export import Context, Export, Exports
from torus.gateway.polling import Turns
from torus.log import get_logger

log = get_logger(__name__)

_SOCKET_BUFFER_BYTES = 1 << 20
_PEER_CREDENTIALS = struct.Struct("3i")


class Member(Protocol):
    """A connection, in either phase."""

    def drain(self) -> None:
        """Take no more requests, finish those in flight, close."""

    def abort(self) -> None:
        """Close at once."""

    def serves(self, export: Export) -> bool:
        """Tell whether the connection has this export open."""

    def lose(self, why: TorusError) -> None:
        """Close at once: the export is lost."""


@dataclass(slots=True)
class Gateway:
    """The surroundings of a connection."""

    exports: Exports
    stats: GatewayStats
    clock: Clock
    connections_max: int
    handshake_timeout_s: float
    drain_timeout_s: float
    members: set[Member] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    turns: Turns = field(default_factory=Turns)
    draining: bool = False
    departure: asyncio.Future[None] | None = None

    def leave(self, member: Member) -> None:
        """Forget a connection that is closed."""
        self.members.discard(member)
        self.stats.connections_open -= 1
        if self.departure is not None and not self.departure.done():
            self.departure.set_result(None)

    def start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task that the server waits for when it stops."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def give_back(
        self,
        export: Export,
        in_flight: Sequence[asyncio.Future[None]] = (),
        contexts: Sequence[Context] = (),
    ) -> None:
        """Cancel what is in flight, wait for it to end, and close the export and its contexts.

        A failure is logged: there is nobody left to tell.
        """
        for request in in_flight:
            request.cancel()
        if in_flight:
            await asyncio.wait(in_flight)
        if contexts:
            await self.exports.close_contexts(contexts)
        try:
            await self.exports.close(export)
        except TorusError as failure:
            log.warning("nbd.export.close-failed", export=export.name, error=str(failure))

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (crash := task.exception()) is not None:
            log.error("nbd.task.crashed", exception=crash)


def describe_peer(transport: asyncio.Transport) -> str:
    """Return who is at the other end, for log lines."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        except OSError:
            return "unix"
        pid, uid, _ = _PEER_CREDENTIALS.unpack(raw)
        return f"unix:pid={pid},uid={uid}"
    name = transport.get_extra_info("peername")
    return f"{name[0]}:{name[1]}" if name else "unknown"


def tune_socket(transport: asyncio.Transport) -> None:
    """Ask for large buffers on unix sockets and keep-alive on TCP; a refusal does not matter."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    try:
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError as refused:
        log.debug("nbd.socket.untuned", error=str(refused))


def has_hung_up(transport: asyncio.Transport) -> bool:
    """Return whether the other end is closed for reading too, as far as can be known.

    A unix socket knows.  TCP does not tell a half-closed client from one that is gone.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
