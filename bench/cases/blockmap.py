"""Time the block map's compiled calls from a compiled loop, as the data path calls them.

Run: python -m bench.cases.blockmap.  The loop in blockmap_loop.pyx is built in a temporary
folder.  Each line is the median of 7 repeats over 200,000 calls, less the empty loop.
"""

import importlib.util
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torus._fast.blockmap import BlockMap

REPEATS = 7
CALLS = 200_000
SIZE_BLOCKS = 1 << 18  # 1 GiB of addresses, 3 MiB of leaves
SEED = 7


def load_loop(folder: Path) -> ModuleType:
    """Build and import the compiled loop."""
    source = shutil.copy(Path(__file__).with_name("blockmap_loop.pyx"), folder)
    command = [str(Path(sys.executable).with_name("cythonize")), "-i", "-3", source]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    (built,) = folder.glob("blockmap_loop*.so")
    spec = importlib.util.spec_from_file_location("blockmap_loop", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def median_ns(call: Callable[[], object], operations: int) -> float:
    """Nanoseconds of one operation."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - began) / operations)
    return statistics.median(times)


def measure(loop: ModuleType) -> dict[str, float]:
    """Nanoseconds a call (or a block, where the name says so)."""
    target = BlockMap(SIZE_BLOCKS, 1 << 28)
    target.open_sequence(1)
    rng = random.Random(SEED)
    anywhere = [rng.randrange(SIZE_BLOCKS) for _ in range(CALLS)]
    in_order = [at % SIZE_BLOCKS for at in range(CALLS)]
    leaves = [leaf * 1024 for leaf in range(SIZE_BLOCKS // 1024)]
    for start in leaves:  # a map without absent leaves; live units are of no interest here
        target.open_sequence(2 + start)
        loop.set_blocks(target, [start], 2 + start, 1023)
    base = median_ns(lambda: loop.empty(anywhere), CALLS)
    target.clear(0, SIZE_BLOCKS)

    found = {}
    for name, blocks in (("random", anywhere), ("in order", in_order)):
        clears = BlockMap(SIZE_BLOCKS, 1 << 28)
        sequences = range(1, CALLS // 1000 + 2)
        for sequence in sequences:
            clears.open_sequence(sequence)
        parts = [(blocks[i : i + 1000], 1 + i // 1000) for i in range(0, CALLS, 1000)]

        def set_all(clears: BlockMap = clears, parts: list[tuple[list[int], int]] = parts) -> None:
            for part, sequence in parts:
                loop.set_blocks(clears, part, sequence, 1)

        found[f"set_run of 1 block, {name}"] = median_ns(set_all, CALLS) - base
        found[f"lookup of 1 block, {name}"] = (
            median_ns(lambda blocks=blocks: loop.lookup_blocks(clears, blocks, 1), CALLS) - base  # type: ignore[misc]
        )
        clears.verify()
    found["set_run of 256 blocks, a block"] = median_ns(
        lambda: [loop.set_blocks(target, [at], 2 + at, 256) for at in leaves], len(leaves) * 256
    )
    found["lookup of 256 blocks, a block"] = median_ns(
        lambda: loop.lookup_blocks(target, leaves, 256), len(leaves) * 256
    )
    empty = BlockMap(1 << 34, 1 << 28)
    found["extents of an empty 64 TiB volume"] = median_ns(lambda: empty.extents(0, 1 << 34, 9), 1)
    target.begin_checkpoint()
    found["encode_leaf of 256 entries"] = median_ns_once(target, len(leaves))
    return found


def median_ns_once(target: BlockMap, leaves: int) -> float:
    """Encoding can be asked for once a leaf only."""
    began = time.perf_counter_ns()
    for index in range(leaves):
        target.encode_leaf(index)
    return (time.perf_counter_ns() - began) / leaves


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        for name, each_ns in measure(load_loop(Path(folder))).items():
            print(f"{name:40} {each_ns:12,.1f} ns")


if __name__ == "__main__":
    main()
