"""The rows that every server runs: random, sequential, and write-with-flush loads.

Decides what the rows are and how one cell (a row on a server) is measured.  A cell begins
with a short warm-up of the same load; then all files of the run are synced, so that nobody
pays for a predecessor's dirty pages.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import fio
from bench.processes import BenchError, cpu_seconds, machine_cpu
from bench.results import Sample
from bench.servers import MIB, Server

KIB = 1 << 10
WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class Row:
    """One load; ``clients`` above 1 means that many exports, one connection each."""

    name: str
    title: str
    pattern: str
    block_bytes: int
    depth: int
    on_small_exports: bool = False
    clients: int = 1
    whole_volume: bool = False
    flush_each: bool = False
    flush_at_end: bool = False


# In this order, because a volume is a log: sequential reads follow the sequential write, and
# what random writes do to a later sequential read has a row of its own.
ROWS: tuple[Row, ...] = (
    Row(
        "seqwrite-1m",
        "1 MiB sequential write + flush",
        "write",
        MIB,
        8,
        whole_volume=True,
        flush_at_end=True,
    ),
    Row("seqread-1m", "1 MiB sequential read", "read", MIB, 8, whole_volume=True),
    Row("randread-4k-qd1", "4 KiB random read QD1", "randread", 4 * KIB, 1),
    Row("randread-4k-qd32", "4 KiB random read QD32", "randread", 4 * KIB, 32),
    Row("randwrite-4k-qd1", "4 KiB random write QD1", "randwrite", 4 * KIB, 1),
    Row("randwrite-4k-qd32", "4 KiB random write QD32", "randwrite", 4 * KIB, 32),
    Row(
        "seqread-1m-scattered",
        "1 MiB sequential read after the random writes",
        "read",
        MIB,
        8,
        whole_volume=True,
    ),
    Row(
        "flush-4k-1",
        "4 KiB write + flush each, 1 client",
        "randwrite",
        4 * KIB,
        1,
        on_small_exports=True,
        flush_each=True,
    ),
    Row(
        "flush-4k-16",
        "4 KiB write + flush each, 16 clients on 16 volumes",
        "randwrite",
        4 * KIB,
        1,
        on_small_exports=True,
        clients=16,
        flush_each=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    rows: Sequence[Row]
    rounds: int
    seconds: float
    main_bytes: int
    many_bytes: int
    work_dir: Path


def order_of(servers: Sequence[Server], round_index: int, row_index: int) -> list[Server]:
    """Return the servers rotated, so that nobody is always the first or after the same one."""
    shift = (round_index + row_index) % len(servers)
    return [*servers[shift:], *servers[:shift]]


def run(plan: Plan, servers: Sequence[Server], announce: Callable[[str], None]) -> Iterator[Sample]:
    """Yield one sample for every round, row and server."""
    for round_index in range(plan.rounds):
        for row_index, row in enumerate(plan.rows):
            for server in order_of(servers, round_index, row_index):
                sample = _cell(plan, row, server, round_index)
                announce(
                    f"round {round_index + 1}/{plan.rounds}  {row.name:22} {server.name:14} "
                    + (sample.error or f"{sample.operations_per_s:10,.0f} op/s")
                )
                yield sample


def _cell(plan: Plan, row: Row, server: Server, round_index: int) -> Sample:
    uris = server.many_uris()[: row.clients] if row.on_small_exports else [server.main_uri()]
    load = fio.Load(
        pattern=row.pattern,
        block_bytes=row.block_bytes,
        depth=row.depth,
        seconds=0.0 if row.whole_volume else plan.seconds,
        size_bytes=plan.many_bytes if row.on_small_exports else plan.main_bytes,
        flush_each=row.flush_each,
        flush_at_end=row.flush_at_end,
        seed=round_index + 1,
    )
    try:
        if len(uris) < row.clients:
            raise BenchError(f"{server.name} has {len(uris)} small exports, not {row.clients}")
        return _measure(plan, row, server, round_index, load, uris)
    except BenchError as error:
        return Sample(row.name, server.name, round_index, error=str(error))


def _measure(
    plan: Plan, row: Row, server: Server, round_index: int, load: fio.Load, uris: Sequence[str]
) -> Sample:
    if load.seconds:
        warm_up = fio.Load(
            load.pattern,
            load.block_bytes,
            load.depth,
            WARM_UP_S,
            load.size_bytes,
            flush_each=load.flush_each,
            seed=load.seed + 1000,
        )
        fio.run(warm_up, uris, plan.work_dir)
    _sync_files(plan.work_dir)
    pids = server.pids()
    machine_before, server_before = machine_cpu(), cpu_seconds(pids)
    measured = fio.run(load, uris, plan.work_dir)
    machine_after, server_after = machine_cpu(), cpu_seconds(pids)
    server_cpu_s = server_after - server_before
    machine_cpu_s = machine_after.busy_s - machine_before.busy_s
    return Sample(
        row=row.name,
        server=server.name,
        round_index=round_index,
        operations_per_s=measured.operations_per_s,
        bytes_per_s=measured.bytes_per_s,
        latency_us_p50=measured.latency_us_p50,
        latency_us_p99=measured.latency_us_p99,
        cpu_us_per_operation=1e6 * server_cpu_s / max(measured.operations, 1),
        other_cpu_s=max(0.0, machine_cpu_s - server_cpu_s - measured.client_cpu_s),
        stolen_cpu_s=machine_after.stolen_s - machine_before.stolen_s,
        load_average=os.getloadavg()[0],
    )


def _sync_files(folder: Path) -> None:
    """Write back what is dirty in the run's own files; others' files are not our business."""
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            except OSError:  # a socket, or a file that its server just removed
                continue
            try:
                os.fdatasync(handle)
            finally:
                os.close(handle)
