"""The coordinator at work on a store in memory: what it publishes, and what it may not."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from torus.cluster.membership import Membership
from torus.daemon.coordinator import Coordinating
from torus.metadata.base import Delete, Put
from torus.metadata.keys import COORDINATOR, NEXT_VOLUME, RING_HEAD, member_key, node_key, spec_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Member, NextVolume, Node, RingHead, VolumeSpec
from torus.testing.clock import ManualClock

pytestmark = pytest.mark.slow

S = 1_000_000_000
WAIT_S = 60.0


class Town:
    """A cluster's metadata, and coordinators in it that take their steps when told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryMetadata(self.clock)
        self.metadata = AsyncMetadata(self.store)
        self.membership = Membership(self.metadata, self.clock, machine="")
        self.changed = asyncio.Event()
        self.membership.on_change.append(self.changed.set)

    def node(self, name: str) -> Node:
        return Node(
            f"n{name}", "host", "k", 1, 1, ("/d",), "", (), "", 1, 1, disks=(f"d{name}",),
            peer_tcp="h:1", instance_id=f"i{name}",
        )  # fmt: skip

    def up(self, *names: str, state: str = "in") -> None:
        for name in names:
            member = Member(f"d{name}", f"n{name}", "host", "", 1, 1 << 30, state, 1)
            self.store.commit(
                (),
                (
                    Put(node_key(f"n{name}"), self.node(name).to_bytes()),
                    Put(member_key(f"d{name}"), member.to_bytes()),
                ),
            )

    def coordinator(self, name: str, *, lease_s: float = 80_000) -> Coordinating:
        made = Coordinating(
            self.metadata, self.clock, self.membership, self.node(name), auto_out_s=600,
            settled=lambda: True,
        )  # fmt: skip
        made._key._ttl_s = lease_s
        return made

    async def seen(self) -> None:
        """Wait until what is stored is what is followed."""
        members = {entry.key: entry.value for entry in self.store.list("members/").entries}
        head = self.store.get(RING_HEAD)
        wanted = None if head is None else RingHead.from_bytes(head.value, RING_HEAD)
        nodes = len(self.store.list("nodes/").entries)
        while True:
            self.changed.clear()
            followed = {member_key(d): m.to_bytes() for d, m in self.membership.members().items()}
            here = (followed, self.membership.head, len(self.membership.nodes()))
            if here == (members, wanted, nodes):
                return
            await self.changed.wait()

    async def steps(self, coordinator: Coordinating, count: int = 40) -> int:
        """Let a coordinator go on until it has nothing to do; return its changes."""
        for done in range(count):
            await self.seen()
            if not await coordinator.step():
                return done
        raise AssertionError("it never comes to an end")

    def disks(self) -> set[str]:
        """The disks of the ring that holds."""
        return {member.disk_id for member in self.membership.ring.members if member.weight}


def run(test: Callable[[Town], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(WAIT_S):
            town = Town()
            await town.membership.start()
            try:
                await test(town)
            finally:
                await town.membership.close()
                await town.metadata.close()

    asyncio.run(scenario())


async def elected(coordinator: Coordinating) -> Coordinating:
    assert await coordinator._key.claim(0) is None
    return coordinator


def test_ring_grows_with_its_members_and_stands_when_all_is_done() -> None:
    async def test(town: Town) -> None:
        town.up("a")
        coordinator = await elected(town.coordinator("a"))
        assert await town.steps(coordinator) == 1
        assert (town.disks(), town.membership.ring.version) == ({"da"}, 1)

        town.up("b", "c")
        await town.steps(coordinator)
        assert town.disks() == {"da"}, "they came a moment ago"
        town.clock.advance(2 * S)
        assert await town.steps(coordinator) == 1, "one step: there is no data"
        assert (town.disks(), town.membership.ring.version) == ({"da", "db", "dc"}, 2)
        assert await town.steps(coordinator) == 0

    run(test)


def test_with_data_a_change_goes_in_steps_that_wait_for_each_other() -> None:
    async def test(town: Town) -> None:
        town.up("a", "b")
        first = await elected(town.coordinator("a"))
        await town.steps(first)
        spec = VolumeSpec(1, "vm", 1 << 20, "replica:2", 1)
        town.store.commit(
            (), (Put(spec_key(1), spec.to_bytes()), Put(NEXT_VOLUME, NextVolume(2).to_bytes()))
        )
        town.up("c", "d")
        await town.steps(first)
        town.clock.advance(2 * S)
        first.settled = lambda: False
        assert await town.steps(first) == 0
        assert "has moved" in first.decision.waiting or "moment" in first.decision.waiting
        first.settled = lambda: True
        assert await town.steps(first) >= 1
        assert town.disks() == {"da", "db", "dc", "dd"}

    run(test)


def test_coordinator_that_was_overtaken_changes_nothing() -> None:
    """It was paused, another was elected, and it wakes up believing that it still is."""

    async def test(town: Town) -> None:
        town.up("a", "b")
        old = await elected(town.coordinator("a", lease_s=5))
        await town.steps(old)
        town.clock.advance(60 * S)  # its lease ran out
        await elected(town.coordinator("b"))
        before = town.store.get(RING_HEAD)
        town.up("c")
        await town.seen()
        await old.step()
        town.clock.advance(2 * S)
        await town.seen()
        assert await old.step() is False
        assert town.store.get(RING_HEAD) == before
        holder = town.store.get(COORDINATOR)
        assert holder is not None
        assert b"nb" in holder.value

    run(test)


def test_mass_failure_is_written_to_the_head_and_taken_back() -> None:
    async def test(town: Town) -> None:
        town.up("a", "b", "c")
        coordinator = await elected(town.coordinator("a"))
        await town.steps(coordinator)
        for name in "bc":
            town.store.commit((), (Delete(node_key(f"n{name}")),))
        town.clock.advance(S)
        await town.steps(coordinator)
        assert town.membership.head is not None
        assert "2 of 3 disks vanished" in town.membership.head.frozen
        town.clock.advance(3600 * S)
        await town.steps(coordinator)
        assert town.disks() == {"da", "db", "dc"}

        town.store.commit((), (Put(node_key("nb"), town.node("b").to_bytes()),))
        await town.steps(coordinator)
        assert town.membership.head is not None
        assert town.membership.head.frozen == ""
        assert town.membership.members()["dc"].state == "in", "it has its time anew"
        town.clock.advance(601 * S)
        await town.steps(coordinator)
        assert town.membership.members()["dc"].state == "out"
        assert town.disks() == {"da", "db"}

    run(test)


def test_drained_disk_leaves_and_a_removed_one_is_forgotten() -> None:
    async def test(town: Town) -> None:
        town.up("a", "b", "c")
        coordinator = await elected(town.coordinator("a"))
        await town.steps(coordinator)
        for state in ("draining", "removed"):
            entry = town.store.get(member_key("dc"))
            assert entry is not None
            member = replace(Member.from_bytes(entry.value, entry.key), state=state)
            town.store.commit((), (Put(member_key("dc"), member.to_bytes()),))
            await town.steps(coordinator)
            assert town.disks() == {"da", "db"}
        assert {m.disk_id for m in town.membership.ring.members} == {"da", "db"}

    run(test)
