"""What a cluster costs its metadata store, by how many members it has, and whether many nodes run.

Three parts, each of which 0 leaves out.  `--members 10,100,1000`: so many members in one process,
leases, watches and the coordinator for real, without data: changes of etcd per second while
nothing happens, and for one member that joins and one that is lost.  `--gib`: changes of etcd per
GiB written to a volume of two copies on three real nodes.  `--nodes 100 --volumes 50`: so many
real nodes on this machine, each volume written through one node and read through another.

`python -m bench.cases.scale`; it needs etcd, and 60 MB of memory for each real node.  What counts
as a change is what goes through etcd's log: renewals of leases do not, making and ending one does.
"""

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.processes import cpu_seconds
from tests.clusters import Cluster, cluster_in
from tests.disk_client import DiskClient, RequestFailed
from tests.etcd_members import EtcdCluster, running
from tests.processes import Service, resident_bytes, wait_until
from torus import limits
from torus.clock import SystemClock
from torus.cluster.membership import Membership
from torus.daemon.coordinator import Coordinating
from torus.daemon.registration import Registration
from torus.errors import Unavailable
from torus.metadata.base import Put
from torus.metadata.keys import member_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Member, Node

MIB, GIB = 1 << 20, 1 << 30
IDLE_S = 20.0
WAIT_S = 300.0
WATCHERS = 20  # memberships that follow, and candidates, of all members
AT_ONCE = 8
BATCH = 10  # real nodes that start beside each other
SEED = 7


def metric_of(etcd: EtcdCluster, name: str) -> int:
    """Return a number that the only member of etcd tells of itself."""
    with urllib.request.urlopen(f"{etcd.members[0].url}/metrics", timeout=10) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return int(float(line.split()[1]))
    raise AssertionError(f"etcd tells no {name}")


def changes_of(etcd: EtcdCluster) -> int:
    """Return how many changes the only member of etcd has applied."""
    return metric_of(etcd, "etcd_server_proposals_applied_total")


# --- members without data ---------------------------------------------------------------


async def patiently(work: Callable[[], Awaitable[object]]) -> None:
    """Try again while etcd does not answer in time: a machine may be too small for all of this."""
    for _ in range(20):
        try:
            await work()
        except Unavailable:
            continue
        return
    raise Unavailable("etcd does not keep up")


class Members:
    """Members of a cluster that have a lease each and no data."""

    def __init__(self, etcd: EtcdCluster, prefix: str, count: int) -> None:
        self.etcd = etcd
        self.clock = SystemClock()
        self.metadata = AsyncMetadata(etcd.open(prefix))
        self.registrations: dict[int, Registration] = {}
        self.watchers: list[Membership] = []
        self.candidates: list[Coordinating] = []
        self._changed = asyncio.Event()
        # One process renews them all: a thousand in the time of one are more than it can.
        self._ttl_s = max(limits.NODE_LEASE_S, 0.06 * count)

    def node(self, number: int) -> Node:
        """Return what a member says of itself."""
        return Node(
            f"{number:032x}", f"host-{number}", f"kernel-{number}", 1, 1, ("/srv/torus",), "", (),
            "", GIB, 1, disks=(f"{number:032x}",), peer_tcp=f"10.0.0.1:{number}",
            instance_id=f"{number:x}",
        )  # fmt: skip

    async def add(self, number: int) -> None:
        """Let a member come."""
        node = self.node(number)
        registration = self.registrations[number] = Registration(
            self.metadata, self.clock, lambda: node, ttl_s=self._ttl_s
        )
        await patiently(registration.start)
        zone = f"zone-{number % 5}"
        member = Member(node.node_id, node.node_id, node.host, zone, 100, GIB, "in", 1)
        put = Put(member_key(node.node_id), member.to_bytes())
        await patiently(lambda: self.metadata.commit((), (put,)))

    async def start(self, count: int) -> None:
        """Let all members come, then their watchers, then the coordinator."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with turns:
                await self.add(number)

        await asyncio.gather(*(one(number) for number in range(count)))
        for number in range(min(count, WATCHERS)):
            membership = Membership(self.metadata, self.clock, machine="")
            membership.on_change.append(self._changed.set)
            await membership.start()
            self.watchers.append(membership)
            candidate = Coordinating(
                self.metadata, self.clock, membership, self.node(number), auto_out_s=5.0
            )
            candidate.start()
            self.candidates.append(candidate)

    async def ring_of(self, count: int) -> None:
        """Wait until every watcher sees a ring of so many disks."""
        async with asyncio.timeout(WAIT_S):
            while not all(
                one.has_ring and sum(m.weight > 0 for m in one.ring.members) == count
                for one in self.watchers
            ):
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        """End all of it."""
        for candidate in self.candidates:
            await candidate.close()
        for watcher in self.watchers:
            await watcher.close()
        await asyncio.gather(*(one.close() for one in self.registrations.values()))
        await self.metadata.close()


async def cost(etcd: EtcdCluster, work: Callable[[], Awaitable[None]]) -> tuple[int, float]:
    """Return how many changes something took, and how many seconds."""
    before, began = changes_of(etcd), time.monotonic()
    await work()
    took_s = time.monotonic() - began
    return changes_of(etcd) - before, took_s


async def measure_members(etcd: EtcdCluster, count: int) -> str:
    """Return a row of the table."""
    members = Members(etcd, f"scale-{count}", count)
    try:
        await members.start(count)
        await members.ring_of(count)
        await asyncio.sleep(3)
        idle, idle_s = await cost(etcd, lambda: asyncio.sleep(IDLE_S))

        async def join() -> None:
            await members.add(count)
            await members.ring_of(count + 1)

        async def lose() -> None:
            await members.registrations.pop(count).close()
            await members.ring_of(count)

        joined, join_s = await cost(etcd, join)
        lost, lose_s = await cost(etcd, lose)
        return (
            f"{count:>8} {idle / idle_s:>16.2f} {joined:>16} {join_s:>7.1f} "
            f"{lost:>16} {lose_s:>7.1f}"
        )
    finally:
        await members.close()


def members_part(counts: list[int]) -> None:
    """Print the table of members."""
    print(f"{'members':>8} {'changes/s, idle':>16} {'one joins':>16} {'s':>7} "
          f"{'one is lost':>16} {'s':>7}")  # fmt: skip
    for count in counts:
        with running(1) as etcd:
            print(asyncio.run(measure_members(etcd, count)), flush=True)


# --- real nodes ---------------------------------------------------------------------------


@contextlib.contextmanager
def real_cluster() -> Iterator[Cluster]:
    """Give an etcd and a cluster without nodes, in memory where that is possible."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ts-", dir=shm))
    try:
        with running(1) as etcd, cluster_in(folder, etcd, "scale") as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def opened(cluster: Cluster, machine: str, volume: str) -> DiskClient:
    """Connect to a volume as soon as a node serves it."""

    def attempt() -> DiskClient | None:
        try:
            return cluster.machine(machine).open(volume)
        except (RequestFailed, ConnectionError, FileNotFoundError):
            return None

    client: DiskClient = wait_until(attempt, f"volume {volume}", WAIT_S)
    return client


def writing_part(gib: float) -> None:
    """Print how many changes a GiB takes."""
    with real_cluster() as cluster:
        # Room for all that is written: a full pool asks for checkpoints to get its space back.
        size = f"{int(gib + 2)}GiB"
        nodes = [cluster.machine(name).node(size=size, ready=False) for name in "abc"]
        for node in nodes:
            node.wait_for("node.ready")
        cluster.wait_ring(set(cluster.disks()))
        cluster.any.run("volume", "create", "vm", "256MiB", "--redundancy", "replica:2")
        piece = random.Random(SEED).randbytes(MIB)
        with opened(cluster, "a", "vm") as client:
            client.write(0, piece, durable=True)
            before, began = changes_of(cluster.etcd), time.monotonic()
            for number in range(int(gib * 1024)):
                client.write(number % 256 * MIB, piece)
            client.flush()
            took_s = time.monotonic() - began
            count = changes_of(cluster.etcd) - before
        print(f"\nwritten: {gib:g} GiB in {took_s:.0f} s, changes of etcd: {count}, "
              f"{count / gib:.2f} per GiB", flush=True)  # fmt: skip


@dataclass
class Running:
    """Nodes that were started, by name."""

    cluster: Cluster
    names: list[str]
    services: list[Service]


def start_many(cluster: Cluster, count: int) -> Running:
    """Start nodes in batches."""
    names = [f"n{number}" for number in range(count)]
    services: list[Service] = []
    for first in range(0, count, BATCH):
        batch = [
            cluster.machine(name).node("--peer", "none", size="64MiB", ready=False)
            for name in names[first : first + BATCH]
        ]
        for node in batch:
            node.wait_for("node.ready", WAIT_S)
        services += batch
    return Running(cluster, names, services)


def nodes_part(count: int, volumes: int) -> None:
    """Print how many real nodes do."""
    chance = random.Random(SEED)
    with real_cluster() as cluster:
        began = time.monotonic()
        started = start_many(cluster, count)
        cluster.wait_ring(set(cluster.disks()), WAIT_S)
        print(f"\n{count} nodes in one ring after {time.monotonic() - began:.0f} s", flush=True)
        before, began = changes_of(cluster.etcd), time.monotonic()
        contents = {f"vm{number}": chance.randbytes(MIB) for number in range(volumes)}
        for name, content in contents.items():
            cluster.any.run("volume", "create", name, "8MiB", "--redundancy", "replica:3")
            with opened(cluster, chance.choice(started.names), name) as client:
                client.write(0, content, durable=True)
        for name, content in contents.items():
            with opened(cluster, chance.choice(started.names), name) as client:
                assert client.read(0, MIB) == content, name
        took_s, made = time.monotonic() - began, changes_of(cluster.etcd) - before
        print(f"{volumes} volumes made, written and read elsewhere in {took_s:.0f} s, "
              f"{made / max(1, volumes):.1f} changes of etcd for each", flush=True)  # fmt: skip
        time.sleep(30)  # until nobody keeps a volume for a client that might come back
        idle_part(cluster, started)
        change_part(cluster)


def idle_part(cluster: Cluster, started: Running) -> None:
    """Print what real nodes cost that have nothing to do."""
    pids = [one.pid for one in started.services]
    before, spent, began = changes_of(cluster.etcd), cpu_seconds(pids), time.monotonic()
    time.sleep(IDLE_S)
    took_s = time.monotonic() - began
    rate = (changes_of(cluster.etcd) - before) / took_s
    share = (cpu_seconds(pids) - spent) / took_s / len(pids)
    memory = sum(map(resident_bytes, pids)) / len(pids)
    watches = metric_of(cluster.etcd, "etcd_debugging_mvcc_watcher_total")
    print(f"idle: {rate:.2f} changes of etcd per second, {watches} watches, "
          f"{memory / MIB:.0f} MiB of memory and {100 * share:.2f} % of a processor per node",
          flush=True)  # fmt: skip


def change_part(cluster: Cluster) -> None:
    """Print what it costs that one node more joins, and that it is drained."""
    before, began = changes_of(cluster.etcd), time.monotonic()
    members = cluster.ring()[1]
    cluster.machine("more").node("--peer", "none", size="64MiB", ready=False)
    cluster.machine("more").services[-1].wait_for("node.ready", WAIT_S)
    more = {one for one, said in cluster.disks().items() if said["state"] == "in"} - members
    cluster.wait_ring(members | more, WAIT_S)
    joined, join_s = changes_of(cluster.etcd) - before, time.monotonic() - began
    before, began = changes_of(cluster.etcd), time.monotonic()
    cluster.any.run("node", "drain", cluster.node_id("more"))
    cluster.wait_ring(members, WAIT_S)
    drained, drain_s = changes_of(cluster.etcd) - before, time.monotonic() - began
    print(f"one more joins: {joined} changes of etcd in {join_s:.0f} s; it is drained: {drained} "
          f"in {drain_s:.0f} s", flush=True)  # fmt: skip


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--members", default="10,100,1000")
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--volumes", type=int, default=50)
    options = parser.parse_args()
    counts = [int(one) for one in options.members.split(",") if int(one)]
    if counts:
        members_part(counts)
    if options.gib:
        writing_part(options.gib)
    if options.nodes:
        nodes_part(options.nodes, options.volumes)


if __name__ == "__main__":
    main()
