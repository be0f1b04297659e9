"""Connecting to an address, and what it means when that fails.

Decides which failures are the operator's to mend and which are a node that is away.
"""

import asyncio
import errno
import os
import ssl

from torus.errors import PermissionDenied, TorusError, Unavailable
from torus.net.address import Address, UnixAddress
from torus.net.tls import TlsFiles, client_context, failure


async def dial(address: Address, protocol: asyncio.BaseProtocol, tls: TlsFiles | None) -> None:
    """Connect ``protocol`` to ``address``; ``tls`` is for TCP.

    Raises: OSError (see `connect_error`), ConfigError.
    """
    loop = asyncio.get_running_loop()
    if isinstance(address, UnixAddress):
        await loop.create_unix_connection(lambda: protocol, address.path)
        return
    context = client_context(tls) if tls is not None else None
    await loop.create_connection(
        lambda: protocol, address.host, address.port, ssl=context,
        server_hostname="" if context is not None else None,
    )  # fmt: skip


def connect_error(address: Address, exc: OSError) -> TorusError:
    """Return what a failure to connect to a node means."""
    if isinstance(exc, ssl.SSLError):
        return PermissionDenied(
            f"TLS with the node at {address} failed: {failure(exc)}",
            hint="both certificates must be signed by the authority of --tls-ca",
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(
            f"node at {address} cannot be reached: {os.strerror(exc.errno)}",
            hint="run as the user that runs the node",
        )
    reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc)
    return Unavailable(
        f"node at {address} cannot be reached: {reason}", hint="start it: torus node"
    )
