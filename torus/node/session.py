"""The answering end of one connection: requests in, answers out in the order they are done.

Decides how much may be under way for one peer and for all: beyond the caps nothing more is taken
from the connection, and the peer's bytes stay in the kernel.  What a request does is decided in
`torus.node.service`.  Implements docs/protocol.md, "Limits and deadlines".
"""

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Protocol

from torus import limits
from torus._fast.peerframe import APPEND, APPENDED, READ, SYNCED, boot_frame
from torus.errors import RemoteProtocolError, ShuttingDown, TimedOut, TorusError
from torus.ids import ChunkId
from torus.log import get_logger
from torus.net.framing import FramedProtocol
from torus.wire import failures, proof
from torus.wire.bodies import check_bounds
from torus.wire.connection import Connection
from torus.wire.messages import (
    ANSWER,
    Answer,
    Hello,
    MessageType,
    Proof,
    Read,
    Request,
    Sync,
    in_flight_bytes,
)
from torus.wire.states import Role

log = get_logger("torus.node")

Chunk = tuple[int, int, int, int]  # compares like a ChunkId
Outcome = Answer | Coroutine[Any, Any, Answer] | asyncio.Future[Answer]


class Service(Protocol):
    """What a session needs of who carries requests out."""

    hello: Hello
    boot_id: int
    by_kind: bool  # False: everything goes through `serve`

    def append(self, chunk: Chunk, index: int, offset: int, record: memoryview) -> None:
        """Append a record.  Raises: TorusError."""

    def read_now(self, request: int, reads: list[tuple[Chunk, int, int]]) -> bytes | None:
        """Return the frame that answers a READ; None: `serve` it."""

    def sync_now(self, chunks: list[Chunk]) -> asyncio.Future[None] | None:
        """Return the future of a SYNC; None: `serve` it.  Raises: TorusError."""

    def serve(self, request: Request) -> Outcome:
        """Carry a request out: its answer, or what it will be when that takes waiting.

        Raises: TorusError; so may what is awaited.
        """


class Host(Protocol):
    """What a session needs of the node."""

    hello: Hello
    secret: bytes
    load: "Load"

    def joined(self, session: "Session") -> TorusError | None:
        """Take note of a connection; return why it is not served, if so."""

    def left(self, session: "Session") -> None:
        """Take note of its end."""

    def choose(self, hello: Hello) -> Service:
        """Return who serves the disk that a client wants.

        Raises: NotFound.
        """


class Load:
    """What is under way for all sessions of a node, in bytes."""

    def __init__(self, most: int) -> None:
        self.bytes = 0
        self._most = most
        self._waiting: set[Session] = set()

    def has_room(self, session: "Session") -> bool:
        """Tell whether a session may take one more request; one always may be under way."""
        if self.bytes < self._most or not session.in_flight_bytes:
            return True
        self._waiting.add(session)
        return False

    def less(self, cost: int) -> None:
        """Count the end of a request; sessions that waited go on."""
        self.bytes -= cost
        if self._waiting and self.bytes < self._most:
            waiting, self._waiting = self._waiting, set()
            for session in waiting:
                session.go_on()


class Session(FramedProtocol):
    """One peer's connection."""

    def __init__(self, host: Host, *, near: bool) -> None:
        """``near``: through a unix socket."""
        super().__init__(Connection(Role.SERVER, host.hello, host.secret))
        self._host = host
        self.service: Service | None = None  # chosen by the hello
        self.near = near
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Future[Any]] = set()
        self.in_flight_bytes = 0
        self._draining = False
        self._pumping = False
        self._admitted = False
        self._hello_timer: asyncio.TimerHandle | None = None
        self.requests = 0
        self.failures = 0

    # --- the connection -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the peer's hello, but not for ever."""
        super().connection_made(transport)
        refusal = self._host.joined(self)
        if refusal is not None:
            self.refuse(refusal)
            return
        self._hello_timer = self._loop.call_later(limits.PEER_HELLO_TIMEOUT_S, self._on_no_hello)

    def _on_no_hello(self) -> None:
        self.refuse(TimedOut(f"no hello in {limits.PEER_HELLO_TIMEOUT_S:g} s"))

    def lost(self, error: Exception | None) -> None:
        """The peer is gone; what it asked for and is under way is finished all the same."""
        self._stop_timer()
        name = self.connection.peer.name if self.connection.peer is not None else ""
        reason = "" if error is None else str(error)
        log.debug("node.peer.left", peer=name, requests=self.requests, reason=reason)
        self._host.left(self)

    def refuse(self, error: TorusError) -> None:
        """Tell the peer why and hang up, once what was sent has left."""
        self._stop_timer()
        if self.transport is None or self.transport.is_closing():
            return
        if not isinstance(error, ShuttingDown):
            log.warning("node.peer.refused", code=error.code, reason=error.message)
        self.send(self.connection.send_refusal(error))
        self.uncork()
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
            and self.in_flight_bytes < limits.PEER_IN_FLIGHT_BYTES_MAX
            and len(self._tasks) < limits.PEER_IN_FLIGHT_REQUESTS_MAX
            and self._host.load.has_room(self)
        )

    def pump(self) -> None:
        """Serve requests while there is room; stop receiving while there is none."""
        if self._pumping:  # an answer that was sent at once called back
            return
        self._pumping = True
        self.cork()
        try:
            while self._has_room:
                if self._admitted and self._serve_frequent():
                    continue
                event = self.connection.next_event()
                if event is None:
                    break
                if isinstance(event.message, Hello):
                    self._greet(event.message)
                elif isinstance(event.message, Proof):
                    self._admit()
                else:
                    self._start(event.request, event.message)  # type: ignore[arg-type]
        except TorusError as exc:
            self.refuse(exc)
        finally:
            self._pumping = False
            self.uncork()
        self.set_reading(self._has_room)

    def go_on(self) -> None:
        """There is room again: take up what was left."""
        self._loop.call_soon(self.pump)

    def _greet(self, hello: Hello) -> None:
        self.service = self._host.choose(hello)
        ours = replace(self.service.hello, nonce=os.urandom(proof.NONCE_BYTES))
        self.send(self.connection.send_hello(ours))

    def _admit(self) -> None:
        self._stop_timer()
        assert self.connection.peer is not None
        assert self.service is not None
        self._admitted = self.service.by_kind
        log.debug("node.peer.joined", peer=self.connection.peer.name)

    # --- frequent requests, without message objects -------------------------------------

    def _serve_frequent(self) -> bool:
        """Serve an APPEND, READ or SYNC; False: none is next.

        Raises: TorusError when the connection is to end.
        """
        connection, service = self.connection, self.service
        found = connection.receiver.next_frequent()
        if found is None:
            return False
        kind, stop, number, volume, epoch, capability, said = found
        connection.take_request(number, volume, epoch, capability)
        assert service is not None
        if kind > ANSWER:
            raise RemoteProtocolError(f"the client sent an answer, {MessageType(kind).name}")
        self.requests += 1
        try:
            if kind == APPEND:
                chunk, index, offset, at = said
                record = memoryview(connection.receiver.shared)[at:stop]
                service.append(chunk, index, offset, record)
                self.send((boot_frame(APPENDED, number, service.boot_id),))
            elif kind == READ:
                frame = service.read_now(number, said)
                if frame is None:
                    reads = tuple([(ChunkId(*chunk), at, size) for chunk, at, size in said])
                    self._serve_after_all(number, Read(reads))
                else:
                    self.send((frame,))
            else:
                self._sync(number, said)
        except RemoteProtocolError:
            raise
        except TorusError as exc:
            connection.keep_request(number, MessageType(kind))
            self._fail(number, exc)
        return True

    def _serve_after_all(self, number: int, request: Read | Sync) -> None:
        """Serve a frequent request like others, because it takes waiting."""
        check_bounds(request)
        kind = MessageType.READ if isinstance(request, Read) else MessageType.SYNC
        self.connection.keep_request(number, kind)
        self.requests -= 1
        self._start(number, request)

    def _sync(self, number: int, chunks: list[Chunk]) -> None:
        assert self.service is not None
        future = self.service.sync_now(chunks)
        if future is None:
            self._serve_after_all(number, Sync([ChunkId(*chunk) for chunk in chunks]))
            return
        boot_id = self.service.boot_id

        def done(future: asyncio.Future[None]) -> None:
            self._tasks.discard(future)
            if future.cancelled() or future.exception() is not None:
                self._on_done(number, future)  # type: ignore[arg-type]
            elif not self.connection.closed:
                self.connection.drop_request(number)
                self.post(boot_frame(SYNCED, number, boot_id))
            if not self.reading:
                self.pump()

        self.connection.keep_request(number, MessageType.SYNC)
        self._tasks.add(future)
        future.add_done_callback(done)

    # --- other requests -----------------------------------------------------------------

    def _start(self, number: int, request: Request) -> None:
        assert self.service is not None
        self.requests += 1
        try:
            outcome = self.service.serve(request)
        except TorusError as exc:
            self._fail(number, exc)
            return
        if asyncio.iscoroutine(outcome):
            self._later(number, request, self._loop.create_task(outcome))
        elif isinstance(outcome, asyncio.Future):
            self._later(number, request, outcome)
        else:
            self._finish(number, outcome)

    def _later(self, number: int, request: Request, outcome: asyncio.Future[Answer]) -> None:
        cost = in_flight_bytes(request, self.connection.hello.slot_bytes)
        self.in_flight_bytes += cost
        self._host.load.bytes += cost
        self._tasks.add(outcome)

        def done(outcome: asyncio.Future[Answer]) -> None:
            self._tasks.discard(outcome)
            self.in_flight_bytes -= cost
            self._on_done(number, outcome)
            self._host.load.less(cost)
            self.pump()

        outcome.add_done_callback(done)

    def _on_done(self, number: int, outcome: asyncio.Future[Answer]) -> None:
        if outcome.cancelled():
            self._fail(number, ShuttingDown("the node stopped before the request was done"))
            return
        error = outcome.exception()
        if error is None:
            self._finish(number, outcome.result())
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
