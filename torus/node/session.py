"""The answering end of one connection: requests in, answers out in the order they are done.

Decides how much may be under way for one peer: beyond the cap nothing more is taken from the
connection, and the peer's bytes stay in the kernel.  What a request does is decided in
`torus.node.service`.  Implements docs/protocol.md, "Limits and deadlines".
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from torus import limits
from torus.errors import ShuttingDown, TimedOut, TorusError
from torus.log import get_logger
from torus.net.framing import FramedProtocol
from torus.wire import failures
from torus.wire.connection import Connection
from torus.wire.messages import Answer, Hello, Request, in_flight_bytes
from torus.wire.states import Role

log = get_logger("torus.node")

Outcome = Answer | Coroutine[Any, Any, Answer]


class Service(Protocol):
    """What a session needs of who carries requests out."""

    hello: Hello

    def serve(self, request: Request) -> Outcome:
        """Carry a request out: its answer, or a coroutine when that takes waiting.

        Raises: TorusError; so may the coroutine.
        """


class Session(FramedProtocol):
    """One peer's connection; ``ended`` is called once when it is gone."""

    def __init__(
        self, service: Service, ended: Callable[["Session"], None], refusal: TorusError | None
    ) -> None:
        """``refusal`` is what the peer is told at once, in place of being served."""
        super().__init__(Connection(Role.SERVER, service.hello))
        self._service = service
        self._ended = ended
        self._refusal = refusal
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._in_flight_bytes = 0
        self._draining = False
        self._pumping = False
        self._hello_timer: asyncio.TimerHandle | None = None
        self.requests = 0
        self.failures = 0

    # --- the connection -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the peer's hello, but not for ever."""
        super().connection_made(transport)
        if self._refusal is not None:
            self.refuse(self._refusal)
            return
        self._hello_timer = self._loop.call_later(limits.PEER_HELLO_TIMEOUT_S, self._on_no_hello)

    def _on_no_hello(self) -> None:
        self.refuse(TimedOut(f"no hello in {limits.PEER_HELLO_TIMEOUT_S:g} s"))

    def lost(self, error: Exception | None) -> None:
        """The peer is gone; what it asked for and is under way is finished all the same."""
        self._stop_timer()
        name = self.connection.peer.name if self.connection.peer is not None else ""
        reason = "" if error is None else str(error)
        log.info("node.peer.left", peer=name, requests=self.requests, reason=reason)
        self._ended(self)

    def refuse(self, error: TorusError) -> None:
        """Tell the peer why and hang up, once what was sent has left."""
        self._stop_timer()
        if self.transport is None or self.transport.is_closing():
            return
        if not isinstance(error, ShuttingDown):
            log.warning("node.peer.refused", code=error.code, reason=error.message)
        self.send(self.connection.send_refusal(error))
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None

    # --- requests -----------------------------------------------------------------------

    @property
    def _has_room(self) -> bool:
        return (
            self.writable
            and not self._draining
            and self._in_flight_bytes < limits.PEER_IN_FLIGHT_BYTES_MAX
            and len(self._tasks) < limits.PEER_IN_FLIGHT_REQUESTS_MAX
        )

    def pump(self) -> None:
        """Serve requests while there is room; stop receiving while there is none."""
        if self._pumping:  # an answer that was sent at once called back
            return
        self._pumping = True
        try:
            while self._has_room and (event := self.connection.next_event()) is not None:
                if isinstance(event.message, Hello):
                    self._greet(event.message)
                else:
                    self._start(event.request, event.message)  # type: ignore[arg-type]
        except TorusError as exc:
            self.refuse(exc)
        finally:
            self._pumping = False
        self.set_reading(self._has_room)

    def _greet(self, hello: Hello) -> None:
        self._stop_timer()
        self.send(self.connection.send_hello())
        log.info("node.peer.joined", peer=hello.name)

    def _start(self, number: int, request: Request) -> None:
        self.requests += 1
        try:
            outcome = self._service.serve(request)
        except TorusError as exc:
            self._fail(number, exc)
            return
        if not asyncio.iscoroutine(outcome):
            self._finish(number, outcome)
            return
        cost = in_flight_bytes(request, self._service.hello.slot_bytes)
        self._in_flight_bytes += cost
        task = self._loop.create_task(outcome)
        self._tasks.add(task)

        def done(task: asyncio.Task[Answer]) -> None:
            self._tasks.discard(task)
            self._in_flight_bytes -= cost
            self._on_done(number, task)
            self.pump()

        task.add_done_callback(done)

    def _on_done(self, number: int, task: asyncio.Task[Answer]) -> None:
        if task.cancelled():
            self._fail(number, ShuttingDown("the node stopped before the request was done"))
            return
        error = task.exception()
        if error is None:
            self._finish(number, task.result())
        elif isinstance(error, TorusError):
            self._fail(number, error)
        else:
            log.error("node.peer.request_failed", exception=error)
            self._fail(number, TorusError(f"the node failed: {type(error).__name__}: {error}"))

    def _finish(self, number: int, answer: Answer) -> None:
        if not self.connection.closed:
            self.send(self.connection.send_answer(number, answer))

    def _fail(self, number: int, error: TorusError) -> None:
        self.failures += 1
        if not self.connection.closed:
            self.send(self.connection.send_answer(number, failures.to_message(error)))

    # --- the end ------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take no more requests, answer those under way, say goodbye and hang up."""
        self._draining = True
        self.set_reading(False)
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.refuse(ShuttingDown("the node is shutting down", hint="try again in a moment"))

    def abort(self) -> None:
        """Drop the connection with what was not sent yet; idempotent."""
        if self.transport is not None:
            self.transport.abort()
