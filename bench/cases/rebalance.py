"""What a client sees while data moves, and how much moves: python -m bench.cases.rebalance.

Real nodes on one etcd, a volume in copies behind a gateway that has no disk, and three moves:

- alone: a node joins and nobody uses the volume: what moves is counted against what has to;
- loaded: another one joins while fio reads and writes 4 KiB at random places: its p99 in the
  seconds in which data moves, and in those in between in which that is paused.  So both see the
  same neighbours on a machine that is shared.  The node was started before: elsewhere that is
  another machine;
- verified: the first node is drained while fio writes and reads back what it wrote.

It needs etcd and fio.  Results go to ``results/latest-rebalance.{json,md}``.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench import command, environment, fio
from bench.fio_beside import (
    VERIFY_MIB,
    Client,
    Turn,
    in_turns,
    percentile_ms,
    percentiles,
    write_and_read_back,
)
from bench.processes import BenchError
from bench.results import Result, Value
from tests.clusters import Cluster, ClusterMachine, cluster_in
from tests.etcd_members import running
from torus.clock import SystemClock
from torus.config import CommonConfig
from torus.daemon.rebalance import ClusterState, Watching, set_paused
from torus.daemon.rings import ring_at
from torus.ids import ChunkId
from torus.metadata.base import MetadataStore
from torus.metadata.open import open_metadata
from torus.ring.builder import next_ring
from torus.ring.diff import difference
from torus.volume.catalog import Catalog

HERE = Path(__file__).resolve().parent.parent
MIB = 1 << 20
VOLUME = "rebalance"
MOVES = ("alone", "loaded", "verified")
LOOK_S = 0.5
TURN_S = 5.0
SWITCH_S = 0.5  # after which what was under way is done
PATIENCE_S = 900.0
PROMPT_S = 60.0


@dataclass(frozen=True, slots=True)
class Begun:
    """What was so when a node was told to join or to leave."""

    version: int
    pulled: Counter[str]
    at_s: float
    first_s: float  # byte that moved


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of it."""

    seconds: float  # from the command until everything was where it should be
    moving_s: float  # in which bytes moved
    versions: int
    slots: int  # copies of slots with another owner than before
    optimum: float
    pulled_bytes: int
    pulled_chunks: int
    share_min: float  # the least share of its rate that a disk left itself


class Site:
    """The cluster, and what is done to it."""

    def __init__(self, cluster: Cluster, options: argparse.Namespace) -> None:
        self.cluster, self.options = cluster, options
        self.client: ClusterMachine = cluster.machine("client")
        self._common = CommonConfig(self.client.home, cluster.url, self.client.data)

    def start(self, count: int) -> None:
        """Start the first nodes, make the volume, serve it and write all of it."""
        names = [f"n{number}" for number in range(count)]
        self.cluster.start(*names, options=self._node_options())
        self.cluster.wait_ring(set(self.cluster.disks()))
        size, copies = f"{self.options.volume_mib}MiB", f"replica:{self.options.copies}"
        self.client.run("volume", "create", VOLUME, size, "--redundancy", copies)
        self.client.gateway(VOLUME, "--socket", self.client.socket)
        fill = fio.Load("write", MIB, 8, 0, self.options.volume_mib * MIB, flush_at_end=True)
        fio.run(fill, [self.uri], self.client.folder)

    @property
    def uri(self) -> str:
        """Return the volume's address."""
        return self.client.uri(VOLUME)

    def _node_options(self) -> tuple[str, ...]:
        size = f"{self.options.volume_mib * 3 + 1024}MiB"
        return ("--size", size, "--auto-out", "none", "--repair-rate", self.options.repair_rate)

    def spare(self, name: str) -> tuple[str, str]:
        """Start a node that is not in the ring; return its id and its disk's."""
        before = set(self.cluster.disks())
        self.cluster.start(name, options=(*self._node_options(), "--no-join"))
        deadline = time.monotonic() + PROMPT_S
        while not (came := set(self.cluster.disks()) - before):
            if time.monotonic() > deadline:
                raise BenchError(f"node {name} is not in the list")
            time.sleep(LOOK_S)
        return self.cluster.node_id(name), came.pop()

    def begin(self, verb: str, node: str, wanted: set[str]) -> Begun:
        """Let a node join or drain; return when the first bytes have moved.

        Raises: BenchError, TorusError.
        """
        return asyncio.run(self._begin(verb, node, wanted))

    async def _begin(self, verb: str, node: str, wanted: set[str]) -> Begun:
        async with Watching(self._common) as watching:
            state = await watching.look()
            before, began = pulled(state), time.monotonic()
            await asyncio.to_thread(self.client.run, "node", verb, node)
            await asyncio.to_thread(self.cluster.wait_ring, wanted, PATIENCE_S)
            while pulled(await watching.look()) == before:
                if time.monotonic() - began > PATIENCE_S:
                    raise BenchError(f"no byte moved in {PATIENCE_S:g} s")
                await asyncio.sleep(LOOK_S)
        return Begun(state.head.version, before, began, time.monotonic() - LOOK_S)

    def finish(self, begun: Begun, turns: list[Turn] | None = None) -> Moved:
        """Wait until everything lies where the ring wants it, and the ring is the last one.

        ``turns``: let data move and rest in turns, which are added to it.
        Raises: BenchError, TorusError.
        """
        return asyncio.run(self._finish(begun, turns))

    async def _finish(self, begun: Begun, turns: list[Turn] | None) -> Moved:
        share, counts, last_s = 1.0, begun.pulled, begun.first_s
        with closing(open_store(self._common)) as store:
            async with Watching(self._common) as watching:
                while True:
                    if turns is not None:
                        turns += await take_turns(store, watching)
                    state = await watching.look()
                    reports = [one.report for one in state.disks if one.report]
                    shares = [one[name] for one in reports for name in ("share", "moving_share")]
                    share = min([share, *(one for one in shares if one)])
                    if (now := pulled(state)) != counts:
                        counts, last_s = now, time.monotonic()
                    ring = ring_at(store, state.head.version)
                    if state.settled and next_ring(ring, ring.members) == ring:
                        break
                    if time.monotonic() - begun.at_s > PATIENCE_S:
                        raise BenchError(f"data still moves after {PATIENCE_S:g} s: {state}")
                    await asyncio.sleep(LOOK_S)
            found = difference(ring_at(store, begun.version), ring, self.options.copies)
        counts = counts - begun.pulled
        return Moved(
            time.monotonic() - begun.at_s, last_s - begun.first_s, ring.version - begun.version,
            found.moved, found.optimum, counts["pulled_bytes"], counts["pulled_chunks"], share,
        )  # fmt: skip

    def places(self) -> set[tuple[str, ChunkId]]:
        """Return which disk has which chunk of the volume."""
        return asyncio.run(self._places())

    async def _places(self) -> set[tuple[str, ChunkId]]:
        with closing(open_store(self._common)) as store:
            volume = Catalog(store, SystemClock()).get(VOLUME).spec.volume
        found = set()
        async with Watching(self._common) as watching:
            for one in (await watching.look()).disks:
                for chunk in await watching.parts_on(one.place, volume):
                    found.add((one.place.disk_id, chunk))
        return found

    def members(self) -> set[str]:
        """Return the disks that have weight in the ring."""
        return self.cluster.ring()[1]


async def take_turns(store: MetadataStore, watching: Watching) -> list[Turn]:
    """Let data rest for some seconds, then move; return both, or nothing if none moved."""
    turns: list[Turn] = []
    before = pulled(await watching.look())
    for moving in (False, True):
        await asyncio.to_thread(set_paused, store, paused=not moving)
        began = time.time()
        await asyncio.sleep(TURN_S)
        turns.append(Turn(moving, began + SWITCH_S, time.time()))
    return turns if pulled(await watching.look()) != before else []


def open_store(common: CommonConfig) -> MetadataStore:
    """Open the metadata store."""
    return open_metadata(common.meta_url, SystemClock(), create=False)


def pulled(state: ClusterState) -> Counter[str]:
    """Return what all disks have pulled since they were started."""
    return Counter({name: state.total(name) for name in ("pulled_bytes", "pulled_chunks")})


# --- the three moves ----------------------------------------------------------------------


def alone(site: Site) -> Iterator[Value]:
    """Count what moves to a node that joins."""
    node, disk = site.spare("alone")
    before = site.places()
    moved = site.finish(site.begin("join", node, {*site.members(), disk}))
    known = {chunk for _, chunk in before}
    had_to = [place for place in site.places() - before if place[1] in known]
    slot_bytes = 4 * MIB
    excess = moved.slots / moved.optimum
    yield Value(
        "moved-over-optimum", "x", (excess * moved.pulled_chunks / max(1, len(had_to)),),
        f"a node joins {site.options.nodes}: {moved.slots} copies of slots move in "
        f"{moved.versions} version(s), {excess:.4f} of the least; {moved.pulled_chunks} chunks "
        f"were pulled for {len(had_to)} that came to lie elsewhere, "
        f"{moved.pulled_bytes / (slot_bytes * max(1, moved.pulled_chunks)):.3f} of a slot each",
    )  # fmt: skip
    yield from speed("alone", moved)


def speed(name: str, moved: Moved) -> Iterator[Value]:
    """Say how long it took."""
    yield Value(
        f"{name}-seconds", "s", (moved.seconds,),
        f"from the command until everything was in place, {moved.versions} version(s)",
    )  # fmt: skip
    note = f"{moved.pulled_bytes / MIB:.0f} MiB, least share of the rate {moved.share_min:.3f}"
    rate = moved.pulled_bytes / MIB / max(moved.moving_s, LOOK_S)
    yield Value(f"{name}-rate", "MiB/s", (rate,), note)


def loaded(site: Site, client: Client, announce: Callable[[str], None]) -> Iterator[Value]:
    """Let a node join while a client works."""
    node, disk = site.spare("loaded")
    moves: list[Moved] = []

    turns: list[Turn] = []

    def rest() -> None:
        time.sleep(site.options.seconds)

    def move() -> None:
        begun = site.begin("join", node, {*site.members(), disk})
        moves.append(site.finish(begun, turns))

    client.during(rest)  # not counted: maps and caches become warm
    requests = client.during(move)
    found = in_turns(requests, turns)
    for name, some in (("at rest", found[False]), ("moving", found[True]), ("all", requests)):
        announce(f"{name}: {len(some)} requests, " + percentiles(some))
    for kind in ("read", "write"):
        ms = {
            moving: percentile_ms([one for one in some if one.write == (kind == "write")], 99)
            for moving, some in found.items()
        }
        yield Value(
            f"{kind}-p99-moving-over-at-rest", "x", (ms[True] / ms[False],),
            f"moving {ms[True]:.2f} ms, at rest {ms[False]:.2f} ms, in {len(turns)} turns of "
            f"{TURN_S:g} s with {site.options.depth} requests in flight",
        )  # fmt: skip
    yield from speed("loaded", moves[0])


def verified(site: Site) -> Iterator[Value]:
    """Drain the first node while fio writes and reads back what it wrote.

    Raises: BenchError when fio read something else, or saw an error.
    """
    node = site.cluster.node_id("n0")
    own = {one["disk"] for one in site.cluster.node_list()[node]["disks"]}
    options = site.options
    over, failures, runs = threading.Event(), list[str](), 0

    def verify() -> None:
        nonlocal runs
        while not over.is_set() and not failures:
            try:
                write_and_read_back(site.uri, site.client.folder, options, runs + 1)
            except BenchError as error:
                failures.append(str(error))
            runs += 1

    thread = threading.Thread(target=verify, name="verify")
    thread.start()
    try:
        moved = site.finish(site.begin("drain", node, site.members() - own))
    finally:
        over.set()
        thread.join()
    if failures:
        raise BenchError(failures[0])
    yield Value(
        "verify-errors", "errors", (0.0,),
        f"{runs} runs of fio, {runs * VERIFY_MIB} MiB written and read back while a node of "
        f"{site.options.nodes + 2} was drained",
    )  # fmt: skip
    yield from speed("verified", moved)


# --- the command --------------------------------------------------------------------------


def measure(options: argparse.Namespace, announce: Callable[[str], None]) -> Result:
    """Make the cluster, move, end everything.

    Raises: BenchError, AssertionError of a step that did not come.
    """
    began = datetime.now(UTC)
    values: list[Value] = []
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="tr-", dir=options.dir))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        facts = environment.describe(folder)
        etcd = stack.enter_context(running(1))
        site = Site(stack.enter_context(cluster_in(folder, etcd, "rebalance")), options)
        announce("start the nodes and write the volume")
        site.start(options.nodes)
        client = Client(site.uri, site.client.folder, options)
        parts: dict[str, Callable[[], Iterator[Value]]] = {
            "alone": lambda: alone(site),
            "loaded": lambda: loaded(site, client, announce),
            "verified": lambda: verified(site),
        }
        for name in options.moves:
            for value in parts[name]():
                announce(f"{value.name}: {value.median():.3g} {value.unit} ({value.note})")
                values.append(value)
    return Result(
        began.isoformat(timespec="seconds"),
        {
            "case": "rebalance", "rounds": 1, "seconds": options.seconds,
            "main_bytes": options.volume_mib * MIB, "nodes": options.nodes,
            "copies": options.copies, "rate": options.rate, "depth": options.depth,
            "took_s": round((datetime.now(UTC) - began).total_seconds()),
        },
        facts.as_json(), (), tuple(values),
    )  # fmt: skip


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="bench rebalance", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--moves", default=",".join(MOVES), help=f"of {', '.join(MOVES)}")
    add("--nodes", type=int, default=3, help="before the first one joins (3)")
    add("--copies", type=int, default=2, help="of the volume (2)")
    add("--volume-mib", type=int, default=2048, help="size of the volume (2048)")
    add("--depth", type=int, default=4, help="requests in flight (4)")
    add("--rate", type=int, default=1000, help="requests per second; 0: as many as it can (1000)")
    add("--seconds", type=float, default=20.0, help="before and after the move (20)")
    add("--repair-rate", default="128MiB", help="of each node (128MiB)")
    command.add_places(parser, HERE / "results")
    options = parser.parse_args(argv)
    options.moves = command.chosen(parser, "moves", options.moves, MOVES)
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return command.run(parse_arguments(argv), measure, "rebalance")


if __name__ == "__main__":
    sys.exit(main())
