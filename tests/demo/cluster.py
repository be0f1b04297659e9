"""The demonstration behind `./dev demo --cluster`: nodes die, leave and join under a client.

Three members of etcd, four nodes, one volume of three copies, and fio that writes to it and reads
back what it wrote from the first step to the last.  Everything happens in a temporary folder on
the loopback interface.  Exits 1 and says why when a promise does not hold.
"""

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.clusters import Cluster, ClusterMachine, cluster_in
from tests.etcd_members import running
from tests.processes import wait_until

VOLUME_MIB = 512
PATIENCE_S = 180.0


class DemoFailed(Exception):
    """A step did not do what it should; the message is for a person."""


def say(text: str) -> None:
    """Print one line at once, so that the reader sees what is going on."""
    print(text, flush=True)


@dataclass
class Load:
    """fio, run again and again over the whole volume; each run verifies what it wrote."""

    uri: str
    folder: Path  # where fio leaves what it remembers
    runs: int = 0
    written_mib: int = 0
    longest_ms: float = 0.0  # since it was last asked for
    failure: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the client connects before this returns."""
        self._thread = threading.Thread(target=self._loop, name="fio")
        self._thread.start()
        wait_until(lambda: self.runs or self.failure, "the first run of fio")

    def _loop(self) -> None:
        while not self._stop.is_set() and not self.failure:
            self._once()

    def _once(self) -> None:
        command = [
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={self.uri}", "--rw=randwrite",
            "--bs=4k", "--iodepth=4", f"--size={VOLUME_MIB}m", "--io_size=24m", "--verify=crc32c",
            "--do_verify=1", "--verify_fatal=1", f"--randseed={self.runs + 1}", "--randrepeat=0",
            "--output-format=json",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.failure = f"fio ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
            return
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        if job["error"]:
            self.failure = f"fio saw error {job['error']}"
        slowest_ns = max(job["write"]["clat_ns"]["max"], job["read"]["clat_ns"]["max"])
        self.longest_ms = max(self.longest_ms, slowest_ns / 1e6)
        self.written_mib += job["write"]["io_bytes"] >> 20
        self.runs += 1

    def settle(self) -> float:
        """Let two more runs pass, and return the longest request since the last call, in ms."""
        target = self.runs + 2
        wait_until(lambda: self.runs >= target or self.failure, "two runs of fio", PATIENCE_S)
        self.check()
        longest, self.longest_ms = self.longest_ms, 0.0
        return longest

    def check(self) -> None:
        """Raise DemoFailed when the client saw an error."""
        if self.failure:
            raise DemoFailed(self.failure)

    def stop(self) -> None:
        """End after the run that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def timed(step: Callable[[], object]) -> float:
    """Return how many seconds a step took."""
    began = time.monotonic()
    step()
    return time.monotonic() - began


def ended_well(machine: ClusterMachine, *words: str) -> bool:
    """Run a torus command and tell whether its exit code was 0."""
    command = machine.command(*words)
    done = subprocess.run(command, env=machine.environment, capture_output=True, check=False)
    return done.returncode == 0


def until(machine: ClusterMachine, what: str, *words: str) -> float:
    """Run a command until it ends well; return how many seconds that took."""
    return timed(lambda: wait_until(lambda: ended_well(machine, *words), what, PATIENCE_S))


def show(cluster: Cluster) -> None:
    """Go through the demonstration step by step."""
    client = cluster.machine("client")

    say("1. start four nodes that know nothing but etcd's three addresses")
    seconds = timed(lambda: start(cluster, "a", "b", "c", "d"))
    ring = timed(lambda: cluster.wait_ring(set(cluster.disks())))
    say(f"   all answer after {seconds:.1f} s, and {ring:.1f} s later the ring has their disks")

    say(f"2. create a volume of {VOLUME_MIB} MiB with three copies, and serve it from a gateway")
    client.run("volume", "create", "disk", f"{VOLUME_MIB}MiB", "--redundancy", "replica:3")
    client.gateway("disk", "--socket", client.socket)
    load = Load(client.uri("disk"), client.folder)
    try:
        say("3. let fio write and verify, over and over, until the end")
        load.start()
        say(f"   longest request without any fault: {load.settle():.0f} ms")
        events(cluster, client, load)
    finally:
        load.stop()
    load.check()
    say(f"   fio wrote {load.written_mib} MiB in {load.runs} runs and read them back: 0 errors")


def start(cluster: Cluster, *names: str) -> None:
    """Start nodes with room for the demonstration."""
    cluster.start(*names, options=("--size", "4GiB", "--auto-out", "5s"))


def events(cluster: Cluster, client: ClusterMachine, load: Load) -> None:
    """What happens to the cluster while fio runs."""
    say("4. kill -9 node a")
    disks = set(cluster.disks())
    lost = {one["disk"] for one in cluster.node_list()[cluster.node_id("a")]["disks"]}
    cluster.machine("a").services[-1].kill()
    say(f"   longest request: {load.settle():.0f} ms")
    out = timed(lambda: cluster.wait_ring(disks - lost, PATIENCE_S))
    again = until(client, "three copies of all", "ring", "rebalance")
    say(f"   out of the ring after {out:.1f} s; three copies of everything {again:.1f} s later")

    say("5. start it again: it copies what was written meanwhile, no more")
    start(cluster, "a")
    back = timed(lambda: cluster.wait_ring(disks, PATIENCE_S))
    again = until(client, "all in place", "ring", "rebalance")
    say(f"   in the ring after {back:.1f} s, all in place {again:.1f} s later")

    say("6. drain node b, and remove it")
    node = cluster.node_id("b")
    client.run("node", "drain", node)

    drained = until(client, "an empty node", "node", "remove", node)
    cluster.machine("b").services[-1].stop()
    say(f"   empty after {drained:.1f} s; longest request: {load.settle():.0f} ms")

    say("7. add a fifth node, and watch data move to it")
    start(cluster, "e")
    members = {disk for disk, said in cluster.disks().items() if said["state"] == "in"}
    cluster.wait_ring(members, PATIENCE_S)
    moved = timed(lambda: client.run("ring", "rebalance", "--watch"))
    say(f"   balanced after {moved:.1f} s; longest request: {load.settle():.0f} ms")

    say("8. hang node c (SIGSTOP), and let it go on")
    hung = cluster.machine("c").services[-1]
    hung.signal(signal.SIGSTOP)
    longest = load.settle()
    hung.signal(signal.SIGCONT)
    say(f"   longest request: {longest:.0f} ms")

    say("9. kill the leader of etcd")
    leader = cluster.etcd.leader()
    if leader is None:
        raise DemoFailed("etcd has no leader")
    leader.kill()
    say(f"   longest request: {load.settle():.0f} ms")


def main() -> int:
    """Run the demonstration in a folder of its own; return the exit code."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torus-demo-") as folder:
        with running(3) as etcd, cluster_in(Path(folder), etcd, "demo") as cluster:
            try:
                show(cluster)
            except (DemoFailed, AssertionError) as failure:
                say(f"demo: FAILED: {failure}")
                return 1
    say(f"demo: all as promised, in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
