"""Which disks own a slot (see ring.pyx; docs/ring.md has the arithmetic)."""

from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

from typing_extensions import Buffer

Member = TypeVar("Member")

def slot_of(chunk: tuple[int, int, int, int]) -> int:
    """The slot, 0 to 65535, of a chunk (volume, epoch, tag, sequence).

    Raises: ValueError (other than four fields), OverflowError (a field that does not fit).
    """

def pack_numbers(numbers: Buffer, bits: int) -> bytes:
    """Native uint16 numbers as `bits` bits each; 0xFFFF becomes all ones."""

def unpack_numbers(packed: Buffer, bits: int, count: int) -> bytes:
    """What `pack_numbers` packed.  Raises: ValueError when the size is not that of `count`."""

class Layout:
    """The members of a ring in numbers: a 64-bit key, weight (0: owns nothing), node, zone.

    A node is in one zone only.
    """

    def __init__(
        self,
        keys: Sequence[int],
        weights: Sequence[int],
        nodes: Sequence[int],
        zones: Sequence[int],
    ) -> None:
        """Raises: ValueError (no members, too many, lists of different length)."""

class Placement(Generic[Member]):
    """A ring's table, ready to be looked into.

    `table`: native uint16 [slot][column], the number of a member or 0xFFFF for nobody.
    """

    layout: Layout
    columns: int
    def __init__(
        self, members: tuple[Member, ...], layout: Layout, table: Buffer, columns: int
    ) -> None:
        """Raises: ValueError (sizes that do not match, an unknown member)."""

    def order(self, slot: int, count: int, excluded: Collection[int] = ()) -> list[Member]:
        """The first `count` owners of a slot, fewer where there are not as many nodes."""

    def find(self, chunk: tuple[int, int, int, int], count: int) -> list[Member]:
        """`order` of the chunk's slot."""
