"""Who may look for its next request before it goes back to the event loop, and for how long."""

import asyncio
import errno
import itertools
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from torus import limits
from torus._fast.frame import RequestBatch
from torus._fast.socketio import receive_soon, send_now
from torus.gateway.polling import Poller, Turns
from torus.testing.clock import ManualClock
from torus.testing.nbd_client import request_bytes

REQUEST = request_bytes(0, 0, 512)


class Socket(asyncio.Transport):
    """A transport over one end of a socket pair that keeps what it is told to send later."""

    def __init__(self, sock: socket.socket | None, *, secured: bool = False) -> None:
        super().__init__({"socket": sock, "sslcontext": object() if secured else None})
        self.buffered: list[bytes] = []
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.buffered.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.buffered))

    def is_closing(self) -> bool:
        return self.closing


class Side:
    """A poller, its transport, and the client's socket."""

    def __init__(self, turns: Turns, *, secured: bool = False) -> None:
        ours, self.client = socket.socketpair()
        self.ours = ours
        ours.setblocking(False)
        self.client.setblocking(False)
        self.transport = Socket(ours, secured=secured)
        self.batch = RequestBatch(limits.MIB, size_bytes=limits.MIB)
        self.poller = Poller(self.transport, self.batch, turns)

    def close(self) -> None:
        self.ours.close()
        self.client.close()

    def arrived(self) -> bytes:
        found = b""
        try:
            while piece := self.client.recv(1 << 20):
                found += piece
        except BlockingIOError:
            pass
        return found


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def side(turns: Turns) -> Iterator[Side]:
    made = Side(turns)
    yield made
    made.close()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make looking in vain take no time."""
    monkeypatch.setattr(limits, "NBD_POLL_NS", 0)


def alone(side: Side) -> None:
    """Let the event loop bring ``side`` two turns in a row."""
    side.poller.begin_turn(28)
    side.poller.begin_turn(28)


# --- receiving --------------------------------------------------------------------------


def test_what_lies_there_is_received(side: Side) -> None:
    """Into the batch, as if the transport had brought it."""
    alone(side)
    for _ in range(3):
        side.client.send(REQUEST)
        received = side.poller.receive()

        assert received == len(REQUEST)
        assert side.batch.received(received) == 1


@pytest.mark.usefixtures("patience")
def test_nothing_there_is_zero(side: Side) -> None:
    """No data, the end of the stream and an error alike: the event loop meets them, too."""
    alone(side)
    assert side.poller.receive() == 0
    side.client.close()
    alone(side)
    while side.poller._skip:
        side.poller.receive()
    assert side.poller.receive() == 0


@pytest.mark.usefixtures("patience")
def test_looking_in_vain_makes_it_rarer(side: Side) -> None:
    """2, 4, 8 ... turns without a look after each miss, up to a bound; one hit ends that."""
    looks, asked = [], 0
    while len(looks) < 14:
        alone(side)
        before = side.poller._misses
        assert side.poller.receive() == 0
        if side.poller._misses > before:
            looks.append(asked)
        asked += 1
    gaps = [later - earlier - 1 for earlier, later in itertools.pairwise(looks)]
    assert gaps == [min(2 << n, limits.NBD_POLL_SKIP_MAX) for n in range(13)]
    side.client.send(REQUEST)
    received = 0
    while not received:
        alone(side)
        received = side.poller.receive()

    side.batch.received(received)
    assert side.poller.receive() == 0
    assert side.poller._skip == 2


def test_two_that_take_turns_do_not_look(turns: Turns) -> None:
    """Looking for one would let the other wait."""
    sides = [Side(turns), Side(turns)]
    for _ in range(4):
        for side in sides:
            side.client.send(REQUEST)
            side.poller.begin_turn(28)
            assert side.poller.receive() == 0
    first = sides[0]
    first.poller.begin_turn(28)
    assert first.poller.receive() == 0, "the other one was last"
    first.poller.begin_turn(28)
    assert first.poller.receive() > 0, "alone again"
    for side in sides:
        side.close()


def test_the_first_turn_of_all_does_not_look(side: Side) -> None:
    """Nobody knows yet whether it is alone."""
    side.client.send(REQUEST)
    assert side.poller.receive() == len(REQUEST), "without a turn there is no bound yet"
    side.client.send(REQUEST)
    side.poller.begin_turn(28)

    assert side.poller.receive() == 0


@pytest.mark.parametrize(("nbytes", "looks"), [(0, True), (1, False)])
def test_streaming_does_not_look(side: Side, nbytes: int, looks: bool) -> None:
    """A client that moves much at a time keeps both sides busy anyway."""
    alone(side)
    side.client.send(REQUEST)
    side.poller.begin_turn(limits.NBD_POLL_BYTES_MAX + nbytes)

    assert (side.poller.receive() > 0) is looks


def test_rounds_are_bounded(side: Side) -> None:
    """A client that always answers at once does not keep the event loop from others."""
    alone(side)
    served = 0
    while True:
        side.client.send(REQUEST)
        received = side.poller.receive()
        if not received:
            break
        served += side.batch.received(received)
        assert served <= limits.NBD_POLL_ROUNDS_MAX
    assert served == limits.NBD_POLL_ROUNDS_MAX
    side.poller.begin_turn(28)

    assert side.poller.receive() > 0


def test_a_buffer_that_is_held_is_left_alone(side: Side) -> None:
    """It may have to grow, which it cannot meanwhile: the event loop goes on."""
    alone(side)
    request = request_bytes(1, 0, 512 * 1024, payload=bytes(512 * 1024))
    room = memoryview(side.batch.get_buffer())
    taken = len(room)
    room[:taken] = request[:taken]
    side.batch.received(taken)
    side.client.send(request[taken : taken + 1000])

    assert side.poller.receive() == 0
    room.release()
    assert side.poller.receive() == 1000


@pytest.mark.parametrize("secured", [True, False])
def test_without_a_plain_socket_everything_goes_through_the_transport(
    turns: Turns, secured: bool
) -> None:
    """Beside TLS nothing may be written or read."""
    side = Side(turns, secured=True)
    if not secured:
        side.poller = Poller(Socket(None), side.batch, turns)
    side.client.send(REQUEST)
    alone(side)
    side.poller.send(b"reply")

    assert side.poller.receive() == 0
    assert side.arrived() == b""
    assert side.transport.buffered == ([b"reply"] if secured else [])
    side.close()


def test_a_closing_connection_is_left_alone(side: Side) -> None:
    """Its descriptor's number may soon be another connection's."""
    alone(side)
    side.client.send(REQUEST)
    side.transport.closing = True
    side.poller.send(b"reply")

    assert side.poller.receive() == 0
    assert side.transport.buffered == [b"reply"]
    assert side.arrived() == b""


# --- sending ----------------------------------------------------------------------------


def test_a_reply_is_sent_at_once(side: Side) -> None:
    """Nothing is left to the transport."""
    side.poller.send(b"reply")

    assert side.arrived() == b"reply"
    assert side.transport.buffered == []


def test_order_is_kept_when_the_socket_is_full(side: Side, rng: random.Random) -> None:
    """The rest of a reply and all later ones follow through the transport, each byte once."""
    sent = b""
    for _ in range(40):
        data = rng.randbytes(rng.randrange(1, 50_000))
        side.poller.send(data)
        sent += data
    direct = side.arrived()
    rest = b"".join(side.transport.buffered)
    assert 0 < len(direct) < len(sent)
    assert direct + rest == sent
    # There is room again, but the transport still holds bytes that come first.
    side.poller.send(b"later")
    assert side.arrived() == b""
    assert b"".join(side.transport.buffered) == rest + b"later"
    side.transport.buffered.clear()
    side.poller.send(b"now")

    assert side.arrived() == b"now"


def test_a_broken_connection_is_the_transports_business(side: Side) -> None:
    """It gets all the bytes and finds the error; no signal ends the process."""
    side.client.close()
    side.poller.send(b"reply")

    assert side.transport.buffered == [b"reply"]


def test_calls_without_the_event_loop_wait_no_longer_than_told() -> None:
    """A closed descriptor and an empty one cost nothing, and the bytes are counted."""
    one, other = socket.socketpair()
    batch = RequestBatch(limits.MIB, size_bytes=limits.MIB)
    assert receive_soon(one.fileno(), batch, 0) == 0
    assert receive_soon(one.fileno(), batch, 20_000) == 0
    assert receive_soon(-1, batch, 10**9) == 0, errno.errorcode[errno.EBADF]
    assert send_now(-1, b"x") == 0
    assert send_now(one.fileno(), b"abc") == 3
    assert receive_soon(other.fileno(), batch, 10**9) == 3
    one.close()
    assert receive_soon(other.fileno(), batch, 10**9) == 0, "the end of the stream"
    other.close()


# --- staying awake ----------------------------------------------------------------------


class Loop:
    """Calls what it is told to, one turn at a time, at times that the test sets."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.soon: list[tuple[Any, ...]] = []

    def call_soon(self, *call: Any) -> None:
        self.soon.append(call)

    def turn(self) -> None:
        """Let one turn pass, in 10 microseconds."""
        self.clock.advance(10_000)
        calls, self.soon = self.soon, []
        for function, *arguments in calls:
            function(*arguments)


@pytest.fixture
def loop() -> Loop:
    return Loop()


def linger(side: Side, loop: Loop) -> int:
    """Return how many turns the loop stays awake when nothing comes."""
    side.poller.linger(loop, loop.clock)  # type: ignore[arg-type]
    turns = 0
    while loop.soon:
        loop.turn()
        turns += 1
    return turns


def test_the_loop_stays_awake_for_a_moment(side: Side, loop: Loop) -> None:
    """It serves others meanwhile, and sleeps when the moment is over."""
    alone(side)
    assert linger(side, loop) == limits.NBD_POLL_NS // 10_000


def test_the_request_ends_it(side: Side, loop: Loop) -> None:
    """One that is asked for twice is one."""
    alone(side)
    for _ in range(20):
        side.poller.linger(loop, loop.clock)  # type: ignore[arg-type]
        side.poller.linger(loop, loop.clock)  # type: ignore[arg-type]
        assert len(loop.soon) == 1
        loop.turn()
        side.poller.begin_turn(28)
        loop.turn()
        assert loop.soon == []


def test_staying_awake_in_vain_makes_it_rarer(side: Side, loop: Loop) -> None:
    """As with looking; a request in time ends that."""
    alone(side)
    awake = [bool(linger(side, loop)) for _ in range(12)]
    assert awake == [True, False, False, True, *[False] * 4, True, *[False] * 3]
    while not linger(side, loop):
        pass
    side.poller._skip = 0
    side.poller.linger(loop, loop.clock)  # type: ignore[arg-type]
    side.poller.begin_turn(28)
    loop.turn()
    assert linger(side, loop)


def test_who_is_not_alone_lets_the_loop_sleep(side: Side, loop: Loop, turns: Turns) -> None:
    """So does one that moves much at a time."""
    other = Side(turns)
    alone(side)
    other.poller.begin_turn(28)
    side.poller.begin_turn(28)
    assert linger(side, loop) == 0
    alone(side)
    side.poller.begin_turn(limits.NBD_POLL_BYTES_MAX + 1)
    assert linger(side, loop) == 0
    alone(side)
    other.poller.begin_turn(28)  # while the reply was waited for
    assert linger(side, loop) == 0
    other.close()
