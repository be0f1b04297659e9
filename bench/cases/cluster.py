"""A volume with two copies on three nodes, beside Ceph RBD: python -m bench.cases.cluster.

Decides the rows, the media and the servers of that comparison; a cell is measured as every other
(bench/cases/throughput.py).  Each medium is a run of its own: first everything in memory, then on
disk.  Results go to ``results/latest-cluster.{json,md}``.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench import command, environment
from bench.cases.throughput import KIB, Plan, Row, run
from bench.ceph import CephRbd
from bench.cluster_servers import ClusterSite, TorusCluster, TorusGateway, TorusNode
from bench.processes import BenchError
from bench.results import Result, Sample
from bench.servers import MIB, NbdkitMemory, Server, Site

HERE = Path(__file__).resolve().parent.parent
MEDIA = ("tmpfs", "disk")
SERVERS = ("torus-node", "torus-gateway", "ceph", "nbdkit-memory")
ROWS: tuple[Row, ...] = (
    Row("seqwrite-1m", "1 MiB sequential write + flush", "write", MIB, 8,
        whole_volume=True, flush_at_end=True),
    Row("seqread-1m", "1 MiB sequential read", "read", MIB, 8, whole_volume=True),
    Row("randread-4k-qd1", "4 KiB random read QD1", "randread", 4 * KIB, 1),
    Row("randread-4k-qd32", "4 KiB random read QD32", "randread", 4 * KIB, 32),
    Row("randwrite-4k-qd1", "4 KiB random write QD1", "randwrite", 4 * KIB, 1),
    Row("flush-4k-qd1", "4 KiB random write + flush each", "randwrite", 4 * KIB, 1,
        flush_each=True),
    Row("randwrite-4k-qd32", "4 KiB random write QD32", "randwrite", 4 * KIB, 32),
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return command.run(parse_arguments(argv), measure, "cluster")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options; ``--quick`` changes the defaults of the others."""
    parser = argparse.ArgumentParser(prog="bench cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short rows, a volume of 256 MiB")
    parser.add_argument("--check", action="store_true", help="fail when a budget is missed")
    parser.add_argument("--servers", default=",".join(SERVERS), help=f"of {', '.join(SERVERS)}")
    parser.add_argument("--media", default=",".join(MEDIA), help=f"of {', '.join(MEDIA)}")
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", default=",".join(names), help=f"of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, help="rounds (5; quick: 2)")
    parser.add_argument("--seconds", type=float, help="length of a timed row (3; quick: 1)")
    parser.add_argument("--volume-mib", type=int, help="size of a volume (1024; quick: 256)")
    parser.add_argument("--pool-gib", type=int, default=5, help="size of a node's disk (5)")
    parser.add_argument("--dir", type=Path, default=HERE / "work", help="where the disk row lies")
    parser.add_argument("--memory-dir", type=Path, default=Path("/dev/shm"), help="a tmpfs")
    parser.add_argument("--output", type=Path, help="where results go")
    options = parser.parse_args(argv)
    for kind, known in (("servers", SERVERS), ("media", MEDIA), ("rows", names)):
        setattr(options, kind, command.chosen(parser, kind, getattr(options, kind), known))
    quick = options.quick
    whole = not quick and (options.servers, options.rows) == (list(SERVERS), names)
    options.rounds = options.rounds or (2 if quick else 5)
    options.seconds = options.seconds or (1.0 if quick else 3.0)
    options.volume_mib = options.volume_mib or (256 if quick else 1024)
    options.output = options.output or (HERE if whole else options.dir) / "results"
    return options


def measure(options: argparse.Namespace, announce: Callable[[str], None]) -> Result:
    """Measure every medium, and return everything."""
    began = datetime.now(UTC)
    options.dir.mkdir(parents=True, exist_ok=True)
    facts = environment.describe(options.dir)
    samples: list[Sample] = []
    for medium in options.media:
        samples += _measure_medium(options, medium, announce)
    remarks = ["CPU us/op is of all daemons: etcd, nodes and gateway; mon, mgr, OSDs and qemu-nbd."]
    if options.quick:
        remarks.append("A quick run: short rows, small volumes; not for claims.")
    if facts.load_average[0] > facts.processors / 2:
        remarks.append("The machine was loaded when the run began; numbers are disturbed.")
    return Result(
        date=began.isoformat(timespec="seconds"),
        settings={
            "case": "cluster",
            "quick": options.quick,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "main_bytes": options.volume_mib * MIB,
            "pool_bytes": options.pool_gib << 30,
            "took_s": round((datetime.now(UTC) - began).total_seconds()),
        },
        environment=facts.as_json(),
        samples=tuple(samples),
        values=(),
        remarks=tuple(remarks),
    )


def _measure_medium(
    options: argparse.Namespace, medium: str, announce: Callable[[str], None]
) -> Iterator[Sample]:
    with ExitStack() as cleanup:
        folder = options.dir if medium == "disk" else options.memory_dir
        work_dir = Path(tempfile.mkdtemp(prefix="torus-bench-", dir=folder.resolve()))
        cleanup.callback(shutil.rmtree, work_dir, ignore_errors=True)
        socket_dir = Path(tempfile.mkdtemp(prefix="torus-bench-"))
        cleanup.callback(shutil.rmtree, socket_dir, ignore_errors=True)
        size = options.volume_mib * MIB
        site = ClusterSite(work_dir, socket_dir, size, options.pool_gib << 30)
        plan = Plan(
            rows=[
                replace(row, name=f"{row.name}-{medium}")
                for row in ROWS
                if row.name in options.rows
            ],
            rounds=options.rounds,
            seconds=options.seconds,
            main_bytes=size,
            many_bytes=size,
            work_dir=work_dir,
        )
        running: list[Server] = []
        for server in _servers(options.servers, site):
            cleanup.callback(server.stop)
            announce(f"{medium}: prepare {server.name}")
            try:
                server.start()
            except (BenchError, OSError) as error:
                announce(f"{server.name} is left out: {error}")
                yield from (Sample(row.name, server.name, 0, error=str(error)) for row in plan.rows)
            else:
                running.append(server)
        if running:
            yield from run(plan, running, announce)


def _servers(names: Sequence[str], site: ClusterSite) -> list[Server]:
    cluster = TorusCluster(site)
    plain = Site(site.work_dir, site.socket_dir, site.main_bytes, 0, 0, 0)
    made: dict[str, Callable[[], Server]] = {
        "torus-node": lambda: TorusNode(cluster),
        "torus-gateway": lambda: TorusGateway(cluster),
        "ceph": lambda: CephRbd(site),
        "nbdkit-memory": lambda: NbdkitMemory(plain),
    }
    return [made[name]() for name in names]


if __name__ == "__main__":
    sys.exit(main())
