"""etcd is lost and there is no backup: a cluster's metadata is made anew from its nodes' disks."""

import random
from typing import Any

import pytest

from tests.clusters import Cluster
from tests.disk_client import DiskClient
from tests.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
NODES = ("a", "b", "c")
VOLUMES = {"copies": "replica:2", "shards": "erasure:2+1"}
COUNT = 24  # MiB that are written of each
_LONG_S = 240.0


def content(name: str, index: int, version: int = 0) -> bytes:
    """Return what is written into a MiB of a volume."""
    return random.Random(f"{name}:{index}:{version}").randbytes(MIB)


def fill(client: DiskClient, name: str, version: int, indexes: range) -> None:
    """Write, and flush."""
    for index in indexes:
        client.write(index * MIB, content(name, index, version))
    client.flush()


def expect(client: DiskClient, name: str, versions: dict[int, int]) -> None:
    """Compare all of a volume with what was written."""
    for index, version in versions.items():
        assert client.read(index * MIB, MIB) == content(name, index, version), (name, index)


def in_shards(cluster: Cluster, name: str) -> bool:
    """Say whether the full chunks of a volume lie in shards alone."""
    found: dict[str, Any] = cluster.any.run(
        "volume", "info", name, "--parts", "-o", "json"
    ).document["parts"]
    return bool(found["chunks_in_shards"]) and found["copies"] <= 4


def test_everything_flushed_is_back_without_the_metadata_store(cluster: Cluster) -> None:
    """Copies, shards, snapshots; nodes are killed, etcd's prefix is never used again."""
    services = cluster.start(*NODES, options=("--size", "1GiB"))
    cluster.wait_ring(set(cluster.disks()))
    first, second = dict.fromkeys(range(COUNT), 0), dict.fromkeys(range(COUNT), 0)
    second |= dict.fromkeys(range(4, 12), 1)
    for name, redundancy in VOLUMES.items():
        cluster.any.run("volume", "create", name, "64MiB", "--redundancy", redundancy)
        with cluster.machine("a").open(name) as client:
            fill(client, name, 0, range(COUNT))
            cluster.any.run("volume", "snapshot", "create", f"{name}@before")
            fill(client, name, 1, range(4, 12))
    wait_until(lambda: in_shards(cluster, "shards"), "chunks in shards", _LONG_S)
    disks = set(cluster.disks())
    version, _ = cluster.ring()
    for service in services:
        service.kill()

    cluster.url += "-anew"
    for machine in cluster.machines.values():
        machine.environment["TORUS_META"] = cluster.url
    folders = [word for name in NODES for word in ("--data-dir", cluster.machine(name).data)]
    shown = cluster.any.run("recover", *folders)
    assert "nothing was written; with --write it goes to" in shown.out
    assert cluster.ring()[0] == 0
    refused = cluster.any.run("recover", "--write", *folders[:2], code=65)
    assert "name the disks that are missing" in refused.out
    report = cluster.any.run("recover", "--write", "-o", "json", *folders).document["recover"]
    assert report["written"], report
    assert {one["name"]: one["outcome"] for one in report["volumes"]} == dict.fromkeys(
        VOLUMES, "recovered"
    )
    assert sum(one["shards"] for one in report["disks"]) > 0

    for name in NODES:
        (cluster.machine(name).data / "history.json").rename(
            cluster.machine(name).folder / "history.json"
        )
    cluster.start(*NODES, options=("--size", "1GiB"))
    assert cluster.ring()[0] > version
    assert set(cluster.disks()) == disks
    for name in VOLUMES:
        with cluster.machine("b").open(name) as client:
            expect(client, name, second)
            fill(client, name, 2, range(8, 16))
            expect(client, name, second | dict.fromkeys(range(8, 16), 2))
        with cluster.machine("c").open(f"{name}@before") as client:
            expect(client, name, first)
    wait_until(lambda: cluster.any.status()["health"] == "ok", "health", _LONG_S)
    for name in VOLUMES:
        with cluster.machine("b").open(name) as client:
            expect(client, name, second | dict.fromkeys(range(8, 16), 2))
