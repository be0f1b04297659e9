"""The NBD server: listeners, connections, an orderly end.

Decides when to accept and how long stopping may take.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torus.clock import Clock, SystemClock
from torus.errors import TorusError
from torus.gateway.counters import GatewayStats
from torus.gateway.export import Export, Exports
from torus.gateway.handed import HandedConnection, serve_handed
from torus.gateway.membership import Gateway, Member
from torus.gateway.negotiation import Negotiation
from torus.limits import NBD_CONNECTIONS_MAX, NBD_DRAIN_TIMEOUT_S, NBD_HANDSHAKE_TIMEOUT_S
from torus.log import get_logger
from torus.net.address import Address
from torus.net.listener import Listener, listen

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """How many clients, and how long they may take."""

    connections_max: int = NBD_CONNECTIONS_MAX
    handshake_timeout_s: float = NBD_HANDSHAKE_TIMEOUT_S
    drain_timeout_s: float = NBD_DRAIN_TIMEOUT_S


class NbdServer:
    """Serves the exports of one directory at any number of addresses."""

    def __init__(
        self,
        exports: Exports,
        *,
        limits: ServerLimits | None = None,
        stats: GatewayStats | None = None,
        clock: Clock | None = None,
    ) -> None:
        limits = limits if limits is not None else ServerLimits()
        self.stats = stats if stats is not None else GatewayStats()
        self._gateway = Gateway(
            exports=exports,
            stats=self.stats,
            clock=clock if clock is not None else SystemClock(),
            connections_max=limits.connections_max,
            handshake_timeout_s=limits.handshake_timeout_s,
            drain_timeout_s=limits.drain_timeout_s,
        )
        self._listeners: list[Listener] = []

    @property
    def addresses(self) -> list[Address]:
        """Where the server listens, with the ports that the system chose."""
        return [listener.address for listener in self._listeners]

    async def start(self, addresses: Sequence[Address]) -> None:
        """Listen at every address, or at none.

        Raises: what ``torus.net.listener.listen`` raises.
        """
        complete = False
        try:
            for address in addresses:
                listener = await listen(address, lambda: Negotiation(self._gateway))
                self._listeners.append(listener)
                log.info("nbd.server.listening", address=str(listener.address))
            complete = True
        finally:
            if not complete:
                self._close_listeners()

    async def serve_socket(
        self,
        sock: socket.socket,
        name: str,
        peer: str,
        on_gone: Callable[[HandedConnection], None],
    ) -> HandedConnection:
        """Serve an export on a connected unix socket without a handshake; ``peer`` names the
        other end in log lines.

        Raises: what ``Exports.open`` raises; the socket is closed then.
        """
        return await serve_handed(self._gateway, sock, name, peer, on_gone)

    def cut_off(self, export: Export, why: TorusError) -> None:
        """Close the connections of an export that is lost: those who come back open it anew."""
        for member in self._serving(export):
            member.lose(why)

    async def hand_over(self, export: Export, seconds: float) -> int:
        """Close the connections of an export, each when what it has in flight is answered.

        What comes after is not answered, so that clients ask again where the export is then.
        Connections that take longer than ``seconds`` are cut.  Returns how many there were.
        """
        gateway = self._gateway
        serving = self._serving(export)
        for member in serving:
            member.drain()
        if not await self._wait_until(lambda: gateway.members.isdisjoint(serving), seconds):
            late = gateway.members.intersection(serving)
            log.warning("nbd.export.cut-off", export=export.name, connections=len(late))
            for member in late:
                member.abort()
            await self._wait_until(lambda: gateway.members.isdisjoint(serving), seconds)
        return len(serving)

    async def close(self) -> None:
        """Stop accepting, finish what is in flight within the limit, close every connection.

        Returns when every export has been given back.  Calling it again does nothing more.
        """
        gateway = self._gateway
        gateway.draining = True
        self._close_listeners()
        for member in list(gateway.members):
            member.drain()
        finished = await self._wait_until_left(gateway.drain_timeout_s)
        if not finished:
            log.warning("nbd.server.drain-timeout", connections=len(gateway.members))
            for member in list(gateway.members):
                member.abort()
            await self._wait_until_left(gateway.drain_timeout_s)
        log.info("nbd.server.stopped")

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _serving(self, export: Export) -> list[Member]:
        return [member for member in self._gateway.members if member.serves(export)]

    async def _wait_until_left(self, seconds: float) -> bool:
        """Wait until no connection and no task is left; return False when time is up."""
        gateway, deadline = self._gateway, asyncio.get_running_loop().time() + seconds
        while gateway.members or gateway.tasks:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            if gateway.tasks:
                tasks = list(gateway.tasks)
                await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            else:
                await self._wait_until(lambda: not gateway.members, left)
        return True

    async def _wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until connections have left so that it is so; return False when time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            left = deadline - loop.time()
            if left <= 0:
                return False
            departure = self._gateway.departure
            if departure is None or departure.done():
                departure = self._gateway.departure = loop.create_future()
            await asyncio.wait([departure], timeout=left)
        return True
