"""The NBD server: listeners, connections, an orderly end.

Decides when to accept and how long stopping may take.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from torus.clock import Clock, SystemClock
from torus.errors import TorusError
from torus.gateway.counters import GatewayStats
from torus.gateway.export import Export, Exports
from torus.gateway.membership import Gateway
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

    def cut_off(self, export: Export, why: TorusError) -> None:
        """Close the connections of an export that is lost: those who come back open it anew."""
        for member in list(self._gateway.members):
            member.lose(export, why)

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

    async def _wait_until_left(self, seconds: float) -> bool:
        """Wait until no connection and no task is left; return False when time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._gateway.members or self._gateway.tasks:
            left = deadline - loop.time()
            if left <= 0:
                return False
            tasks = list(self._gateway.tasks)
            if tasks:
                await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            else:
                self._gateway.departure = loop.create_future()
                await asyncio.wait([self._gateway.departure], timeout=left)
        return True
