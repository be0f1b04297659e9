"""The next table on the way to one that does not depend on the past.

Decides nothing but the order of steps (`torus.ring.staging`); used by hashings that compute
their final table from the members alone.

Implements docs/ring.md, "One copy at a time".
"""

from array import array

from torus._fast.ringbuild import Workbench
from torus.ring.member import RingMember, layout_of
from torus.ring.staging import one_step
from torus.ring.table import COLUMNS, NOBODY


def towards(old: bytes | None, final: bytes, members: tuple[RingMember, ...]) -> bytes:
    """Return the table that follows ``old`` on the way to ``final``."""
    if old is None:
        return final
    bench = Workbench(layout_of(members), final, COLUMNS, 0)
    before, after = array("H", old), array("H", final)
    for start in range(0, len(before), COLUMNS):
        row = before[start : start + COLUMNS]
        wanted = after[start : start + COLUMNS]
        if row != wanted and NOBODY not in row[: bench.width]:
            after[start : start + COLUMNS] = array("H", one_step(row, wanted, bench.allows))
    return after.tobytes()
