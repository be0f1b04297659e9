"""A small NBD client for measurements that fio cannot make: one flush, the first read.

Decides nothing about servers.  It speaks fixed newstyle with NBD_OPT_GO and simple replies,
blocks, and is not meant to be fast except in ``write_all``, which pipelines.
Source: NetworkBlockDevice/nbd doc/proto.md.
"""

import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.processes import BenchError

_MAGIC = b"NBDMAGIC"
_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_FIXED_NEWSTYLE = 1
_NO_ZEROES = 2
_OPT_GO = 7
_REP_ACK = 1
_REP_INFO = 3
_REP_ERROR = 1 << 31
_INFO_EXPORT = 0
_REQUEST_MAGIC = 0x25609513
_REPLY_MAGIC = 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class NbdClient:
    """One connection to one export on a unix socket."""

    def __init__(self, path: Path, export: str, *, timeout_s: float = 60.0) -> None:
        """Connect and negotiate.

        Raises:
            OSError: Nothing listens there, or the connection broke.
            BenchError: The server refused the export.
        """
        self.size_bytes = 0
        self._cookie = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
            self._negotiate(export)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``."""
        self._request(_READ, offset, size)
        self._reply()
        return self._receive(size)

    def write(self, offset: int, payload: bytes) -> None:
        """Write ``payload`` at ``offset`` and wait for the answer."""
        self._request(_WRITE, offset, len(payload), payload)
        self._reply()

    def flush(self) -> None:
        """Flush what was answered so far."""
        self._request(_FLUSH, 0, 0)
        self._reply()

    def write_all(self, writes: Iterable[tuple[int, bytes]], *, depth: int = 64) -> int:
        """Write (offset, payload) pairs in batches of ``depth``; return how many."""
        count = 0
        batch = bytearray()
        pending = 0
        for offset, payload in writes:
            self._cookie += 1
            batch += _REQUEST.pack(_REQUEST_MAGIC, 0, _WRITE, self._cookie, offset, len(payload))
            batch += payload
            pending += 1
            if pending == depth:
                self._send_batch(batch, pending)
                count += pending
                pending = 0
        if pending:
            self._send_batch(batch, pending)
        return count + pending

    def close(self) -> None:
        """Say goodbye and close; calling it again does nothing."""
        if self._socket.fileno() < 0:
            return
        try:
            self._request(_DISCONNECT, 0, 0)
        except OSError:
            return
        finally:
            self._socket.close()

    def _send_batch(self, batch: bytearray, pending: int) -> None:
        self._socket.sendall(batch)
        batch.clear()
        for _ in range(pending):
            self._reply(any_cookie=True)

    def _request(self, kind: int, offset: int, size: int, payload: bytes = b"") -> None:
        self._cookie += 1
        header = _REQUEST.pack(_REQUEST_MAGIC, 0, kind, self._cookie, offset, size)
        self._socket.sendall(header + payload)

    def _reply(self, *, any_cookie: bool = False) -> None:
        magic, error, cookie = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != _REPLY_MAGIC or (cookie != self._cookie and not any_cookie):
            raise BenchError(f"the NBD reply has magic {magic:#x} and cookie {cookie}")
        if error:
            raise BenchError(f"the NBD server answered error {error}")

    def _negotiate(self, export: str) -> None:
        magic, option_magic, flags = struct.unpack(">8s8sH", self._receive(18))
        if magic != _MAGIC or option_magic != _OPTION_MAGIC or not flags & _FIXED_NEWSTYLE:
            raise BenchError(f"this is no fixed newstyle NBD server: {magic!r} {option_magic!r}")
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE | (flags & _NO_ZEROES)))
        name = export.encode()
        option = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(struct.pack(">8sII", _OPTION_MAGIC, _OPT_GO, len(option)) + option)
        while True:
            magic, _, kind, size = struct.unpack(">QIII", self._receive(20))
            payload = self._receive(size)
            if magic != _OPTION_REPLY_MAGIC:
                raise BenchError(f"the NBD option reply has magic {magic:#x}")
            if kind == _REP_ACK:
                return
            if kind & _REP_ERROR:
                raise BenchError(f"export {export!r} was refused ({kind:#x}): {payload!r}")
            if kind == _REP_INFO and struct.unpack_from(">H", payload)[0] == _INFO_EXPORT:
                self.size_bytes = struct.unpack_from(">HQ", payload)[1]

    def _receive(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(size)
            if not part:
                raise ConnectionResetError("the NBD server closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
