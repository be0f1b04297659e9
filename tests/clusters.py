"""Real clusters for tests: nodes with a TORUS_HOME each, on one etcd, on this machine."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.etcd_members import EtcdCluster
from tests.processes import DEADLINE_S, Machine, Service, wait_until


class ClusterMachine(Machine):
    """A machine that is part of a cluster."""

    def __init__(self, folder: Path, meta_url: str) -> None:
        folder.mkdir()
        super().__init__(folder)
        self.environment["TORUS_META"] = meta_url


class Cluster:
    """Machines by name; made by `cluster_in`."""

    def __init__(self, folder: Path, etcd: EtcdCluster, prefix: str) -> None:
        self.folder = folder
        self.etcd = etcd
        self.url = etcd.url(prefix)
        self.machines: dict[str, ClusterMachine] = {}

    def machine(self, name: str) -> ClusterMachine:
        """Return a machine; made at the first call."""
        if name not in self.machines:
            self.machines[name] = ClusterMachine(self.folder / name, self.url)
        return self.machines[name]

    def start(self, *names: str, options: tuple[str | Path, ...] = ()) -> list[Service]:
        """Start nodes beside each other and wait until all are ready."""
        nodes = [self.machine(name).node(*options, ready=False) for name in names]
        for node in nodes:
            node.wait_for("node.ready")
        return nodes

    @property
    def any(self) -> ClusterMachine:
        """A machine to give commands on: they need no node of their own."""
        return next(iter(self.machines.values()))

    def node_list(self) -> dict[str, dict[str, Any]]:
        """Return `torus node list` by node id."""
        found = self.any.run("node", "list", "-o", "json").document
        return {node["node"]: node for node in found["nodes"]}

    def node_id(self, name: str) -> str:
        """Return the id of the node that runs, or ran last, on a machine."""
        for service in reversed(self.machine(name).services):
            for event in service.events("node.ready"):
                return str(event["node"])
        raise AssertionError(f"no node of machine {name} was ever ready")

    def disks(self) -> dict[str, dict[str, Any]]:
        """Return all disks of `torus node list` by id."""
        return {disk["disk"]: disk for node in self.node_list().values() for disk in node["disks"]}

    def ring(self) -> tuple[int, set[str]]:
        """Return version and disks with weight of the ring that holds; 0 before there is one."""
        import base64

        from torus.metadata.keys import RING_HEAD, ring_key
        from torus.metadata.schema import RingHead, RingVersion
        from torus.ring.codec import unpack

        store = self.etcd.open(self.url.rpartition("/")[2])
        try:
            entry = store.get(RING_HEAD)
            if entry is None:
                return 0, set()
            head = RingHead.from_bytes(entry.value, entry.key)
            found = store.get(ring_key(head.version))
            assert found is not None
            table = RingVersion.from_bytes(found.value, found.key).table
            members = unpack(base64.b64decode(table)).members
            return head.version, {member.disk_id for member in members if member.weight}
        finally:
            store.close()

    def wait_ring(self, disks: set[str], seconds: float = DEADLINE_S) -> int:
        """Wait until the ring has these disks with weight; return its version."""
        deadline = time.monotonic() + seconds
        while True:
            version, found = self.ring()
            if found == disks:
                return version
            assert time.monotonic() < deadline, f"ring {version} has {found}, wanted {disks}"
            time.sleep(0.05)

    def wait_state(self, disk: str, state: str, seconds: float = DEADLINE_S) -> dict[str, Any]:
        """Wait until a disk is in a state; return what the list says of it."""

        def look() -> dict[str, Any] | None:
            found = self.disks().get(disk)
            return found if found is not None and found["state"] == state else None

        found: dict[str, Any] = wait_until(look, f"disk {disk} {state}", seconds)
        return found

    def close(self) -> None:
        """Kill what still runs."""
        for machine in self.machines.values():
            machine.close()


@contextlib.contextmanager
def cluster_in(folder: Path, etcd: EtcdCluster, prefix: str) -> Iterator[Cluster]:
    """Give a cluster without nodes; whatever still runs at the end is killed."""
    cluster = Cluster(folder, etcd, prefix)
    try:
        yield cluster
    finally:
        cluster.close()
