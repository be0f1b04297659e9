"""A very small HTTP server for /metrics and /healthz.

Decides what is answered to whom: GET and HEAD of two paths, one request a connection, bounded
in bytes, time and number.  It is no web server and must never become one.  What is measured
is decided in `torus.daemon.metrics`; what is healthy is said by the caller.

Implements docs/operations-metrics.md, "The endpoint".
"""

import asyncio
import errno
from collections.abc import Callable, Sequence

from torus.daemon.metrics import Source, collect, render
from torus.errors import Busy, PermissionDenied, TorusError, UsageError
from torus.limits import KIB
from torus.net.address import TcpAddress, parse_address

REQUEST_BYTES_MAX = 8 * KIB
REQUEST_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 32
_TEXT = "text/plain; charset=utf-8"
_METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class StatusServer:
    """Answers /metrics from ``sources`` and /healthz from ``problems``.

    ``problems`` returns a sentence for each thing that is not well; it must not block.
    """

    def __init__(
        self, address: str, sources: Sequence[Source], problems: Callable[[], Sequence[str]]
    ) -> None:
        self._wanted = address
        self._sources = sources
        self._problems = problems
        self._server: asyncio.Server | None = None
        self._connections = 0

    @property
    def address(self) -> str:
        """Return HOST:PORT as bound, which differs from what was asked when that was port 0."""
        if self._server is None:
            return self._wanted
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Listen.

        Raises: UsageError for what is no address, Busy when the port is taken,
        PermissionDenied and TorusError for other refusals.
        """
        wanted = parse_address(self._wanted)
        if not isinstance(wanted, TcpAddress):
            raise UsageError(
                f"HTTP address {self._wanted!r} is not HOST:PORT",
                hint="write one such as 127.0.0.1:9809, or none",
            )
        try:
            self._server = await asyncio.start_server(
                self._on_connected, wanted.host, wanted.port, limit=REQUEST_BYTES_MAX
            )
        except OSError as exc:
            raise _refusal(self._wanted, exc) from exc

    async def close(self) -> None:
        """Stop listening; idempotent.  A reply that is being sent is small and finishes."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _on_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                async with asyncio.timeout(2 * REQUEST_TIMEOUT_S):
                    writer.write(await self._reply(reader))
                    await writer.drain()
        except (OSError, TimeoutError):
            pass  # the client has gone or does not read: there is nobody to tell
        finally:
            self._connections -= 1
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return http_reply(408, b"the request did not come in time\n")
        except asyncio.LimitOverrunError:
            return http_reply(431, b"the request is too long\n")
        except asyncio.IncompleteReadError:
            return http_reply(400, b"the request is not complete\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return http_reply(400, b"this is not HTTP/1\n")
        method, path = words[0], words[1].split(b"?", 1)[0]
        if method not in (b"GET", b"HEAD"):
            return http_reply(405, b"only GET\n")
        reply = await self._get(path)
        return reply if method == b"GET" else reply[: reply.index(b"\r\n\r\n") + 4]

    async def _get(self, path: bytes) -> bytes:
        if path == b"/healthz":
            problems = self._problems()
            text = "".join(f"{problem}\n" for problem in problems) or "ok\n"
            return http_reply(503 if problems else 200, text.encode())
        if path == b"/metrics":
            # counters are read here, between two batches; rendering can take 10 ms and the
            # first one loads prometheus_client, so that is done beside the loop
            samples = collect(self._sources)
            return http_reply(200, await asyncio.to_thread(render, samples), _METRICS_TEXT)
        return http_reply(404, b"there are /metrics and /healthz\n")


def http_reply(status: int, body: bytes, content_type: str = _TEXT) -> bytes:
    """Return a whole HTTP/1.1 reply that ends its connection."""
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if status == 405:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join((*lines, "", "")).encode() + body


def _refusal(address: str, exc: OSError) -> TorusError:
    if exc.errno == errno.EADDRINUSE:
        return Busy(
            f"HTTP address {address} is in use by another process",
            hint="give another one with --http, or --http none",
        )
    kind = PermissionDenied if isinstance(exc, PermissionError) else TorusError
    return kind(f"HTTP address {address} cannot be listened on: {exc.strerror or exc}")
