"""The asking end of one connection to a node.

Decides how many requests may be under way, how long an answer may take, and what every open
request gets when the connection ends: `Unavailable`.  Whether to connect again is decided in
`torus.cluster.peer`.  Implements docs/protocol.md, "Limits and deadlines".
"""

import asyncio
import errno
import os
from collections import deque
from typing import NamedTuple, cast

from torus import limits
from torus.errors import PermissionDenied, ShuttingDown, TimedOut, TorusError, Unavailable
from torus.net.address import Address, UnixAddress
from torus.net.framing import FramedProtocol
from torus.wire import failures
from torus.wire.connection import Connection
from torus.wire.messages import Answer, Error, Hello, Message, Request, in_flight_bytes
from torus.wire.states import Role


class _Open(NamedTuple):
    """A request without an answer."""

    future: asyncio.Future[Answer]
    cost: int
    deadline_s: float  # of the loop's clock
    name: str


class PeerLink(FramedProtocol):
    """One connection: made by `connect`, used until ``failure`` is set."""

    def __init__(self, address: Address, hello: Hello, timeout_s: float) -> None:
        super().__init__(Connection(Role.CLIENT, hello))
        self.address = address
        self.failure: TorusError | None = None
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[Hello] = self._loop.create_future()
        self._open: dict[int, _Open] = {}
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._in_flight_bytes = 0
        self._in_flight = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def peer(self) -> Hello:
        """Return what the node said of itself."""
        assert self.connection.peer is not None
        return self.connection.peer

    # --- asking -------------------------------------------------------------------------

    async def ask(self, request: Request) -> Answer:
        """Send a request and return its answer.

        Waits for room first, in order of the calls.  A cancelled caller leaves the request under
        way: what it does, it does.

        Raises: the error that the node answered with; Unavailable, TimedOut when the connection
        failed: the request may have been carried out, or not; LocalProtocolError.
        """
        cost = in_flight_bytes(request, self.peer.slot_bytes)
        await self._take_room(cost)
        try:
            if self.failure is not None:
                raise self._lost_error(self.failure)
            number, pieces = self.connection.send_request(request)
        except TorusError:
            self._give_room(cost)
            raise
        future: asyncio.Future[Answer] = self._loop.create_future()
        deadline_s = self._loop.time() + self._timeout_s
        self._open[number] = _Open(future, cost, deadline_s, type(request).__name__.upper())
        self._watch()
        self.send(pieces)
        return await future

    async def _take_room(self, cost: int) -> None:
        if not self._waiting and self._has_room(cost):
            self._in_flight_bytes += cost
            self._in_flight += 1
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((cost, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_room(cost)
            raise

    def _has_room(self, cost: int) -> bool:
        most = min(limits.PEER_IN_FLIGHT_BYTES_MAX, self.peer.in_flight_bytes_max)
        count = min(limits.PEER_IN_FLIGHT_REQUESTS_MAX, self.peer.in_flight_requests_max)
        return not self._in_flight or (
            self._in_flight < count and self._in_flight_bytes + cost <= most
        )

    def _give_room(self, cost: int) -> None:
        self._in_flight_bytes -= cost
        self._in_flight -= 1
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
                continue
            if not self._has_room(wanted):
                return
            self._waiting.popleft()
            self._in_flight_bytes += wanted
            self._in_flight += 1
            turn.set_result(None)

    # --- answers ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        super().connection_made(transport)
        self.send(self.connection.send_hello())

    def pump(self) -> None:
        """Hand every answer to its request."""
        try:
            while (event := self.connection.next_event()) is not None:
                message = event.message
                if isinstance(message, Hello):
                    self._hello.set_result(message)
                else:
                    self._answer(event.request, message)
        except TorusError as exc:
            self.fail(exc)

    def _answer(self, number: int, answer: Message) -> None:
        request = self._open.pop(number)
        self._give_room(request.cost)
        if request.future.done():
            return
        if isinstance(answer, Error):
            request.future.set_exception(failures.from_message(answer))
        else:  # the connection lets nothing but answers through
            request.future.set_result(cast(Answer, answer))

    # --- deadlines and the end ----------------------------------------------------------

    def _watch(self) -> None:
        """Have a timer for the oldest request; later ones have later deadlines."""
        if self._timer is None and self._open:
            oldest = next(iter(self._open.values()))
            self._timer = self._loop.call_at(oldest.deadline_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        oldest = next(iter(self._open.values()), None)
        if oldest is not None and oldest.deadline_s <= self._loop.time():
            self.fail(
                TimedOut(
                    f"node at {self.address} did not answer {oldest.name} in {self._timeout_s:g} s"
                )
            )
        self._watch()

    def fail(self, error: TorusError) -> None:
        """End the connection because of ``error``; the first call counts."""
        if self.failure is not None:
            return
        self.failure = error
        self.connection.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._hello.done():
            self._hello.set_exception(error)
            self._hello.exception()  # seen: `connect` may have given up waiting
        now_s = self._loop.time()
        for request in self._open.values():
            if not request.future.done():
                late = isinstance(error, TimedOut) and request.deadline_s <= now_s
                request.future.set_exception(
                    TimedOut(error.message) if late else self._lost_error(error)
                )
                request.future.exception()  # seen: the caller may be gone
        self._open.clear()
        for cost, turn in self._waiting:
            if not turn.done():
                self._in_flight_bytes += cost
                self._in_flight += 1
                turn.set_result(None)  # `ask` sees the failure
        self._waiting.clear()
        if self.transport is not None:
            self.transport.abort()

    def lost(self, error: Exception | None) -> None:
        """The transport is gone."""
        reason = "the node closed the connection" if error is None else str(error)
        self.fail(Unavailable(f"connection to the node at {self.address} ended: {reason}"))

    def _lost_error(self, cause: TorusError) -> Unavailable:
        error = Unavailable(
            cause.message
            if isinstance(cause, Unavailable)
            else f"connection to the node at {self.address} ended: {cause.message}",
            hint=cause.hint,
        )
        error.__cause__ = cause
        return error

    async def hello(self) -> Hello:
        """Return the node's hello.

        Raises: Unavailable, ForeignData, UnknownVersion, RemoteProtocolError, Busy.
        """
        return await asyncio.shield(self._hello)


async def connect(address: Address, hello: Hello, timeout_s: float) -> PeerLink:
    """Connect to a node and exchange hellos; requests then have ``timeout_s`` each.

    Raises: Unavailable, PermissionDenied, ForeignData, UnknownVersion, RemoteProtocolError.
    """
    loop = asyncio.get_running_loop()
    link = PeerLink(address, hello, timeout_s)
    try:
        async with asyncio.timeout(limits.PEER_CONNECT_TIMEOUT_S):
            if isinstance(address, UnixAddress):
                await loop.create_unix_connection(lambda: link, address.path)
            else:
                await loop.create_connection(lambda: link, address.host, address.port)
            await link.hello()
    except TimeoutError as exc:
        late = Unavailable(
            f"node at {address} did not say hello in {limits.PEER_CONNECT_TIMEOUT_S:g} s"
        )
        link.fail(late)
        raise late from exc
    except ShuttingDown as exc:
        raise Unavailable(exc.message, hint=exc.hint) from exc
    except OSError as exc:
        raise _connect_error(address, exc) from exc
    except asyncio.CancelledError:
        link.fail(Unavailable(f"connecting to {address} was given up"))
        raise
    return link


def _connect_error(address: Address, exc: OSError) -> TorusError:
    if exc.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(
            f"node at {address} cannot be reached: {os.strerror(exc.errno)}",
            hint="run as the user that runs the node",
        )
    reason = os.strerror(exc.errno) if exc.errno else str(exc)
    return Unavailable(
        f"node at {address} cannot be reached: {reason}", hint="start it: torus node"
    )
