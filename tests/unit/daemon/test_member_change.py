"""What an operator may do to nodes and disks, and what is refused with which numbers."""

from dataclasses import replace

import pytest

from tests.unit.daemon.test_health import FINE, survey, view
from torus.daemon.last_copies import Elsewhere
from torus.daemon.member_change import (
    Change,
    carry_out,
    chosen,
    drain,
    join,
    remove,
    set_shape,
)
from torus.daemon.survey import DiskView
from torus.errors import Busy, NotFound, PoolFull, Unavailable, UsageError
from torus.limits import SLOT_BYTES
from torus.metadata.base import Put
from torus.metadata.keys import member_key
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Member
from torus.wire.messages import StatusIs

NOW = 7


def holding(slots: int, size: int = 100) -> StatusIs:
    return replace(FINE, space=replace(FINE.space, used=slots, limit=size))


def states(changes: list[Change]) -> dict[str, str]:
    return {change.after.disk_id: change.after.state for change in changes}


def test_words_mean_nodes_disks_their_beginnings_and_hosts() -> None:
    found = survey(view("aaaa1"), view("aaab2"), view("cccc3"))

    def ids(*words: str) -> list[str]:
        return [disk.place.disk_id for disk in chosen(found, words)]

    assert ids("node-aaaa1") == ids("aaaa1") == ids("host-aaaa1") == ids("aaaa") == ["aaaa1"]
    assert ids("cccc", "aaab2") == ["cccc3", "aaab2"]
    with pytest.raises(UsageError, match="means several"):
        ids("node-aaa")
    for word in ("zzzz", "ccc"):
        with pytest.raises(NotFound, match="no node and no disk"):
            ids(word)


def test_drain_needs_enough_nodes_for_the_copies() -> None:
    found = survey(view("a"), view("b"), view("c"), copies=3)
    with pytest.raises(Busy, match=r"keeps 3 copies .* 2 would be left"):
        drain(found, chosen(found, ["node-c"]), NOW)
    assert states(drain(found, chosen(found, ["node-c"]), NOW, force=True)) == {"c": "draining"}


def test_drain_needs_room_and_says_how_much() -> None:
    """What leaves must fit into 90 % of what stays."""
    big = view("c", answer=holding(81))
    fits = survey(view("a", answer=holding(50)), view("b", answer=holding(49)), big)
    full = survey(view("a", answer=holding(50)), view("b", answer=holding(50)), big)
    assert states(drain(fits, [big], NOW)) == {"c": "draining"}
    with pytest.raises(PoolFull) as caught:
        drain(full, [big], NOW)
    gib = SLOT_BYTES / (1 << 30)
    assert f"{81 * gib:.2f} GiB would have to move" in caught.value.message
    assert f"room for {80 * gib:.2f} GiB" in caught.value.message


def test_drain_does_not_guess_what_a_silent_disk_has() -> None:
    found = survey(view("a"), view("b"), view("c", up=False))
    with pytest.raises(Unavailable, match="cannot be asked"):
        drain(found, chosen(found, ["node-c"]), NOW)


def test_drain_twice_is_nothing_new_and_join_takes_it_back() -> None:
    draining = view("c", state="draining")
    found = survey(view("a"), view("b"), draining)
    assert drain(found, [draining], NOW) == []
    assert states(join([draining, view("a")], NOW)) == {"c": "in"}


ALL = Elsewhere(chunks=9)
FEW = Elsewhere(chunks=9, few=4)
LAST = Elsewhere(chunks=9, few=4, last=2, volumes=["vm"], silent={"x": "no answer"})


@pytest.mark.parametrize(
    ("disk", "elsewhere", "force", "words"),
    [
        (view("c"), None, False, "its data was not moved away"),
        (view("c"), None, True, "its data was not moved away"),
        (view("c", state="draining", answer=holding(3)), None, False, "may be the last copy"),
        (view("c", state="draining", answer=holding(3)), None, True, "may be the last copy"),
        (view("c", state="out", up=False), None, False, "cannot be asked what it still has"),
        (view("c", state="out", up=False), FEW, False, r"4 of the 9 chunks .* \(0.02 GiB\)"),
        (view("c", state="out", up=False), LAST, False, "last copy of 2 of the 9 .* 1 other disks"),
        (view("c", state="out", up=False), LAST, True, "last copy of 2 of the 9 chunks .* of vol"),
        (view("c", up=False), LAST, True, "last copy"),
        (view("c", up=False), ALL, False, "its data was not moved away"),
    ],
)
def test_remove_is_refused_where_data_could_be_lost(
    disk: DiskView, elsewhere: Elsewhere | None, force: bool, words: str
) -> None:
    with pytest.raises(Busy, match=words):
        remove([disk], NOW, elsewhere, force=force)


def test_lost_data_is_given_up_with_two_words_only() -> None:
    """And never that of a disk that is up."""
    gone = view("c", state="out", up=False)
    assert states(remove([gone], NOW, LAST, force=True, lose_data=True)) == {"c": "removed"}
    with pytest.raises(UsageError, match="--force"):
        remove([gone], NOW, LAST, lose_data=True)
    full = view("c", state="draining", answer=holding(3))
    with pytest.raises(Busy, match="last copy"):
        remove([full], NOW, None, force=True, lose_data=True)


@pytest.mark.parametrize(
    ("disk", "elsewhere", "force"),
    [
        (view("c", state="draining", answer=holding(0)), None, False),
        (view("c", state="waiting", answer=holding(0)), None, False),
        (view("c", state="out", up=False), ALL, False),
        (view("c", state="out", up=False), FEW, True),
        (view("c", up=False), ALL, True),
    ],
)
def test_remove_takes_what_is_empty_or_what_others_have(
    disk: DiskView, elsewhere: Elsewhere | None, force: bool
) -> None:
    assert states(remove([disk], NOW, elsewhere, force=force)) == {"c": "removed"}


def test_zone_and_weight_are_set_where_they_differ() -> None:
    disks = [view("a"), view("b")]
    assert set_shape(disks, zone=None, weight=1) == []
    changes = set_shape(disks, zone="east", weight=None)
    assert [(change.after.zone, change.after.weight) for change in changes] == [("east", 1)] * 2


def test_change_holds_only_of_what_it_was_decided_from() -> None:
    """Since when a member is missed does not count: the coordinator writes that."""
    store = MemoryMetadata()
    disk = view("a")
    assert disk.member is not None
    (change,) = set_shape([disk], zone="east", weight=None)
    with pytest.raises(NotFound):
        carry_out(store, [change])

    missed = replace(disk.member, down_ns=99)
    store.commit((), (Put(member_key("a"), missed.to_bytes()),))
    carry_out(store, [change])
    entry = store.get(member_key("a"))
    assert entry is not None
    assert Member.from_bytes(entry.value, entry.key) == replace(missed, zone="east")
    with pytest.raises(Busy, match="changed by somebody else"):
        carry_out(store, [change])
