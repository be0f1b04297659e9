"""What the coordinator decides: who is put out, taken back, and when nothing may change."""

from collections.abc import Iterable
from dataclasses import replace

from torus.daemon.coordinator_plan import Decision, Patience, Seen, decide, look
from torus.metadata.schema import Member
from torus.ring.member import RingMember

S = 1_000_000_000
PATIENCE = Patience(auto_out_ns=600 * S, join_wait_ns=1 * S, mass_ns=30 * S)
LONG_AGO = 0
NOW = 10_000 * S


def member(disk: str, state: str = "in", *, node: str = "", weight: int = 10) -> Member:
    return Member(disk, node or f"node-{disk}", "host", "", weight, weight << 30, state, 1)


def members(count: int, **others: Member) -> dict[str, Member]:
    return {f"d{i}": member(f"d{i}") for i in range(count)} | others


def shares(known: Iterable[Member], **weights: int) -> tuple[RingMember, ...]:
    ordered = sorted(known, key=lambda one: one.disk_id)
    return tuple(
        RingMember(m.disk_id, m.node_id, m.zone, weights.get(m.disk_id, m.weight)) for m in ordered
    )


def seen(known: dict[str, Member], **down_s: float) -> Seen:
    """Everybody known for long; ``down_s``: disks that are down for so many seconds."""
    down = {disk: NOW - int(ago * S) for disk, ago in down_s.items()}
    return Seen(down, dict.fromkeys(known, LONG_AGO))


def test_first_ring_is_made_at_once_of_the_disks_that_are_up() -> None:
    known = members(2, w=member("w", "waiting"))

    decision = decide(known, None, Seen({"d1": NOW}, {}), NOW, PATIENCE, settled=True)

    assert decision.ring == shares([known["d0"]])
    assert decide({}, None, Seen({}, {}), NOW, PATIENCE, settled=True).ring is None


def test_nothing_is_done_while_all_is_as_it_should_be() -> None:
    known = members(4)
    ring = shares(known.values())
    first = decide(known, ring, seen(known), NOW, PATIENCE, settled=True)
    assert first.ring == ring
    assert first.reason == "the next step of the last change"
    last = decide(known, ring, seen(known), NOW, PATIENCE, settled=True, done=ring)
    assert last == Decision()


def test_new_disks_join_together_after_a_moment() -> None:
    known = members(4)
    ring = shares([known["d0"]])
    fresh = Seen({}, {"d0": LONG_AGO, "d1": LONG_AGO, "d2": NOW - S // 2, "d3": NOW})

    early = decide(known, ring, fresh, NOW, PATIENCE, settled=True, done=ring)
    late = decide(known, ring, fresh, NOW + S, PATIENCE, settled=True)

    assert early.ring is None
    assert "join" in early.waiting
    assert late.ring == shares(known.values())
    assert "3 disks" in late.reason
    assert "joined" in late.reason


def test_new_disk_that_is_down_does_not_join() -> None:
    known = members(3)
    ring = shares([known["d0"], known["d1"]])
    decision = decide(known, ring, seen(known, d2=5), NOW, PATIENCE, settled=True, done=ring)
    assert decision.ring is None
    assert "when they are up" in decision.waiting


def test_new_disk_does_not_wait_for_one_of_the_ring_that_is_down() -> None:
    """It joins beside it; before it is put out, and when it never is."""
    known = members(5)
    ring = shares(members(4).values())
    for patience in (PATIENCE, replace(PATIENCE, auto_out_ns=0)):
        decision = decide(known, ring, seen(known, d1=60), NOW, patience, settled=True)
        assert decision.ring == shares(known.values())


def test_waiting_draining_and_removed_disks_are_not_in_the_ring() -> None:
    known = members(4) | {
        "d1": member("d1", "draining"),
        "d2": member("d2", "removed"),
        "d3": member("d3", "waiting"),
    }
    ring = shares(members(3).values())
    decision = decide(known, ring, seen(known), NOW, PATIENCE, settled=True)
    assert decision.ring == shares([known["d0"], known["d1"]], d1=0)
    assert "d1 draining" in decision.reason
    assert "d2 removed" in decision.reason


def test_disk_is_put_out_after_its_time_and_taken_back_when_it_returns() -> None:
    known = members(4)
    ring = shares(known.values())

    early = decide(known, ring, seen(known, d3=599), NOW, PATIENCE, settled=True, done=ring)
    assert early == Decision()
    out = decide(known, ring, seen(known, d3=600), NOW, PATIENCE, settled=True)
    assert [(m.disk_id, m.state) for m in out.members] == [("d3", "out")]
    assert out.ring == shares([known["d0"], known["d1"], known["d2"]])

    known["d3"] = out.members[0]
    back = decide(known, shares(members(3).values()), seen(known), NOW, PATIENCE, settled=True)
    assert [(m.disk_id, m.state, m.reason) for m in back.members] == [("d3", "in", "it came back")]


def test_no_disk_is_put_out_when_the_operator_wants_none() -> None:
    known = members(4)
    never = replace(PATIENCE, auto_out_ns=0)
    ring = shares(known.values())
    decision = decide(known, ring, seen(known, d3=10**6), NOW, never, settled=True, done=ring)
    assert decision == Decision()


def test_more_than_a_third_gone_together_freezes_everything() -> None:
    """Exactly a third is no mass failure; nor are as many that went one after the other."""
    known = members(6)
    ring = shares(known.values())

    third = decide(known, ring, seen(known, d1=700, d2=700), NOW, PATIENCE, settled=True)
    assert third.frozen == ""
    assert {m.disk_id for m in third.members} == {"d1", "d2"}

    three = decide(known, ring, seen(known, d1=700, d2=685, d3=671), NOW, PATIENCE, settled=True)
    assert three.members == ()
    assert three.ring is None
    assert "3 of 6 disks vanished" in three.frozen
    assert "node-d1, node-d2, node-d3" in three.frozen

    apart = decide(known, ring, seen(known, d1=700, d2=660, d3=620), NOW, PATIENCE, settled=True)
    assert apart.frozen == ""


def test_freeze_ends_when_they_are_back_or_removed() -> None:
    known = members(6)
    ring = shares(known.values())
    assert decide(known, ring, seen(known, d1=40, d2=40), NOW, PATIENCE, settled=True).frozen == ""
    removed = known | {disk: member(disk, "removed") for disk in ("d1", "d2", "d3")}
    decision = decide(removed, ring, seen(removed, d1=9, d2=9, d3=9), NOW, PATIENCE, settled=True)
    assert decision.frozen == ""
    assert decision.ring == shares([known["d0"], known["d4"], known["d5"]])


def test_change_waits_for_the_one_before_but_dead_disks_go_at_once() -> None:
    known = members(5) | {"d3": member("d3", "draining"), "d4": member("d4", "out")}
    ring = shares(members(5).values())

    decision = decide(known, ring, seen(known, d4=5), NOW, PATIENCE, settled=False)

    present = members(4)
    assert decision.ring == shares(present.values())
    assert "has moved" in decision.waiting
    again = decide(known, decision.ring, seen(known, d4=5), NOW, PATIENCE, settled=False)
    assert again.ring is None
    last = decide(known, decision.ring, seen(known, d4=5), NOW, PATIENCE, settled=True)
    assert last.ring == shares(members(4).values(), d3=0)


def test_drained_disk_that_is_gone_leaves_the_ring() -> None:
    known = members(4) | {"d3": member("d3", "draining")}
    ring = shares(members(4).values(), d3=0)
    early = decide(known, ring, seen(known, d3=599), NOW, PATIENCE, settled=True, done=ring)
    late = decide(known, ring, seen(known, d3=600), NOW, PATIENCE, settled=True, done=ring)
    assert early == Decision()
    assert late.ring == shares(members(3).values())
    assert late.members == ()


def test_ring_is_never_emptied() -> None:
    known = {"d0": member("d0", "draining")}
    decision = decide(known, shares(members(1).values()), seen(known), NOW, PATIENCE, settled=True)
    assert decision.ring is None
    assert "no disk would be left" in decision.waiting


def test_weight_and_zone_are_followed() -> None:
    known = members(2) | {"d1": member("d1", weight=99)}
    decision = decide(known, shares(members(2).values()), seen(known), NOW, PATIENCE, settled=True)
    assert decision.ring == shares(known.values())
    assert decision.reason == "zone or weight of disk d1 changed"


def test_look_remembers_since_when() -> None:
    known = members(3) | {"d2": member("d2", "waiting")}

    first = look(Seen({}, {}), known, {"d0", "d1"}, NOW)
    second = look(first, known, {"d0"}, NOW + 1)
    third = look(second, known, {"d0", "d1", "d2"}, NOW + 2)

    assert first == Seen({"d2": NOW}, {"d0": NOW, "d1": NOW})
    assert second == Seen({"d2": NOW, "d1": NOW + 1}, {"d0": NOW, "d1": NOW})
    assert third == Seen({}, {"d0": NOW, "d1": NOW})


def test_members_that_are_missed_are_marked_with_the_time_of_day() -> None:
    known = members(6) | {"d5": member("d5", "removed")}
    known["d4"] = replace(known["d4"], down_ns=77)
    ring = shares(members(5).values())
    wall_ns = 10**18

    marked = decide(
        known, ring, seen(known, d3=5, d5=5), NOW, PATIENCE, settled=True, done=ring,
        wall_ns=wall_ns,
    )  # fmt: skip
    frozen = decide(
        known, ring, seen(known, d2=5, d3=5, d4=5), NOW, PATIENCE, settled=True, wall_ns=wall_ns
    )

    assert {m.disk_id: m.down_ns for m in marked.members} == {"d3": wall_ns - 5 * S, "d4": 0}
    assert {m.disk_id: m.down_ns for m in frozen.members} == dict.fromkeys(
        ("d2", "d3"), wall_ns - 5 * S
    )
    assert frozen.frozen
