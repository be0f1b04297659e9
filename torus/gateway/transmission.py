"""The transmission phase of one connection: groups of requests in, bytes of replies out.

Decides how much one connection may hold in memory, how long it may keep the event loop, and when
it is over.  What is legal was decided in torus/_fast/frame.pyx; what a request does is the
export's.  Reads and writes that need no waiting are served in groups, without a Python object for
each; the others become tasks (torus/gateway/commands.py).
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from torus import limits
from torus._fast.frame import RUN_OTHER, RUN_READ, RequestBatch
from torus._fast.reply import ReplyBuilder
from torus.errors import Fenced, RemoteProtocolError, TorusError, Unavailable
from torus.gateway.commands import CommandServer, WaitingRequest
from torus.gateway.export import Context, Export
from torus.gateway.idling import Idling
from torus.gateway.membership import Gateway, has_hung_up
from torus.gateway.polling import Poller
from torus.log import get_logger
from torus.nbd import constants as nbd
from torus.nbd.handshake import Handshake
from torus.nbd.transmission import SessionTerms, explain, nbd_error

log = get_logger(__name__)


class Transmission(asyncio.BufferedProtocol):
    """The protocol object of a connection after the handshake."""

    def __init__(
        self,
        gateway: Gateway,
        transport: asyncio.Transport,
        peer: str,
        export: Export,
        handshake: Handshake,
        contexts: Sequence[Context] = (),
    ) -> None:
        self._gateway, self._transport, self._peer = gateway, transport, peer
        self._export = export
        self._loop = asyncio.get_running_loop()
        self._structured = handshake.structured
        self._extended = handshake.extended
        self._selected = handshake.contexts
        self._contexts = contexts
        self._batch = RequestBatch(
            limits.NBD_REQUEST_BYTES_MAX,
            size_bytes=export.size_bytes,
            read_only=export.read_only,
            structured=handshake.structured,
            extended=handshake.extended,
            contexts=bool(handshake.contexts),
        )
        self._poller = Poller(transport, self._batch, gateway.turns)
        self._replies = ReplyBuilder(structured=self._structured, extended=self._extended)
        self._commands = CommandServer(
            export, self._replies, self._selected, contexts, structured=self._structured
        )
        self._first = self._stop = 0  # the requests of the batch that are not served yet
        self._in_flight: dict[asyncio.Future[Any], WaitingRequest] = {}
        self._held_bytes = 0  # payloads and expected replies of those in flight
        self._sending = False  # replies leave in the next turn of the loop
        self._unsent = False  # the transport asked to stop writing
        self._reading = True
        self._ending = False  # no new requests; close when nothing is in flight
        self._lost = False
        self._turn: asyncio.Handle | None = None
        self._idling = Idling(self._loop, self._batch)
        self._deadline: asyncio.TimerHandle | None = None

    def begin(self, leftover: bytes) -> None:
        """Start, with what the client sent ahead during the handshake."""
        self._transport.set_write_buffer_limits(
            high=limits.NBD_UNSENT_BYTES_HIGH, low=limits.NBD_UNSENT_BYTES_LOW
        )
        log.info(
            "nbd.client.connected", peer=self._peer, export=self._export.name,
            read_only=self._export.read_only, structured=self._structured,
            extended=self._extended, contexts=[context.name for context in self._selected],
        )  # fmt: skip
        if leftover:
            taken = self._batch.feed(leftover)
            if taken < len(leftover):
                self._end_badly(RemoteProtocolError("too much was sent ahead of the handshake"))
            else:
                self.buffer_updated(taken)
        if self._gateway.draining:
            self.drain()

    # --- asyncio calls these ------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> RequestBatch:
        """Return the receive buffer; what the last batch lent out ends here."""
        return self._batch.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Serve what has come, and what follows at once."""
        self._poller.begin_turn(nbytes)
        self._take(nbytes)
        while self._may_poll() and (nbytes := self._poller.receive()):
            self._take(nbytes)

    def eof_received(self) -> bool:
        """Finish what is in flight, then close; at once when nobody is left to read replies."""
        if has_hung_up(self._transport):
            self._ending = True
            self._transport.abort()
        else:
            self._end("the client closed its side")
        return True

    def pause_writing(self) -> None:
        """The client does not read its replies: serve nothing more for now."""
        self._unsent = True

    def resume_writing(self) -> None:
        """The client reads again."""
        self._unsent = False
        if not self._reading:
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what is in flight and give the export back."""
        if self._lost:
            return
        self._lost = self._ending = True
        self._idling.cancel()
        for timer in (self._turn, self._deadline):
            if timer is not None:
                timer.cancel()
        gateway = self._gateway
        gateway.leave(self)
        log.info(
            "nbd.client.left", peer=self._peer, export=self._export.name,
            dropped=len(self._in_flight), reason=str(exc) if exc else "closed",
        )  # fmt: skip
        gateway.start(gateway.give_back(self._export, list(self._in_flight), self._contexts))

    # --- the server calls these ---------------------------------------------------------

    def drain(self) -> None:
        """Take no more requests, finish those in flight, close."""
        self._end("the server stops serving it")

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def serves(self, export: Export) -> bool:
        """Tell whether this is what the connection serves."""
        return export is self._export

    def lose(self, why: TorusError) -> None:
        """Close at once, and say why."""
        self._end_badly(why)

    # --- serving ------------------------------------------------------------------------

    def _may_poll(self) -> bool:
        """Whether nothing else is to be done for this client than to wait for it."""
        return (
            not self._in_flight and self._turn is None and self._reading and not self._ending
            and not self._lost
        )  # fmt: skip

    def _take(self, nbytes: int) -> None:
        """Serve ``nbytes`` that were received into the batch."""
        if self._ending:
            return
        self._batch.size_bytes = self._export.size_bytes
        self._idling.touch()
        try:
            self._stop = self._batch.received(nbytes)
        except RemoteProtocolError as garbage:
            self._end_badly(garbage)
            return
        self._first = 0
        if self._stop:
            self._serve()

    def _serve(self) -> None:
        """Serve the batch until it is empty, or memory or the other connections say stop."""
        if self._turn is not None or self._lost:
            return
        clean = False
        try:
            began_ns = self._gateway.clock.monotonic_ns()
            waits = self._serve_runs(began_ns)
            self._send()
            clean = True
        except TorusError as failure:
            clean = True
            self._end_badly(failure)
            return
        finally:
            if not clean:  # a bug: the event loop logs it, the client must not hang
                self._transport.abort()
        self._set_reading(not waits and not self._ending)
        if self._ending and not waits:
            self._close_if_done()

    def _serve_runs(self, began_ns: int) -> bool:
        """Serve run after run; return whether some requests have to wait for their turn."""
        batch = self._batch
        served = 0
        while True:
            while self._first < self._stop:
                if served >= limits.NBD_TURN_BYTES:
                    self._turn = self._loop.call_soon(self._on_turn)
                    return True
                room = self._room()
                kind, stop, length = batch.next_run(
                    self._first, min(max(room, 0), limits.NBD_SLICE_BYTES)
                )
                if kind == RUN_OTHER:
                    moved = self._serve_other(room)
                elif self._unsent or (length > room and room < limits.NBD_IN_FLIGHT_BYTES_MAX):
                    moved = False
                elif kind == RUN_READ:
                    moved = self._serve_reads(stop, length, began_ns)
                else:
                    moved = self._serve_writes(stop, room, began_ns)
                if not moved:
                    return True
                served += length
                if len(self._replies) >= limits.NBD_SLICE_BYTES:
                    self._send()
            if batch.ended:
                self._ending = True
                return False
            self._first = 0
            self._stop = batch.received(0)
            if not self._stop:
                return False

    def _room(self) -> int:
        """Return how many more bytes this connection may hold."""
        used = self._held_bytes + len(self._replies) + self._transport.get_write_buffer_size()
        return limits.NBD_IN_FLIGHT_BYTES_MAX - used

    def _serve_reads(self, stop: int, length: int, began_ns: int) -> bool:
        """Serve the READs up to ``stop``; return False when too many requests are in flight."""
        if len(self._in_flight) >= limits.NBD_IN_FLIGHT_REQUESTS_MAX:
            return False
        first = self._first
        self._replies.expect(self._batch, first, stop)
        later = self._export.read_now(self._batch, first, stop, self._replies)
        count = stop - first
        for index in later:
            length -= self._start(index)
            count -= 1
        if count:
            elapsed_ns = self._gateway.clock.monotonic_ns() - began_ns
            self._gateway.stats.commands[nbd.NBD_CMD_READ].add(elapsed_ns, count, length)
        self._first = stop
        return True

    def _serve_writes(self, stop: int, room: int, began_ns: int) -> bool:
        """Serve WRITEs up to ``stop``; return False when the next one has to wait for memory."""
        first = self._first
        taken = self._export.write_now(self._batch, first, stop)
        if taken > first:
            self._replies.done_run(self._batch, first, taken)
            elapsed_ns = self._gateway.clock.monotonic_ns() - began_ns
            length = self._batch.span_bytes(first, taken)
            self._gateway.stats.commands[nbd.NBD_CMD_WRITE].add(elapsed_ns, taken - first, length)
            self._first = taken
        return taken >= stop or self._serve_other(room)

    def _serve_other(self, room: int) -> bool:
        """Refuse or start the next request; return False when it has to wait for memory."""
        command, flags, cookie, offset, length, error = self._batch.request(self._first)
        if error:
            terms = SessionTerms(
                self._batch.size_bytes, self._export.read_only, self._structured,
                self._extended, bool(self._selected),
            )  # fmt: skip
            if self._unsent:
                return False
            reason = explain(terms, command, flags, offset, length)
            self._replies.error(cookie, error, reason)
            self._gateway.stats.command(command).add(0, 1, 0, 1)
            log.debug("nbd.request.refused", peer=self._peer, nbd_error=error, reason=reason)
        elif command != nbd.NBD_CMD_DISC:
            held = length if command <= nbd.NBD_CMD_WRITE else 0
            full = len(self._in_flight) >= limits.NBD_IN_FLIGHT_REQUESTS_MAX
            if self._unsent or full or (held > room and room < limits.NBD_IN_FLIGHT_BYTES_MAX):
                return False
            self._start(self._first)
        self._first += 1
        return True

    def _start(self, index: int) -> int:
        """Make a task of one request; return its length."""
        command, flags, cookie, offset, length, _ = self._batch.request(index)
        payload = self._batch.payload(index) if command == nbd.NBD_CMD_WRITE else b""
        began_ns = self._gateway.clock.monotonic_ns()
        request = WaitingRequest(command, flags, cookie, offset, length, began_ns, payload)
        self._held_bytes += request.held_bytes
        done: asyncio.Future[Any] | None = None
        if command == nbd.NBD_CMD_FLUSH:
            done = self._export.flush_soon()
        elif command == nbd.NBD_CMD_WRITE and not flags & nbd.NBD_CMD_FLAG_FUA:
            done = self._export.write_soon(offset, payload)
        elif command == nbd.NBD_CMD_READ:
            done = self._export.read_soon(offset, length)
        if done is not None:
            self._in_flight[done] = request
            done.add_done_callback(self._on_answered)
        else:
            self._start_task(request)
        return length

    def _start_task(self, request: WaitingRequest) -> None:
        task = self._loop.create_task(self._commands.serve(request))
        self._in_flight[task] = request
        task.add_done_callback(self._on_served)

    def _on_answered(self, done: asyncio.Future[Any]) -> None:
        """Reply to a request that needed no task, or make one of it after all."""
        if not done.cancelled() and not self._lost:
            request = self._in_flight[done]
            read = request.command == nbd.NBD_CMD_READ
            failure = done.exception()
            found: bytes | None = None if failure else done.result()
            if isinstance(failure, Unavailable):  # a task has more patience
                again = request.command != nbd.NBD_CMD_FLUSH
            else:
                again = read and failure is None and found is None
            if again:
                del self._in_flight[done]
                self._start_task(request)
                return
            if failure is None:
                if read and found is not None:
                    self._replies.data(request.cookie, request.offset, found)
                else:
                    self._replies.done(request.cookie)
        self._on_served(done)

    def _on_served(self, task: asyncio.Future[Any]) -> None:
        """Account for a finished request, send its reply, go on with what waited."""
        request = self._in_flight.pop(task)
        self._held_bytes -= request.held_bytes
        if task.cancelled():
            return
        failure = task.exception()
        counter = self._gateway.stats.commands[request.command]
        elapsed_ns = self._gateway.clock.monotonic_ns() - request.began_ns
        if failure is None:
            counter.add(elapsed_ns, 1, request.length)
        else:
            counter.add(elapsed_ns, 1, 0, 1)
            if not isinstance(failure, TorusError) or isinstance(failure, Fenced):
                self._end_badly(failure)
                return
            log.warning(
                "nbd.request.failed", peer=self._peer, export=self._export.name,
                command=nbd.COMMAND_NAMES[request.command], offset=request.offset,
                length=request.length, error=failure.message,
            )  # fmt: skip
            self._replies.error(request.cookie, nbd_error(failure), failure.message)
        if self._lost:
            self._replies.take()
            return
        if self._in_flight:  # others may be done in this turn of the loop, too
            if not self._sending:
                self._sending = True
                self._loop.call_soon(self._send_all)
            return
        self._send()
        self._go_on()
        if self._may_poll():
            self._poller.linger(self._loop, self._gateway.clock)

    def _send_all(self) -> None:
        self._sending = False
        if not self._lost:
            self._send()
            self._go_on()

    def _go_on(self) -> None:
        if self._first < self._stop:
            self._serve()
        elif self._ending:
            self._close_if_done()

    # --- the transport ------------------------------------------------------------------

    def _send(self) -> None:
        if len(self._replies):
            self._poller.send(self._replies.take())

    def _set_reading(self, wanted: bool) -> None:
        if wanted == self._reading or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _on_turn(self) -> None:
        self._turn = None
        self._serve()

    # --- the end ------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """Take no more requests, serve those received, then close."""
        if self._ending or self._lost:
            return
        log.debug("nbd.client.ending", peer=self._peer, reason=reason)
        self._ending = True
        self._set_reading(False)
        self._close_if_done()

    def _close_if_done(self) -> None:
        """Close when nothing is in flight; a client that takes no replies is cut off in time."""
        if self._lost:
            return
        if self._deadline is None:
            self._deadline = self._loop.call_later(
                self._gateway.drain_timeout_s, self._transport.abort
            )
        if not self._in_flight and self._first >= self._stop:
            self._send()
            self._transport.close()

    def _end_badly(self, failure: BaseException) -> None:
        """Cut the connection off, and say why in one line."""
        if not isinstance(failure, TorusError):
            log.error("nbd.request.crashed", peer=self._peer, exception=failure)
        elif self._lost or self._transport.is_closing():
            return
        elif isinstance(failure, RemoteProtocolError):
            self._gateway.stats.protocol_errors += 1
            log.warning("nbd.client.garbage", peer=self._peer, error=failure.message)
        else:
            log.error(
                "nbd.export.lost", peer=self._peer, export=self._export.name,
                error=failure.message, code=failure.code,
            )  # fmt: skip
        self._ending = True
        self._transport.abort()
