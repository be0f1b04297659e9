"""The disks of a node behind its peer sockets: one connection reaches one of them.

Decides who is served at all (how many, from where, which disk) and how a node says goodbye.
What a request does is decided in `torus.node.service`.  Implements docs/protocol.md, "States"
and "Limits and deadlines".
"""

import asyncio
import os
from collections.abc import Iterable

from torus import limits
from torus.errors import Busy, NotFound, PermissionDenied, ShuttingDown, TorusError
from torus.log import get_logger
from torus.net.address import Address, UnixAddress
from torus.net.listener import Listener, listen
from torus.net.tls import TlsFiles, server_context
from torus.node.service import PeerService
from torus.node.session import Load, Session
from torus.wire.messages import Hello

log = get_logger("torus.node")
_GOODBYE_TIMEOUT_S = 5.0
_NO_DISK = bytes(16)


class PeerServer:
    """Serves the disks of one node to any number of peers; made and used on one event loop."""

    def __init__(
        self, cluster_id: str, services: Iterable[PeerService] = (), *, secret: str = "",
        name: str = "",
    ) -> None:  # fmt: skip
        """``secret`` is the cluster's, as in its metadata; without one nobody is served through
        TCP.  ``name`` is what peers see in their logs: the node's id."""
        self.hello = Hello(
            bytes.fromhex(cluster_id), _NO_DISK, 0, 0, limits.PEER_FRAME_BYTES_MAX,
            limits.PEER_IN_FLIGHT_BYTES_MAX, limits.PEER_IN_FLIGHT_REQUESTS_MAX, name,
        )  # fmt: skip
        self.secret = secret.encode()
        self.load = Load(limits.PEER_SERVED_BYTES_MAX)
        self._services: dict[bytes, PeerService] = {}
        self._sessions: set[Session] = set()
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        for service in services:
            self.add(service)

    def add(self, service: PeerService) -> None:
        """Serve one more disk."""
        self._services[service.hello.disk_id] = service

    def remove(self, disk_id: str) -> None:
        """Serve a disk no more; its peers are hung up on."""
        service = self._services.pop(bytes.fromhex(disk_id), None)
        for session in list(self._sessions):
            if service is not None and session.service is service:
                session.refuse(ShuttingDown(f"disk {disk_id} is not served any more"))

    @property
    def connections(self) -> int:
        """Peers that are connected."""
        return len(self._sessions)

    @property
    def sessions(self) -> list[Session]:
        """The connections, for tests and status."""
        return list(self._sessions)

    def choose(self, hello: Hello) -> PeerService:
        """Return the service of the disk that a client wants.

        Raises: NotFound.
        """
        if hello.disk_id == _NO_DISK and len(self._services) == 1:
            return next(iter(self._services.values()))
        service = self._services.get(hello.disk_id)
        if service is None:
            wanted = hello.disk_id.hex() if any(hello.disk_id) else "none in particular"
            raise NotFound(
                f"node {self.hello.name!r} serves {len(self._services)} disks, and not the one "
                f"that was asked for ({wanted})",
                hint="see 'torus node list'",
            )
        return service

    def protocol(self, *, near: bool = True) -> Session:
        """Return the protocol of a new connection; ``near``: through a unix socket."""
        return Session(self, near=near)

    def joined(self, session: Session) -> TorusError | None:
        """Take note of a connection; return why it is not served, if so."""
        before = len(self._sessions)
        self._sessions.add(session)
        self._idle.clear()
        if self._closing:
            return ShuttingDown("the node is shutting down", hint="try again in a moment")
        if before >= limits.PEER_CONNECTIONS_MAX:
            return Busy(f"the node has {before} peers, its most")
        if not session.near and not self.secret:
            return PermissionDenied(
                "this cluster has no secret: its nodes serve unix sockets only",
                hint="a cluster whose metadata is in etcd has one",
            )
        return None

    def left(self, session: Session) -> None:
        """Take note of the end of a connection."""
        self._sessions.discard(session)
        if not self._sessions:
            self._idle.set()

    async def close(self) -> None:
        """Answer what is under way, refuse what comes, hang up; idempotent.

        The listener is closed before, the stores after.
        """
        self._closing = True
        await asyncio.gather(*[session.drain() for session in list(self._sessions)])
        try:
            await asyncio.wait_for(self._idle.wait(), _GOODBYE_TIMEOUT_S)
        except TimeoutError:
            for session in list(self._sessions):
                session.abort()
            await self._idle.wait()


async def listen_for_peers(
    address: Address, server: PeerServer, *, tls: TlsFiles | None = None
) -> Listener:
    """Accept peers at ``address``; a unix socket is for the node's own user only.

    ``tls``: peers that come through TCP must have a certificate of the cluster's authority.

    Raises: Busy, PermissionDenied, UsageError, ConfigError.
    """
    near = isinstance(address, UnixAddress)
    context = server_context(tls) if tls is not None and not near else None
    listener = await listen(address, lambda: server.protocol(near=near), tls=context)
    if isinstance(address, UnixAddress):
        os.chmod(address.path, 0o600)
    log.info("node.peer.listening", address=str(listener.address), tls=context is not None)
    return listener
