"""Membership: the picture of a cluster, from its metadata."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from torus.clock import SystemClock
from torus.cluster.membership import Membership, Place, places_of
from torus.errors import Corruption, NotFound, Unavailable
from torus.metadata.base import Delete, Event, Listing, Put
from torus.metadata.keys import RING_HEAD, member_key, node_key, ring_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Member, Node, RingHead, RingVersion

WAIT_S = 20.0
HERE, THERE = "kernel-1", "kernel-2"
NODE = Node(
    "n1", "alpha", THERE, 7, 8, ("/d1", "/d2"), "unix:/nowhere/peer.sock", (), "", 1 << 30, 5,
    disks=("d1", "d2"), peer_tcp="alpha:7000", instance_id="i1",
)  # fmt: skip
MEMBER = Member("d1", "n1", "alpha", "east", 10, 10 << 30, "in", 5)


class MutableStore(MemoryMetadata):
    """A store in memory that can go away."""

    away = False

    def list(self, prefix: str) -> Listing:
        if self.away:
            raise Unavailable("the store is away")
        return super().list(prefix)

    def watch(self, prefix: str, after_revision: int) -> "MutableWatch":  # type: ignore[override]
        if self.away:
            raise Unavailable("the store is away")
        return MutableWatch(self, super().watch(prefix, after_revision))


class MutableWatch:
    """A watch that breaks when its store goes away."""

    def __init__(self, store: MutableStore, watch: object) -> None:
        self._store, self._watch = store, watch

    def next(self, timeout_s: float) -> Sequence[Event]:
        events: Sequence[Event] = self._watch.next(min(timeout_s, 0.01))  # type: ignore[attr-defined]
        if self._store.away:
            raise Unavailable("the store is away")
        return events

    def close(self) -> None:
        self._watch.close()  # type: ignore[attr-defined]


def run(test: Callable[[MutableStore, AsyncMetadata, Membership], Awaitable[None]]) -> None:
    async def bounded() -> None:
        store = MutableStore()
        metadata = AsyncMetadata(store)
        membership = Membership(metadata, SystemClock(), machine=HERE)
        async with asyncio.timeout(WAIT_S):
            try:
                await test(store, metadata, membership)
            finally:
                await membership.close()
                await metadata.close()

    asyncio.run(bounded())


async def until(membership: Membership, holds: Callable[[], bool]) -> None:
    """Wait for changes until ``holds``."""
    changed = asyncio.Event()
    membership.on_change.append(changed.set)
    while not holds():
        changed.clear()
        await changed.wait()


def test_a_disk_is_up_while_its_node_is_registered_with_it() -> None:
    async def test(_store: MutableStore, metadata: AsyncMetadata, membership: Membership) -> None:
        lease = await metadata.grant(60)
        await metadata.commit(
            (),
            (Put(node_key("n1"), NODE.to_bytes(), lease), Put(member_key("d1"), MEMBER.to_bytes())),
        )
        await membership.start()

        d1 = Place("d1", "n1", "alpha", "east", "alpha:7000", "in", "i1", 10)
        d2 = Place("d2", "n1", "alpha", "", "alpha:7000", "waiting", "i1")
        assert membership.disks() == {"d1": d1, "d2": d2}
        assert d1.up

        await metadata.commit((), (Put(node_key("n1"), replace(NODE, disks=("d2",)).to_bytes()),))
        await until(membership, lambda: not membership.disks()["d1"].up)
        await metadata.commit((), (Put(node_key("n1"), NODE.to_bytes(), lease),))
        await until(membership, lambda: membership.disks()["d1"].up)
        await metadata.revoke(lease)
        await until(membership, lambda: not membership.disks()["d1"].up)

        assert membership.disks() == {"d1": replace(d1, address=None, instance_id="")}

    run(test)


def test_the_last_picture_stays_while_the_store_is_away_and_it_says_so() -> None:
    async def test(store: MutableStore, metadata: AsyncMetadata, membership: Membership) -> None:
        await metadata.commit((), (Put(member_key("d1"), MEMBER.to_bytes()),))
        await membership.start()
        assert membership.away_since_ns is None

        store.away = True
        await until(membership, lambda: membership.away_since_ns is not None)
        assert set(membership.disks()) == {"d1"}

        # what happened meanwhile is found when the store is back, removals too
        store.commit((), (Delete(member_key("d1")), Put(node_key("n1"), NODE.to_bytes())))
        store.away = False
        await until(membership, lambda: set(membership.disks()) == {"d1", "d2"})
        await until(membership, lambda: membership.disks()["d1"].state == "waiting")
        await until(membership, lambda: membership.away_since_ns is None)

    run(test)


def test_versions_of_the_ring_are_known_by_number_and_zero_is_the_first() -> None:
    async def test(_store: MutableStore, metadata: AsyncMetadata, membership: Membership) -> None:
        await membership.start()
        assert not membership.has_ring
        with pytest.raises(Unavailable, match="no ring yet"):
            _ = membership.ring

        first = RingVersion(1, 5, "first", base64.b64encode(b"one").decode())
        await metadata.commit(
            (), (Put(RING_HEAD, RingHead(1).to_bytes()), Put(ring_key(1), first.to_bytes()))
        )
        await until(membership, lambda: membership.has_ring)

        for version in (0, 1):
            with pytest.raises(Corruption, match="these 3 bytes are no ring"):  # they are known
                membership.ring_at(version)
        assert membership.head == RingHead(1)
        with pytest.raises(NotFound, match="ring version 2"):
            membership.ring_at(2)
        with pytest.raises(NotFound, match="ring version 2"):
            await membership.fetch_ring(2)

    run(test)


def test_what_cannot_be_read_leaves_what_was_known() -> None:
    async def test(_store: MutableStore, metadata: AsyncMetadata, membership: Membership) -> None:
        await metadata.commit((), (Put(member_key("d1"), MEMBER.to_bytes()),))
        await membership.start()
        later = replace(MEMBER, disk_id="d3")
        await metadata.commit((), (Put(member_key("d1"), b'{"format":99}'),))
        await metadata.commit((), (Put(member_key("d3"), later.to_bytes()),))
        await until(membership, lambda: "d3" in membership.disks())

        assert membership.members() == {"d1": MEMBER, "d3": later}

    run(test)


def test_a_node_of_this_machine_is_reached_through_its_socket(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The socket is used where it can be seen, else TCP; a node without TCP has only that."""
    seen = tmp_path / "peer.sock"
    seen.touch()
    near = replace(NODE, machine_boot_id=HERE, peer_address=f"unix:{seen}")
    hidden = replace(near, peer_address=f"unix:{tmp_path}/elsewhere.sock")

    assert places_of([near], [], HERE)["d1"].address == f"unix:{seen}"
    assert places_of([hidden], [], HERE)["d1"].address == "alpha:7000"
    assert places_of([near], [], THERE)["d1"].address == "alpha:7000"
    only = replace(hidden, peer_tcp="")
    assert places_of([only], [], HERE)["d1"].address == only.peer_address
