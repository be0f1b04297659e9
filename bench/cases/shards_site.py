"""The cluster of `bench.cases.shards`: seven nodes, volumes, a node that is lost.

Decides when everything counts as settled; what is measured is the case's.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import processes
from bench.cases.throughput import Plan, Row, run
from bench.cluster_servers import ClusterSite, TorusCluster, TorusGateway
from bench.nbd_client import NbdClient
from bench.processes import BenchError
from bench.results import Sample, Value
from bench.servers import MIB
from torus.config import CommonConfig
from torus.daemon.rebalance import ClusterState, Watching

NODES = 7
SHARDS, COPIES = "erasure:4+2", "replica:3"
BULK = "bulk"
BULK_STEP_MIB = 1024
OPEN_CHUNKS = 3  # copies of the chunk that each volume in shards has open
LOOK_S = 0.5
SETTLE_S = 1800.0


class Site:
    """The cluster, and what is done to it."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        folder = Path(tempfile.mkdtemp(prefix="torus-bench-", dir=options.dir))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        sockets = Path(tempfile.mkdtemp(prefix="torus-bench-"))
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        size = options.volume_mib * MIB
        self.options, self.work_dir = options, folder
        site = ClusterSite(folder, sockets, size, 3 * size + options.mib * MIB // 2 + 1024 * MIB)
        self.cluster = TorusCluster(site, NODES, options=("--trash-grace", "none"))
        stack.callback(self.cluster.stop)
        self.shards = TorusGateway(self.cluster, "in-shards", SHARDS)
        self.copies = TorusGateway(self.cluster, "in-copies", COPIES)
        self.servers = (self.shards, self.copies)
        for server in self.servers:
            stack.callback(server.stop)
        self._volumes_in_shards = [self.shards.name]
        self._used_bytes: dict[str, int] = {}  # by node, before one was lost

    def start(self) -> Iterator[Value]:
        """Start everything and write the volumes; yield what that shows of space."""
        self.shards.start()  # which writes all of it
        size = self.cluster.site.main_bytes
        yield self.settled("settle")
        self.shards.end()  # so that no chunk is open
        self.settled("closed", most=0)
        note = "bytes of used slots / bytes of the volume, once settled and let go of"
        yield Value("space", "x", (self.used_bytes() / size,), note)
        self.shards.serve()
        self.copies.start()

    def rows(self, rows: Sequence[Row], announce: Callable[[str], None]) -> list[Sample]:
        """Measure loads on both volumes, once.

        Raises: BenchError when one failed.
        """
        site = self.cluster.site
        plan = Plan(
            rows=list(rows), rounds=1, seconds=self.options.seconds, main_bytes=site.main_bytes,
            many_bytes=site.main_bytes, work_dir=site.work_dir,
        )  # fmt: skip
        self.servers = self.servers[::-1]  # none is always the first
        samples = list(run(plan, list(self.servers), announce))
        errors = [one.error for one in samples if one.error]
        if errors:
            raise BenchError(errors[0])
        return samples

    # --- what is there ------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Return the bytes of all slots that are used, on all disks."""
        return sum(int(node["used_bytes"]) for node in self._nodes())

    def _nodes(self) -> list[dict[str, Any]]:
        return list(json.loads(self.cluster.run("node", "list", "-o", "json"))["nodes"])

    def _whole_copies(self) -> int:
        """Return how many whole copies the volumes in shards have."""
        copies = 0
        for name in self._volumes_in_shards:
            said = self.cluster.run("volume", "info", name, "--parts", "-o", "json")
            copies += int(json.loads(said)["parts"]["copies"])
        return copies

    # --- waiting ------------------------------------------------------------------------

    def settled(self, name: str, most: int | None = None) -> Value:
        """Return how long it takes until no more than ``most`` whole copies are left; None: those
        of open chunks.

        Raises: BenchError.
        """
        bound = OPEN_CHUNKS * len(self._volumes_in_shards) if most is None else most
        began, load = time.monotonic(), os.getloadavg()[0]

        def cut() -> bool:
            asyncio.run(self._until(_is_settled))
            return self._whole_copies() <= bound

        while not cut():
            if time.monotonic() - began > SETTLE_S:
                raise BenchError(f"{self._whole_copies()} whole copies after {SETTLE_S:g} s")
            time.sleep(LOOK_S)
        took_s = time.monotonic() - began
        note = f"from the last write until at most {bound} whole copies are left; load {load:.0f}"
        return Value(name, "s", (took_s,), note)

    async def _until(self, done: Callable[[ClusterState], bool]) -> float:
        """Wait for the disks; return the least share of its rate that one of them had.

        Raises: BenchError.
        """
        home = self.cluster.site.work_dir / "watch"
        began, share = time.monotonic(), 1.0
        async with Watching(CommonConfig(home, self.cluster.url, home)) as watching:
            while True:
                state = await watching.look()
                reports = [one.report for one in state.disks if one.report]
                share = min([share, *(float(one["share"]) for one in reports)])
                if done(state):
                    return share
                if time.monotonic() - began > SETTLE_S:
                    raise BenchError(f"not done in {SETTLE_S:g} s: {state}")
                await asyncio.sleep(LOOK_S)

    # --- a node that is lost ------------------------------------------------------------

    def lose(self, number: int) -> None:
        """Kill a node, and wait until that is known; no gateway has its files open any more."""
        self._used_bytes = {node["node"]: int(node["used_bytes"]) for node in self._nodes()}
        daemon = self.cluster.daemons.pop(1 + number)
        os.kill(daemon.pid, signal.SIGKILL)
        processes.stop(daemon)
        began = time.monotonic()
        while all(node["up"] for node in self._nodes()):  # until its lease has ended
            if time.monotonic() - began > SETTLE_S:
                raise BenchError(f"the death of node {number} is not noticed")
            time.sleep(LOOK_S)
        for server in self.servers:
            server.restart()

    def bring_back(self, number: int) -> None:
        """Start a node again that was the last one, and wait until it is whole."""
        self.cluster.start_node(number)
        processes.wait_for_socket(self.cluster.daemons[-1], self.cluster.socket(number), 60.0)
        asyncio.run(self._until(lambda state: not _away(state) and _is_settled(state)))

    def rebuild(self) -> tuple[float, int, float]:
        """Remove the node that is away, and wait until everything is whole without it.

        Returns: seconds, bytes that lay on it, the least share of its rate that a disk had.
        """
        [gone] = [str(node["node"]) for node in self._nodes() if not node["up"]]
        began = time.monotonic()
        self.cluster.run("node", "remove", gone, "--force")
        share = asyncio.run(self._until(lambda state: not _away(state) and _is_settled(state)))
        return time.monotonic() - began, self._used_bytes[gone], share

    def fill_bulk(self) -> Value:
        """Write a volume that is there to be rebuilt, a piece after the other."""
        size = self.options.mib * MIB
        bulk = TorusGateway(self.cluster, BULK, SHARDS)
        self.cluster.run("volume", "create", BULK, str(size), "--redundancy", SHARDS)
        self._volumes_in_shards.append(BULK)
        bulk.serve()
        began, block = time.monotonic(), os.urandom(MIB)
        try:
            for first in range(0, size, BULK_STEP_MIB * MIB):
                with NbdClient(bulk.socket, BULK) as client:
                    stop = min(first + BULK_STEP_MIB * MIB, size)
                    client.write_all(((at, block) for at in range(first, stop, MIB)), depth=8)
                    client.flush()
                self.settled("piece")
        finally:
            bulk.end()
        took_s = time.monotonic() - began
        return Value("write-and-settle-rate", "MiB/s", (size / MIB / took_s,), f"{size >> 20} MiB")


def _away(state: ClusterState) -> list[str]:
    return [one.place.disk_id for one in state.disks if one.report is None]


def _is_settled(state: ClusterState) -> bool:
    return state.settled and not state.total("pending_bytes")
