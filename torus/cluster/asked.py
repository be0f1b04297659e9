"""A request that was sent to a node: how long its answer may take, and who waits for it.

Decides the deadlines of each kind of request, and how much one READ carries.  Implements
docs/protocol.md, "Limits and deadlines".
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torus import limits
from torus._fast.peerframe import APPENDED, READ_DONE, SYNCED
from torus.ids import ChunkId
from torus.wire.messages import Answer, Append, Appended, Open, Ping, ReadDone, Reopen, Sync, Synced

MESSAGES: dict[int, Callable[[Any], Answer]] = {
    APPENDED: Appended,
    SYNCED: Synced,
    READ_DONE: ReadDone,
}


def plain(answer: ReadDone | Appended | Synced) -> list[bytes] | int:
    """Return what a frequent answer says, without the message."""
    if isinstance(answer, ReadDone):
        return [bytes(piece) for piece in answer.pieces]
    return answer.boot_id


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a node may take, in seconds."""

    answer_s: float = limits.PEER_REQUEST_TIMEOUT_S
    silence_s: float | None = None  # None: only answers have a deadline

    def of(self, kind: type) -> float:
        """Return how long an answer to a request of ``kind`` may take."""
        if self.silence_s is None:
            return self.answer_s
        if kind in (Append, Open, Ping):
            return min(self.silence_s, self.answer_s)
        if kind in (Sync, Reopen):
            return min(limits.REPLICA_SYNC_S, self.answer_s)
        return self.answer_s


class Asked:
    """A request without an answer."""

    __slots__ = ("cost", "deadline_s", "future", "name", "plain", "sent_s")

    def __init__(
        self, future: asyncio.Future[Any], cost: int, sent_s: float, limit_s: float, name: str,
        plain: bool = False,
    ) -> None:  # fmt: skip
        """``plain``: the future gets the boot id, or the pieces, and not a message."""
        self.future = future
        self.cost = cost
        self.sent_s = sent_s  # of the loop's clock
        self.deadline_s = sent_s + limit_s
        self.name = name
        self.plain = plain


def split_reads(
    reads: Sequence[tuple[ChunkId, int, int]],
) -> Iterable[Sequence[tuple[ChunkId, int, int]]]:
    """Cut a list of reads into lists that one READ may carry."""
    part: list[tuple[ChunkId, int, int]] = []
    size = 0
    for read in reads:
        if part and (
            size + read[2] > limits.PEER_READ_BYTES_MAX or len(part) == limits.PEER_READS_MAX
        ):
            yield part
            part, size = [], 0
        part.append(read)
        size += read[2]
    if part:
        yield part
