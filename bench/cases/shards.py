"""A volume in shards beside one in copies, on the same nodes: python -m bench.cases.shards.

Seven nodes on one etcd, everything in memory, a gateway for each of two volumes: erasure:4+2 and
replica:3.  First the loads beside each other; then, when all chunks that can be are in shards,
the space that they take; then reads with one node killed; then the time until everything that
lay on it is elsewhere.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import processes
from bench.cases.throughput import KIB, Plan, Row, run
from bench.cluster_servers import ClusterSite, TorusCluster, TorusGateway
from bench.processes import BenchError
from bench.results import Sample
from bench.servers import MIB

NODES = 7
SHARDS, COPIES = "erasure:4+2", "replica:3"
LOOK_S = 0.25
SETTLE_S = 600.0
OPEN_CHUNKS = 3
Announce = Callable[[str], None]
WRITES = (
    Row("seqwrite-1m", "1 MiB sequential write + flush", "write", MIB, 8,
        whole_volume=True, flush_at_end=True),
    Row("randwrite-4k-qd32", "4 KiB random write QD32", "randwrite", 4 * KIB, 32),
)  # fmt: skip
READS = (
    Row("randread-4k-qd1", "4 KiB random read QD1", "randread", 4 * KIB, 1),
    Row("randread-4k-qd32", "4 KiB random read QD32", "randread", 4 * KIB, 32),
)


@dataclass(frozen=True, slots=True)
class Options:
    """How much of everything."""

    rounds: int
    seconds: float
    volume_mib: int
    auto_out_s: int


class Shards:
    """The cluster, and what is asked of it."""

    def __init__(self, options: Options, stack: ExitStack) -> None:
        work_dir = Path(tempfile.mkdtemp(prefix="torus-bench-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, work_dir, ignore_errors=True)
        socket_dir = Path(tempfile.mkdtemp(prefix="torus-bench-"))
        stack.callback(shutil.rmtree, socket_dir, ignore_errors=True)
        size = options.volume_mib * MIB
        site = ClusterSite(work_dir, socket_dir, size, 3 * size)
        self.options = options
        self.cluster = TorusCluster(site, NODES, f"{options.auto_out_s}s")
        stack.callback(self.cluster.stop)
        self.shards = TorusGateway(self.cluster, "in-shards", SHARDS)
        self.copies = TorusGateway(self.cluster, "in-copies", COPIES)
        stack.callback(self.shards.stop)
        stack.callback(self.copies.stop)

    def rows(
        self, rows: Sequence[Row], servers: Sequence[TorusGateway], announce: Announce
    ) -> list[Sample]:
        """Measure loads, in turns.

        Raises: BenchError when one failed.
        """
        site = self.cluster.site
        plan = Plan(
            rows=list(rows), rounds=self.options.rounds, seconds=self.options.seconds,
            main_bytes=site.main_bytes, many_bytes=site.main_bytes, work_dir=site.work_dir,
        )  # fmt: skip
        samples = list(run(plan, list(servers), announce))
        errors = [one.error for one in samples if one.error]
        if errors:
            raise BenchError(errors[0])
        return samples

    def rebalance(self) -> dict[str, Any]:
        """Return what the disks have to do still."""
        said = self.cluster.run("ring", "rebalance", "-o", "json", check=False)
        return dict(json.loads(said)["rebalance"])

    def settle(self, done: Callable[[dict[str, Any]], bool]) -> float:
        """Wait until the disks are done, and return how long that took, in seconds.

        Raises: BenchError.
        """
        began = time.monotonic()
        while time.monotonic() - began < SETTLE_S:
            state = self.rebalance()
            if done(state):
                return time.monotonic() - began
            threading.Event().wait(LOOK_S)
        raise BenchError(f"not settled in {SETTLE_S:g} s: {state}")

    def parts(self) -> dict[str, int]:
        """Return how many parts the volume in shards has of each kind."""
        found = json.loads(self.cluster.run("volume", "info", "in-shards", "--parts", "-o", "json"))
        return dict(found["parts"])

    def used_bytes(self) -> int:
        """Return the bytes of all slots that are used, on all disks."""
        nodes = json.loads(self.cluster.run("node", "list", "-o", "json"))["nodes"]
        return sum(int(node["used_bytes"]) for node in nodes)


def measure(options: Options, announce: Announce) -> Iterator[tuple[str, float, str, str]]:
    """Yield name, figure, unit and note of each thing measured.

    Raises: BenchError, OSError.
    """
    with ExitStack() as stack:
        one = Shards(options, stack)
        size = one.cluster.site.main_bytes
        one.shards.start()  # which writes all of it
        last = 0

        def cut(state: dict[str, Any]) -> bool:
            nonlocal last
            parts = one.parts()
            last = parts["chunks"] - parts["chunks_in_shards"]
            # What the newest checkpoint does not reach stays in copies, and so does the open one.
            return bool(state["settled"]) and parts["copies"] <= 3 * OPEN_CHUNKS

        took_s = one.settle(cut)
        yield "settle", took_s, "s", f"until all but {last} chunks were in shards alone"
        yield "space", one.used_bytes() / size, "x", "bytes of used slots / bytes of the volume"
        one.copies.start()
        both = (one.shards, one.copies)
        yield from _ratios(one.rows(WRITES, both, announce))
        one.settle(lambda state: bool(state["settled"]) and one.parts()["copies"] <= 9)
        healthy = one.rows(READS, both, announce)
        yield from _ratios(healthy)
        os.kill(one.cluster.daemons[-1].pid, signal.SIGKILL)  # the last node
        processes.stop(one.cluster.daemons.pop())
        began = time.monotonic()
        degraded = one.rows(READS, both, announce)
        for row in READS:
            name = "in-shards"
            ratio = _median(degraded, row.name, name) / _median(healthy, row.name, name)
            yield f"{row.name} with a node killed", ratio, "x healthy", "goal 0.4"
        one.settle(lambda state: _is_whole(state, NODES - 1))
        took_s = time.monotonic() - began
        note = f"from the kill, {options.auto_out_s} s before the disk is put out among them"
        yield "rebuild", took_s, "s", note


def _is_whole(state: dict[str, Any], disks: int) -> bool:
    up = [one for one in state["disks"] if not one["problem"]]
    return bool(state["settled"]) and len(up) == disks and not any(state["lacking_bytes"].values())


def _median(samples: Sequence[Sample], row: str, server: str) -> float:
    found = [one.operations_per_s for one in samples if (one.row, one.server) == (row, server)]
    return statistics.median(found)


def _ratios(samples: Sequence[Sample]) -> Iterator[tuple[str, float, str, str]]:
    for row in dict.fromkeys(one.row for one in samples):
        shards, copies = (_median(samples, row, name) for name in ("in-shards", "in-copies"))
        note = f"{shards:,.0f} and {copies:,.0f} operations a second"
        yield row, shards / copies, f"x {COPIES}", note


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--volume-mib", type=int, default=512)
    parser.add_argument("--auto-out", type=int, default=5, help="seconds")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = Options(options.rounds, options.seconds, options.volume_mib, options.auto_out)
    print(f"load average {os.getloadavg()[0]:.1f}")
    try:
        for name, figure, unit, note in measure(plan, lambda text: print(text, file=sys.stderr)):
            print(f"{name}: {figure:.3g} {unit} ({note})", flush=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
