"""Answer what other processes of this machine ask a running node.

Decides how large a question may be, how long it may take and how many may be open at once.
What is answered is decided by the caller's callback.  Implements docs/protocol.md, "Control".
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from torus import limits
from torus.errors import Busy, RemoteProtocolError, TimedOut, TorusError
from torus.log import get_logger
from torus.net.address import UnixAddress
from torus.net.listener import Listener, listen

log = get_logger("torus.node")
AnswerTo = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Answers one request, such as ``{"ask": "status"}``.  Raises: TorusError."""


class ControlServer:
    """A listening control socket; made by `serve_control`."""

    def __init__(self, answer: AnswerTo) -> None:
        self._answer = answer
        self._asking: set[_Question] = set()
        self._listener: Listener | None = None

    async def start(self, path: str) -> None:
        """Listen at ``path``, for the node's own user only.

        Raises: Busy, PermissionDenied, UsageError.
        """
        self._listener = await listen(UnixAddress(path), self._protocol)
        os.chmod(path, 0o600)

    async def close(self) -> None:
        """Stop listening and hang up on those who still wait; idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for question in list(self._asking):
            question.hang_up()
        tasks = [question.task for question in self._asking if question.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _protocol(self) -> asyncio.Protocol:
        full = len(self._asking) >= limits.CONTROL_CONNECTIONS_MAX
        question = _Question(self._answer, self._asking.discard, full=full)
        self._asking.add(question)
        return question


class _Question(asyncio.Protocol):
    """One connection: a line in, a line out."""

    def __init__(
        self, answer: AnswerTo, ended: Callable[["_Question"], None], *, full: bool
    ) -> None:
        self._answer = answer
        self._ended = ended
        self._full = full
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[dict[str, Any]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._full:
            self._refuse(Busy("the node is asked by too many at once", hint="try again"))
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(limits.CONTROL_TIMEOUT_S, self._on_timeout)

    def data_received(self, data: bytes) -> None:
        if self.task is not None or self._full:
            return  # one question a connection
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if len(line) > limits.CONTROL_REQUEST_BYTES_MAX:
            self._refuse(RemoteProtocolError(f"the question has {len(line)} bytes"))
        elif newline:
            self._start(bytes(line))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self.task is None:
            self._ended(self)
        else:
            self.task.cancel()

    def hang_up(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def _on_timeout(self) -> None:
        self._refuse(TimedOut(f"no answer in {limits.CONTROL_TIMEOUT_S:g} s"))

    def _start(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as exc:
            self._refuse(RemoteProtocolError(f"the question {line[:60]!r} is not JSON: {exc}"))
            return
        coroutine = _call(self._answer, request)
        self.task = asyncio.get_running_loop().create_task(coroutine)
        self.task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._ended(self)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._send(task.result())
        elif isinstance(error, TorusError):
            self._refuse(error)
        else:
            log.error("node.control.failed", exception=error)
            self._refuse(TorusError(f"the node failed: {type(error).__name__}: {error}"))

    def _refuse(self, error: TorusError) -> None:
        self._send({"error": {"code": error.code, "message": error.message, "hint": error.hint}})

    def _send(self, answer: dict[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(json.dumps(answer).encode() + b"\n")
            self._transport.close()


async def _call(answer: AnswerTo, request: dict[str, Any]) -> dict[str, Any]:
    return await answer(request)


async def serve_control(path: str, answer: AnswerTo) -> ControlServer:
    """Answer at the unix socket ``path`` with ``answer`` until the server is closed.

    Raises: Busy, PermissionDenied, UsageError.
    """
    server = ControlServer(answer)
    await server.start(path)
    return server
