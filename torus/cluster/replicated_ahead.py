"""The sync that goes along with a record, because a flush has followed each of them lately.

A program that commits writes and flushes by turns.  Sent in one packet with the record, the sync
is done, or under way, when the flush comes: a commit takes one round trip to the disks and not
two.  Decides when that is to be expected; `torus.cluster.replicated_writes` decides what a sync's
answer is worth.

Implements docs/replication.md, "Flushing".
"""

import asyncio
from collections.abc import Sequence

from torus.cluster.answers import seen
from torus.cluster.replicated_chunk import Copy, OpenChunk

_FLUSHED_BEFORE = 2  # records with a flush each, before the next is expected to be one of them


class FlushHabit:
    """Whether every record has lately been followed by a sync.

    A writer that gives up the habit is noticed by its second record, at the cost of one sync that
    nobody asked for.
    """

    __slots__ = ("_flushed", "_since")

    def __init__(self) -> None:
        self._flushed = 0  # records on end, each with a sync of its own
        self._since = 0  # records since the last sync

    def appended(self) -> bool:
        """Take note of a record; tell whether a sync is to be expected right behind it."""
        self._since += 1
        if self._since > 1:
            self._flushed = 0
        return self._flushed >= _FLUSHED_BEFORE

    def synced(self) -> None:
        """Take note of a sync that was asked for."""
        if self._since:
            self._flushed += 1
            self._since = 0


class SyncsAhead:
    """The syncs that were sent right behind one record, on the connections that carried it.

    They are answers to a flush as long as the record is the newest, and was taken by every disk
    that it was sent to without being sent again: a node serves what comes on a connection in order.
    """

    __slots__ = ("_answers", "_opened")

    def __init__(self, opened: OpenChunk) -> None:
        self._opened = opened
        self._answers: dict[str, asyncio.Future[int]] = {}

    def send(self, copy: Copy) -> None:
        """Send one, behind the record that was just sent; nothing where that takes waiting."""
        assert copy.writer is not None
        answer = copy.writer.sync_soon()
        if answer is not None:
            answer.add_done_callback(seen)
            self._answers[copy.disk_id] = answer

    def answer(self, disk_id: str, some: Sequence[OpenChunk]) -> asyncio.Future[int] | None:
        """Return what a sync of ``some`` on a disk would ask again; None: nothing was sent."""
        if len(some) != 1 or some[0] is not self._opened:
            return None
        return self._answers.get(disk_id)

    def cover(self, opened: OpenChunk) -> bool:
        """Tell whether every copy of a chunk has all that was answered, durably, already."""
        return opened is self._opened and all(
            opened.is_whole(copy) and self._is_good(copy) for copy in opened.copies.values()
        )

    def _is_good(self, copy: Copy) -> bool:
        assert copy.writer is not None
        answer = self._answers.get(copy.disk_id)
        if answer is None or not answer.done() or answer.cancelled():
            return False
        return answer.exception() is None and answer.result() == copy.writer.boot_id
