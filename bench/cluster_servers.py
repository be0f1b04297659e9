"""A cluster of torus for the benchmark: one etcd, three nodes, and who serves its volume.

Decides the command lines.  The processor time of a row is that of all daemons: etcd, the three
nodes and, where there is one, the gateway.
"""

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes
from bench.processes import BenchError, ServerProcess
from bench.servers import fill, torus_command, uri

NODES = 3
COPIES = 2
_READY_TIMEOUT_S = 180.0  # on a machine that has much else to do


@dataclass(frozen=True, slots=True)
class ClusterSite:
    """Where a cluster lies: ``work_dir`` on the medium that is measured, short socket paths."""

    work_dir: Path
    socket_dir: Path
    main_bytes: int
    pool_bytes: int  # of each node


def free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback interface that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass(slots=True)
class TorusCluster:
    """Three nodes on one etcd; started by the first of its servers that needs it."""

    site: ClusterSite
    nodes: int = NODES
    auto_out: str = "none"
    options: tuple[str, ...] = ()  # of every node, beyond those
    daemons: list[ServerProcess] = field(default_factory=list)
    url: str = ""

    def start(self) -> None:
        """Start everything unless it runs; wait until the ring has all disks.

        Raises:
            BenchError: etcd is not installed, or something did not come up.
        """
        if self.daemons:
            return
        self._start_etcd()
        for number in range(self.nodes):
            self.start_node(number)
        for number in range(self.nodes):
            processes.wait_for_socket(
                self.daemons[1 + number], self.socket(number), _READY_TIMEOUT_S
            )
        self._wait_for_ring()

    def _start_etcd(self) -> None:
        client, peer = free_ports(2)
        address = f"http://127.0.0.1:{client}"
        folder = self.site.work_dir / "etcd"
        argv = ["etcd", "--data-dir", str(folder), "--log-level", "error"]
        argv += ["--listen-client-urls", address, "--advertise-client-urls", address]
        argv += ["--listen-peer-urls", f"http://127.0.0.1:{peer}"]
        argv += ["--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
        argv += ["--initial-cluster", f"default=http://127.0.0.1:{peer}"]
        self.daemons.append(processes.start(argv, self.site.work_dir / "etcd.log"))
        self.url = f"etcd://127.0.0.1:{client}/bench"

    def start_node(self, number: int) -> None:
        """Start a node, for the first time or again."""
        home = self.site.work_dir / f"node{number}"
        home.mkdir(exist_ok=True)
        argv = [*torus_command(), "node", "--data-dir", str(home / "data"), "--http", "none"]
        argv += ["--size", str(self.site.pool_bytes), "--nbd", f"unix:{self.socket(number)}"]
        argv += ["--auto-out", self.auto_out, *self.options]
        self.daemons.append(
            processes.start(argv, home / "log", environment=self.environment(f"node{number}"))
        )

    def _wait_for_ring(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            said = self.run("ring", "show", "-o", "json", check=False)
            if said.count('"disk"') >= self.nodes or said.count("disk_id") >= self.nodes:
                return
            time.sleep(0.1)
        raise BenchError(f"the ring has not {self.nodes} disks: {said.strip()[-500:]}")

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a process of the cluster with a home of its own."""
        return {"TORUS_HOME": str(self.site.work_dir / name), "TORUS_META": self.url}

    def socket(self, number: int) -> Path:
        """Return the NBD socket of a node."""
        return self.site.socket_dir / f"node{number}"

    def create(self, name: str, redundancy: str) -> None:
        """Create a volume."""
        options = ["--redundancy", redundancy]
        self.run("volume", "create", name, str(self.site.main_bytes), *options)

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run a torus command and return what it printed.

        Raises:
            BenchError: torus refused.
        """
        finished = subprocess.run(
            [*torus_command(), *arguments],
            env={**os.environ, **self.environment("client")},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and finished.returncode:
            raise BenchError(f"torus {' '.join(arguments)}: {finished.stderr.strip()}")
        return finished.stdout

    def pids(self) -> list[int]:
        """Return etcd and the nodes."""
        return [daemon.pid for daemon in self.daemons]

    def stop(self) -> None:
        """End everything, etcd last; calling it again does nothing."""
        while self.daemons:
            processes.stop(self.daemons.pop())


class _OfCluster:
    """What the two ways to serve a volume of the cluster have in common."""

    name = ""

    def __init__(self, cluster: TorusCluster, redundancy: str = f"replica:{COPIES}") -> None:
        self.cluster = cluster
        self.redundancy = redundancy

    def start(self) -> None:
        self.cluster.start()
        self.cluster.create(self.name, self.redundancy)
        self.serve()
        fill(self.socket, self.name)

    def serve(self) -> None:
        """Start what serves, if that is not a node."""

    @property
    def socket(self) -> Path:
        raise NotImplementedError

    def stop(self) -> None:
        self.cluster.stop()

    def main_uri(self) -> str:
        return uri(self.socket, self.name)

    def many_uris(self) -> list[str]:
        return []

    def pids(self) -> list[int]:
        return self.cluster.pids()


class TorusNode(_OfCluster):
    """The volume served by one of the nodes."""

    name = "torus-node"

    @property
    def socket(self) -> Path:
        """Return the node's NBD socket."""
        return self.cluster.socket(0)


class TorusGateway(_OfCluster):
    """The volume served by a gateway, which has no disk."""

    name = "torus-gateway"

    def __init__(
        self, cluster: TorusCluster, name: str = "torus-gateway",
        redundancy: str = f"replica:{COPIES}",
    ) -> None:  # fmt: skip
        super().__init__(cluster, redundancy)
        self.name = name
        self._gateway: ServerProcess | None = None

    @property
    def socket(self) -> Path:
        """Return the gateway's NBD socket."""
        return self.cluster.site.socket_dir / self.name

    def serve(self) -> None:
        argv = [*torus_command(), "nbd", "serve", self.name, "--socket", str(self.socket)]
        home = self.cluster.site.work_dir / self.name
        home.mkdir(exist_ok=True)
        environment = self.cluster.environment(self.name)
        self._gateway = processes.start(argv, home / "log", environment=environment)
        processes.wait_for_socket(self._gateway, self.socket, _READY_TIMEOUT_S)

    def restart(self) -> None:
        """Start the gateway anew: it has no file open then of a node that is not there."""
        self.end()
        self.serve()

    def end(self) -> None:
        """End the gateway alone; calling it again does nothing."""
        if self._gateway is not None:
            processes.stop(self._gateway)
            self._gateway = None

    def stop(self) -> None:
        self.end()
        super().stop()

    def pids(self) -> list[int]:
        """Return the daemons and the gateway."""
        own = [self._gateway.pid] if self._gateway is not None else []
        return [*super().pids(), *own]


def remove(site: ClusterSite) -> None:
    """Take a site's files away."""
    shutil.rmtree(site.work_dir, ignore_errors=True)
