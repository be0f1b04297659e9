"""Time the block map's compiled calls from a compiled loop, as the data path calls them.

Run: python -m bench.cases.blockmap.  The loop in blockmap_loop.pyx is built in a temporary
folder.  Each line is CPU time, the best of 15 repeats over 200,000 calls,
less the empty loop.
"""

import random
import tempfile
import time
from functools import partial
from pathlib import Path
from types import ModuleType

from bench.cases.loops import best_ns, load_loop
from torus._fast.blockmap import BlockMap

CALLS = 200_000
SIZE_BLOCKS = 1 << 18  # 1 GiB of addresses, 3 MiB of leaves
SEED = 7


def measure(loop: ModuleType) -> dict[str, float]:
    """Nanoseconds a call (or a block, where the name says so)."""
    target = BlockMap(SIZE_BLOCKS, 1 << 28)
    target.open_sequence(1)
    rng = random.Random(SEED)
    anywhere = [rng.randrange(SIZE_BLOCKS) for _ in range(CALLS)]
    in_order = [at % SIZE_BLOCKS for at in range(CALLS)]
    leaves = [leaf * 1024 for leaf in range(SIZE_BLOCKS // 1024)]
    for start in leaves:
        target.open_sequence(2 + start)
    base = best_ns(lambda: loop.empty(anywhere), CALLS)
    found = {}
    for name, blocks in (("random", anywhere), ("in order", in_order)):
        single = BlockMap(SIZE_BLOCKS, 1 << 28)
        parts = [(1 + i // 1000, blocks[i : i + 1000]) for i in range(0, CALLS, 1000)]
        for sequence, _ in parts:
            single.open_sequence(sequence)
        found[f"set_run of 1 block, {name}"] = (
            best_ns(partial(set_parts, loop, single, parts), CALLS) - base
        )
        found[f"lookup of 1 block, {name}"] = (
            best_ns(partial(loop.lookup_blocks, single, blocks, 1), CALLS) - base
        )
        single.verify()
    found["set_run of 256 blocks, a block"] = best_ns(
        lambda: [loop.set_blocks(target, [at], 2 + at, 256) for at in leaves], len(leaves) * 256
    )
    found["lookup of 256 blocks, a block"] = best_ns(
        lambda: loop.lookup_blocks(target, leaves, 256), len(leaves) * 256
    )
    empty = BlockMap(1 << 34, 1 << 28)
    found["extents of an empty 64 TiB volume"] = best_ns(lambda: empty.extents(0, 1 << 34, 9), 1)
    target.begin_checkpoint()
    found["encode_leaf of 256 entries"] = encoding_ns(target, len(leaves))
    return found


def set_parts(loop: ModuleType, target: BlockMap, parts: list[tuple[int, list[int]]]) -> None:
    """Set single blocks, a thousand to a chunk."""
    for sequence, blocks in parts:
        loop.set_blocks(target, blocks, sequence, 1)


def encoding_ns(target: BlockMap, leaves: int) -> float:
    """Encoding can be asked for once a leaf only."""
    began = time.thread_time_ns()
    for index in range(leaves):
        target.encode_leaf(index)
    return (time.thread_time_ns() - began) / leaves


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        for name, each_ns in measure(load_loop("blockmap_loop", Path(folder))).items():
            print(f"{name:40} {each_ns:12,.1f} ns")


if __name__ == "__main__":
    main()
