"""What a client wrote to a volume, and which images it may find there afterwards.

Every sector that is ever written holds a number that no other write has, so that a sector says
which write it is of.  The rules, for a volume whose processes are killed, stopped and cut off but
whose kernels live (nothing that reached the page cache is lost):

- a read finds the last answered write of each sector, or one that is under way;
- after a takeover every answered write is there, flushed or not, and of the unanswered ones
  those that were sent first: an image is a prefix of the order;
- a write that was not there after a takeover never comes back.
"""

import struct
from dataclasses import dataclass

SECTOR = 512
BLOCK = 4096
_UNIT = struct.Struct("<QQ")


class Violation(AssertionError):
    """A volume broke its promise."""


def stamped(number: int, sector: int, count: int) -> bytes:
    """Return ``count`` sectors of write ``number`` for the place of ``sector``."""
    units = SECTOR // _UNIT.size
    return b"".join(_UNIT.pack(number, sector + index) * units for index in range(count))


def written_by(content: bytes) -> str:
    """Say which write a sector is of."""
    number, sector = _UNIT.unpack_from(content)
    if content != _UNIT.pack(number, sector) * (SECTOR // _UNIT.size):
        return f"of no single write: {content[:24].hex()}..."
    return f"write {number} for sector {sector}" if number else "zeroes"


@dataclass(frozen=True, slots=True)
class Change:
    """One request that changes the image, in flight."""

    number: int
    offset: int
    content: bytes
    plain: bool  # nothing but a write of whole blocks: these are done in the order of sending

    @property
    def blocks(self) -> range:
        """The blocks that it touches."""
        return range(self.offset // BLOCK, -(-(self.offset + len(self.content)) // BLOCK))


class BlockHistory:
    """One volume as its only client knows it.  What is in flight never overlaps."""

    def __init__(self, size_bytes: int) -> None:
        self.image = bytearray(size_bytes)  # after all answered changes
        self.pending: dict[int, Change] = {}  # by number, in the order of sending
        self.numbers = 0
        self.answers = 0

    def busy(self, blocks: range) -> bool:
        """Say whether a change that is in flight touches one of the blocks."""
        return any(
            change.blocks.start < blocks.stop and blocks.start < change.blocks.stop
            for change in self.pending.values()
        )

    def write(self, offset: int, length: int, *, zeroes: bool = False, plain: bool) -> Change:
        """Begin a change: a write of unique content, or zeroes."""
        self.numbers += 1
        content = bytes(length)
        if not zeroes:
            content = stamped(self.numbers, offset // SECTOR, length // SECTOR)
        change = Change(self.numbers, offset, content, plain)
        self.pending[change.number] = change
        return change

    def answered(self, change: Change) -> None:
        """A change was answered: from now on it must be there."""
        del self.pending[change.number]
        self.image[change.offset : change.offset + len(change.content)] = change.content
        self.answers += 1

    def check_read(self, offset: int, found: bytes) -> None:
        """Check a read of sectors that nothing in flight touched meanwhile.

        Raises: Violation.
        """
        expected = self.image[offset : offset + len(found)]
        if found != expected:
            self._explain(offset, found, bytes(expected), "a read")

    def recover(self, found: bytes) -> set[int]:
        """Check the whole image after a takeover; what is not in it must never be seen again.

        Returns: the numbers of the unanswered changes that are there.
        Raises: Violation.
        """
        expected = bytearray(self.image)
        visible: list[Change] = []
        for change in self.pending.values():
            if self._lay(change, expected, found):
                visible.append(change)
        if found != expected:
            self._explain(0, found, bytes(expected), "the image after a takeover")
        last = max((change.number for change in visible if change.plain), default=0)
        for change in self.pending.values():
            missing = change.plain and change.number < last and change not in visible
            if missing and any(change.content):
                raise Violation(f"write {last} is there, and {change.number}, sent before, is not")
        self.image[:] = found
        self.pending.clear()
        return {change.number for change in visible}

    def _lay(self, change: Change, expected: bytearray, found: bytes) -> bool:
        """Put those sectors of an unanswered change in that are there; True when all are."""
        whole = True
        for at in range(0, len(change.content), SECTOR):
            place = slice(change.offset + at, change.offset + at + SECTOR)
            content = change.content[at : at + SECTOR]
            if found[place] == content:
                expected[place] = content
            else:
                whole = False
        return whole

    def _explain(self, start: int, found: bytes, expected: bytes, what: str) -> None:
        wrong = [
            at
            for at in range(0, len(found), SECTOR)
            if found[at : at + SECTOR] != expected[at : at + SECTOR]
        ]
        examples = "; ".join(
            f"sector {(start + at) // SECTOR}: found {written_by(found[at : at + SECTOR])}, "
            f"expected {written_by(expected[at : at + SECTOR])}"
            for at in wrong[:4]
        )
        raise Violation(
            f"{what} has {len(wrong)} wrong sectors after {self.answers} answers: {examples}"
        )
