"""Time look-ups in a ring of 1,000 members, and how long such a ring takes to build.

Run: python -m bench.cases.ring.  The loop in ring_loop.pyx is built in a temporary folder.
Each look-up is a slot and its first three owners; CPU time, the best of 15 repeats.
"""

import tempfile
import time
from pathlib import Path

from bench.cases.loops import best_ns, load_loop
from torus.ids import ChunkId
from torus.ring.builder import first_ring, next_ring
from torus.ring.imagined import imagined_members
from torus.ring.table import Ring

CALLS = 1_000_000
PYTHON_CALLS = 50_000
NODES, ZONES, WEIGHTS = 1000, 5, [4, 8, 16]


def from_python(ring: Ring) -> float:
    """Nanoseconds of `Ring.owners` of chunks of one volume."""
    chunks = [ChunkId(1, 1, 0, sequence) for sequence in range(PYTHON_CALLS)]

    def look_up() -> None:
        for chunk in chunks:
            ring.owners(chunk, 3)

    def nothing() -> None:
        for _ in chunks:
            pass

    return best_ns(look_up, PYTHON_CALLS) - best_ns(nothing, PYTHON_CALLS)


def main() -> None:
    """Print the figures."""
    members = imagined_members(NODES, ZONES, WEIGHTS)
    began = time.process_time()
    ring = first_ring(members)
    print(f"build, {NODES} members: {time.process_time() - began:.2f} s of CPU")
    began = time.process_time()
    next_ring(ring, [*members, *imagined_members(1, 1, WEIGHTS, first=NODES)])
    print(f"next version, one more member: {time.process_time() - began:.2f} s of CPU")
    with tempfile.TemporaryDirectory() as folder:
        loop = load_loop("ring_loop", Path(folder))
        compiled = best_ns(lambda: loop.owners(ring._placement, CALLS), CALLS)
        compiled -= best_ns(lambda: loop.empty(CALLS), CALLS)
    print(f"slot and 3 owners, from a compiled loop: {compiled:.1f} ns")
    print(f"slot and 3 owners, a call from Python: {from_python(ring):.0f} ns")


if __name__ == "__main__":
    main()
