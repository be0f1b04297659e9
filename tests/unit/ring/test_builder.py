"""Versions of the ring: even, deterministic, and moving no more than they must."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torus.errors import UsageError
from torus.ring.builder import HASHINGS, first_ring, next_ring, stages
from torus.ring.codec import pack
from torus.ring.diff import changes, difference
from torus.ring.imagined import evenness, imagined_members, total_movement
from torus.ring.member import RingMember
from torus.ring.share import fair_shares, most_in_a_zone
from torus.ring.table import SLOTS, Ring


def small_ring(nodes: int = 8, zones: int = 4) -> Ring:
    """A ring of mixed weights."""
    return first_ring(imagined_members(nodes, zones, [1, 2, 4]))


def test_members_in_any_order_give_the_same_bytes() -> None:
    """From every builder, whatever order the members came in; also in the next version."""
    members = imagined_members(9, 3, [1, 2, 4], disks=2)
    ring = first_ring(members)
    gone = members[0].disk_id
    following = pack(next_ring(ring, members[1:]))
    for seed in range(2):
        random.Random(seed).shuffle(members)

        assert pack(first_ring(members)) == pack(ring)
        left = [one for one in members if one.disk_id != gone]

        assert pack(next_ring(ring, left)) == following


@pytest.mark.parametrize(("nodes", "zones"), [(3, 1), (20, 5), (20, 1), (60, 4)])
def test_load_is_even(nodes, zones) -> None:
    """For every number of copies that is evened out, within 2 % of what is fair."""
    ring = first_ring(imagined_members(nodes, zones, [3, 4, 5]))
    for copies in (1, 2, 3):
        found = evenness(ring, copies)

        assert found.by_share <= 1.02
        assert found.least_by_share >= 0.97


@pytest.mark.slow
def test_thousand_nodes_are_even() -> None:
    """Mixed weights in 5 zones: nobody has more than 1.02 of the mean by weight."""
    ring = first_ring(imagined_members(1000, 5, [4, 8, 16]))
    new = RingMember("f" * 32, "new", "zone-2", 8)
    step = next_ring(ring, [*ring.members, new])

    assert [one for r in (1, 2, 3) if (one := evenness(ring, r).by_weight) > 1.02] == []
    assert difference(ring, step, 3).excess <= 1.05
    assert len(pack(ring)) * 4 / 3 < 1 << 20


def _changed(members: list[RingMember], kind: str) -> list[RingMember]:
    new = RingMember("0" * 32, "new", members[0].zone, members[0].weight)
    return {
        "join": [*members, new],
        "lost": members[1:],
        "drain": [replace(members[0], weight=0), *members[1:]],
        "heavier": [replace(members[0], weight=members[0].weight * 3 // 2), *members[1:]],
        "lighter": [replace(members[0], weight=members[0].weight // 2), *members[1:]],
    }[kind]


@pytest.mark.parametrize("kind", ["join", "lost", "drain", "heavier", "lighter"])
@pytest.mark.parametrize("nodes", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_change_moves_what_it_must(nodes, kind) -> None:
    """At most 1.05 of the optimum, one copy of a slot at a time, and even afterwards."""
    members = imagined_members(nodes, 5, [8, 10, 12])
    ring = first_ring(members)
    versions = stages(ring, _changed(members, kind))
    for copies in (1, 2, 3):
        found, step_by_step, most = total_movement(ring, versions, copies)

        assert found.excess <= 1.05
        assert step_by_step <= 1.05 * found.optimum
        assert most <= 1
        assert evenness(versions[-1], copies).by_share <= 1.05
    assert next_ring(versions[-1], _changed(members, kind)) is versions[-1]


@pytest.mark.parametrize("nodes", [3, 8])
def test_large_change_takes_few_versions(nodes) -> None:
    """Twice as many nodes: each version brings the ring nearer, and five are enough."""
    ring = first_ring(imagined_members(nodes, 1, [1]))
    versions = stages(ring, imagined_members(2 * nodes, 1, [1]))
    found, step_by_step, most = total_movement(ring, versions, 2)

    assert len(versions) <= 5
    assert (most, step_by_step) == (1, found.moved)
    assert found.excess <= 1.01
    assert evenness(versions[-1], 2).by_share <= 1.02


def test_only_the_new_member_is_given_anything() -> None:
    """A join moves slots to who joined, never between those who were there."""
    members = imagined_members(20, 5, [8, 10, 12])
    ring = first_ring(members)
    for version in stages(ring, _changed(members, "join")):
        assert set(difference(ring, version, 3).received) == {"0" * 32}


def test_lost_member_is_replaced_at_once() -> None:
    """Where it had a copy one other gets it; the copies that are left stay."""
    ring = small_ring()
    lost = ring.members[3]
    following = next_ring(ring, [one for one in ring.members if one is not lost])

    assert following.member(lost.disk_id) is None
    for change in changes(ring, following, 3):
        assert lost.disk_id in change.leaving or len(change.leaving) <= 1
    for slot in range(SLOTS):
        before = {one.disk_id for one in ring.order(slot, 3)}
        if lost.disk_id in before:
            after = {one.disk_id for one in following.order(slot, 3)}
            assert len(after) == 3
            assert before - after == {lost.disk_id}


def test_drained_member_keeps_its_copies_until_they_have_moved() -> None:
    """Weight 0 owns nothing in the end, and is no member of the order's tail."""
    ring = small_ring()
    leaving = ring.members[0].disk_id
    wanted = [replace(one, weight=0) if one.disk_id == leaving else one for one in ring.members]
    final = stages(ring, wanted)[-1]

    assert final.member(leaving) is not None
    assert final.loads(4)[0] == 0
    assert all(one.disk_id != leaving for one in final.order(0, 8))


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_any_history_obeys_the_rule_and_ends(data) -> None:
    """Joins, losses, drains and weights at random: every version legal, no change endless."""
    zones = data.draw(st.integers(1, 4))
    members = imagined_members(data.draw(st.integers(1, 6)), zones, [2, 3], disks=2)
    ring = first_ring(members)
    fresh = 100
    for kind in data.draw(st.lists(st.sampled_from("jldw"), min_size=1, max_size=4)):
        at = data.draw(st.integers(0, len(members) - 1))
        if kind == "j":
            members = members + imagined_members(1, 1, [2], first=fresh)
            members[-1] = replace(members[-1], zone=f"zone-{fresh % zones}")
            fresh += 1
        elif kind == "l" and len(members) > 1:
            members = members[:at] + members[at + 1 :]
        elif len(members) > 1:
            weight = 0 if kind == "d" else 5
            members = [replace(one, weight=weight) if n == at else one
                       for n, one in enumerate(members)]  # fmt: skip
        if not any(one.weight for one in members):
            members[0] = replace(members[0], weight=1)
        before = ring
        for version in stages(ring, members):
            present = {one.disk_id for one in version.members}
            for change in changes(before, version, 3):
                left = [disk for disk in change.leaving if disk in present]
                assert len(left) <= 1 or kind != "w"
            before = version
        ring = before
        assert next_ring(ring, members) is ring
        nodes = {one.node_id for one in members if one.weight}
        for slot in range(0, SLOTS, 509):
            owners = ring.order(slot, 4)
            assert len({one.node_id for one in owners}) == len(owners) == min(4, len(nodes))
            assert all(one.weight for one in owners)


@pytest.mark.slow
@pytest.mark.parametrize("hashing", sorted(HASHINGS))
def test_every_hashing_obeys_the_rule(hashing) -> None:
    """Distinct zones and nodes, for the ring and for what follows it; the change ends."""
    members = imagined_members(8, 4, [1, 2, 3])
    ring = first_ring(members, hashing)
    for version in (ring, *stages(ring, members[1:])):
        for slot in range(0, SLOTS, 101):
            owners = version.order(slot, 4)
            assert len({one.zone for one in owners}) == 4


def test_hashing_can_be_changed_copy_by_copy() -> None:
    """From the default to rendezvous and back, never two copies of a slot at once."""
    ring = small_ring()
    for hashing in ("rendezvous", "partitioned"):
        versions = stages(ring, ring.members, hashing)
        for version in versions:
            assert difference(ring, version, 3).most_at_once <= 1
            ring = version

        assert ring.hashing == hashing


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 50)), min_size=1,
                max_size=12), st.integers(1, 6))  # fmt: skip
def test_fair_shares_add_up(disks, copies) -> None:
    """All places are given out, no node has a slot twice, nothing goes to weight 0."""
    members = [RingMember(f"{n:02}", f"n{node}", f"z{node % 3 if zone else 0}", weight)
               for n, (node, zone, weight) in enumerate(disks)]  # fmt: skip
    by_node = {one.node_id: one.zone for one in reversed(members)}
    members = [replace(one, zone=by_node[one.node_id]) for one in members]
    shares = fair_shares(members, copies, 1000)
    nodes = {one.node_id for one in members if one.weight}

    assert sum(shares) == min(copies, len(nodes)) * 1000
    for node in nodes:
        assert sum(s for s, one in zip(shares, members, strict=True) if one.node_id == node) <= 1000
    assert all(one.weight or not share for share, one in zip(shares, members, strict=True))


@pytest.mark.parametrize("zones", ["aabbcc", "aaabbb", "aaaabc", "aaaaaa", "abcabcab", "abb", "a"])
def test_most_in_a_zone_is_what_the_fullest_slot_has(zones: str) -> None:
    """A node without weight does not count."""
    members = [RingMember(f"{n}", f"n{n}", zone, 1 + n % 2) for n, zone in enumerate(zones)]
    members.append(RingMember("x", "nx", "z", 0))
    ring = first_ring(members)
    for copies in (1, 3, 6):
        slots = (Counter(one.zone for one in ring.order(slot, copies)) for slot in range(2000))
        found = max(count for counted in slots for count in counted.values())

        assert most_in_a_zone(members, copies) == found


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "0 disks without weight"),
        ([RingMember("a", "n", "", 0)], "1 disks without weight"),
        ([RingMember("a", "n", "", 1), RingMember("a", "m", "", 1)], "in the ring twice"),
        ([RingMember("a", "n", "", -1)], "cannot have weight -1"),
        ([RingMember("a", "n", "", 1 << 24)], "cannot have weight 16777216"),
        ([RingMember("a" * 300, "n", "", 1)], "too long a name"),
    ],
)
def test_impossible_members_are_refused(members, message) -> None:
    """With what is wrong about them."""
    with pytest.raises(UsageError, match=message):
        first_ring(members)


def test_node_is_in_one_zone() -> None:
    """That of its first disk, although another was put elsewhere."""
    ring = first_ring([RingMember("a", "n", "x", 1), RingMember("b", "n", "y", 1)])

    assert [one.zone for one in ring.members] == ["x", "x"]
