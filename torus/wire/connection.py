"""One connection of the peer protocol, without I/O: bytes in, messages out, and back.

Decides what is legal: the order of messages, which answer belongs to which request, whose
cluster the other side is of.  The caller carries bytes and keeps time.  Implements
docs/protocol.md, "States".
"""

from dataclasses import replace
from typing import NamedTuple

from torus import limits
from torus.errors import (
    ForeignData,
    LocalProtocolError,
    PermissionDenied,
    RemoteProtocolError,
    TorusError,
)
from torus.wire import failures, proof
from torus.wire.codec import decode, encode, type_of
from torus.wire.frames import BODY_BYTES_MAX
from torus.wire.messages import ANSWER, Buffer, Error, Hello, Message, MessageType, Proof
from torus.wire.receiver import Receiver
from torus.wire.states import Role, State, next_state

_HELLO_REQUEST = 0  # the request id of hellos and of errors that concern the connection
_IDS_MAX = (1 << 64) - 1
_STRANGER_BYTES_MAX = 3 * limits.PEER_TEXT_BYTES_MAX  # of a body before the other side is known


class Received(NamedTuple):
    """A message and the request that it is, or that it answers."""

    request: int
    message: Message


def _none(_volume: int, _epoch: int) -> int:
    return 0


class Connection:
    """Both directions of a connection, seen from one side."""

    def __init__(self, role: Role, hello: Hello, secret: bytes = b"") -> None:
        """``hello`` is what this side says of itself, ``secret`` the cluster's."""
        self.role = role
        self.hello = hello
        self._secret = secret
        self.capabilities: proof.Capabilities | None = None  # once both hellos are known
        self.peer: Hello | None = None  # known when `ready`
        self._peer_role = Role.SERVER if role is Role.CLIENT else Role.CLIENT
        self._our_state = State.NEW
        self._peer_state = State.NEW
        self.receiver = Receiver()
        self.receiver.body_bytes_max = _STRANGER_BYTES_MAX
        self._pending: dict[int, MessageType] = {}  # requests without an answer, either role
        self._last_request = _HELLO_REQUEST

    # --- receiving ----------------------------------------------------------------------

    def buffer(self) -> memoryview:
        """Return where received bytes go; after `next_event` has returned None."""
        return self.receiver.buffer()

    def received(self, count: int) -> None:
        """Take note that ``count`` bytes were written to `buffer`."""
        self.receiver.received(count)

    def next_event(self) -> Received | None:
        """Return the next message; None when more bytes are needed.

        A failure of the connection that the peer sent is raised, not returned.

        Raises: RemoteProtocolError, UnknownVersion, ForeignData; any TorusError that the peer
        sent for the whole connection.  Then nothing more is received.
        """
        if self._peer_state is State.CLOSED:
            return None
        try:
            frame = self.receiver.next_frame()
            if frame is None:
                return None
            header, body = frame
            message = decode(header, body)
            self._judge(header.request, message)
            if self.role is Role.SERVER and self.ready and header.request:
                self.check_capability(header.volume, header.epoch, header.capability)
        except TorusError:
            self._peer_state = State.CLOSED  # a refusal may still be sent
            raise
        return Received(header.request, message)

    def end_of_input(self) -> bool:
        """Close; return True when the peer stopped in the middle of a frame."""
        partial = self.receiver.partial
        self.close()
        return partial

    def _judge(self, request: int, message: Message) -> None:
        kind = type_of(message)
        state = next_state(self._peer_role, self._peer_state, kind)
        if state is None:
            raise RemoteProtocolError(
                f"the {self._peer_role.value} sent {kind.name} while {self._peer_state.value}"
            )
        if isinstance(message, Hello):
            self._meet(request, message)
        elif isinstance(message, Proof):
            self._check_client(request, message)
        elif self.role is Role.SERVER:
            self._judge_request(request, kind)
        else:
            self._judge_answer(request, kind, message)
        self._peer_state = state

    def _meet(self, request: int, hello: Hello) -> None:
        """Check who the other side is; it must be of the same cluster."""
        if request != _HELLO_REQUEST:
            raise RemoteProtocolError(f"hello carries request {request}")
        if hello.cluster_id != self.hello.cluster_id:
            raise ForeignData(
                f"the {self._peer_role.value} {hello.name!r} belongs to cluster "
                f"{hello.cluster_id.hex()}, this side to {self.hello.cluster_id.hex()}",
                hint="check the address and --meta: they are of two different clusters",
            )
        if self.role is Role.CLIENT:
            room = hello.frame_bytes_max - 64 * limits.KIB
            if not 0 < hello.slot_bytes <= room or hello.slot_bytes > limits.PEER_READ_BYTES_MAX:
                raise RemoteProtocolError(f"the server has slots of {hello.slot_bytes} bytes")
        if hello.in_flight_bytes_max < hello.frame_bytes_max or not hello.in_flight_requests_max:
            raise RemoteProtocolError("hello allows less than one frame in flight")
        if self.role is Role.CLIENT:
            expected = proof.server_proof(self._secret, self.hello, hello)
            proof.check(hello.proof, expected, f"the server {hello.name!r}")
            self.capabilities = proof.Capabilities(self._secret, self.hello, hello)
            self.receiver.body_bytes_max = BODY_BYTES_MAX
        self.peer = hello

    def _check_client(self, request: int, message: Proof) -> None:
        if request != _HELLO_REQUEST or self.capabilities is None:
            raise RemoteProtocolError(f"proof carries request {request}, or precedes our hello")
        assert self.peer is not None
        expected = proof.client_proof(self._secret, self.peer, self.hello)
        proof.check(message.proof, expected, f"the client {self.peer.name!r}")
        self.receiver.body_bytes_max = BODY_BYTES_MAX

    def check_capability(self, volume: int, epoch: int, capability: int) -> None:
        """Refuse a request that may not be asked.

        Raises: PermissionDenied.
        """
        assert self.capabilities is not None
        self.capabilities.check(volume, epoch, capability)

    def _judge_request(self, request: int, kind: MessageType) -> None:
        if request <= self._last_request:
            raise RemoteProtocolError(
                f"request {request} follows request {self._last_request}: ids only grow"
            )
        self._last_request = request
        self._pending[request] = kind

    def _judge_answer(self, request: int, kind: MessageType, message: Message) -> None:
        if isinstance(message, Error) and request == _HELLO_REQUEST:
            raise failures.from_message(message)
        asked = self._pending.pop(request, None)
        if asked is None:
            raise RemoteProtocolError(f"{kind.name} answers request {request}, which is not open")
        if kind is not MessageType.ERROR and kind != asked + ANSWER:
            raise RemoteProtocolError(f"{kind.name} answers request {request}, a {asked.name}")

    # --- frequent messages, which the caller packs and unpacks --------------------------

    def begin_request(self, kind: MessageType) -> int:
        """Return the number of a request that the caller packs itself.

        Raises: LocalProtocolError.
        """
        if not self.ready or self._last_request == _IDS_MAX:
            raise LocalProtocolError("a request before the hellos, or after the end")
        self._last_request += 1
        self._pending[self._last_request] = kind
        return self._last_request

    def take_answer(self, request: int, kind: int) -> None:
        """Note an answer that the caller unpacked itself.

        Raises: RemoteProtocolError.
        """
        asked = self._pending.pop(request, None)
        if asked is None or kind != asked + ANSWER:
            self._peer_state = State.CLOSED
            name = MessageType(kind).name
            if asked is None:
                raise RemoteProtocolError(f"{name} answers request {request}, which is not open")
            raise RemoteProtocolError(f"{name} answers request {request}, a {asked.name}")

    def take_request(self, request: int, volume: int, epoch: int, capability: int) -> None:
        """Note a request that the caller unpacked itself; it is open only when `keep_request`
        says so.

        Raises: RemoteProtocolError, PermissionDenied.
        """
        if request <= self._last_request or not self.ready:
            self._peer_state = State.CLOSED
            raise RemoteProtocolError(
                f"request {request} follows request {self._last_request}: ids only grow"
            )
        self._last_request = request
        assert self.capabilities is not None
        if self.capabilities.known.get((volume, epoch)) != capability:
            try:
                self.capabilities.check(volume, epoch, capability)
            except PermissionDenied:
                self._peer_state = State.CLOSED
                raise

    def keep_request(self, request: int, kind: MessageType) -> None:
        """Open a request of `take_request` that is answered with `send_answer`."""
        self._pending[request] = kind

    def drop_request(self, request: int) -> None:
        """Close a request that the caller answered itself."""
        self._pending.pop(request, None)

    # --- sending ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """True when both hellos were exchanged and nobody closed."""
        return self._our_state is State.READY and self._peer_state is State.READY

    @property
    def closed(self) -> bool:
        """True when this side or the other has ended the connection."""
        return State.CLOSED in (self._our_state, self._peer_state)

    @property
    def open_requests(self) -> int:
        """Requests that have no answer yet."""
        return len(self._pending)

    def send_hello(self, hello: Hello | None = None) -> list[Buffer]:
        """Return the bytes of this side's hello, with a server's proof; ``hello`` takes the place
        of the one from before: a server answers for the disk that was asked for.

        Raises: LocalProtocolError when it was sent before, or a client's is not known yet.
        """
        self.hello = self.hello if hello is None else hello
        if self.role is Role.SERVER:
            if self.peer is None:
                raise LocalProtocolError("a server's hello before the client's")
            made = proof.server_proof(self._secret, self.peer, self.hello)
            self.hello = replace(self.hello, proof=made)
            self.capabilities = proof.Capabilities(self._secret, self.peer, self.hello)
        return self._send(_HELLO_REQUEST, self.hello)

    def send_proof(self) -> list[Buffer]:
        """Return the bytes of a client's proof, which makes it ready.

        Raises: LocalProtocolError before the server's hello.
        """
        if self.peer is None:
            raise LocalProtocolError("a proof before the server's hello")
        made = proof.client_proof(self._secret, self.hello, self.peer)
        return self._send(_HELLO_REQUEST, Proof(made))

    def send_request(self, message: Message) -> tuple[int, list[Buffer]]:
        """Return a new request's id and bytes.

        Raises: LocalProtocolError.
        """
        if not self.ready or self._last_request == _IDS_MAX:
            raise LocalProtocolError("a request before the hellos, or after the end")
        request = self._last_request + 1
        pieces = self._send(request, message)
        self._last_request = request
        self._pending[request] = type_of(message)
        return request, pieces

    def send_answer(self, request: int, message: Message) -> list[Buffer]:
        """Return the bytes of a request's answer, in any order of requests.

        Raises: LocalProtocolError.
        """
        kind, asked = type_of(message), self._pending.get(request)
        if asked is None or (kind is not MessageType.ERROR and kind != asked + ANSWER):
            raise LocalProtocolError(f"{kind.name} for request {request}, which is {asked!r}")
        pieces = self._send(request, message)
        del self._pending[request]
        return pieces

    def send_refusal(self, error: TorusError) -> list[Buffer]:
        """Return the bytes that tell a client why its connection ends, and close.

        Nothing for a client's side: it just hangs up.
        """
        if self.role is Role.CLIENT or self._our_state is State.CLOSED:
            self.close()
            return []
        pieces = encode(failures.to_message(error), _HELLO_REQUEST)
        self.close()
        return pieces

    def close(self) -> None:
        """Say and hear nothing more; idempotent."""
        self._our_state = self._peer_state = State.CLOSED

    def _send(self, request: int, message: Message) -> list[Buffer]:
        kind = type_of(message)
        state = next_state(self.role, self._our_state, kind)
        if state is None:
            raise LocalProtocolError(f"cannot send {kind.name} while {self._our_state.value}")
        allowed = self.capabilities.of if self.role is Role.CLIENT and self.capabilities else _none
        pieces = encode(message, request, allowed if request else _none)
        self._our_state = state
        return pieces
