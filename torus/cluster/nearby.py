"""Chunks of other processes of this host, read from their files.

A node of the same host says where a chunk lies and hands over the segment's file; from then on
the compiled read path serves the chunk as if it were in this process.  Decides when a node is
asked, and forgets what it said as soon as it turns out to be wrong: whether bytes are right is
decided by the map's checksums alone, as for every other read.  Implements docs/protocol.md,
"Files of the same host".
"""

import asyncio
import json
import os
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torus import limits
from torus._fast.blockio import FileIo
from torus.cluster.chunks import DiskChunks
from torus.errors import RemoteProtocolError, TorusError
from torus.format.segment import Geometry
from torus.ids import ChunkId
from torus.log import get_logger
from torus.net.descriptors import TOKEN_BYTES, fetch

log = get_logger("torus.nearby")

_ASKING_MAX = 16  # nodes are asked about so many chunks at once
_AGAIN_S = 10.0  # before a node is asked again about what it does not have or give


@runtime_checkable
class _Reports(Protocol):
    async def report(self, question: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a chunk lies in a file that can be had: what a node answers."""

    address: int  # of the chunk's slot
    name: str  # of the socket that gives the file
    token: bytes

    @classmethod
    def from_json(cls, answer: bytes) -> "Offer | None":
        """Read a node's answer; None: it does not have the chunk, or cuts its disk in another way.

        Raises: RemoteProtocolError.
        """
        try:
            found = json.loads(answer)
            if found["address"] is None or found["segment_bytes"] != Geometry().segment_bytes:
                return None
            offer = cls(int(found["address"]), str(found["name"]), bytes.fromhex(found["token"]))
        except (ValueError, KeyError, TypeError) as exc:
            raise RemoteProtocolError(f"place cannot be read: {answer[:80]!r}") from exc
        if offer.address < 0 or len(offer.token) != TOKEN_BYTES:
            raise RemoteProtocolError(f"place cannot be: {answer[:80]!r}")
        return offer


def place_question(disk_id: str, chunk: ChunkId) -> bytes:
    """Return the report that asks where a chunk lies."""
    return json.dumps({"ask": "place", "disk": disk_id, "chunk": list(chunk)}).encode()


@dataclass(slots=True)
class _Disk:
    """The files of one disk that are open here, under numbers of this process."""

    numbers: dict[int, int] = field(default_factory=dict)  # by the disk's own number
    locks: dict[int, asyncio.Lock] = field(default_factory=dict)


class NearbyFiles:
    """The files of other processes' disks; used from one event loop; `close` it."""

    def __init__(self) -> None:
        geometry = Geometry()
        self._segment_bytes = geometry.segment_bytes
        self.io = FileIo(geometry.segment_bytes, limits.SEGMENT_HEADER_BYTES)
        self._files: list[int] = []
        self._disks: dict[str, _Disk] = {}
        self._found: dict[ChunkId, int] = {}  # asked for, not fetched yet
        self._asking: dict[ChunkId, asyncio.Task[None]] = {}
        self._not_before_s: dict[ChunkId, float] = {}

    def place(self, chunk: ChunkId, disk: DiskChunks) -> int | None:
        """Return the chunk's address for `io`; None: not known yet, or not to be had.

        An answer is given out once: who finds that it is wrong asks anew.
        """
        found = self._found.pop(chunk, None)
        if found is None and chunk not in self._asking and isinstance(disk, _Reports):
            self._ask(chunk, disk, disk.disk_id)
        return found

    def read(self, address: int, size: int) -> bytes | None:
        """Return bytes at an address of `io` if they are there without waiting: in the page
        cache, or on a file system in memory."""
        try:
            return self.io.read_bytes(address, size)
        except OSError:
            return None

    def _ask(self, chunk: ChunkId, disk: _Reports, disk_id: str) -> None:
        loop = asyncio.get_running_loop()
        if len(self._asking) >= _ASKING_MAX or self._not_before_s.get(chunk, 0.0) > loop.time():
            return
        task = self._asking[chunk] = loop.create_task(self._learn(chunk, disk, disk_id))
        task.add_done_callback(lambda ended: self._asked(chunk, ended))

    def _asked(self, chunk: ChunkId, task: asyncio.Task[None]) -> None:
        del self._asking[chunk]
        if task.cancelled():
            return
        error = task.exception()
        if error is None and chunk in self._found:
            self._not_before_s.pop(chunk, None)
            return
        if error is not None:
            log.debug("nearby.not_known", chunk=str(chunk), reason=str(error))
            if not isinstance(error, TorusError):
                log.error("nearby.failed", chunk=str(chunk), exception=error)
        if len(self._not_before_s) >= limits.NEARBY_REFUSED_MAX:
            self._not_before_s.clear()
        self._not_before_s[chunk] = task.get_loop().time() + _AGAIN_S

    async def _learn(self, chunk: ChunkId, disk: _Reports, disk_id: str) -> None:
        """Ask for a chunk's place, and for the file where that is not open yet.

        Raises: Unavailable, RemoteProtocolError, what the node answers.
        """
        offer = Offer.from_json(await disk.report(place_question(disk_id, chunk)))
        if offer is None:
            return
        segment, within = divmod(offer.address, self._segment_bytes)
        files = self._disks.setdefault(disk_id, _Disk())
        async with files.locks.setdefault(segment, asyncio.Lock()):
            number = files.numbers.get(segment)
            if number is None:
                if len(self._files) >= limits.NEARBY_FILES_MAX:
                    return  # the rest is read through the node
                file = await fetch(offer.name, offer.token, disk_id, segment)
                number = files.numbers[segment] = len(self._files)
                self._files.append(file)
                self.io.set_file(number, file)
        if len(self._found) >= limits.NEARBY_REFUSED_MAX:
            self._found.clear()
        self._found[chunk] = number * self._segment_bytes + within

    async def close(self) -> None:
        """End the questions and close the files; idempotent."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for number, file in enumerate(self._files):
            self.io.set_file(number, -1)
            os.close(file)
        self._files.clear()
        self._disks.clear()
        self._found.clear()
