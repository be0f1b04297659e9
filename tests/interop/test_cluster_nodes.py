"""Nodes of a cluster, as real processes on a real etcd: they join, hang, die and come back."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.clusters import Cluster, cluster_in
from tests.etcd_members import running
from tests.processes import wait_until
from torus.format.identity import IDENTITY_FILE, DiskIdentity

pytestmark = pytest.mark.interop


def disk_id(folder: Path) -> str:
    """Return the id of the disk in a data directory."""
    path = folder / IDENTITY_FILE
    return DiskIdentity.from_bytes(path.read_bytes(), str(path)).disk_id


def test_nodes_become_one_ring_by_being_started(cluster: Cluster) -> None:
    """Three nodes, one of two disks; one more later; one that waits until it is told to join."""
    cluster.machine("a").node("--data-dir", cluster.folder / "a/d1", "--data-dir",
        cluster.folder / "a/d2", "--zone", "east")  # fmt: skip
    cluster.start("b", "c")
    first = set(cluster.disks())
    assert len(first) == 4
    version = cluster.wait_ring(first)

    a = cluster.node_list()[cluster.node_id("a")]
    assert [disk["zone"] for disk in a["disks"]] == ["east", "east"]
    assert (a["up"], a["version"] != "", a["size_bytes"]) == (True, True, 512 << 20)
    assert sum(node["coordinator"] for node in cluster.node_list().values()) == 1

    cluster.start("d")
    cluster.start("e", options=("--no-join", "--weight", "7"))
    waiting = cluster.node_list()[cluster.node_id("e")]["disks"][0]
    assert (waiting["state"], waiting["weight"]) == ("waiting", 7)
    four = set(cluster.disks()) - {waiting["disk"]}
    later = cluster.wait_ring(four)
    assert later > version

    cluster.any.run("node", "join", cluster.node_id("e"))
    cluster.wait_ring(four | {waiting["disk"]})
    cluster.any.run("node", "set", cluster.node_id("e")[:8], "--weight", "9", "--zone", "west")
    changed = cluster.disks()[waiting["disk"]]
    assert (changed["weight"], changed["zone"]) == (9, "west")


def test_killed_node_is_put_out_and_taken_back(cluster: Cluster) -> None:
    """Who is gone is told at once, put out after its time, and in again when it is back."""
    options = ("--auto-out", "1s")
    cluster.start("a", "b", "c", "d", options=options)
    everybody = set(cluster.disks())
    cluster.wait_ring(everybody)
    node = cluster.node_id("d")
    (lost,) = cluster.node_list()[node]["disks"]
    cluster.machine("d").services[-1].kill()

    wait_until(lambda: not cluster.node_list()[node]["up"], "the node is missed", 20)
    out = cluster.wait_state(lost["disk"], "out")
    assert "gone" in out["reason"]
    cluster.wait_ring(everybody - {lost["disk"]})

    cluster.start("d", options=options)
    assert cluster.node_id("d") == node
    cluster.wait_state(lost["disk"], "in")
    cluster.wait_ring(everybody)


def test_node_that_hung_registers_again(cluster: Cluster) -> None:
    """SIGSTOP for longer than the lease: it is missed, and comes back by itself."""
    cluster.start("a", "b", "c")
    node = cluster.node_id("b")
    hung = cluster.machine("b").services[-1]
    hung.signal(signal.SIGSTOP)
    wait_until(lambda: not cluster.node_list()[node]["up"], "it is missed", 25)
    hung.signal(signal.SIGCONT)
    wait_until(lambda: cluster.node_list()[node]["up"], "it is back", 15)
    hung.wait_for("lease.lost")
    assert hung.process.poll() is None


def test_more_than_a_third_gone_freezes_the_ring(cluster: Cluster) -> None:
    """Two of three vanish: nothing is put out, whatever the time; it ends when one is back."""
    options = ("--auto-out", "8s")
    cluster.start("a", "b", "c", options=options)
    everybody = set(cluster.disks())
    version = cluster.wait_ring(everybody)
    for name in ("b", "c"):
        cluster.machine(name).services[-1].kill()
    a = cluster.machine("a").services[-1]
    a.wait_for("coordinator.frozen")

    assert {disk["state"] for disk in cluster.disks().values()} == {"in"}
    assert cluster.ring() == (version, everybody)
    assert "vanished" in str(cluster.any.status()["problems"])
    cluster.start("b", "c", options=options)
    wait_until(lambda: "vanished" not in str(cluster.any.status()["problems"]), "thawed", 20)
    assert cluster.ring() == (version, everybody)


def test_disks_that_are_not_this_nodes_are_refused(cluster: Cluster) -> None:
    """A second process, another cluster's disk, two nodes' disks, a removed disk."""
    cluster.start("a", "b")
    a, b = cluster.machine("a"), cluster.machine("b")
    everybody = set(cluster.disks())
    cluster.wait_ring(everybody)

    copied = cluster.machine("copy")
    shutil.copytree(a.data, copied.data)
    message = copied.run("node", "--nbd", "none", "--http", "none", code=75).err
    assert "is running already" in message

    both = ("--data-dir", str(a.data), "--data-dir", str(copied.folder / "home" / "data"))
    b.services[-1].stop()
    mixed = b.refused(64, "node", "--data-dir", str(b.data), *both[2:])
    assert "are of two nodes" in mixed

    other = Cluster(cluster.folder / "other", cluster.etcd, "other-cluster")
    other.folder.mkdir()
    try:
        (stranger,) = other.start("x")
        stranger.stop()
        foreign = b.refused(65, "node", "--data-dir", other.machine("x").data)
        assert "belongs to cluster" in foreign
    finally:
        other.close()


def test_wiped_disk_comes_back_under_a_new_id(cluster: Cluster) -> None:
    """And a removed one does not come back at all."""
    cluster.start("a", "b", "c")
    c = cluster.machine("c")
    old = disk_id(c.data)
    cluster.wait_ring(set(cluster.disks()))
    c.services[-1].stop()
    shutil.rmtree(c.data)
    cluster.start("c")
    new = disk_id(c.data)
    assert new != old
    wait_until(lambda: new in cluster.ring()[1], "the new disk joins")
    assert cluster.disks()[old]["up"] is False

    refusal = cluster.any.refused(75, "node", "remove", old)
    assert "was not moved away" in refusal
    cluster.any.run("node", "remove", old, "--force")
    cluster.wait_ring(set(cluster.disks()) - {old})


def test_drain_and_remove(cluster: Cluster) -> None:
    """Refused where copies would have too few nodes; else the ring goes on without it."""
    cluster.start("a", "b", "c")
    everybody = set(cluster.disks())
    cluster.wait_ring(everybody)
    cluster.any.run("volume", "create", "vm", "64MiB", "--redundancy", "replica:3")
    node = cluster.node_id("c")
    refusal = cluster.any.refused(75, "node", "drain", node)
    assert "keeps 3 copies" in refusal
    cluster.any.run("volume", "delete", "vm")
    busy = cluster.any.refused(75, "node", "remove", node)
    assert "'in'" in busy

    cluster.any.run("node", "drain", node)
    (drained,) = cluster.node_list()[node]["disks"]
    cluster.wait_ring(everybody - {drained["disk"]})
    cluster.any.run("node", "remove", node)
    assert cluster.disks()[drained["disk"]]["state"] == "removed"
    cluster.machine("c").services[-1].stop()
    again = cluster.machine("c").run("node", "--nbd", "none", "--http", "none", code=65).err
    assert "was removed" in again


def test_failed_disk_of_several_is_left_out(cluster: Cluster) -> None:
    """One data directory that cannot be read does not stop the node; it is reported."""
    dirs = [cluster.folder / "a" / f"d{number}" for number in (1, 2)]
    options = ("--data-dir", dirs[0], "--data-dir", dirs[1])
    a = cluster.machine("a").node(*options)
    ids = [disk_id(folder) for folder in dirs]
    cluster.wait_ring(set(ids))
    a.stop()
    (dirs[1] / IDENTITY_FILE).write_bytes(b"{damaged")
    a = cluster.machine("a").node(*options)
    a.wait_for("disk.failed")
    found = cluster.disks()
    assert (found[ids[0]]["up"], found[ids[1]]["up"]) == (True, False)
    assert "disk.json" in str(cluster.any.status()["problems"])


def test_volume_is_served_by_any_node_and_by_a_gateway(cluster: Cluster) -> None:
    """What is written through one is read through another, after a node with copies died."""
    cluster.start("a", "b", "c")
    cluster.wait_ring(set(cluster.disks()))
    a = cluster.machine("a")
    a.run("volume", "create", "vm", "32MiB", "--redundancy", "replica:2")
    pattern = bytes(range(256)) * 4096
    with a.open("vm") as client:
        for index in range(8):
            client.write(index << 20, pattern)
        client.flush()
    cluster.machine("c").services[-1].kill()
    with cluster.machine("b").open("vm") as client:  # the owner lets go of what nobody uses
        assert client.read(3 << 20, 1 << 20) == pattern
        client.write(0, pattern[::-1], durable=True)

    far = cluster.machine("gate")
    socket = far.folder / "gate.sock"
    far.gateway("vm", "--socket", socket)
    with far.open("vm", socket) as client:
        assert client.read(0, 1 << 20) == pattern[::-1]
        assert client.read(7 << 20, 1 << 20) == pattern
    image = far.folder / "image"
    far.services[-1].stop()
    far.run("volume", "export", "vm", image)
    assert image.read_bytes()[: 1 << 20] == pattern[::-1]
    far.run("volume", "delete", "vm", "--force")


def test_store_that_is_away_lets_io_go_on_and_status_says_what_waits(
    socket_folder: Path,
) -> None:
    """And everything is as it was when it comes back."""
    with running(1) as etcd, cluster_in(socket_folder, etcd, "away") as cluster:
        cluster.start("a", "b", "c")
        everybody = set(cluster.disks())
        version = cluster.wait_ring(everybody)
        a = cluster.machine("a")
        with a.client_of_new("vm", "32MiB") as client:
            client.write(0, b"x" * 4096, durable=True)
            etcd.members[0].pause()
            try:
                for block in range(1, 100):
                    client.write(block * 4096, b"y" * 4096, durable=block % 10 == 0)
                node = a.services[-1]
                node.wait_for("lease.not_renewed")
                text = a.run("status", code=69).out
                assert "AWAY" in text
                assert "attaching, snapshots, ring changes and deletions wait" in text
                assert client.read(99 * 4096, 4096) == b"y" * 4096
            finally:
                etcd.members[0].resume()
            wait_until(lambda: a.status()["healthy"], "all is well again", 30)
            client.write(0, b"z" * 4096, durable=True)
        assert cluster.ring() == (version, everybody)
        assert {disk["state"] for disk in cluster.disks().values()} == {"in"}
