"""Measure torus beside other NBD servers: one command, one run, one result file.

Decides what runs in which order and where the result goes; what a row is stands in
``cases/``, what must be reached in ``budgets.toml``.  Everything that is started here is
ended here, by process id, also on Ctrl-C and SIGTERM.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

if __package__ in (None, ""):  # run as a script: make `bench` importable, not its modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import command, compare, environment
from bench.cases import attach, cluster, collect, flush, idle, snapshots, throughput
from bench.processes import BenchError
from bench.results import Result, Sample, Value
from bench.servers import MIB, SERVERS, Server, Site, Torus

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
CASES = ("throughput", "flush", "attach", "idle", "collect", "snapshots")
DEFAULT_SERVERS = ("torus", "qemu-nbd", "nbdkit-file")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options; ``--quick`` changes the defaults of the others."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about two minutes, rough numbers")
    parser.add_argument("--check", action="store_true", help="fail when a budget is missed")
    parser.add_argument(
        "--servers", default=",".join(DEFAULT_SERVERS), help=f"of {', '.join(SERVERS)}"
    )
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--rows", default="", help="only these rows of the throughput case")
    parser.add_argument("--rounds", type=int, help="rounds of the throughput case (5; quick: 3)")
    parser.add_argument("--seconds", type=float, help="length of a timed row (3; quick: 0.7)")
    parser.add_argument("--volume-mib", type=int, help="size of the main export (1024; quick: 256)")
    parser.add_argument("--pool-gib", type=int, default=24, help="torus node --size (24)")
    parser.add_argument("--dir", type=Path, default=HERE / "work", help="where the files go")
    parser.add_argument(
        "--output",
        type=Path,
        help="where results go (bench/results; below --dir when quick or partial)",
    )
    options = parser.parse_args(argv)
    options.servers = command.chosen(parser, "servers", options.servers, SERVERS)
    options.cases = command.chosen(parser, "cases", options.cases, CASES)
    rows = [row.name for row in throughput.ROWS]
    options.rows = command.chosen(parser, "rows", options.rows, rows) or rows
    quick = options.quick
    options.rounds = options.rounds or (3 if quick else 5)
    options.seconds = options.seconds or (0.7 if quick else 3.0)
    options.volume_mib = options.volume_mib or (256 if quick else 1024)
    whole = not quick and options.rows == rows and set(options.cases) == set(CASES)
    whole = whole and set(options.servers) >= set(DEFAULT_SERVERS)
    options.output = options.output or (HERE if whole else options.dir) / "results"
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["cluster"]:
        return cluster.main(words[1:])
    options = parse_arguments(words)

    def on_a_site(options: argparse.Namespace, announce: command.Announce) -> Result:
        with ExitStack() as cleanup:
            return measure(options, _make_site(options, cleanup), announce)

    return command.run(options, on_a_site)


def measure(options: argparse.Namespace, site: Site, announce: Callable[[str], None]) -> Result:
    """Run the chosen cases and return everything that was measured."""
    began = datetime.now(UTC)
    facts = environment.describe(site.work_dir)
    samples: tuple[Sample, ...] = ()
    values: tuple[Value, ...] = ()
    if "throughput" in options.cases:
        samples = _throughput(options, site, announce)
    if "torus" in options.servers:
        values = _torus_alone(options, site, announce)
    after = environment.probe_fdatasync(site.work_dir)
    return Result(
        date=began.isoformat(timespec="seconds"),
        settings={
            "quick": options.quick,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "main_bytes": site.main_bytes,
            "many_bytes": site.many_bytes,
            "many_count": site.many_count,
            "pool_bytes": site.pool_bytes,
            "took_s": round((datetime.now(UTC) - began).total_seconds()),
        },
        environment={**facts.as_json(), "fdatasync_us_after": after},
        samples=samples,
        values=values,
        remarks=_remarks(options, facts),
    )


def _throughput(
    options: argparse.Namespace, site: Site, announce: Callable[[str], None]
) -> tuple[Sample, ...]:
    plan = throughput.Plan(
        rows=[row for row in throughput.ROWS if row.name in options.rows],
        rounds=options.rounds,
        seconds=options.seconds,
        main_bytes=site.main_bytes,
        many_bytes=site.many_bytes,
        work_dir=site.work_dir,
    )
    failed: list[Sample] = []
    with ExitStack() as cleanup:
        servers: list[Server] = []
        for name in options.servers:
            server = SERVERS[name](site)
            cleanup.callback(server.stop)
            announce(f"prepare {name}: write every block of its exports, sync")
            try:
                server.start()
            except (BenchError, OSError) as error:
                announce(f"{name} is left out: {error}")
                failed += [Sample(row.name, name, 0, error=str(error)) for row in plan.rows]
            else:
                servers.append(server)
        return (*failed, *(throughput.run(plan, servers, announce) if servers else ()))


def _torus_alone(
    options: argparse.Namespace, site: Site, announce: Callable[[str], None]
) -> tuple[Value, ...]:
    quick = options.quick
    attach_plan = attach.Plan(1 if quick else 3, attach.PAYLOAD_BYTES, site.work_dir)
    idle_plan = idle.Plan(
        volume_bytes=100 * GIB,
        blocks_per_leaf=1 if quick else 8,
        settle_s=2.0 if quick else 10.0,
        watch_s=10.0 if quick else 30.0,
    )
    collect_plan = collect.Plan(
        volume_bytes=site.main_bytes,
        seconds=1.0 if quick else 5.0,
        overwrites=6 if quick else 10,
        work_dir=site.work_dir,
    )
    snapshots_plan = snapshots.Plan(
        data_bytes=GIB if quick else 10 * GIB,
        many=100 if quick else 1000,
        rounds=3 if quick else 5,
        seconds=0.7 if quick else 3.0,
        work_dir=site.work_dir,
    )
    cases: dict[str, Callable[[Torus], list[Value]]] = {
        "flush": lambda torus: flush.run(torus, turns=100 if quick else 500),
        "attach": lambda torus: attach.run(torus, attach_plan),
        "idle": lambda torus: idle.run(torus, idle_plan),
        "collect": lambda torus: collect.run(torus, collect_plan),
        "snapshots": lambda torus: snapshots.run(torus, snapshots_plan),
    }
    values: list[Value] = []
    for name, case in cases.items():
        if name not in options.cases:
            continue
        announce(f"{name}: torus alone")
        torus = Torus(site, folder_name=f"torus-{name}")
        try:
            values += case(torus)
        except (BenchError, OSError) as error:
            announce(f"{name} failed: {error}")
            values.append(Value(name, "", (), error=str(error)))
        finally:
            torus.stop()
            shutil.rmtree(torus.folder, ignore_errors=True)
    return tuple(values)


def _make_site(options: argparse.Namespace, cleanup: ExitStack) -> Site:
    options.dir.mkdir(parents=True, exist_ok=True)
    work_dir = Path(tempfile.mkdtemp(prefix="run-", dir=options.dir.resolve()))
    cleanup.callback(shutil.rmtree, work_dir, ignore_errors=True)
    socket_dir = Path(tempfile.mkdtemp(prefix="torus-bench-"))
    cleanup.callback(shutil.rmtree, socket_dir, ignore_errors=True)
    main_bytes = options.volume_mib * MIB
    many_bytes = (16 if options.quick else 64) * MIB
    # Raw files of the two peers, and a torus log that random writes let grow.
    peers = [name for name in options.servers if name in compare.PEERS]
    needed = len(peers) * (main_bytes + 16 * many_bytes)
    if "torus" in options.servers:
        needed += options.pool_gib * GIB
    free = shutil.disk_usage(work_dir).free
    if free < needed:
        raise BenchError(
            f"{options.dir} has {free / GIB:.1f} GiB free and the run may need "
            f"{needed / GIB:.1f}; free some, or choose another --dir, or a smaller --pool-gib"
        )
    return Site(work_dir, socket_dir, main_bytes, many_bytes, 16, options.pool_gib * GIB)


def _remarks(options: argparse.Namespace, facts: environment.Environment) -> tuple[str, ...]:
    remarks = []
    if options.quick:
        remarks.append("A quick run: short rows, small volumes; not for claims.")
    if facts.load_average[0] > facts.processors / 2:
        remarks.append("The machine was loaded when the run began; numbers are disturbed.")
    if facts.file_system == "tmpfs":
        remarks.append("The files are in memory (tmpfs): flushes cost nothing here.")
    if "TORUS_COMMAND" in os.environ:
        remarks.append(f"TORUS_COMMAND was set: the torus measured is {facts.torus_command!r}.")
    if facts.uncommitted_changes:
        remarks.append("The tree had uncommitted changes.")
    return tuple(remarks)


if __name__ == "__main__":
    sys.exit(main())
