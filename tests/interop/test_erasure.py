"""A volume in shards on a real cluster: cut, read without M nodes, written on, converted."""

import contextlib
import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import Cluster
from tests.disk_client import DiskClient
from tests.processes import Machine, Service, http_get, wait_until
from torus.format.shard import cell_bytes
from torus.nbd import constants as nbd

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
NODES = ("a", "b", "c", "d", "e", "f")
WRITTEN = 64  # MiB
IMPORTED = 512  # MiB
CELL_BYTES = cell_bytes(4)
_LONG_S = 240.0


def content(index: int, version: int = 0) -> bytes:
    """Return what is written into a MiB of the volume."""
    return random.Random(f"{index}:{version}").randbytes(MIB)


def fill(cluster: Cluster, name: str, *, start: int = 0, count: int = WRITTEN) -> None:
    """Write the volume through a node."""
    with cluster.machine(name).open("vm") as client:
        for index in range(start, start + count):
            client.write(index * MIB, content(index))
        client.flush()


def check(client: DiskClient, indexes: range) -> None:
    """Compare what is read with what was written; in pieces, some of which cross shards."""
    for index in indexes:
        assert client.read(index * MIB, MIB) == content(index), index


def write_until_it_waits(client: DiskClient, first: int) -> int:
    """Write until a write is not answered for a while; return its index."""
    for index in range(first, first + 64):
        client.send(nbd.NBD_CMD_WRITE, index * MIB, payload=content(index))
        if client.silent_for(5.0):
            return index
        assert client.receive()[1] == 0
    raise AssertionError("64 MiB were written on three of six nodes")


def parts(cluster: Cluster) -> dict[str, int]:
    """Return what the disks have of the volume."""
    found: dict[str, Any] = cluster.any.run(
        "volume", "info", "vm", "--parts", "-o", "json"
    ).document
    return dict(found["parts"])


def wait_cut(cluster: Cluster, most_copies: int) -> dict[str, int]:
    """Wait until the volume is in shards, but for so many whole copies."""

    def look() -> dict[str, int] | None:
        found = parts(cluster)
        return found if found["copies"] <= most_copies and found["chunks_in_shards"] else None

    return wait_until(look, f"at most {most_copies} whole copies", _LONG_S)  # type: ignore[no-any-return]


def convert(cluster: Cluster, redundancy: str) -> None:
    """Convert the volume and wait for the end of it."""
    machine = cluster.any
    words = machine.command("volume", "convert", "vm", "--redundancy", redundancy, "--wait")
    done = subprocess.run(
        words, env=machine.environment, capture_output=True, timeout=_LONG_S, check=False, text=True
    )
    assert done.returncode == 0, done


def test_refused_with_numbers_where_nodes_are_missing(cluster: Cluster) -> None:
    """Five nodes do not do for six shards; a single machine does for none."""
    cluster.start(*NODES[:5])
    cluster.wait_ring(set(cluster.disks()))
    for words in (
        ("volume", "create", "vm", "64MiB", "--redundancy", "erasure:4+2"),
        ("volume", "convert", "old", "--redundancy", "erasure:4+2"),
    ):
        if words[1] == "convert":
            cluster.any.run("volume", "create", "old", "64MiB")
        refused = cluster.any.run(*words, code=64)
        assert "its 6 shards take 6 nodes, the ring has 5" in refused.err


def short_volumes(node: Service) -> dict[str, int]:
    """Return the metric of volumes that lack nodes or zones."""
    (ready,) = node.events("node.ready")
    text = http_get(str(ready["http"]), "/metrics")[1]
    found = re.findall(r'^torus_upkeep_short_volumes\{of="(\w+)"\} (\d+)', text, re.MULTILINE)
    return {what: int(count) for what, count in found}


def test_too_few_zones_and_too_few_nodes_are_told(cluster: Cluster) -> None:
    """Two of three nodes in a zone: losing it takes two shards of 2+1 along. A node is drained:
    two do not do for three shards."""
    first, *_ = (
        cluster.start(name, options=("--http", "127.0.0.1:0", "--zone", zone))[0]
        for name, zone in zip("abc", "xxy", strict=True)
    )
    cluster.wait_ring(set(cluster.disks()))
    machine = cluster.any
    machine.run("volume", "create", "vm", "64MiB", "--redundancy", "erasure:2+1")
    status = machine.run("status", "-o", "json").document
    assert status["problems"] == []
    assert [note for note in status["notes"] if "volumes vm do not outlive the loss of" in note]
    wait_until(lambda: short_volumes(first) == {"nodes": 0, "zones": 1}, "the metric of zones")

    machine.run("node", "drain", cluster.node_id("c"), "--force")
    wait_until(lambda: short_volumes(first) == {"nodes": 1, "zones": 0}, "the metric of nodes")
    status = machine.run("status", "-o", "json", code=1).document
    (problem,) = status["problems"]
    assert problem.startswith(
        "volumes vm are erasure:2+1, whose 3 shards take as many nodes, and 2"
    )
    assert "add 1 node or more" in problem


def test_cut_read_without_two_nodes_written_on(cluster: Cluster) -> None:
    """Six nodes, 4+2: space, any two nodes killed, three killed: writes pause, and all resumes."""
    services = dict(zip(NODES, cluster.start(*NODES), strict=True))
    cluster.wait_ring(set(cluster.disks()))
    cluster.any.run("volume", "create", "vm", "256MiB", "--redundancy", "erasure:4+2")
    fill(cluster, "a")
    found = wait_cut(cluster, 0)
    shard_bytes = (4 * MIB) // 4
    assert found["shards"] * shard_bytes <= 1.55 * WRITTEN * MIB + 12 * shard_bytes
    assert found["silent_disks"] == 0
    used = sum(disk["used_bytes"] for disk in cluster.disks().values())
    assert used <= 1.55 * WRITTEN * MIB + 2 * len(NODES) * 4 * MIB

    with cluster.machine("a").open("vm") as client:
        check(client, range(WRITTEN))
        for name in ("c", "f"):
            services[name].kill()
        check(client, range(WRITTEN))
        for index in range(WRITTEN, WRITTEN + 16):  # written on without two nodes
            client.write(index * MIB, content(index))
        client.flush()
        check(client, range(WRITTEN, WRITTEN + 16))
        services["b"].kill()
        end = write_until_it_waits(client, WRITTEN + 16)
        services["b"] = cluster.start("b")[0]
        assert client.receive()[1] == 0  # the write that waited
        check(client, range(end + 1))
        cluster.start("c", "f")
        check(client, range(end + 1))
    with cluster.machine("d").open("vm") as client:
        check(client, range(end + 1))
    wait_cut(cluster, 0)


def test_space_of_a_volume_that_has_settled(cluster: Cluster, tmp_path: Path) -> None:
    """At most 1.55 of what was written: by the shards, by what the disks count as used, and by
    what the host's file system keeps for it."""
    cluster.start(*NODES, options=("--size", "2GiB", "--trash-grace", "none"))
    cluster.wait_ring(set(cluster.disks()))
    cluster.any.run("volume", "create", "vm", f"{IMPORTED}MiB", "--redundancy", "erasure:4+2")
    source = tmp_path / "source"
    with source.open("wb") as file:
        for index in range(IMPORTED):
            file.write(content(index))
    cluster.any.run("volume", "import", source, "vm", "--overwrite")  # and lets go of it
    found = wait_cut(cluster, 0)
    most = 1.55 * IMPORTED * MIB
    assert found["chunks"] == found["chunks_in_shards"]
    assert found["shards"] == 6 * found["chunks"]
    assert found["shards"] * CELL_BYTES <= most
    used = sum(disk["used_bytes"] for disk in cluster.disks().values())
    assert found["shards"] * CELL_BYTES <= used <= most
    for machine in cluster.machines.values():
        machine.services[-1].stop()  # what was freed is given back
    on_disks = sum(written_bytes(machine) for machine in cluster.machines.values())
    assert 1.5 * IMPORTED * MIB <= on_disks <= most


def written_bytes(machine: Machine) -> int:
    """Return what the file system keeps of a node's segments, without what is only reserved."""
    total = 0
    for path in (machine.home / "data").glob("segment-*.seg"):
        with path.open("rb") as file, contextlib.suppress(OSError):  # there is no more data
            stop = 0
            while True:
                start = os.lseek(file.fileno(), stop, os.SEEK_DATA)
                stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                total += stop - start
    return total


def test_nodes_with_different_engines_share_a_volume(cluster: Cluster) -> None:
    """One computes with zfec, the others with the kernel: each makes parity, and without any one
    of them the others rebuild what it had."""
    cluster.machine("a").environment["TORUS_ERASURE"] = "zfec"
    services = dict(zip("abc", cluster.start("a", "b", "c"), strict=True))
    cluster.wait_ring(set(cluster.disks()))
    engines = {
        name: cluster.node_list()[cluster.node_id(name)]["erasure"] == "zfec" for name in "abc"
    }
    assert engines == {"a": True, "b": False, "c": False}
    cluster.any.run("volume", "create", "vm", "128MiB", "--redundancy", "erasure:2+1")
    fill(cluster, "b", count=32)
    assert wait_cut(cluster, 0)["chunks_in_shards"] >= 8
    for reader, gone in (("a", "b"), ("a", "c"), ("b", "a"), ("b", "c")):
        services[gone].kill()
        with cluster.machine(reader).open("vm") as client:
            check(client, range(32))
        services[gone] = cluster.start(gone)[0]


def test_converted_there_and_back(cluster: Cluster) -> None:
    """Three copies become shards while the volume is used, and copies again."""
    cluster.start(*NODES)
    cluster.wait_ring(set(cluster.disks()))
    cluster.any.run("volume", "create", "vm", "128MiB", "--redundancy", "replica:3")
    fill(cluster, "b")
    with cluster.machine("b").open("vm") as client:
        client.write(WRITTEN * MIB, content(WRITTEN), durable=True)
        convert(cluster, "erasure:4+2")
        found = parts(cluster)
        assert found["chunks_in_shards"] >= WRITTEN // 4
        assert found["copies"] <= 6  # the open chunk's, and those that just filled
        check(client, range(WRITTEN + 1))
        client.write((WRITTEN + 1) * MIB, content(WRITTEN + 1), durable=True)
        convert(cluster, "replica:2")
        found = parts(cluster)
        assert found["chunks_in_shards"] == 0
        assert found["shards"] == 0
        check(client, range(WRITTEN + 2))
    info = cluster.any.run("volume", "info", "vm", "-o", "json").document["volume"]
    assert info["former"] == ["replica:3", "erasure:4+2"]
    cluster.any.run("volume", "delete", "vm", "--force")
