"""`torus ring`: what is shown, simulated, set and refused."""

import json

import pytest

from torus.clock import SystemClock
from torus.daemon import rings
from torus.metadata.open import open_metadata
from torus.ring.builder import first_ring, next_ring
from torus.ring.imagined import imagined_members

FIRST = first_ring(imagined_members(4, 2, [1, 2]))
SECOND = next_ring(FIRST, FIRST.members[1:])


@pytest.fixture
def with_ring(run, tmp_path):
    """A cluster's metadata with two versions of a ring."""
    run("volume", "create", "disk", "1GiB")
    store = open_metadata(f"sqlite:{tmp_path}/home/meta.sqlite", SystemClock())
    revision = rings.publish(store, FIRST, "begin", 0, 7)
    rings.publish(store, SECOND, "a disk is lost", revision, 8)
    yield run
    store.close()


def test_show_lists_disks_with_their_shares(with_ring) -> None:
    """Of the present version, or of an older one; shares add up."""
    ring = json.loads(with_ring("ring", "show", "-o", "json").out)["ring"]
    first = json.loads(with_ring("ring", "show", "--version", "1", "-o", "json").out)["ring"]

    assert (ring["version"], ring["is_current"], len(ring["members"])) == (2, True, 3)
    assert (first["version"], first["is_current"], len(first["members"])) == (1, False, 4)
    assert sum(one["share"] for one in ring["members"]) == pytest.approx(1)
    assert "ring version 2, holds now: partitioned" in with_ring("ring", "show").out
    assert "version 2 holds now" in with_ring("ring", "show", "--version", "1").out


def test_show_lists_every_slot(with_ring) -> None:
    """With as many owners as copies."""
    lines = with_ring("ring", "show", "--slots", "--copies", "2").out.splitlines()

    assert len(lines) == 65536
    assert {len(line.split()) for line in lines} == {3}


def test_history_says_why(with_ring) -> None:
    """Oldest first, the present one marked."""
    lines = with_ring("ring", "history").out.splitlines()

    assert [line.split()[0] for line in lines] == ["VERSION", "1", "*2"]
    assert lines[2].endswith("a disk is lost")


def test_diff_says_what_moves(with_ring) -> None:
    """In all, by disk, and by slot when asked."""
    diff = json.loads(with_ring("ring", "diff", "1", "2", "--slots", "-o", "json").out)["diff"]

    assert (diff["from"], diff["to"], diff["copies"], diff["most_at_once"]) == (1, 2, 3, 1)
    assert diff["slots"] == len(diff["changes"]) > 0
    assert sum(diff["received"].values()) == diff["moved"]
    assert "0.00% of all copies move" in with_ring("ring", "diff", "2", "2").out


def test_simulation_needs_no_cluster(run) -> None:
    """It measures a ring and a change of it."""
    words = ("--nodes", "20", "--zones", "5", "--add", "1", "-o", "json")
    found = json.loads(run("ring", "simulate", *words).out)["simulation"]

    assert (found["nodes"], found["zones"]) == (20, 5)
    assert [one["copies"] for one in found["evenness"]] == [1, 2, 3]
    assert found["change"]["excess"] < 1.05
    assert "built in" in run("ring", "simulate", "--nodes", "3").out


def test_simulation_of_the_cluster(with_ring) -> None:
    """It begins with the ring that holds, and stores nothing."""
    found = json.loads(
        with_ring("ring", "simulate", "--current", "--drain", "1", "-o", "json").out
    )["simulation"]

    assert found["members"] == 3
    assert found["change"]["versions"] >= 1
    assert "*2" in with_ring("ring", "history").out


def test_set_pauses_and_freezes(with_ring) -> None:
    """And ends both; a second freeze replaces the reason."""
    paused = json.loads(with_ring("ring", "set", "--pause", "-o", "json").out)["ring"]
    frozen = json.loads(with_ring("ring", "set", "--freeze", "work", "-o", "json").out)["ring"]

    assert paused == {"version": 2, "paused": True, "frozen": ""}
    assert frozen == {"version": 2, "paused": True, "frozen": "by an operator: work"}
    assert "paused by an operator" in with_ring("ring", "show").err

    ended = with_ring("ring", "set", "--resume", "--unfreeze")

    assert ended.out == "ring version 2: data moves, the ring changes\n"


def test_freeze_by_itself_is_not_ended_by_hand(with_ring, tmp_path) -> None:
    """It would come back at once; the hint says what ends it."""
    store = open_metadata(f"sqlite:{tmp_path}/home/meta.sqlite", SystemClock())
    rings.change_head(store, lambda head: type(head)(head.version, frozen="2 of 3 disks are gone"))
    store.close()
    ended = with_ring("ring", "set", "--unfreeze")

    assert ended.code == 64
    assert "the ring froze by itself: 2 of 3 disks are gone" in ended.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("show", "--version", "9"), 5, "ring version 9 is not kept"),
        (("show", "--version", "x"), 64, "--version 'x' is no version of a ring"),
        (("show", "--copies", "4"), 64, "--copies '4' cannot be"),
        (("diff", "0", "2"), 64, "version '0' is no version"),
        (("set",), 64, "nothing to set"),
        (("set", "--pause", "--resume"), 64, "contradict each other"),
        (("set", "--freeze", "x", "--unfreeze"), 64, "contradict each other"),
        (("set", "--hashing", "md5"), 64, "invalid choice"),
        (("simulate", "--nodes", "0"), 64, "--nodes '0' cannot be"),
        (("simulate", "--nodes", "3", "--zones", "4"), 64, "--zones '4' cannot be"),
        (("simulate", "--weights", "1,x"), 64, "--weights 'x' cannot be"),
        (("simulate", "--current", "--nodes", "3"), 64, "--nodes is for an imagined ring"),
        (("simulate", "--nodes", "3", "--remove", "3"), 64, "--remove '3' cannot be"),
        (("simulate", "--reweigh", "-1"), 64, "--reweigh '-1' is no factor"),
    ],
)
def test_wrong_request_is_refused(with_ring, words, code: int, message: str) -> None:
    """With its exit code, and one message."""
    ended = with_ring("ring", *words)

    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err


def test_without_a_ring_it_says_so(run) -> None:
    """A single machine has none."""
    run("volume", "create", "disk", "1GiB")

    assert "there is no ring" in run("ring", "show").err
