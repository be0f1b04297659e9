"""Handing open files to other processes of this host: a socket that gives descriptors away.

Decides who gets one: whoever shows the token, which is told only to those who have proved to
know the cluster's secret, and who can reach the socket: its name is abstract, so it is of this
host and network namespace, needs no file and is gone with its process.  A descriptor is for
reading only.  What is in the files is not known here.  Implements docs/protocol.md, "Files of
the same host".
"""

import asyncio
import errno
import os
import secrets
import socket
import struct
from collections.abc import Callable

from torus.errors import TorusError, Unavailable
from torus.log import get_logger

log = get_logger("torus.descriptors")

TOKEN_BYTES = 16
_ASK = struct.Struct("<16s16sI")  # token, disk, segment
_GIVEN = b"\1"
_REFUSED = b"\0"
_LIMIT_S = 2.0
_WAITING_MAX = 64

Open = Callable[[str, int], int]
"""Opens segment N of a disk for reading.  Raises: OSError, TorusError."""


class DescriptorServer:
    """Gives descriptors away; made and used on one event loop."""

    def __init__(self, open_file: Open) -> None:
        """The descriptors that ``open_file`` returns are closed here once they are sent."""
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self._open = open_file
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.name = ""  # in hex; once it listens

    def start(self) -> None:
        """Listen.  Raises: OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind("")  # the kernel chooses an abstract name
            listener.listen(_WAITING_MAX)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self.name = bytes(listener.getsockname()).hex()
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as exc:
                if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    raise
                log.warning("descriptors.not_accepted", error=str(exc))
                await asyncio.sleep(_LIMIT_S / 2)
                continue
            task = loop.create_task(self._serve(client))
            self._serving.add(task)
            task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("descriptors.not_given", error=str(error) or type(error).__name__)

    async def _serve(self, client: socket.socket) -> None:
        with client:
            client.setblocking(False)
            async with asyncio.timeout(_LIMIT_S):
                asked = await _receive(client, _ASK.size)
            token, disk, segment = _ASK.unpack(asked)
            if not secrets.compare_digest(token, self.token):
                client.send(_REFUSED)
                return
            try:
                file = self._open(disk.hex(), segment)
            except (OSError, TorusError):
                client.send(_REFUSED)
                raise
            try:
                socket.send_fds(client, [_GIVEN], [file])
            finally:
                os.close(file)

    async def close(self) -> None:
        """Stop listening; idempotent."""
        tasks = [*self._serving, *([] if self._accepting is None else [self._accepting])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None


async def fetch(name: str, token: bytes, disk_id: str, segment: int) -> int:
    """Return a descriptor for reading of a segment; the caller closes it.

    Raises: Unavailable: another host or network namespace, or the file is not to be had.
    """
    ask = _ASK.pack(token, bytes.fromhex(disk_id), segment)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server:
        server.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LIMIT_S):
                # An abstract socket is connected to at once, or not at all.
                server.connect(bytes.fromhex(name))
                await loop.sock_sendall(server, ask)
                await _readable(server)
            answer, files, _, _ = socket.recv_fds(server, len(_GIVEN), 1)
        except (OSError, TimeoutError) as exc:
            why = "no answer" if isinstance(exc, TimeoutError) else str(exc)
            raise Unavailable(f"files of disk {disk_id} cannot be had: {why}") from exc
    if answer != _GIVEN or len(files) != 1:
        for file in files:
            os.close(file)
        raise Unavailable(f"segment {segment} of disk {disk_id} was not given away")
    os.set_inheritable(files[0], False)
    return files[0]


async def _receive(client: socket.socket, size: int) -> bytes:
    """Return exactly ``size`` bytes.  Raises: OSError, ConnectionError at an early end."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        piece = await loop.sock_recv(client, size - len(data))
        if not piece:
            raise ConnectionError("the client hung up")
        data += piece
    return data


async def _readable(server: socket.socket) -> None:
    """Return when there is something to receive, or the end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def on_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(server, on_ready)
    try:
        await ready
    finally:
        loop.remove_reader(server)
