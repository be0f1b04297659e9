"""Changes the table of a ring (see ringbuild.pyx; docs/ring.md, "Building")."""

from collections.abc import Sequence

from typing_extensions import Buffer

from torus._fast.ring import Layout

class Workbench:
    """A table being changed: native uint16 [slot][column], 0xFFFF for nobody.

    The slots are worked on in an order that `seed` decides.
    """

    width: int  # places of a row that somebody can have: nodes with weight, at most all columns
    def __init__(self, layout: Layout, table: Buffer, columns: int, seed: int) -> None:
        """Raises: ValueError (sizes that do not match, an unknown member)."""

    def fill(self, targets: Sequence[Sequence[int]], bounds: Sequence[Sequence[int]]) -> list[int]:
        """Fill all places that nobody has or a member without weight.

        `targets[column][member]`: how many slots should name it in columns 0 to `column`;
        `bounds`: how many may, before others are asked.
        Returns the slots that still break the rule or have an open place.
        """

    def even(self, column: int, wants: Sequence[int], gives: Sequence[int]) -> int:
        """Move slots of a column, at most `gives` of a member and `wants` to one.

        Returns how many slots moved; a slot moves at most once in a call.
        """

    def column_loads(self, column: int) -> list[int]:
        """How many slots name each member in columns 0 to `column`."""

    def chosen_row(self, slot: int) -> list[int]:
        """The row that the rule makes of the slot's members with weight and the best others."""

    def allows(self, row: Sequence[int]) -> bool:
        """Whether all places are filled by members with weight, by the rule."""

    def allows_open(self, row: Sequence[int]) -> bool:
        """Whether the rule is kept, whatever will stand in places that are to be filled."""

    def set_row(self, slot: int, row: Sequence[int]) -> None: ...
    def table_bytes(self) -> bytes: ...
    def restore(self, table: Buffer) -> None:
        """Go back to what `table_bytes` returned."""
