"""What a node tells processes of its own host: where a chunk lies, and the file that it lies in.

Decides nothing about who may ask: that was proved on the connection that the question came by,
and the token in the answer is what the file is had for.  Implements docs/protocol.md, "Files of
the same host".
"""

import json
from collections.abc import Mapping
from typing import Any

from torus.errors import NotFound, RemoteProtocolError, Unavailable
from torus.ids import ChunkId
from torus.log import get_logger
from torus.net.descriptors import DescriptorServer
from torus.store.disk import PosixDisk
from torus.store.store import Store

log = get_logger("torus.node")
_START = b'{"ask": "place"'


class Places:
    """The disks of a node as others of the host may read them; ``stores`` may change."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = stores
        self._server = DescriptorServer(self._open)

    def start(self) -> None:
        """Be ready to give files away; without that nobody is told of any."""
        try:
            self._server.start()
        except OSError as exc:
            log.warning("node.no_descriptors", error=str(exc))

    async def close(self) -> None:
        """Give nothing away any more; idempotent."""
        await self._server.close()

    @staticmethod
    def is_question(question: bytes) -> bool:
        """Tell whether a report is for `answer`."""
        return question.startswith(_START)

    def answer(self, question: bytes) -> bytes:
        """Say where a chunk lies; its address is null when it is not here, or not to be had.

        Raises: RemoteProtocolError, NotFound for a disk that is not here, DiskFailed, Corruption.
        """
        try:
            asked = json.loads(question)
            disk_id, chunk = asked["disk"], ChunkId(*map(int, asked["chunk"]))
        except (ValueError, KeyError, TypeError) as exc:
            raise RemoteProtocolError(f"report cannot be read: {question[:80]!r}") from exc
        store = self._store(disk_id)
        slot = store.find(chunk)
        answer: dict[str, Any] = {"address": None, "segment_bytes": store.geometry.segment_bytes}
        if slot is not None and self._server.name and isinstance(store.disk, PosixDisk):
            token = self._server.token.hex()
            answer |= {"address": slot.address, "name": self._server.name, "token": token}
        return json.dumps(answer, sort_keys=True).encode()

    def _store(self, disk_id: object) -> Store:
        store = self._stores.get(disk_id) if isinstance(disk_id, str) else None
        if store is None:
            raise NotFound(f"disk {disk_id!r} is not on this node")
        return store

    def _open(self, disk_id: str, segment: int) -> int:
        """Open a segment for reading.  Raises: OSError, TorusError."""
        store = self._store(disk_id)
        store.check_disk()
        if not isinstance(store.disk, PosixDisk):
            raise Unavailable(f"disk {disk_id} has no files")
        return store.disk.open_for_reading(segment)
