"""A node becomes known: its key, and its disks as members."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.daemon.test_node_disks import CLUSTER, config
from torus.daemon.node_disks import open_disks
from torus.daemon.registration import Registration, join, renewed, weight_of
from torus.errors import Busy, ForeignData
from torus.limits import GIB
from torus.metadata.base import Put
from torus.metadata.keys import MEMBERS, member_key, node_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Member, Node
from torus.testing.clock import ManualClock
from torus.volume.owner import this_process

FRESH = Member("d1", "n1", "host", "", 10, 10 * GIB, "in", 5)


def run(test: Callable[[AsyncMetadata, ManualClock], Awaitable[None]]) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        metadata = AsyncMetadata(MemoryMetadata(clock))
        try:
            await test(metadata, clock)
        finally:
            await metadata.close()

    asyncio.run(scenario())


def node(clock: ManualClock, instance: str, host: str = "") -> Node:
    me = this_process("node", "", clock)
    return Node(
        "n1", host or me.host, me.machine_boot_id, me.pid, me.pid_start, ("/d",), "unix:/s", (),
        "", 1, 1, instance_id=instance,
    )  # fmt: skip


def test_second_process_with_a_nodes_id_is_refused() -> None:
    async def test(metadata: AsyncMetadata, clock: ManualClock) -> None:
        first = Registration(metadata, clock, lambda: node(clock, "one"), ttl_s=60)
        await first.start()
        second = Registration(metadata, clock, lambda: node(clock, "two"), ttl_s=0.0)
        with pytest.raises(Busy, match="is running already"):
            await second.start()
        await first.close()
        assert await metadata.get(node_key("n1")) is None

    run(test)


def test_registration_that_a_dead_process_left_is_replaced() -> None:
    async def test(metadata: AsyncMetadata, clock: ManualClock) -> None:
        dead = replace(node(clock, "one"), pid_start=1)
        await metadata.commit((), (Put(node_key("n1"), dead.to_bytes()),))
        mine = Registration(metadata, clock, lambda: node(clock, "two"), ttl_s=60)
        await mine.start()
        assert mine.key.held
        await mine.close()

    run(test)


def test_weight_follows_the_size_until_somebody_sets_it() -> None:
    larger = replace(FRESH, size_bytes=30 * GIB, weight=30, host="moved", node_id="n2")
    assert renewed(FRESH, larger, zone=None, weight=None) == larger
    set_by_hand = replace(FRESH, weight=7)
    assert renewed(set_by_hand, larger, zone=None, weight=None).weight == 7
    assert renewed(set_by_hand, larger, zone="east", weight=9) == replace(
        larger, zone="east", weight=9
    )
    kept = renewed(replace(FRESH, state="draining", zone="west"), FRESH, zone=None, weight=None)
    assert (kept.state, kept.zone) == ("draining", "west")
    assert weight_of(1) == 1


def test_removed_disk_is_refused() -> None:
    removed = replace(FRESH, state="removed", reason="by the operator")
    with pytest.raises(ForeignData, match="was removed from the cluster: by the operator"):
        renewed(removed, FRESH, zone=None, weight=None)


def test_disks_become_members_once(tmp_path: Path) -> None:
    """Waiting ones join when their node is started without --no-join."""

    async def test(metadata: AsyncMetadata, clock: ManualClock) -> None:
        wanted = replace(config(tmp_path / "one", tmp_path / "two"), zone="east", join=False)
        disks = open_disks(wanted, CLUSTER, clock)
        try:
            await join(metadata, clock, wanted, disks, "host")
            entries = (await metadata.list(MEMBERS)).entries
            members = [Member.from_bytes(entry.value, entry.key) for entry in entries]
            assert {member.disk_id for member in members} == set(disks.stores)
            assert {(m.node_id, m.zone, m.state) for m in members} == {
                (disks.node_id, "east", "waiting")
            }

            await join(metadata, clock, wanted, disks, "host")
            again = (await metadata.list(MEMBERS)).entries
            assert again == entries, "nothing is written when nothing changed"

            await join(metadata, clock, replace(wanted, zone=None, join=True), disks, "host")
            entry = await metadata.get(member_key(disks.node_id))
            assert entry is not None
            member = Member.from_bytes(entry.value, entry.key)
            assert (member.state, member.zone) == ("in", "east")
        finally:
            await disks.close()

    run(test)
