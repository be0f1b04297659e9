"""Which chunks of an attached volume's log go, and when.

Decides that a chunk is garbage: no live block or map page in it, not named by the published
checkpoint, not needed by replay, and by no snapshot.  It waits on the delete list until its
not-before time, then its node is told to delete it.  Only what is known to be dead is deleted:
any error leaves everything as it is, and the next checkpoint judges anew.
"""

from collections import deque

from torus.clock import Clock
from torus.log import get_logger
from torus.metadata.schema import RootRef
from torus.volume.core import Core

log = get_logger("torus.reclaim")


class Reclaimer:
    """The dead chunks of one volume.  Used under the checkpoint's lock."""

    def __init__(self, core: Core, clock: Clock, root: RootRef | None, delay_s: float) -> None:
        """``delay_s``: how long a chunk stays on the delete list."""
        self._core = core
        self._clock = clock
        self._root = root
        self._delay_ns = int(delay_s * 1e9)
        self._due: deque[tuple[int, int]] = deque()  # (not before, sequence)
        self._listed: set[int] = set()
        self._gone = True  # snapshots may have gone since the dead chunks were judged

    def candidates(self, before: int) -> list[int]:
        """Return the chunks older than ``before`` that hold nothing live now and were not
        judged yet.

        To be called before a checkpoint begins: what dies while it is written may still be
        named by it, as its death is in records that a power cut can take.
        """
        blocks = self._core.blocks
        return [
            sequence
            for first, last in self._ranges(before)
            for sequence in blocks.dead_unassigned(first, last)
            if sequence not in self._listed
        ]

    def published(self, root: RootRef) -> None:
        """Note the checkpoint that now counts."""
        self._root = root

    def snapshots_gone(self) -> None:
        """Note that chunks may be free now that were judged before: the next checkpoint looks
        at them, unless `judge_again` does so earlier.  After an attach it always looks."""
        self._gone = True

    def judge(self, candidates: list[int], era: int) -> None:
        """Date the deaths of ``candidates``, after the checkpoint that does not name them;
        put those on the delete list that no snapshot needs."""
        if self._gone:
            self.judge_again()
        core, named = self._core, self._named()
        for sequence in candidates:
            if sequence in named or core.blocks.live(sequence) != 0:
                continue
            if era:
                core.blocks.set_era(sequence, era)
            if not core.pins.pinned(sequence, era):
                self._list(sequence)

    def judge_again(self) -> int:
        """Put those on the delete list that snapshots pinned which are gone now; return how
        many."""
        core, found = self._core, 0
        if self._root is None:
            return 0
        self._gone = False
        named = self._named()
        for first, last in self._ranges(self._root.replay_sequence):
            for sequence in core.blocks.dead(first, last):
                era = core.blocks.era(sequence)
                if (
                    era
                    and sequence not in self._listed
                    and sequence not in named
                    and not core.pins.pinned(sequence, era)
                ):
                    self._list(sequence)
                    found += 1
        return found

    @property
    def waiting(self) -> int:
        """Chunks on the delete list."""
        return len(self._due)

    @property
    def next_due_s(self) -> float | None:
        """Seconds until the first of the delete list may go; None when it is empty."""
        if not self._due:
            return None
        return max(0.0, (self._due[0][0] - self._clock.monotonic_ns()) / 1e9)

    async def delete_due(self, *, at_once: bool = False) -> int:
        """Delete what is due; ``at_once``: all that is listed.  Return how many chunks.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable; then nothing counts as deleted.
        """
        core, now = self._core, self._clock.monotonic_ns()
        count = 0
        for not_before, _ in self._due:
            if not at_once and not_before > now:
                break
            count += 1
        if not count:
            return 0
        going = [self._due[position][1] for position in range(count)]
        for sequence in going:
            core.places.pop(sequence, None)
        chunks = [core.chunk(sequence) for sequence in going]
        await core.chunks.delete(core.spec.volume, core.epoch, chunks)
        for sequence in going:
            self._due.popleft()
            self._listed.discard(sequence)
            core.blocks.drop_sequence(sequence)
        return count

    def _list(self, sequence: int) -> None:
        self._due.append((self._clock.monotonic_ns() + self._delay_ns, sequence))
        self._listed.add(sequence)

    def _named(self) -> set[int]:
        """Chunks that the published checkpoint names although no live unit counts for them."""
        named = set(self._core.blocks.pinned_sequences())
        if self._root is not None:
            named.add(self._root.sequence)
        return named

    def _ranges(self, before: int) -> list[tuple[int, int]]:
        """The chunks of the log below ``before``, as (first, last)."""
        ranges = []
        for span in self._core.spans:
            last = before - 1 if span.last is None else min(span.last, before - 1)
            if span.first <= last:
                ranges.append((span.first, last))
        return ranges
