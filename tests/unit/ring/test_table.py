"""Owners of slots: the kernel against its oracle, and the rule of zones and nodes."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torus.ids import ChunkId
from torus.ring.builder import first_ring, next_ring
from torus.ring.imagined import imagined_members
from torus.ring.member import RingMember
from torus.ring.table import SLOTS, Ring, slot_of


def _oracle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ORACLE = _oracle()
SHAPES = [(1, 1, 1), (3, 1, 1), (3, 3, 1), (5, 2, 2), (12, 4, 1), (9, 3, 3), (40, 5, 2)]


@cache
def ring_of(nodes: int, zones: int, disks: int) -> Ring:
    """A ring of mixed weights, built once."""
    return first_ring(imagined_members(nodes, zones, [1, 2, 4], disks))


def obeys(ring: Ring, owners: list[RingMember], excluded: frozenset[str] = frozenset()) -> bool:
    """Distinct nodes; no zone used while another with a free node was used less."""
    usable = [one for one in ring.members if one.weight and one.disk_id not in excluded]
    room = {zone: {one.node_id for one in usable if one.zone == zone}
            for zone in {one.zone for one in usable}}  # fmt: skip
    used = dict.fromkeys(room, 0)
    for owner in owners:
        least = min(used[zone] for zone in room if used[zone] < len(room[zone]))
        if used[owner.zone] != least or owner.disk_id in excluded:
            return False
        used[owner.zone] += 1
    return len({owner.node_id for owner in owners}) == len(owners)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1),
       st.integers(0, 2**32 - 1))  # fmt: skip
def test_slot_is_the_one_of_the_document(volume, epoch, tag, sequence) -> None:
    """Every field takes part, in 64-bit integer arithmetic."""
    chunk = ChunkId(volume, epoch, tag, sequence)

    assert slot_of(chunk) == ORACLE.slot_of(*chunk)
    assert slot_of(tuple(chunk)) == ORACLE.slot_of(*chunk)


@pytest.mark.parametrize(
    ("chunk", "slot"),
    [
        (ChunkId(1, 1, 0, 0), 38283),
        (ChunkId(1, 1, 0, 1), 24669),
        (ChunkId(1, 1, 1, 1), 3599),
        (ChunkId(2, 7, 0, 65536), 10604),
        (ChunkId(2**64 - 1, 2**32 - 1, 2**16 - 1, 2**32 - 1), 28382),
    ],
)
def test_slots_stay_for_ever(chunk, slot) -> None:
    """A slot that changed would make every chunk of every cluster misplaced."""
    assert slot_of(chunk) == slot


def test_chunks_of_a_volume_spread_over_the_slots() -> None:
    """Neighbours in a log do not lie together: 65536 chunks hit 63 % of the slots."""
    hit = {slot_of(ChunkId(1, 1, 0, sequence)) for sequence in range(SLOTS)}

    assert 0.62 < len(hit) / SLOTS < 0.645


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_agrees_with_the_oracle(shape) -> None:
    """Any number of owners, any disks excluded: the same list as plain Python makes."""
    ring = ring_of(*shape)
    members = [(one.disk_id, one.node_id, one.zone, one.weight) for one in ring.members]
    for at in range(12):
        slot = at * 5461
        disks = [(at * 7 + k * 5) % len(members) for k in range(at % 5)]
        for excluded in ([], disks):
            names = frozenset(members[number][0] for number in excluded)
            for count in (1, 2, 3, 4, 6, 22):
                expected = ORACLE.order(members, ring.row(slot), slot, count, excluded)

                assert ring.order(slot, count, names) == [ring.members[n] for n in expected]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, SLOTS - 1), st.data())
def test_owners_obey_the_rule(shape, slot, data) -> None:
    """Distinct nodes, zones in turn; fewer owners only where there are no more nodes."""
    ring = ring_of(*shape)
    disks = [member.disk_id for member in ring.members]
    excluded = data.draw(st.frozensets(st.sampled_from(disks), max_size=len(disks) - 1))
    count = data.draw(st.integers(0, len(disks) + 2))
    nodes = {one.node_id for one in ring.members if one.disk_id not in excluded}
    owners = ring.order(slot, count, excluded)

    assert obeys(ring, owners, excluded)
    assert len(owners) == min(count, len(nodes))
    assert owners == ring.order(slot, count + 1, excluded)[:count]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_slot_obeys_the_rule(shape) -> None:
    """Each distinct list of owners among the 65536 does."""
    ring = ring_of(*shape)
    rows = {ring.row(slot): slot for slot in range(SLOTS)}
    checked = list(rows.values())[:: max(1, len(rows) // 2000)]

    assert [slot for slot in checked if not obeys(ring, ring.order(slot, 4))] == []


def test_excluding_a_disk_keeps_the_other_owners() -> None:
    """One copy goes elsewhere, the others stay where they are."""
    ring = ring_of(12, 4, 1)
    for slot in range(0, SLOTS, 397):
        owners = ring.order(slot, 3)
        for lost in owners:
            left = ring.order(slot, 3, {lost.disk_id})

            assert len(left) == 3
            assert {one.disk_id for one in owners} - {one.disk_id for one in left} == {lost.disk_id}
        stranger = next(one for one in ring.members if one not in owners)

        assert ring.order(slot, 3, {stranger.disk_id, "unknown"}) == owners


def test_exclusion_is_near_what_the_ring_without_the_disk_says() -> None:
    """Data written while a disk is out lies right in the next ring, but for what evens it out."""
    ring = ring_of(12, 4, 1)
    lost = ring.members[5]
    following = next_ring(ring, [one for one in ring.members if one is not lost])
    affected = [s for s in range(SLOTS) if lost in ring.order(s, 3)][::10]
    same = sum(
        {one.disk_id for one in ring.order(s, 3, {lost.disk_id})}
        == {one.disk_id for one in following.order(s, 3)}
        for s in affected
    )

    assert same / len(affected) > 0.6


def test_no_such_slot_is_refused() -> None:
    """Neither a slot behind the last nor a negative number of owners."""
    ring = ring_of(3, 1, 1)
    for slot, count in ((SLOTS, 1), (0, -1)):
        with pytest.raises(ValueError):
            ring.order(slot, count)
    with pytest.raises(ValueError, match="bytes is not possible"):
        Ring(1, ring.members, "partitioned", ring.table[:-2])
