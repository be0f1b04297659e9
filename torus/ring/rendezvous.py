"""Weighted rendezvous hashing: each slot's owners are those with the least costs.

Decides nothing by itself: costs are the kernel's.  Loads are as uneven as chance makes them;
for comparison, and for rings that must not depend on their past.

Implements docs/ring.md, "Other hashings".
"""

from torus._fast.ringbuild import Workbench
from torus.ring.member import RingMember, layout_of
from torus.ring.staging import towards
from torus.ring.table import COLUMNS, SLOTS


def rendezvous(old: bytes | None, members: tuple[RingMember, ...], version: int) -> bytes:
    """Return the next table; ``old`` names members by their new numbers."""
    bench = Workbench(layout_of(members), b"\xff" * (SLOTS * COLUMNS * 2), COLUMNS, version)
    for slot in range(SLOTS):
        bench.set_row(slot, bench.chosen_row(slot))
    final = bench.table_bytes()
    return towards(old, final, final, bench)
