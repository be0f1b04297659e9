"""Bad days of a cluster of real processes that no simulation has: TLS between nodes, an owner that
hangs, a disk that is forgotten, everything without power at once, gateways without nodes."""

import contextlib
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.clusters import Cluster, cluster_in
from tests.contract.certificates import make_certificates
from tests.disk_client import DiskClient, RequestFailed
from tests.etcd_members import running
from tests.processes import Service, wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
PATTERN = bytes(range(256)) * 4096  # 1 MiB


def open_when_served(cluster: Cluster, name: str, volume: str) -> DiskClient:
    """Connect to a volume through a node as soon as it serves it."""

    def attempt() -> DiskClient | None:
        try:
            return cluster.machine(name).open(volume)
        except (RequestFailed, ConnectionError, FileNotFoundError):
            return None

    client: DiskClient = wait_until(attempt, f"volume {volume} is served by {name}", 60)
    return client


def write_ten_times(client: DiskClient) -> None:
    """Write the volume's second MiB."""
    for _ in range(10):
        client.write(MIB, PATTERN, durable=True)


def settle(cluster: Cluster) -> None:
    """Wait until every copy is where it should be."""

    def settled() -> bool:
        command = cluster.any.command("ring", "rebalance")
        done = subprocess.run(
            command, env=cluster.any.environment, capture_output=True, check=False
        )
        return done.returncode == 0

    wait_until(settled, "copies are made again", 60)


def test_nodes_talk_tls_between_hosts(cluster: Cluster, tmp_path: Path) -> None:
    """With certificates copies are written over TCP; who has none, or a stranger's, is refused.

    The unix socket of one node is taken away, so that the other takes it for another host's.
    """
    files = make_certificates(tmp_path)
    for name in ("a", "b"):
        tls = files["node"]
        cluster.machine(name).environment |= {
            "TORUS_TLS_CERT": str(tls.cert), "TORUS_TLS_KEY": str(tls.key),
            "TORUS_TLS_CA": str(tls.ca),
        }  # fmt: skip
    (b,) = cluster.start("b")
    tcp = [one for one in b.events("node.peer.listening") if not one["address"].startswith("unix")]
    assert [one["tls"] for one in tcp] == [True]
    (cluster.machine("b").home / "peer.sock").unlink()
    cluster.start("a")
    cluster.wait_ring(set(cluster.disks()))
    a = cluster.machine("a")
    a.run("volume", "create", "vm", "16MiB", "--redundancy", "replica:2")
    with a.open("vm") as client:
        client.write(0, PATTERN, durable=True)
        assert client.read(0, MIB) == PATTERN
    wait_until(lambda: all(disk["used_bytes"] for disk in cluster.disks().values()), "both have it")

    for kind, said in (("none", "b has only"), ("stranger", "certificate")):
        other = cluster.machine(kind)
        if kind == "stranger":
            tls = files["stranger"]
            other.environment |= {
                "TORUS_TLS_CERT": str(tls.cert), "TORUS_TLS_KEY": str(tls.key),
                "TORUS_TLS_CA": str(tls.ca),
            }  # fmt: skip
        found = other.run("node", "info", cluster.node_id("b"), "-o", "json").document
        (disk,) = found["nodes"][0]["disks"]
        assert disk["used_bytes"] is None, f"{kind}: {said}"
        assert disk["problem"]


def test_owner_that_hangs_is_taken_over_and_told_when_it_wakes(cluster: Cluster) -> None:
    """Its lease ends, another node of the same host serves the volume without force; when it goes
    on it answers nothing any more, and its log says who has the volume."""
    a, _, _ = cluster.start("a", "b", "c")
    cluster.wait_ring(set(cluster.disks()))
    cluster.any.run("volume", "create", "vm", "16MiB", "--redundancy", "replica:2")
    old = cluster.machine("a").open("vm")
    old.write(0, PATTERN, durable=True)
    hung = cluster.node_id("a")
    a.signal(signal.SIGSTOP)
    wait_until(lambda: not cluster.node_list()[hung]["up"], "its lease has ended", 25)
    with open_when_served(cluster, "b", "vm") as new:
        assert new.read(0, MIB) == PATTERN
        new.write(0, PATTERN[::-1], durable=True)
        a.signal(signal.SIGCONT)
        with pytest.raises((RequestFailed, ConnectionError)):
            write_ten_times(old)
        a.wait_for("volume.taken_over")
        assert new.read(0, 2 * MIB) == PATTERN[::-1] + bytes(MIB)
    old.close()
    wait_until(lambda: cluster.node_list()[hung]["up"], "it is back", 20)


def test_disk_that_is_lost_is_forgotten_when_others_have_its_copies(cluster: Cluster) -> None:
    """Refused with the numbers until then; the last copy only goes with two words of force."""
    options = ("--auto-out", "1s")
    cluster.start("a", "b", "c", "d", options=options)
    cluster.wait_ring(set(cluster.disks()))
    for name, copies in (("one", 1), ("two", 2)):
        cluster.any.run("volume", "create", name, "64MiB", "--redundancy", f"replica:{copies}")
    with cluster.machine("a").open("two") as client:
        for number in range(24):
            client.write(number * MIB, PATTERN)
        client.flush()
    (lost,) = cluster.node_list()[cluster.node_id("d")]["disks"]
    cluster.machine("d").services[-1].kill()
    cluster.wait_state(lost["disk"], "out", 40)
    cluster.wait_ring(set(cluster.disks()) - {lost["disk"]})
    settle(cluster)
    cluster.any.run("node", "remove", lost["disk"])
    assert cluster.disks()[lost["disk"]]["state"] == "removed"

    with cluster.machine("a").open("one") as client:
        for number in range(64):
            client.write(number * MIB, PATTERN)
        client.flush()
    (lost,) = cluster.node_list()[cluster.node_id("c")]["disks"]
    assert lost["used_bytes"]
    cluster.machine("c").services[-1].kill()
    cluster.wait_state(lost["disk"], "out", 40)
    for words in ((), ("--force",)):
        refusal = cluster.any.refused(75, "node", "remove", lost["disk"], *words)
        assert "last copy" in refusal
        assert "of volumes one" in refusal
    assert "nothing without" in cluster.any.refused(
        64, "node", "remove", lost["disk"], "--lose-data"
    )
    cluster.any.run("node", "remove", lost["disk"], "--force", "--lose-data")


def test_everything_without_power_at_once_three_times(
    socket_folder: Path, rng: random.Random
) -> None:
    """Nodes and etcd are killed together and come back in any order: all that was flushed is
    there, through every node, and the ring is what it was."""
    with running(1) as etcd, cluster_in(socket_folder, etcd, "power") as cluster:
        names = ["a", "b", "c"]
        cluster.start(*names)
        everybody = set(cluster.disks())
        version = cluster.wait_ring(everybody)
        cluster.any.run("volume", "create", "vm", "16MiB", "--redundancy", "replica:3")
        written: dict[int, bytes] = {}
        for turn in range(3):
            with open_when_served(cluster, rng.choice(names), "vm") as client:
                for block in rng.sample(range(256), 20):
                    written[block] = rng.randbytes(4096)
                    client.write(block * 4096, written[block])
                client.flush()
                for name in rng.sample(names, 3):
                    cluster.machine(name).services[-1].kill()
                etcd.members[0].kill()
                with pytest.raises((RequestFailed, ConnectionError)):
                    client.write(0, b"x" * 4096)
            etcd.members[0].start()
            etcd.wait(lambda: etcd.leader() is not None, "etcd is back")
            started: list[Service] = []
            for name in rng.sample(names, 3):
                started.append(cluster.machine(name).node(ready=False))
            for node in started:
                node.wait_for("node.ready")
            for name in names:
                with open_when_served(cluster, name, "vm") as client:
                    for block, content in written.items():
                        assert client.read(block * 4096, 4096) == content, (turn, name, block)
        assert cluster.ring() == (version, everybody)


def test_gateway_waits_for_nodes_and_goes_on_when_they_are_there(cluster: Cluster) -> None:
    """A gateway has no disk: with too few nodes for the copies writes wait, reads do not."""
    gate = cluster.machine("gate")
    socket = gate.folder / "gate.sock"
    a, b = cluster.start("a", "b")
    cluster.wait_ring(set(cluster.disks()))
    gate.run("volume", "create", "vm", "16MiB", "--redundancy", "replica:2", "--min-copies", "2")
    gate.gateway("vm", "--socket", socket)
    with gate.open("vm", socket) as client:
        client.write(0, PATTERN, durable=True)
        b.kill()
        assert client.read(0, MIB) == PATTERN
        client.socket.settimeout(3)
        with contextlib.suppress(TimeoutError):
            client.write(MIB, PATTERN)
            raise AssertionError("one copy of two was answered")
    assert a.process.poll() is None
    cluster.start("b")
    with gate.open("vm", socket) as client:
        assert client.read(0, MIB) == PATTERN
        client.write(2 * MIB, PATTERN, durable=True)


def test_several_data_directories_are_checked(cluster: Cluster) -> None:
    """`torus check` looks at all that are named, and says which one is damaged."""
    folders = [cluster.folder / "a" / f"d{number}" for number in (1, 2)]
    words: list[str | Path] = []
    for folder in folders:
        words += ["--data-dir", folder]
    a = cluster.machine("a")
    node = a.node(*words)
    cluster.wait_ring(set(cluster.disks()))
    a.run("volume", "create", "vm", "16MiB")
    with a.open("vm") as client:
        client.write(0, PATTERN * 8, durable=True)
    node.stop()
    checks = a.run("check", *words, "-o", "json").document["checks"]
    assert [check["ok"] for check in checks] == [True, True]
    assert [Path(check["data_dir"]) for check in checks] == folders
    (folders[0] / "disk.json").write_bytes(b"{damaged")
    ended = a.run("check", *words, code=65)
    assert "disk.json" in ended.err
    assert str(folders[1]) in ended.out, "the other one is checked all the same"
