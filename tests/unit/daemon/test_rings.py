"""Versions of the ring in the metadata store: published once, kept while something names them."""

import base64
from dataclasses import replace

import pytest

from torus.clock import SystemClock
from torus.daemon import rings
from torus.errors import Corruption, NotFound
from torus.metadata.base import Put
from torus.metadata.keys import RING_HEAD, ring_key
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import RingHead, RingVersion
from torus.ring.builder import first_ring, next_ring
from torus.ring.codec import pack
from torus.ring.imagined import imagined_members
from torus.ring.table import Ring

FIRST = first_ring(imagined_members(4, 1, [1]))
SECOND = next_ring(FIRST, FIRST.members[1:])


@pytest.fixture
def store():
    """A metadata store in memory."""
    made = MemoryMetadata(SystemClock())
    yield made
    made.close()


def publish_many(store: MemoryMetadata, count: int) -> None:
    """Publish versions 1 to `count`, all with the same table."""
    revision = 0
    for version in range(1, count + 1):
        found = rings.publish(store, replace(FIRST, version=version), "test", revision, 7)
        assert found is not None
        revision = found


def test_published_ring_is_the_current_one(store) -> None:
    """Version by version; 0 means the first."""
    revision = rings.publish(store, FIRST, "begin", 0, 7)
    rings.publish(store, SECOND, "a disk is lost", revision, 8)

    assert rings.current_ring(store) == SECOND
    assert rings.ring_at(store, 0) == rings.ring_at(store, 1) == FIRST
    assert [(one.ring, one.created_ns, one.reason) for one in rings.history(store)] == [
        (FIRST, 7, "begin"),
        (SECOND, 8, "a disk is lost"),
    ]


def test_second_publisher_is_refused(store) -> None:
    """Of two who saw the same head one succeeds, and nothing of the other is stored."""
    revision = rings.publish(store, FIRST, "begin", 0, 7)
    assert rings.publish(store, FIRST, "again", 0, 7) is None
    assert rings.publish(store, SECOND, "first", revision, 8) is not None
    other: Ring = next_ring(FIRST, FIRST.members[:2])

    assert rings.publish(store, other, "second", revision, 9) is None
    assert rings.current_ring(store) == SECOND


def test_publishing_keeps_what_operators_said(store) -> None:
    """A paused ring stays paused in its next version."""
    rings.publish(store, FIRST, "begin", 0, 7)
    rings.change_head(store, lambda head: replace(head, paused=True))
    _, revision = rings.ring_head(store)
    rings.publish(store, SECOND, "next", revision, 8)

    assert rings.ring_head(store)[0] == RingHead(2, paused=True)


def test_without_a_ring_everything_says_so(store) -> None:
    """And how one comes about."""
    for ask in (rings.current_ring, rings.ring_head):
        with pytest.raises(NotFound, match="there is no ring"):
            ask(store)
    rings.publish(store, FIRST, "begin", 0, 7)
    with pytest.raises(NotFound, match="version 9 is not kept"):
        rings.ring_at(store, 9)


def test_damaged_version_is_named(store) -> None:
    """No base64, and bytes of another version."""
    rings.publish(store, FIRST, "begin", 0, 7)
    for version, table in ((2, "no!"), (3, base64.b64encode(pack(FIRST)).decode())):
        value = RingVersion(version, 0, "", table).to_bytes()
        store.commit((), (Put(ring_key(version), value),))
        with pytest.raises(Corruption, match=f"ring/versions/0000000{version}"):
            rings.ring_at(store, version)


def test_hashing_is_changed_once(store) -> None:
    """The next version has it; asking again changes nothing."""
    rings.publish(store, FIRST, "begin", 0, 7)
    changed = rings.set_hashing(store, "rendezvous", 8)

    assert (changed.version, changed.hashing) == (2, "rendezvous")
    assert rings.set_hashing(store, "rendezvous", 9) == changed
    assert store.get(RING_HEAD).value == RingHead(2).to_bytes()
