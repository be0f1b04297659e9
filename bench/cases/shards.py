"""A volume in shards beside one in copies, on the same nodes: python -m bench.cases.shards.

Seven nodes on one etcd, and a gateway for each of two volumes: erasure:4+2 and replica:3.

- writes: the loads beside each other, and how long it takes until what was written is in shards;
- reads: whole, then with one node killed, in turns; the gateways are started anew in between, so
  that none has a file open of the node that is gone;
- rebuild: a node is lost for good and removed while fio reads and writes 4 KiB at random places:
  the time until everything is whole again, how fast that goes, and the p99 before and during it.

``--mib`` adds a volume in shards whose content is there to be rebuilt only.  It is written in
pieces that settle one after the other, so that the disks never hold all of it in whole copies.

It needs etcd and fio.  Results go to ``results/latest-shards.{json,md}``.
"""

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench import command, environment
from bench.cases.shards_site import BULK_STEP_MIB, COPIES, NODES, SHARDS, Site
from bench.cases.throughput import KIB, Row
from bench.fio_beside import Client, percentile_ms, percentiles
from bench.results import Result, Sample, Value
from bench.servers import MIB

HERE = Path(__file__).resolve().parent.parent
PARTS = ("writes", "reads", "rebuild")
IN_SHARDS, IN_COPIES = "in-shards", "in-copies"
WITHOUT = "-without-a-node"
WRITES = (
    Row("seqwrite-1m", "1 MiB sequential write + flush", "write", MIB, 8,
        whole_volume=True, flush_at_end=True),
    Row("randwrite-4k-qd32", "4 KiB random write QD32", "randwrite", 4 * KIB, 32),
)  # fmt: skip
READS = (
    Row("randread-4k-qd1", "4 KiB random read QD1", "randread", 4 * KIB, 1),
    Row("randread-4k-qd32", "4 KiB random read QD32", "randread", 4 * KIB, 32),
)
Announce = Callable[[str], None]
Samples = list[Sample]


def writes(site: Site, samples: Samples, announce: Announce) -> Iterator[Value]:
    """Compare the writes, and say how long it takes until they are in shards."""
    made = [one for _ in range(site.options.rounds) for one in site.rows(WRITES, announce)]
    samples += numbered(made)
    yield from _over_copies(samples, WRITES)
    yield site.settled("settle-after-overwriting")


def reads(site: Site, samples: Samples, announce: Announce) -> Iterator[Value]:
    """Compare reads, and those without a node with those with all, in turns."""
    made: Samples = []
    for _ in range(site.options.rounds):
        made += site.rows(READS, announce)
        site.lose(NODES - 1)
        less = site.rows(READS, announce)
        made += [replace(one, server=one.server + WITHOUT) for one in less]
        site.bring_back(NODES - 1)
    samples += numbered(made)
    yield from _over_copies(samples, READS)
    for row in READS:
        for server in (IN_SHARDS, IN_COPIES):
            yield _ratio(samples, row, server + WITHOUT, server, f"{row.name}-degraded-{server}")


def rebuild(site: Site, samples: Samples, announce: Announce) -> Iterator[Value]:
    """Lose a node for good while a client works.  ``samples`` are left as they are."""
    options = site.options
    if options.mib:
        announce(f"write {options.mib} MiB more, in pieces of {BULK_STEP_MIB} MiB")
        yield site.fill_bulk()
    client = Client(site.shards.main_uri(), site.work_dir, options)

    def rest() -> None:
        threading.Event().wait(options.seconds * 4)

    client.during(rest)  # not counted: maps and caches become warm
    before = client.during(rest)
    site.lose(NODES - 1)
    rebuilt: list[tuple[float, int, float]] = []
    during = client.during(lambda: rebuilt.append(site.rebuild()))
    for name, job in (("before", before), ("during the rebuild", during)):
        announce(f"{name}: {len(job)} requests, {percentiles(job)}")
    [(took_s, lost_bytes, share)] = rebuilt
    note = f"{lost_bytes / MIB:,.0f} MiB of a lost disk, least share of the rate {share:.3f}"
    yield Value("rebuild-seconds", "s", (took_s,), f"from the removal on, {note}")
    yield Value("rebuild-rate", "MiB/s", (lost_bytes / MIB / took_s,), note)
    for kind in ("read", "write"):
        ms = [
            percentile_ms([one for one in job if one.write == (kind == "write")], 99)
            for job in (before, during)
        ]
        yield Value(
            f"{kind}-p99-during-rebuild-over-before", "x", (ms[1] / ms[0],),
            f"4 KiB, {options.rate} requests a second: {ms[0]:.2f} ms before, {ms[1]:.2f} ms "
            f"during it, of {len(during)} requests",
        )  # fmt: skip


def numbered(made: Samples) -> Samples:
    """Return samples with the round that each is of."""
    seen: dict[tuple[str, str], int] = {}
    found = []
    for one in made:
        key = one.row, one.server
        seen[key] = seen.get(key, -1) + 1
        found.append(replace(one, round_index=seen[key]))
    return found


def _over_copies(samples: Samples, rows: tuple[Row, ...]) -> Iterator[Value]:
    for row in rows:
        yield _ratio(samples, row, IN_SHARDS, IN_COPIES, f"{row.name}-over-copies")


def _ratio(samples: Samples, row: Row, over: str, under: str, name: str) -> Value:
    """Return the ratio of two servers' operations in each round."""
    whole = Result("", {}, {}, tuple(samples), ())
    top, base = (whole.rate(row.name, server) or 0.0 for server in (over, under))
    ratios = tuple(whole.ratios((row.name, over), (row.name, under)))
    note = f"{row.title}: {top:,.0f} {over}, {base:,.0f} {under} a second"
    return Value(name, "x", ratios, note)


# --- the command --------------------------------------------------------------------------


def measure(options: argparse.Namespace, announce: Announce) -> Result:
    """Make the cluster, measure the parts, end everything.

    Raises: BenchError, OSError.
    """
    began = datetime.now(UTC)
    values: list[Value] = []
    samples: Samples = []
    with ExitStack() as stack:
        site = Site(options, stack)
        facts = environment.describe(site.work_dir)
        announce("start the nodes and write the volumes")

        def take(found: Iterator[Value]) -> None:
            for value in found:
                announce(f"{value.name}: {value.median():.3g} {value.unit} ({value.note})")
                values.append(value)

        take(site.start())
        parts = {"writes": writes, "reads": reads, "rebuild": rebuild}
        for name in options.parts:
            take(parts[name](site, samples, announce))
    remarks = [
        f"`{IN_SHARDS}` is {SHARDS} and `{IN_COPIES}` {COPIES}, each behind a gateway, on {NODES} "
        "nodes of one machine."
    ]
    if facts.load_average[0] > facts.processors / 2:
        remarks.append("The machine was loaded when the run began; numbers are disturbed.")
    return Result(
        began.isoformat(timespec="seconds"),
        {
            "case": "shards", "rounds": options.rounds, "seconds": options.seconds,
            "main_bytes": options.volume_mib * MIB, "nodes": NODES, "bulk_mib": options.mib,
            "rate": options.rate, "depth": options.depth,
            "took_s": round((datetime.now(UTC) - began).total_seconds()),
        },
        facts.as_json(), tuple(samples), tuple(values), tuple(remarks),
    )  # fmt: skip


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="bench shards", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    add("--rounds", type=int, default=3, help="of writes and of reads (3)")
    add("--seconds", type=float, default=3.0, help="length of a timed row (3)")
    add("--volume-mib", type=int, default=512, help="size of each of the two volumes (512)")
    add("--mib", type=int, default=0, help="to be rebuilt beside them, in shards (0)")
    add("--depth", type=int, default=4, help="requests in flight during the rebuild (4)")
    add("--rate", type=int, default=1000, help="of these a second; 0: as many as it can (1000)")
    command.add_places(parser, HERE / "results")
    options = parser.parse_args(argv)
    options.parts = command.chosen(parser, "parts", options.parts, PARTS)
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return command.run(parse_arguments(argv), measure, "shards")


if __name__ == "__main__":
    sys.exit(main())
