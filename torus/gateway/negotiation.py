"""The handshake of one connection: asks the exports what the pure handshake cannot know.

Decides how a name becomes an export, how long a handshake may take and what a failure means for
the client.  When it is done, the transport gets a Transmission as its protocol.
"""

import asyncio
from collections.abc import Sequence
from typing import cast

from torus.errors import Busy, NotFound, RemoteProtocolError, TorusError, UsageError
from torus.gateway.export import Context, Export
from torus.gateway.membership import Gateway, describe_peer, tune_socket
from torus.gateway.transmission import Transmission
from torus.log import get_logger
from torus.nbd import constants as nbd
from torus.nbd.handshake import (
    Aborted,
    Answer,
    ContextsRequested,
    Event,
    ExportDescription,
    ExportRequested,
    Handshake,
    ListRequested,
)

log = get_logger(__name__)

_READ_BYTES = 4096


class Negotiation(asyncio.BufferedProtocol):
    """The protocol object of a connection until transmission begins."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._handshake = Handshake()
        self._buffer = bytearray(_READ_BYTES)
        self._opened: dict[str, Export] = {}
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle
        self._peer = ""
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, unless there are too many clients already."""
        gateway = self._gateway
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        transport = self._transport
        self._peer = describe_peer(transport)
        if gateway.draining or len(gateway.members) >= gateway.connections_max:
            gateway.stats.connections_refused += 1
            log.warning(
                "nbd.client.refused", peer=self._peer, connections=len(gateway.members),
                connections_max=gateway.connections_max, draining=gateway.draining,
            )  # fmt: skip
            self._over = True
            transport.abort()
            return
        gateway.members.add(self)
        gateway.stats.connections += 1
        gateway.stats.connections_open += 1
        tune_socket(transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(gateway.handshake_timeout_s, self._on_timeout)
        transport.write(self._handshake.greeting())

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return a small buffer: what matters is copied out at once."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Go on with the handshake."""
        if self._over:
            return
        try:
            self._handshake.receive(memoryview(self._buffer)[:nbytes])
        except RemoteProtocolError as garbage:
            self._fail(garbage)
            return
        if self._task is None or self._task.done():
            self._task = self._gateway.start(self._answer_all())

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what the handshake holds."""
        if not self._over:
            log.info("nbd.client.left", peer=self._peer, phase="handshake")
        self._leave()

    def drain(self) -> None:
        """Close: nothing is in flight during a handshake."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def serves(self, export: Export) -> bool:
        """Tell whether this was opened here."""
        return any(opened is export for opened in self._opened.values())

    def lose(self, why: TorusError) -> None:
        """Close at once."""
        self._transport.abort()

    def _leave(self) -> None:
        """Forget the connection, once, and what it held."""
        self._over = True
        if self not in self._gateway.members:
            return
        self._timer.cancel()
        self._gateway.leave(self)
        opened, self._opened = self._opened, {}
        for export in opened.values():
            self._gateway.start(self._gateway.give_back(export))

    def _on_timeout(self) -> None:
        self._gateway.stats.handshakes_failed += 1
        log.warning(
            "nbd.handshake.timeout", peer=self._peer, seconds=self._gateway.handshake_timeout_s
        )
        self._over = True
        self._transport.abort()

    def _fail(self, failure: TorusError) -> None:
        self._gateway.stats.handshakes_failed += 1
        self._gateway.stats.protocol_errors += isinstance(failure, RemoteProtocolError)
        log.warning("nbd.handshake.failed", peer=self._peer, error=str(failure))
        self._over = True
        self._transport.abort()

    async def _answer_all(self) -> None:
        """Answer events until more bytes are needed or the handshake is over."""
        done = False
        try:
            while not self._over and (event := self._handshake.next_event()) is not None:
                await self._answer(event)
            done = True
        except TorusError as failure:
            self._fail(failure)
            done = True
        finally:
            if not done:  # a bug: the task's owner logs it, the client must not hang
                self._transport.abort()

    async def _answer(self, event: Event) -> None:
        match event:
            case Answer():
                self._transport.write(event.payload)
            case Aborted():
                self._transport.write(event.payload)
                self._transport.close()
                self._leave()
            case ListRequested():
                await self._list(event)
            case ContextsRequested():
                await self._list_or_set_contexts(event)
            case ExportRequested():
                await self._describe(event)

    async def _list(self, event: ListRequested) -> None:
        try:
            payload = self._handshake.list_exports(await self._gateway.exports.names())
        except TorusError as failure:
            payload = self._handshake.refuse(event, _option_error(failure), str(failure))
        self._transport.write(payload)

    async def _list_or_set_contexts(self, event: ContextsRequested) -> None:
        exports = self._gateway.exports
        try:
            name = event.name or await exports.default()
            offered = await exports.contexts(name, event.queries)
            payload = self._handshake.list_or_set_contexts(event, name, offered)
        except TorusError as failure:
            payload = self._handshake.refuse(event, _option_error(failure), str(failure))
        self._transport.write(payload)

    async def _describe(self, event: ExportRequested) -> None:
        name = event.name
        contexts: Sequence[Context] = ()
        try:
            name = name or await self._gateway.exports.default()
            export = self._opened.get(name) or await self._open(name)
            if event.begins_transmission and export is not None:
                contexts = await self._open_contexts(export)
        except TorusError as failure:
            if not event.may_refuse:
                raise
            log.info("nbd.export.refused", peer=self._peer, export=name, error=str(failure))
            self._transport.write(
                self._handshake.refuse(event, _option_error(failure), str(failure))
            )
            return
        if export is None or self._over:  # the client left meanwhile
            return
        description = ExportDescription(
            export.name, export.size_bytes, export.read_only, export.description
        )
        self._transport.write(self._handshake.describe(event, description))
        if event.begins_transmission:
            self._begin(name, export, contexts)

    async def _open(self, name: str) -> Export | None:
        """Open an export for this connection; None when the client left meanwhile."""
        for other in list(self._opened):  # one at a time: INFO may go through hundreds of names
            await self._gateway.give_back(self._opened.pop(other))
        export = await self._gateway.exports.open(name)
        if self._over:
            await self._gateway.give_back(export)
            return None
        self._opened[name] = export
        return export

    async def _open_contexts(self, export: Export) -> Sequence[Context]:
        """Open what this connection selected; nothing when the client left meanwhile."""
        names = [context.name for context in self._handshake.contexts_for(export.name)]
        if not names:
            return ()
        exports = self._gateway.exports
        contexts = await exports.open_contexts(export, names)
        if self._over:
            await exports.close_contexts(contexts)
            return ()
        return contexts

    def _begin(self, name: str, export: Export, contexts: Sequence[Context]) -> None:
        del self._opened[name]
        self._timer.cancel()
        self._over = True
        self._gateway.members.discard(self)
        transmission = Transmission(
            self._gateway, self._transport, self._peer, export, self._handshake, contexts
        )
        self._gateway.members.add(transmission)
        self._transport.set_protocol(transmission)
        for opened in self._opened.values():
            self._gateway.start(self._gateway.give_back(opened))
        self._opened.clear()
        transmission.begin(self._handshake.leftover())


def _option_error(failure: TorusError) -> int:
    """Return the option error that tells a client what it can do about ``failure``."""
    if isinstance(failure, NotFound | UsageError):  # UsageError: nothing can have that name
        return nbd.NBD_REP_ERR_UNKNOWN
    if isinstance(failure, Busy):
        return nbd.NBD_REP_ERR_POLICY
    return nbd.NBD_REP_ERR_SHUTDOWN if failure.code == "shutdown" else nbd.NBD_REP_ERR_PLATFORM
