"""The connection without I/O: who may say what when, however the bytes are cut."""

import random
from dataclasses import replace

import pytest

from torus import limits
from torus.errors import (
    Fenced,
    ForeignData,
    LocalProtocolError,
    PermissionDenied,
    RemoteProtocolError,
    ShuttingDown,
    TorusError,
    UnknownVersion,
)
from torus.ids import ChunkId
from torus.wire import codec, failures, frames, proof
from torus.wire import messages as m
from torus.wire.connection import Connection, Received
from torus.wire.states import TRANSITIONS, Role, State, next_state

CHUNK = ChunkId(5, 2, 0, 1)


def hello(
    cluster: bytes = b"c" * 16, *, slot_bytes: int = 4 << 20, frame: int = 8 << 20
) -> m.Hello:
    """Return a hello; a server's has a slot size."""
    return m.Hello(cluster, b"d" * 16, 77, slot_bytes, frame, 32 << 20, 1024, "name")


def feed(connection: Connection, *pieces: m.Buffer) -> list[Received]:
    """Give a connection bytes, as much as it takes at a time; return its messages."""
    data = memoryview(b"".join(pieces))
    events = []
    while data:
        room = connection.buffer()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        connection.received(count)
        data = data[count:]
        while (event := connection.next_event()) is not None:
            events.append(event)
    return events


def pair() -> tuple[Connection, Connection]:
    """Return a client and a server that have exchanged hellos."""
    client, server = Connection(Role.CLIENT, hello()), Connection(Role.SERVER, hello())
    feed(server, *client.send_hello())
    feed(client, *server.send_hello())
    feed(server, *client.send_proof())
    return client, server


def test_hellos_make_both_ready() -> None:
    """Each side knows the other after one message each, and the client's proof."""
    client, server = Connection(Role.CLIENT, hello()), Connection(Role.SERVER, hello())
    assert not client.ready
    [event] = feed(server, *client.send_hello())
    assert event == (0, hello())
    assert not server.ready
    feed(client, *server.send_hello())
    assert (client.ready, server.ready) == (False, False)
    [event] = feed(server, *client.send_proof())

    assert isinstance(event.message, m.Proof)
    assert (client.ready, server.ready) == (True, True)
    assert server.peer == hello()
    assert client.peer == server.hello


def test_answers_come_in_any_order() -> None:
    """An answer belongs to the request whose number it carries."""
    client, server = pair()
    first, pieces = client.send_request(m.Sync((CHUNK,)))
    second, more = client.send_request(m.List(5, None, 10))
    events = feed(server, *pieces, *more)
    assert [event.request for event in events] == [first, second]
    assert (client.open_requests, server.open_requests) == (2, 2)

    late = server.send_answer(second, m.Listed((), False))
    early = server.send_answer(first, failures.to_message(Fenced("no")))

    assert feed(client, *late, *early) == [
        (second, m.Listed((), False)),
        (first, m.Error(Fenced.wire_code, "no", None)),
    ]
    assert (client.open_requests, server.open_requests) == (0, 0)


@pytest.mark.parametrize("largest", [1, 7, 48, 49, 1000, 70000, 1 << 20])
def test_bytes_may_be_cut_anywhere(largest: int, rng: random.Random) -> None:
    """The same messages come out whatever the pieces are, small and large frames mixed."""
    client, server = pair()
    sizes = [1, 100, 20_000, 16 * 1024 - 32, 70_000, 16 * 1024 - 31, 200_000, 5, 65_536]
    if largest < 48:
        sizes = sizes[:3]
    sent, data = [], b""
    for index, size in enumerate(sizes):
        message = m.Append(CHUNK, index, 0, rng.randbytes(size))
        sent.append((client.send_request(message), message))
        data += b"".join(sent[-1][0][1])
    got = []
    at = 0
    while at < len(data):
        count = min(rng.randint(1, largest), len(data) - at)
        got += feed(server, data[at : at + count])
        at += count

    assert got == [(number, message) for (number, _), message in sent]


def test_other_cluster_is_refused_on_both_sides() -> None:
    """Neither side goes on with a peer of another cluster."""
    client, server = Connection(Role.CLIENT, hello()), Connection(Role.SERVER, hello(b"x" * 16))
    with pytest.raises(ForeignData, match="63636363") as caught:
        feed(server, *client.send_hello())
    with pytest.raises(ForeignData, match="63636363"):
        feed(client, *server.send_refusal(caught.value))
    assert (client.closed, server.closed) == (True, True)

    client, server = Connection(Role.CLIENT, hello()), Connection(Role.SERVER, hello())
    feed(server, *client.send_hello())
    with pytest.raises(ForeignData):
        feed(client, *server.send_hello(hello(b"x" * 16)))


@pytest.mark.parametrize(
    "wrong", [{"slot_bytes": 0}, {"slot_bytes": 64 << 20}, {"frame": 64 << 20}, {"frame": 1024}]
)
def test_impossible_hello_is_refused(wrong: dict[str, int]) -> None:
    """A server that could not be used is refused before the first request."""
    client, server = Connection(Role.CLIENT, hello()), Connection(Role.SERVER, hello(**wrong))
    feed(server, *client.send_hello())
    with pytest.raises(RemoteProtocolError):
        feed(client, *server.send_hello())


def test_refusal_reaches_the_client_as_the_same_error() -> None:
    """The server's last word is an error of the connection, and nothing follows it."""
    client, server = pair()
    pieces = server.send_refusal(ShuttingDown("bye", hint="later"))

    assert server.send_refusal(ShuttingDown("bye")) == []
    with pytest.raises(ShuttingDown, match="bye") as caught:
        feed(client, *pieces)
    assert caught.value.hint == "later"
    assert client.next_event() is None
    with pytest.raises(LocalProtocolError):
        client.send_request(m.Space())
    assert client.send_refusal(ShuttingDown("x")) == []


def test_version_refusal_can_be_sent() -> None:
    """A server that cannot read the hello still says why."""
    server = Connection(Role.SERVER, hello())
    data = bytearray(codec.encode(hello(), 0)[0])
    data[4] = 9
    data[-4:] = codec.checksum(bytes(data[:-4])).to_bytes(4, "little")
    with pytest.raises(UnknownVersion) as caught:
        feed(server, data)

    client = Connection(Role.CLIENT, hello())
    with pytest.raises(UnknownVersion, match="version 9"):
        feed(client, *server.send_refusal(caught.value))


def answers_to(request: m.Message, answer: m.Message, number: int | None = None) -> None:
    """Let a client ask and be answered, by a server without rules."""
    client, _ = pair()
    asked, _ = client.send_request(request)
    feed(client, *codec.encode(answer, asked if number is None else number))


def test_wrong_answers_are_refused() -> None:
    """An answer to nothing, of another kind, twice: none is handed on."""
    with pytest.raises(RemoteProtocolError, match="LISTED answers request 1, a SYNC"):
        answers_to(m.Sync((CHUNK,)), m.Listed((), False))
    with pytest.raises(RemoteProtocolError, match="request 9, which is not open"):
        answers_to(m.Sync((CHUNK,)), m.Synced(77), 9)
    with pytest.raises(RemoteProtocolError, match="request 9, which is not open"):
        answers_to(m.Sync((CHUNK,)), m.Error(1, "", None), 9)
    with pytest.raises(RemoteProtocolError, match="the server sent SYNC while ready"):
        answers_to(m.Sync((CHUNK,)), m.Sync((CHUNK,)))
    with pytest.raises(RemoteProtocolError, match="the server sent HELLO while ready"):
        answers_to(m.Sync((CHUNK,)), hello(), 0)


def allowed(server: Connection, message: m.Message, request: int) -> list[m.Buffer]:
    """Return a request's bytes with the capability that ``server`` wants to see."""
    assert server.capabilities is not None
    return codec.encode(message, request, server.capabilities.of)


SECRET = b"s" * 64


def greeted(ours: bytes, theirs: bytes) -> tuple[Connection, Connection]:
    """Return a client and a server that have seen each other's hello."""
    nonces = (replace(hello(), nonce=b"1" * 16), replace(hello(), nonce=b"2" * 16))
    client = Connection(Role.CLIENT, nonces[0], ours)
    server = Connection(Role.SERVER, nonces[1], theirs)
    feed(server, *client.send_hello())
    feed(client, *server.send_hello())
    return client, server


def test_secret_is_proved_both_ways() -> None:
    """The same secret opens, another one is noticed by the client first, and by the server."""
    client, server = greeted(SECRET, SECRET)
    feed(server, *client.send_proof())
    assert server.ready
    with pytest.raises(PermissionDenied, match="the server 'name' does not know"):
        greeted(b"t" * 64, SECRET)
    with pytest.raises(PermissionDenied):
        greeted(b"", SECRET)
    client, server = greeted(SECRET, SECRET)
    assert client.peer is not None
    for wrong in (
        m.Proof(bytes(32)),
        m.Proof(server.hello.proof),  # the server's own, sent back
        m.Proof(proof.client_proof(b"t" * 64, client.hello, client.peer)),
    ):
        _, server = greeted(SECRET, SECRET)
        with pytest.raises(PermissionDenied, match="the client 'name' does not know"):
            feed(server, *codec.encode(wrong, 0))
        assert server.closed


def test_proof_of_another_connection_is_worth_nothing() -> None:
    """Each connection has numbers of its own."""
    client, _ = greeted(SECRET, SECRET)
    server = Connection(Role.SERVER, replace(hello(), nonce=b"3" * 16), SECRET)
    feed(server, *codec.encode(client.hello, 0))
    server.send_hello()
    with pytest.raises(PermissionDenied):
        feed(server, *client.send_proof())


def test_nothing_is_served_before_the_proof() -> None:
    """Neither a request nor a large frame of a stranger is taken."""
    client, server = greeted(SECRET, SECRET)
    assert client.capabilities is not None
    with pytest.raises(RemoteProtocolError, match="SPACE while greeted"):
        feed(server, *codec.encode(m.Space(), 1, client.capabilities.of))
    server = Connection(Role.SERVER, hello(), SECRET)
    with pytest.raises(RemoteProtocolError, match="the most is"):
        feed(server, *codec.encode(m.Append(CHUNK, 0, 0, bytes(1 << 20)), 1)[:1])


def test_request_without_its_capability_is_refused() -> None:
    """Each (volume, epoch) has one, made with the connection's own key."""
    for volume, epoch in ((5, 2), (5, 3), (6, 2)):
        client, server = greeted(SECRET, SECRET)
        feed(server, *client.send_proof())
        assert client.capabilities is not None
        other = client.capabilities.of(volume, epoch)
        pieces = codec.encode(m.Open(CHUNK, False), 1, lambda _v, _e, other=other: other)
        if (volume, epoch) == CHUNK[:2]:
            assert len(feed(server, *pieces)) == 1
        else:
            with pytest.raises(PermissionDenied, match="no capability for 5:2"):
                feed(server, *pieces)
            assert server.closed


def test_wrong_requests_are_refused() -> None:
    """Numbers only grow, and the hello comes first and once."""
    for first, then in ((3, 3), (3, 2)):
        _, server = pair()
        with pytest.raises(RemoteProtocolError, match="ids only grow"):
            feed(server, *allowed(server, m.Space(), first), *allowed(server, m.Space(), then))
    for message in (m.Space(), m.Error(1, "", None), m.Synced(1)):
        with pytest.raises(RemoteProtocolError, match="the client sent"):
            feed(Connection(Role.SERVER, hello()), *codec.encode(message, 1))
        _, server = pair()
        if not isinstance(message, m.Space):
            with pytest.raises(RemoteProtocolError, match="the client sent"):
                feed(server, *codec.encode(message, 1))
    with pytest.raises(RemoteProtocolError, match="hello carries request 1"):
        feed(Connection(Role.SERVER, hello()), *codec.encode(hello(), 1))
    _, server = pair()
    with pytest.raises(RemoteProtocolError, match="HELLO while ready"):
        feed(server, *codec.encode(hello(), 0))


def test_wrong_use_is_a_local_error() -> None:
    """This side's bugs are told from the other's."""
    client, server = pair()
    number, pieces = client.send_request(m.Space())
    feed(server, *pieces)
    wrong = [
        client.send_hello,
        lambda: client.send_request(m.Synced(1)),
        lambda: client.send_answer(9, m.Synced(1)),
        lambda: server.send_request(m.Space()),
        lambda: server.send_answer(number, m.Synced(1)),
        lambda: server.send_answer(number + 1, m.Error(1, "", None)),
        lambda: Connection(Role.CLIENT, hello()).send_request(m.Space()),
    ]
    for call in wrong:
        with pytest.raises(LocalProtocolError):
            call()
    server.send_answer(number, m.SpaceIs(1, 1, 1, 1, 1))
    with pytest.raises(LocalProtocolError):
        server.send_answer(number, m.SpaceIs(1, 1, 1, 1, 1))


def test_failed_request_leaves_nothing_open() -> None:
    """A request that could not be encoded has no number and no answer to come."""
    client, _ = pair()
    with pytest.raises(LocalProtocolError):
        client.send_request(m.Append(CHUNK, 0, 0, bytes(limits.PEER_FRAME_BYTES_MAX)))

    assert client.open_requests == 0
    assert client.send_request(m.Space())[0] == 1


def test_end_in_the_middle_of_a_frame_is_noticed() -> None:
    """A peer that stops between frames left in order; one that stops within did not."""
    data = codec.encode(m.Space(), 1)[0]
    _, server = pair()
    assert not server.end_of_input()
    for cut in (1, 47):
        _, server = pair()
        feed(server, data[:cut])
        assert server.end_of_input()
    _, server = pair()
    feed(server, *codec.encode(m.Append(CHUNK, 0, 0, bytes(99)), 1)[:2])
    assert server.end_of_input()


def test_no_room_is_taken_before_the_header_is_checked() -> None:
    """A header that asks for memory is believed only when its checksum is right."""
    _, server = pair()
    data = bytearray(codec.encode(m.Append(CHUNK, 0, 0, bytes(1 << 20)), 1)[0])
    data[14] ^= 0x10
    with pytest.raises(RemoteProtocolError, match="damaged"):
        feed(server, data)
    assert server.receiver._body is None


def test_every_state_has_a_row() -> None:
    """The table is complete, and nothing leads out of the end."""
    assert set(TRANSITIONS) == {(role, state) for role in Role for state in State}
    for role in Role:
        assert all(next_state(role, State.CLOSED, kind) is None for kind in m.MessageType)
    said = {kind for row in TRANSITIONS.values() for kind in row}
    assert said == set(m.MessageType)


def test_both_sides_count_alike() -> None:
    """The bound of what is under way counts payloads and the answers asked for."""
    assert m.in_flight_bytes(m.Append(CHUNK, 0, 0, bytes(1000)), 1 << 20) == 1256
    assert m.in_flight_bytes(m.Read(((CHUNK, 0, 4096),)), 1 << 20) == 256 + 64 + 4096
    assert m.in_flight_bytes(m.Scan(CHUNK, 1, 0), 1 << 20) == 256 + (1 << 20)
    assert m.in_flight_bytes(m.Sync((CHUNK, CHUNK)), 1 << 20) == 256 + 128
    assert m.in_flight_bytes(m.List(1, None, 10), 1 << 20) == 256 + 640
    assert m.in_flight_bytes(m.Space(), 1 << 20) == 256


def test_header_has_48_bytes() -> None:
    """docs/protocol.md says so, and large frames are received into place behind it."""
    assert frames.HEADER_BYTES == 48
    assert issubclass(RemoteProtocolError, TorusError)
