"""A plain NBD client on a blocking socket: simple replies, any number of requests in flight.

Unlike `torus.testing.nbd_client` it needs no event loop, so that a test can kill, stop and start
processes between two requests.
"""

import errno
import socket
import struct
from collections import deque
from pathlib import Path
from typing import Self

from torus.nbd import constants as nbd

REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
TIMEOUT_S = 60.0


class RequestFailed(Exception):
    """The server answered with an error; ``number`` is its errno."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.number = number


class DiskClient:
    """One connection to one export."""

    def __init__(self, path: Path | tuple[str, int], name: str) -> None:
        """Connect and negotiate.  Raises: ConnectionError, RequestFailed when refused."""
        if isinstance(path, Path):
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            self.socket = socket.socket(socket.AF_INET)
        self.socket.settimeout(TIMEOUT_S)
        # The kernel gives as much as it allows: requests to a server that hangs do not hang too.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._sent = 0
        self.in_flight: deque[tuple[int, int]] = deque()  # cookie, bytes of a reply's payload
        self.size_bytes = 0
        self.flags = 0
        try:
            self.socket.connect(str(path) if isinstance(path, Path) else path)
            self._negotiate(name.encode())
        except BaseException:
            self.socket.close()
            raise

    def _negotiate(self, name: bytes) -> None:
        self._take(18)
        argument = struct.pack(f">I{len(name)}sH", len(name), name, 0)
        self.socket.sendall(
            struct.pack(">IQII", 3, nbd.IHAVEOPT, nbd.NBD_OPT_GO, len(argument)) + argument
        )
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._take(20))
            payload = self._take(length)
            if kind == nbd.NBD_REP_INFO and payload[:2] == b"\0\0":
                self.size_bytes, self.flags = struct.unpack(">QH", payload[2:])
            elif kind == nbd.NBD_REP_ACK:
                return
            elif kind & nbd.NBD_REP_ERR:
                raise RequestFailed(kind & ~nbd.NBD_REP_ERR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; idempotent."""
        self.socket.close()

    # --- any number in flight -----------------------------------------------------------

    def send(
        self, command: int, offset: int = 0, length: int = 0, payload: bytes = b"", flags: int = 0
    ) -> int:
        """Send a request and return its cookie."""
        self._sent += 1
        self.in_flight.append((self._sent, length if command == nbd.NBD_CMD_READ else 0))
        header = REQUEST.pack(
            nbd.NBD_REQUEST_MAGIC, flags, command, self._sent, offset, length or len(payload)
        )
        self.socket.sendall(header + payload)
        return self._sent

    def receive(self) -> tuple[int, int, bytes]:
        """Return cookie, error and payload of the next reply.

        Raises: ConnectionError when the server is gone, TimeoutError when it is silent.
        """
        magic, error, cookie = REPLY.unpack(self._take(REPLY.size))
        assert magic == nbd.NBD_SIMPLE_REPLY_MAGIC, hex(magic)
        (length,) = [size for other, size in self.in_flight if other == cookie]
        self.in_flight.remove((cookie, length))
        return cookie, error, self._take(length) if length and not error else b""

    def is_closed(self) -> bool:
        """Wait for the server to say something; True when that is the end."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def silent_for(self, seconds: float) -> bool:
        """Say whether no reply comes for a while."""
        self.socket.settimeout(seconds)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK) and False
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(TIMEOUT_S)

    # --- one at a time ------------------------------------------------------------------

    def ask(
        self, command: int, offset: int = 0, length: int = 0, payload: bytes = b"", flags: int = 0
    ) -> bytes:
        """Send a request and wait for its reply.

        Raises: RequestFailed, ConnectionError.
        """
        wanted = self.send(command, offset, length, payload, flags)
        cookie, error, found = self.receive()
        assert cookie == wanted
        if error:
            raise RequestFailed(error)
        return found

    def read(self, offset: int, length: int) -> bytes:
        """Read."""
        return self.ask(nbd.NBD_CMD_READ, offset, length)

    def write(self, offset: int, payload: bytes, *, durable: bool = False) -> None:
        """Write."""
        flags = nbd.NBD_CMD_FLAG_FUA if durable else 0
        self.ask(nbd.NBD_CMD_WRITE, offset, payload=payload, flags=flags)

    def flush(self) -> None:
        """Make what was answered durable."""
        self.ask(nbd.NBD_CMD_FLUSH)

    def trim(self, offset: int, length: int) -> None:
        """Unmap."""
        self.ask(nbd.NBD_CMD_TRIM, offset, length)

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            part = self.socket.recv(min(count, 1 << 20))
            if not part:
                raise ConnectionResetError("the server closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
