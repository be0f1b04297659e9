"""Where chunks lie: what the rings between a span's and the present one add."""

import asyncio

import pytest

from tests.unit.upkeep.town import ring_of
from torus.cluster.membership import Place
from torus.cluster.placement import Placement
from torus.errors import Unavailable
from torus.ids import ChunkId
from torus.metadata.schema import Span
from torus.redundancy.scheme import replica
from torus.testing.membership import StaticMembership

DISKS = [letter * 32 for letter in "abcdef"]


def _view() -> StaticMembership:
    places = [Place(disk, disk, "h", "", "unix:x", "in") for disk in DISKS]
    view = StaticMembership(places)
    for version, disks in enumerate((DISKS[:3], DISKS[1:4], DISKS[2:5], DISKS[3:6]), 1):
        view.set_ring(ring_of(version, disks))  # type: ignore[arg-type]
    return view


def test_disks_that_ever_had_to_have_a_chunk_include_those_in_between() -> None:
    """A deletion must reach who has not given its copy up yet."""
    view = _view()
    placement = Placement(view, replica(2))
    placement.learn(1, [Span(1, 0, 1, 500, None, 1)])
    newest = view.ring.version
    more = 0
    for sequence in range(1, 501):
        chunk = ChunkId(1, 1, 0, sequence)
        between = {
            member.disk_id
            for version in range(1, newest + 1)
            for member in view.ring_at(version).owners(chunk, 2)
        }
        assert set(placement.ever(chunk)) == between
        assert set(placement.owners(chunk)) <= between
        more += len(between) > len(placement.owners(chunk))
    assert more > 0


@pytest.mark.parametrize("forgotten", [1, 2, 3])
def test_a_deletion_goes_to_everybody_where_a_ring_is_forgotten(forgotten: int) -> None:
    """Who was an owner only then may have a copy still."""
    view = _view()
    del view._rings[forgotten]
    placement = Placement(view, replica(2))
    placement.learn(1, [Span(1, 0, 1, 500, None, 1), Span(1, 1, 501, None, None, 4)])
    assert set(placement.ever(ChunkId(1, 1, 0, 7))) == set(DISKS)
    assert len(placement.ever(ChunkId(1, 1, 1, 501))) == 2


def test_nothing_follows_from_a_ring_that_is_forgotten() -> None:
    """A closed span's chunks are looked for in the present ring, and nobody is given a copy because
    of the old one; where an open span lies has to be known."""
    view = _view()
    del view._rings[2]
    placement = Placement(view, replica(2))
    placement.learn(1, [Span(1, 0, 1, 500, None, 2), Span(1, 1, 501, None, None, 2)])
    closed, opened = ChunkId(1, 1, 0, 7), ChunkId(1, 1, 1, 501)

    asyncio.run(placement.fetch(closed))
    with pytest.raises(Unavailable, match="cannot be told"):
        asyncio.run(placement.fetch(opened))

    assert placement.owners(closed) == [one.disk_id for one in view.ring.owners(closed, 2)]
    assert not any(placement.stays_on(closed, disk) for disk in DISKS)
    assert not placement.covers(closed, DISKS)
    assert set(placement.ever(closed)) == set(DISKS)


def test_chunk_of_an_open_span_lies_where_it_was_written() -> None:
    """Open chunks never move, so no ring in between counts."""
    placement = Placement(_view(), replica(2))
    placement.learn(1, [Span(1, 0, 1, None, None, 1)])
    chunk = ChunkId(1, 1, 0, 7)
    assert placement.ever(chunk) == placement.written_to(chunk)


def test_chunk_stays_only_where_it_was_written_and_still_belongs() -> None:
    """A read that finds no copy where one was given up must not put it there again."""
    view = _view()
    placement = Placement(view, replica(2))
    placement.learn(1, [Span(1, 0, 1, 500, None, 2), Span(1, 1, 501, None, None, 2)])
    for sequence in range(1, 501):
        chunk = ChunkId(1, 1, 0, sequence)
        present = {member.disk_id for member in view.ring.owners(chunk, 2)}
        stays = {disk for disk in DISKS if placement.stays_on(chunk, disk)}
        assert stays == set(placement.written_to(chunk)) & present
    opened = ChunkId(1, 1, 1, 501)
    assert all(placement.stays_on(opened, disk) for disk in placement.written_to(opened))
