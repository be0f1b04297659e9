"""What upkeep needs of other disks, and how it asks their upkeep.

Decides the JSON of the questions that one disk's upkeep asks another's (docs/protocol.md,
"Reports"): what reads and writes chunks are requests of the peer protocol of their own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torus.errors import RemoteProtocolError
from torus.ids import ChunkId
from torus.store.content import Examined


class Peer(Protocol):
    """Another disk; every method raises TorusError of any kind when it gives no answer."""

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        """Return the bytes of each (chunk, offset, size).  Raises: Corruption: not there."""

    async def examine(self, chunks: Sequence[ChunkId]) -> Sequence[Examined]:
        """Say of each chunk whether it is there and how far it is whole."""

    async def list(self, volume: int) -> Sequence[ChunkId]:
        """Return the chunks of ``volume`` that are there."""


class Peers(Protocol):
    """The other disks of the cluster."""

    async def get(self, disk_id: str) -> Peer:
        """Return a disk, connected.  Raises: TorusError."""

    async def ask(self, disk_id: str, question: bytes) -> bytes:
        """Ask the upkeep of the node that has a disk.  Raises: TorusError."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A part in a question, and where its chunk ends if the metadata says so."""

    chunk: ChunkId
    exact: int | None
    data: int = 0  # K and M of a shard: one of another scheme is not the one that is meant
    parity: int = 0


GOOD = "good"
LEAVING = "leaving"  # to be given up: nobody may count on it
ABSENT = "absent"
DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a disk says of one of its parts; the rest counts where it is GOOD."""

    state: str
    end: int = 0  # of the chunk's records
    crc: int = 0  # of all the chunk's records
    payload: int = 0  # CRC-32C of what a shard holds


def confirm_question(disk_id: str, copies: Sequence[Copy]) -> bytes:
    """Return the question whether a disk has good copies, and keeps them."""
    return _question("confirm", disk_id, copies)


def doubt_question(disk_id: str, copies: Sequence[Copy]) -> bytes:
    """Return the request to a disk to compare parts of its own with the others'."""
    return _question("doubt", disk_id, copies)


def _question(ask: str, disk_id: str, copies: Sequence[Copy]) -> bytes:
    chunks = [[*copy.chunk, copy.exact or 0, copy.data, copy.parity] for copy in copies]
    return json.dumps({"ask": ask, "disk": disk_id, "chunks": chunks}).encode()


def copies_of(question: dict[str, Any]) -> list[Copy]:
    """Return the chunks that a question is about.  Raises: RemoteProtocolError."""
    try:
        return [
            Copy(ChunkId(*map(int, one[:4])), int(one[4]) or None, *map(int, one[5:7]))
            for one in question["chunks"]
        ]
    except (KeyError, TypeError, ValueError, IndexError) as exc:
        raise RemoteProtocolError(f"question of another upkeep cannot be read: {exc!r}") from exc


def confirm_answer(answers: Sequence[Confirmed]) -> dict[str, Any]:
    """Return the answer as JSON."""
    return {"answers": [[one.state, one.end, one.crc, one.payload] for one in answers]}


def read_confirmed(answer: bytes, count: int) -> list[Confirmed]:
    """Read an answer about ``count`` chunks.  Raises: RemoteProtocolError."""
    try:
        found = [
            Confirmed(str(state), *map(int, numbers))
            for state, *numbers in json.loads(answer)["answers"]
        ]
    except (KeyError, TypeError, ValueError) as exc:
        raise RemoteProtocolError(f"answer of another upkeep cannot be read: {exc!r}") from exc
    if len(found) != count:
        raise RemoteProtocolError(f"another upkeep answered {len(found)} of {count} chunks")
    return found
