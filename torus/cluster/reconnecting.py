"""A connection to one disk of a node that is made anew when it was lost.

Decides when to connect again, how long a request is repeated, that it is the same disk that is
found again, and when its restart means that records may be gone.  Implements docs/protocol.md,
"Loss of a connection" and "Boot ids".
"""

import asyncio
from typing import TypeVar

from torus.cluster.dialing import Dialing, connect
from torus.cluster.link import PeerLink
from torus.errors import Corruption, ForeignData, TimedOut, Unavailable
from torus.ids import ChunkId
from torus.net.address import Address
from torus.wire import messages as m

_PAUSE_FIRST_S = 0.02
_PAUSE_MAX_S = 0.5
AnswerKind = TypeVar("AnswerKind", bound=m.Answer)
Sent = TypeVar("Sent")


class Reconnecting:
    """One disk of a node, whatever connection leads to it."""

    def __init__(self, address: Address, link: PeerLink, dialing: Dialing, retry_s: float) -> None:
        """For `connect`."""
        self._address = address
        self._dialing = dialing
        self._link: PeerLink | None = link
        self._node = link.peer
        self._retry_s = retry_s
        self._connecting = asyncio.Lock()
        self._closed = False
        self.reconnects = 0

    async def close(self) -> None:
        """Hang up; requests under way get Unavailable.  Idempotent."""
        self._closed = True
        if self._link is not None:
            self._link.fail(Unavailable(f"connection to the node at {self._address} was closed"))
            self._link = None

    @property
    def disk_id(self) -> str:
        """The disk that this reaches, as 32 hexadecimal digits."""
        return self._node.disk_id.hex()

    @property
    def boot_id(self) -> int:
        """The newest boot id that is known of it."""
        return self._node.boot_id

    @property
    def node(self) -> m.Hello:
        """Return what the node said of itself at the last connecting."""
        return self._node

    async def _unless_lost(self, sent: asyncio.Future[Sent] | None) -> Sent | None:
        """Return what was answered; None when it could not be sent at once, or the connection was
        lost and asking again is due."""
        try:
            return None if sent is None else await sent
        except TimedOut:
            raise
        except Unavailable:
            if not self._retry_s or self._closed:
                raise
            return None

    async def _ask(
        self,
        request: m.Request,
        kind: type[AnswerKind],
        *,
        chunk: ChunkId | None = None,
        boot_id: int | None = None,
    ) -> AnswerKind:
        """Ask until there is an answer, or a connection cannot be had for `retry_s`.

        Every request may be asked twice: an append is told by (chunk, index), and goes only to a
        node that has ``boot_id`` when that is given.
        """
        loop = asyncio.get_running_loop()
        give_up_s: float | None = None
        pause_s = _PAUSE_FIRST_S
        while True:
            try:
                link = await self._connected()
                if chunk is not None and boot_id is not None:
                    self._check_boot(chunk, boot_id, link.peer.boot_id)
                answer = await link.ask(request)
            except TimedOut:
                raise
            except Unavailable:
                now_s = loop.time()
                give_up_s = now_s + self._retry_s if give_up_s is None else give_up_s
                if self._closed or now_s + pause_s >= give_up_s:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
                continue
            assert isinstance(answer, kind)  # the connection has checked it
            return answer

    async def _connected(self) -> PeerLink:
        link = self._link
        if link is not None and link.failure is None:
            return link
        async with self._connecting:
            if self._closed:
                raise Unavailable(f"connection to the node at {self._address} was closed")
            if self._link is not None and self._link.failure is None:
                return self._link
            link = await connect(self._address, self._dialing)
            self._check_node(link)
            self._link, self._node = link, link.peer
            self.reconnects += 1
            return link

    def _check_node(self, link: PeerLink) -> None:
        before, now = self._node, link.peer
        if (before.disk_id, before.slot_bytes) != (now.disk_id, now.slot_bytes):
            error = ForeignData(
                f"node at {self._address} has disk {now.disk_id.hex()}, it was disk "
                f"{before.disk_id.hex()} before",
                hint="another node took the address: start this gateway again",
            )
            link.fail(error)
            raise error

    def _check_boot(self, chunk: ChunkId, expected: int, found: int) -> None:
        if expected != found:
            raise Corruption(
                f"node at {self._address} restarted since the appends to chunk {chunk} (boot id "
                f"{expected:016x}, now {found:016x}): what was not flushed may be gone",
                hint="attach the volume again: its log is read anew from the disk",
            )
