"""Ask a running node a question from another process of the same machine.

One request and one answer per connection of a unix socket, each a line of JSON.  Kept free of
asyncio, so that a command which asks starts quickly; the answering side is
`torus.node.control_server`.  Implements docs/protocol.md, "Control".
"""

import contextlib
import errno
import json
import os
import socket
import time
from typing import Any, Protocol

from torus import errors, limits
from torus.errors import (
    PermissionDenied,
    RemoteProtocolError,
    TimedOut,
    TorusError,
    Unavailable,
)

_CLASSES: dict[str, type[TorusError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TorusError)
}


class Registered(Protocol):
    """What is needed of a node's registration (`torus.metadata.schema.Node`)."""

    @property
    def peer_address(self) -> str:
        """Return unix:PATH or HOST:PORT."""


def control_path(node: Registered) -> str:
    """Return the path of a node's control socket, which lies beside its peer socket.

    Raises: Unavailable when the node has no unix socket for peers.
    """
    return control_path_beside(node.peer_address)


def control_path_beside(peer_address: str) -> str:
    """Return the path of the control socket that belongs to ``peer_address``, unix:PATH.

    Raises: Unavailable when that is no unix socket.
    """
    if not peer_address.startswith("unix:"):
        raise Unavailable(f"the node at {peer_address or 'no address'} has no control socket")
    return peer_address.removeprefix("unix:") + ".ctl"


def ask(
    path: str, request: dict[str, Any], timeout_s: float = limits.CONTROL_TIMEOUT_S
) -> dict[str, Any]:
    """Send ``request`` to the control socket at ``path`` and return the answer; blocks.

    Raises: Unavailable when nobody listens, TimedOut, PermissionDenied, RemoteProtocolError for
    what is no answer; the error that the node answered with.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(path)
            with contextlib.suppress(BrokenPipeError):  # a refusal may be there already
                sock.sendall(json.dumps(request).encode() + b"\n")
            line = _receive_line(sock, path, deadline_s)
    except TimeoutError as exc:
        raise TimedOut(f"the node at {path} did not answer in {timeout_s:g} s") from exc
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise PermissionDenied(
                f"the node's control socket {path} cannot be used: {os.strerror(exc.errno)}",
                hint="run as the user that runs the node",
            ) from exc
        reason = os.strerror(exc.errno) if exc.errno else str(exc)
        raise Unavailable(
            f"no node answers at {path}: {reason}", hint="start it: torus node"
        ) from exc
    return _parse(line, path)


def _receive_line(sock: socket.socket, path: str, deadline_s: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(left_s)
        piece = sock.recv(64 * limits.KIB)
        if not piece:
            raise Unavailable(f"the node at {path} hung up after {len(received)} bytes")
        received += piece
        if len(received) > limits.CONTROL_ANSWER_BYTES_MAX:
            raise RemoteProtocolError(
                f"the answer from {path} has more than {limits.CONTROL_ANSWER_BYTES_MAX} bytes"
            )
    return bytes(received)


def _parse(line: bytes, path: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"the answer from {path} is not JSON: {line[:60]!r}") from exc
    if not isinstance(answer, dict):
        raise RemoteProtocolError(f"the answer from {path} is no object: {line[:60]!r}")
    failure = answer.get("error")
    if not isinstance(failure, dict):
        return answer
    kind = _CLASSES.get(str(failure.get("code")), TorusError)
    hint = failure.get("hint")
    raise kind(str(failure.get("message")), hint=None if hint is None else str(hint))
