"""The asking end of one connection to a node.

Decides how many requests may be under way, how long an answer may take, and what every open
request gets when the connection ends: `Unavailable`.  Whether to connect again is decided in
`torus.cluster.peer`.  Implements docs/protocol.md, "Limits and deadlines".
"""

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from torus import limits
from torus._fast.peerframe import append_frame, read_frame, sync_frame
from torus.cluster.asked import MESSAGES, Asked, Deadlines, plain
from torus.errors import TimedOut, TorusError, Unavailable
from torus.ids import CHUNK_ID_SIZE, ChunkId
from torus.net.address import Address
from torus.net.connecting import connect_error
from torus.net.framing import FramedProtocol
from torus.wire import failures
from torus.wire.connection import Connection
from torus.wire.messages import (
    Answer,
    Append,
    Error,
    Hello,
    Message,
    MessageType,
    Ping,
    Request,
    Sync,
    in_flight_bytes,
)
from torus.wire.states import Role

_FREQUENT_BYTES_MAX = 128 * limits.KIB  # larger frames are not copied together
_LATE_S = 0.05
_TICKS = 4  # looks at the deadlines in the time that a node may be silent


def _none(_volume: int, _epoch: int) -> int:
    return 0


class PeerLink(FramedProtocol):
    """One connection: made by `connect`, used until ``failure`` is set."""

    def __init__(self, address: Address, hello: Hello, secret: bytes, deadlines: Deadlines) -> None:
        super().__init__(Connection(Role.CLIENT, hello, secret))
        self.address = address
        self.failure: TorusError | None = None
        self._deadlines = deadlines
        self._heard_s = 0.0  # when the node last said something
        self._asked_s = 0.0  # when it was last asked, other than for a sign of life
        self._deadline_s = 0.0  # the earliest of the open requests, or earlier
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[Hello] = self._loop.create_future()
        self._open: dict[int, Asked] = {}
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._in_flight_bytes = 0
        self._in_flight = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pinged = False
        self._due_s = 0.0  # when the timer is to fire
        self._late_once = False
        self._greeted = False
        self.ended: asyncio.Future[None] = self._loop.create_future()  # done with `failure`
        self._capability: Callable[[int, int], int] = _none
        self._append_s = deadlines.of(Append)
        self._sync_s = deadlines.of(Sync)

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
        kind = type(request)
        self._enter(number, Asked(
            future, cost, self._loop.time(), self._deadlines.of(kind), kind.__name__.upper()
        ))  # fmt: skip
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

    # --- frequent requests, without message objects -------------------------------------

    def append_soon(
        self, chunk: ChunkId, index: int, offset: int, record: bytes
    ) -> asyncio.Future[int] | None:
        """Send an APPEND; the future gets the boot id, or an error as from `ask`.

        None when there is no room, or the record is large: `ask`.
        """
        size = len(record)
        number = self._begin(MessageType.APPEND, 256 + size, size)
        if number is None:
            return None
        allowed = self._capability(chunk[0], chunk[1])
        try:
            frame = append_frame(number, allowed, chunk, index, offset, record)
        except OverflowError:  # `ask` says which field
            self.connection.drop_request(number)
            return None
        return self._sent(number, frame, 256 + size, self._append_s, "APPEND")

    def sync_soon(self, chunks: Sequence[ChunkId]) -> asyncio.Future[int] | None:
        """Send a SYNC; as `append_soon`."""
        count = len(chunks)
        number = self._begin(MessageType.SYNC, 256 + 64 * count, CHUNK_ID_SIZE * count)
        if number is None:
            return None
        frame = sync_frame(number, self._capability(0, 0), chunks)
        return self._sent(number, frame, 256 + 64 * count, self._sync_s, "SYNC")

    def read_soon(
        self, reads: Sequence[tuple[ChunkId, int, int]], size: int
    ) -> asyncio.Future[list[bytes]] | None:
        """Send a READ of ``size`` bytes; the future gets the pieces.  As `append_soon`."""
        cost = 256 + 64 * len(reads) + size
        number = self._begin(MessageType.READ, cost, 32 * len(reads))
        if number is None:
            return None
        frame = read_frame(number, self._capability(0, 0), reads)
        return self._sent(number, frame, cost, self._deadlines.answer_s, "READ")

    def _begin(self, kind: MessageType, cost: int, size: int) -> int | None:
        if self.failure is not None or self._waiting or size > _FREQUENT_BYTES_MAX:
            return None
        if not self._has_room(cost):
            return None
        return self.connection.begin_request(kind)

    def _sent(
        self, number: int, frame: bytes, cost: int, limit_s: float, name: str
    ) -> asyncio.Future[Any]:
        self._in_flight_bytes += cost
        self._in_flight += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._enter(number, Asked(future, cost, self._loop.time(), limit_s, name, True))
        self.post(frame)
        return future

    def _take_frequent(self) -> bool:
        """Hand an APPENDED, SYNCED or READ_DONE to its request; False: none is next.

        Raises: RemoteProtocolError.
        """
        found = self.connection.receiver.next_frequent()
        if found is None:
            return False
        kind, _, number, _, _, _, said = found
        self.connection.take_answer(number, kind)
        request = self._open.pop(number)
        self._give_room(request.cost)
        if not request.future.done():
            request.future.set_result(said if request.plain else MESSAGES[kind](said))
        return True

    # --- answers ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        super().connection_made(transport)
        self.send(self.connection.send_hello())

    def pump(self) -> None:
        """Hand every answer to its request."""
        self._heard_s = self._loop.time()
        try:
            while True:
                if self._greeted and self._take_frequent():
                    continue
                event = self.connection.next_event()
                if event is None:
                    break
                message = event.message
                if isinstance(message, Hello):
                    self.send(self.connection.send_proof())
                    self._greeted = True
                    assert self.connection.capabilities is not None
                    self._capability = self.connection.capabilities.of
                    self._hello.set_result(message)
                    self._keep_alive()
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
        elif request.plain:  # it came in a large frame
            request.future.set_result(plain(answer))  # type: ignore[arg-type]
        else:  # the connection lets nothing but answers through
            request.future.set_result(cast(Answer, answer))

    # --- deadlines and the end ----------------------------------------------------------

    def _enter(self, number: int, request: Asked) -> None:
        self._asked_s = request.sent_s
        self._put(number, request)

    def _put(self, number: int, request: Asked) -> None:
        self._open[number] = request
        if self._timer is None or request.deadline_s < self._deadline_s:
            self._watch(request.deadline_s)

    def _watch(self, deadline_s: float) -> None:
        """Look at the deadlines at ``deadline_s``, and before that at the node's silence."""
        self._deadline_s = deadline_s
        if self._timer is not None:
            self._timer.cancel()
        silence_s = self._deadlines.silence_s
        if silence_s is not None:
            deadline_s = min(deadline_s, self._loop.time() + silence_s / _TICKS)
        self._due_s = deadline_s
        self._timer = self._loop.call_at(deadline_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_s, earliest_s, oldest_s = self._loop.time(), math.inf, math.inf
        if now_s - self._due_s > _LATE_S and not self._late_once:
            # This process was held up: what the node said meanwhile is to be read first.
            self._late_once = True
            self._watch(now_s + _LATE_S)
            return
        self._late_once = False
        for request in self._open.values():
            if request.deadline_s <= now_s:
                limit_s = request.deadline_s - request.sent_s
                self.fail(self._late(f"did not answer {request.name} in {limit_s:g} s"))
                return
            earliest_s = min(earliest_s, request.deadline_s)
            oldest_s = min(oldest_s, request.sent_s)
        silence_s = self._deadlines.silence_s
        if silence_s is not None:
            quiet_s = now_s - max(self._heard_s, min(oldest_s, now_s))
            if quiet_s >= silence_s:
                self.fail(self._late(f"said nothing for {quiet_s:.1f} s"))
                return
            if not self._open and now_s - self._asked_s >= limits.PEER_REST_S:
                return  # who attaches a volume asks all disks once, and most of them never again
            if now_s - self._heard_s >= silence_s / 2 and not self._pinged:
                self._ping()
                return
        if self._open or silence_s is not None:
            self._watch(min(earliest_s, now_s + limits.PEER_REQUEST_TIMEOUT_S))

    def _late(self, what: str) -> TimedOut:
        return TimedOut(f"node at {self.address} {what}")

    def _keep_alive(self) -> None:
        """Begin to look whether the node is there, also while nobody asks it anything: for
        `limits.PEER_REST_S` after the last request."""
        if self._deadlines.silence_s is not None and self._timer is None:
            self._asked_s = self._loop.time()
            self._watch(math.inf)

    def _ping(self) -> None:
        """Ask for a sign of life; it waits for no room, and takes none."""
        number, pieces = self.connection.send_request(Ping())
        future: asyncio.Future[Answer] = self._loop.create_future()
        future.add_done_callback(self._on_pong)
        self._pinged = True
        self._in_flight += 1
        self._put(number, Asked(future, 0, self._loop.time(), self._deadlines.of(Ping), "PING"))
        if self._timer is None:
            self._watch(math.inf)
        self.send(pieces)

    def _on_pong(self, future: asyncio.Future[Answer]) -> None:
        self._pinged = False
        if not future.cancelled():
            future.exception()  # the connection's failure: whoever asks next is told

    def fail(self, error: TorusError) -> None:
        """End the connection because of ``error``; the first call counts."""
        if self.failure is not None:
            return
        self.failure = error
        if not self.ended.done():
            self.ended.set_result(None)
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
        if isinstance(error, ssl.SSLError):
            self.fail(connect_error(self.address, error))
            return
        reason = "the node closed the connection" if error is None else str(error)
        self.fail(Unavailable(f"connection to the node at {self.address} ended: {reason}"))

    def _lost_error(self, cause: TorusError) -> Unavailable:
        # A node that is silent is hung: nobody needs to find that out once more.
        hung = isinstance(cause, TimedOut) and self._deadlines.silence_s is not None
        error = (TimedOut if hung else Unavailable)(
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
