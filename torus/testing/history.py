"""What was asked of a volume, in order, and which contents a crash may leave.

A crash may leave the state after any prefix of the operations, at least up to the last answered
flush; of the operation after that prefix a first part may be there, because a large request
is several records.
"""

from torus import limits

_SNAPSHOT_EVERY = 8


class VolumeHistory:
    """The operations of one volume.  ``capacity`` bounds every size that it will have;
    ``start`` is what it holds before the first of them."""

    def __init__(self, capacity: int, start: bytes = b"") -> None:
        self._operations: list[tuple[int, bytes]] = []
        self._snapshots = [start + bytes(capacity - len(start))]
        self._current = bytearray(self._snapshots[0])
        self._whole: set[int] = set()  # operations of which no part can be seen
        self._lsns: list[int] = []  # of the log when operation i was answered
        self._recent: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._operations)

    def issue(self, offset: int, data: bytes) -> int:
        """Note an operation that makes the bytes at ``offset`` become ``data``; its number."""
        self._operations.append((offset, data))
        self._current[offset : offset + len(data)] = data
        if len(self._operations) % _SNAPSHOT_EVERY == 0:
            self._snapshots.append(bytes(self._current))
        return len(self._operations)

    def replace(self, content: bytes) -> int:
        """Note an operation that makes the volume become ``content``, all at once or not at
        all; its number."""
        self._whole.add(len(self._operations))
        return self.issue(0, content + bytes(len(self._current) - len(content)))

    def answered(self, lsn: int) -> None:
        """Note that all operations so far are answered, the log being at ``lsn``."""
        self._lsns += [lsn] * (len(self._operations) - len(self._lsns))

    def amend(self, content: bytes) -> int:
        """Replace the operations that were refused by what they left: the whole content."""
        answered = self.answers
        before = self.image(answered)
        del self._operations[answered:]
        del self._snapshots[answered // _SNAPSHOT_EVERY + 1 :]
        self._recent.clear()
        self._current = bytearray(before)
        return self.issue(0, content)

    @property
    def answers(self) -> int:
        """How many operations are answered."""
        return len(self._lsns)

    @property
    def content(self) -> bytes:
        """The state after all operations."""
        return bytes(self._current)

    def image(self, count: int) -> bytes:
        """Return the state after the first ``count`` operations."""
        found = self._recent.get(count)
        if found is None:
            start = count // _SNAPSHOT_EVERY
            state = bytearray(self._snapshots[start])
            for offset, data in self._operations[start * _SNAPSHOT_EVERY : count]:
                state[offset : offset + len(data)] = data
            if len(self._recent) > 4:
                self._recent.clear()
            found = self._recent[count] = bytes(state)
        return found

    def find(self, content: bytes, least: int, most: int, lsn: int) -> int | None:
        """Return how many operations ``content`` holds, ``least`` to ``most``; None when no
        prefix gives it.  ``lsn``, where the log was found to end, says where to look first."""
        most = min(most, len(self))  # operations that were refused do not count
        guess = sum(1 for answered in self._lsns if answered <= lsn)
        order = sorted(range(least, most + 1), key=lambda count: abs(count - guess))
        for count in order:
            if self._matches(content, count):
                return count
        for count in order:
            if count < most and count not in self._whole and self._matches_partly(content, count):
                return count
        return None

    def _matches(self, content: bytes, count: int) -> bool:
        return self.image(count).startswith(content)

    def _matches_partly(self, content: bytes, count: int) -> bool:
        """True when ``content`` is a state with a first part of the next operation in it."""
        before, after = self.image(count), self.image(count + 1)
        start, data = self._operations[count]
        size = limits.SECTOR_BYTES
        at, stop = start, min(start + len(data), len(content))
        if content[:start] != before[:start]:
            return False
        while at < stop and content[at : at + size] == after[at : at + size]:
            at += size
        return content[at:] == before[at : len(content)]
