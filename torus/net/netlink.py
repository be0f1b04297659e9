"""Generic netlink, as much as one family's requests need: messages, attributes, a socket.

Decides what a well-formed answer of the kernel is; a length that lies is refused, not guessed at.
What the messages mean is their family's (`torus.net.netlink_nbd`).

Source: linux/netlink.h, linux/genetlink.h; Documentation/userspace-api/netlink.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from torus.errors import NotFound, PermissionDenied, RemoteProtocolError, TimedOut, Unavailable

NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
NLMSGERR_ATTR_MSG = 1

GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_RECEIVE_BYTES = 1 << 20
_ANSWER_S = 30.0


class KernelRefusal(Unavailable):
    """The kernel answered a request with an errno."""

    def __init__(self, message: str, *, hint: str | None = None, number: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.errno = number


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message, without its header's length and port."""

    kind: int  # a family's id, NLMSG_ERROR, NLMSG_DONE
    flags: int
    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Family:
    """A generic netlink family as the kernel numbered it at its registration."""

    number: int


# --- bytes ------------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded to a multiple of 4 bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def attribute_u32(kind: int, number: int) -> bytes:
    """Return an attribute that holds a 32-bit number."""
    return attribute(kind, struct.pack("=I", number))


def attribute_u64(kind: int, number: int) -> bytes:
    """Return an attribute that holds a 64-bit number."""
    return attribute(kind, struct.pack("=Q", number))


def attribute_text(kind: int, text: str) -> bytes:
    """Return an attribute that holds a text, with its NUL."""
    return attribute(kind, text.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def request(family: int, command: int, sequence: int, payload: bytes, version: int = 1) -> bytes:
    """Return a request that the kernel acknowledges."""
    length = _HEADER.size + _GENERIC.size + len(payload)
    header = _HEADER.pack(length, family, NLM_F_REQUEST | NLM_F_ACK, sequence, 0)
    return header + _GENERIC.pack(command, version, 0) + payload


def parse_messages(datagram: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram.  Raises: RemoteProtocolError."""
    offset = 0
    while offset < len(datagram):
        left = len(datagram) - offset
        if left < _HEADER.size:
            raise RemoteProtocolError(f"netlink: {left} bytes are left, a header has 16")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= left:
            raise RemoteProtocolError(f"netlink: a message of {length} bytes in {left}")
        yield Message(kind, flags, sequence, datagram[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


def parse_attributes(encoded: bytes) -> list[tuple[int, bytes]]:
    """Return (type, payload) of each attribute.  Raises: RemoteProtocolError."""
    found: list[tuple[int, bytes]] = []
    offset = 0
    while offset < len(encoded):
        left = len(encoded) - offset
        if left < _ATTRIBUTE.size:
            raise RemoteProtocolError(f"netlink: {left} bytes are left, an attribute has 4 or more")
        length, kind = _ATTRIBUTE.unpack_from(encoded, offset)
        if not _ATTRIBUTE.size <= length <= left:
            raise RemoteProtocolError(f"netlink: an attribute of {length} bytes in {left}")
        found.append((kind & NLA_TYPE_MASK, encoded[offset + _ATTRIBUTE.size : offset + length]))
        offset += (length + 3) & ~3
    return found


def number_of(payload: bytes, what: str) -> int:
    """Return the 8-, 16-, 32- or 64-bit number of an attribute.  Raises: RemoteProtocolError."""
    if len(payload) not in (1, 2, 4, 8):
        raise RemoteProtocolError(f"netlink: {what} has {len(payload)} bytes, no number has")
    return int.from_bytes(payload, "little" if _is_little_endian() else "big")


def text_of(payload: bytes) -> str:
    """Return the text of an attribute, without its NUL."""
    return payload.rstrip(b"\0").decode(errors="replace")


def generic_payload(body: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Return the command and the attributes of a generic message.

    Raises: RemoteProtocolError.
    """
    if len(body) < _GENERIC.size:
        raise RemoteProtocolError(f"netlink: a generic message of {len(body)} bytes, 4 or more are")
    return body[0], parse_attributes(body[_GENERIC.size :])


def parse_error(message: Message) -> tuple[int, str]:
    """Return the errno (0: acknowledged) and the explanation of a NLMSG_ERROR, "" without.

    Raises: RemoteProtocolError.
    """
    if len(message.body) < 4 + _HEADER.size:
        raise RemoteProtocolError(f"netlink: an acknowledgement of {len(message.body)} bytes")
    (negated,) = struct.unpack_from("=i", message.body)
    explanation = ""
    if message.flags & NLM_F_ACK_TLVS:
        # behind the errno stands our request: its header, and all of it unless it was capped
        (length,) = struct.unpack_from("=I", message.body, 4)
        echoed = _HEADER.size if message.flags & NLM_F_CAPPED else (length + 3) & ~3
        for kind, payload in parse_attributes(message.body[4 + echoed :]):
            if kind == NLMSGERR_ATTR_MSG:
                explanation = text_of(payload)
    return -negated, explanation


def parse_family(body: bytes) -> Family:
    """Return what CTRL_CMD_NEWFAMILY says.  Raises: RemoteProtocolError."""
    number: int | None = None
    for kind, payload in generic_payload(body)[1]:
        if kind == CTRL_ATTR_FAMILY_ID:
            number = number_of(payload, "a family's id")
    if number is None:
        raise RemoteProtocolError("netlink: a family without an id")
    return Family(number)


def _is_little_endian() -> bool:
    return struct.pack("=H", 1) == b"\1\0"


# --- the socket -------------------------------------------------------------------------


class Datagrams(Protocol):
    """What is used of a netlink socket; tests give one that is no kernel's."""

    def send(self, data: bytes, /) -> int:
        """Send one datagram."""

    def recv(self, size: int, /) -> bytes:
        """Return one datagram."""

    def close(self) -> None:
        """Give the socket back."""


class GenericNetlink:
    """Requests to the kernel, one at a time; blocks."""

    def __init__(self, sock: Datagrams | None = None) -> None:
        """Raises: Unavailable when this machine has no generic netlink, PermissionDenied."""
        self._sock = sock if sock is not None else open_socket()
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._sock.close()

    def call(self, family: int, command: int, payload: bytes, what: str) -> list[bytes]:
        """Send a request and return the bodies that were answered before its acknowledgement.

        ``what`` is told to people when the kernel refuses it.

        Raises: KernelRefusal, PermissionDenied, TimedOut, RemoteProtocolError.
        """
        self._sequence += 1
        try:
            self._sock.send(request(family, command, self._sequence, payload))
            return self._collect(what)
        except TimeoutError as late:
            raise TimedOut(f"{what}: the kernel did not answer in {_ANSWER_S:g} s") from late
        except OSError as failure:
            raise refusal(failure.errno or errno.EIO, what) from failure

    def resolve(self, name: str) -> Family:
        """Return a family by its name.

        Raises: NotFound when the kernel has none of that name, and as `call`.
        """
        payload = attribute_text(CTRL_ATTR_FAMILY_NAME, name)
        try:
            bodies = self.call(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, payload, f"family {name!r}")
        except KernelRefusal as refused:
            if refused.errno == errno.ENOENT:
                raise NotFound(f"the kernel has no netlink family {name!r}") from refused
            raise
        if len(bodies) != 1:
            raise RemoteProtocolError(f"netlink: {len(bodies)} families are called {name!r}")
        return parse_family(bodies[0])

    def _collect(self, what: str) -> list[bytes]:
        bodies: list[bytes] = []
        while True:
            for message in parse_messages(self._sock.recv(_RECEIVE_BYTES)):
                if message.sequence != self._sequence:
                    continue  # an answer to a request that was given up
                if message.kind == NLMSG_DONE:
                    return bodies
                if message.kind != NLMSG_ERROR:
                    bodies.append(message.body)
                    continue
                number, explanation = parse_error(message)
                if number:
                    raise refusal(number, what, explanation)
                return bodies


def refusal(number: int, what: str, explanation: str = "") -> KernelRefusal | PermissionDenied:
    """Return the error for an errno of the kernel."""
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDenied(
            f"{what}: {os.strerror(number)}",
            hint="run it as root: network block devices need CAP_SYS_ADMIN",
        )
    name = errno.errorcode.get(number, str(number))
    detail = f"{explanation}: " if explanation else ""
    return KernelRefusal(f"{what}: {detail}{os.strerror(number)} ({name})", number=number)


def open_socket() -> socket.socket:
    """Return a generic netlink socket.

    Raises: Unavailable, PermissionDenied.
    """
    try:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC
        )
    except OSError as failure:
        raise refusal(failure.errno or errno.EIO, "generic netlink") from failure
    try:
        sock.bind((0, 0))
        sock.settimeout(_ANSWER_S)
        for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK):
            sock.setsockopt(SOL_NETLINK, option, 1)
    except OSError as failure:
        sock.close()
        raise refusal(failure.errno or errno.EIO, "generic netlink") from failure
    return sock
