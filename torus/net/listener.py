"""A listening socket: made, handed to the event loop, taken away again.

Decides what a taken address, a stale unix socket and a refused permission mean.  Does not decide
what is spoken.
"""

import asyncio
import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

from torus.errors import Busy, PermissionDenied, TorusError, UsageError
from torus.net.address import Address, TcpAddress, UnixAddress

BACKLOG = 1024


class Listener:
    """One address that accepts connections until ``close``."""

    def __init__(
        self, address: Address, server: asyncio.Server, identity: tuple[int, int] | None
    ) -> None:
        self.address = address
        self._server = server
        self._identity = identity

    def close(self) -> None:
        """Stop accepting, and remove the unix socket unless somebody else's took its place."""
        self._server.close()
        if isinstance(self.address, UnixAddress) and self._identity is not None:
            if _identity(Path(self.address.path)) == self._identity:
                Path(self.address.path).unlink()
        self._identity = None


async def listen(
    address: Address,
    protocol: Callable[[], asyncio.BaseProtocol],
    *,
    tls: ssl.SSLContext | None = None,
) -> Listener:
    """Accept connections at ``address``, one ``protocol()`` for each; ``tls`` is for TCP.

    The listener's own address holds the port that the system chose when 0 was asked for.

    Raises: Busy when the address is taken, PermissionDenied, UsageError when the host is unknown
    or the folder of a unix socket does not exist.
    """
    loop = asyncio.get_running_loop()
    if isinstance(address, UnixAddress):
        sock = _bind_unix(address)
        identity = _identity(Path(address.path))
        unix_server = await loop.create_unix_server(protocol, sock=sock, backlog=BACKLOG)
        return Listener(address, unix_server, identity)
    sock = await _bind_tcp(address)
    port = sock.getsockname()[1]
    tcp_server = await loop.create_server(protocol, sock=sock, backlog=BACKLOG, ssl=tls)
    return Listener(TcpAddress(address.host, port), tcp_server, None)


async def _bind_tcp(address: TcpAddress) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as unknown:
        raise UsageError(
            f"cannot listen on {address}: {unknown.strerror}", hint="check the host's name"
        ) from unknown
    family, kind, protocol, _, target = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
    except OSError as failure:
        sock.close()
        raise _bind_error(address, failure) from failure
    sock.setblocking(False)
    return sock


def _bind_unix(address: UnixAddress) -> socket.socket:
    _remove_stale(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address.path)
    except OSError as failure:
        sock.close()
        raise _bind_error(address, failure) from failure
    sock.setblocking(False)
    return sock


def _remove_stale(address: UnixAddress) -> None:
    """Unlink a socket that nobody listens on any more.

    Raises: Busy when somebody does, UsageError when the path is something else.
    """
    path = Path(address.path)
    try:
        mode = path.lstat().st_mode
    except OSError:  # bind reports what is wrong with the path, if anything is
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(
            f"cannot listen on {address}: the path exists and is not a socket",
            hint="choose another path",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as failure:
            raise _bind_error(address, failure) from failure
    raise Busy(
        f"cannot listen on {address}: another process does",
        hint="stop that process or choose another path",
    )


def _bind_error(address: Address, failure: OSError) -> TorusError:
    message = f"cannot listen on {address}: {os.strerror(failure.errno or 0)}"
    if failure.errno in (errno.EADDRINUSE, errno.EAGAIN):
        return Busy(message, hint="stop the process that listens there or choose another address")
    if failure.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(message, hint="choose another address or run as a user that may")
    return UsageError(message, hint="choose an address of this machine")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
