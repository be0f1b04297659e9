"""What `torus status` of a cluster makes of what it found."""

from dataclasses import replace
from typing import Any

import pytest

from torus.cluster.membership import Place
from torus.daemon.health import judge, upkeep_sum
from torus.daemon.survey import DiskView, Survey
from torus.metadata.schema import Cluster, Coordinator, Head, Member, Node, RingHead, VolumeSpec
from torus.ring.builder import first_ring
from torus.ring.member import RingMember
from torus.ring.table import Ring
from torus.volume.catalog_ask import Volume
from torus.wire.messages import SpaceIs, StatusIs

FINE = StatusIs(1, SpaceIs(100, 10, 4, 0, 4 << 20), 0, "")


def view(disk: str, *, up: bool = True, state: str = "in", answer: StatusIs | None = FINE,
         problem: str = "") -> DiskView:  # fmt: skip
    node = f"node-{disk}"
    place = Place(disk, node, f"host-{disk}", "", "h:1" if up else None, state, "i" if up else "")
    member = Member(disk, node, place.host, "", 1, 400 << 20, state, 5)
    return DiskView(place, member, answer if up else None, problem)


def survey(*disks: DiskView, copies: int = 2, least: int = 1, **changes: Any) -> Survey:
    nodes = {
        disk.place.node_id: Node(
            disk.place.node_id, disk.place.host, "k", 1, 1, ("/d",), "", (), "", 1, 1
        )
        for disk in disks
        if disk.place.up
    }
    ring = first_ring(RingMember(d.place.disk_id, d.place.node_id, "", 1) for d in disks)
    spec = VolumeSpec(1, "vm", 1 << 30, f"replica:{copies}", 1, min_copies=least)
    made = Survey(
        cluster=Cluster("11" * 16, 1), nodes=nodes, disks=disks, head=RingHead(1), ring=ring,
        coordinator=Coordinator("node-a", "i", "host-a", 1),
        volumes=(Volume(spec, Head(0, None, (), None), 1, 1),), statuses={}, upkeep=(),
    )  # fmt: skip
    return replace(made, **changes)


def test_all_is_well() -> None:
    health = judge(survey(view("a"), view("b")))
    assert (health.state, health.problems, health.exit_code) == ("ok", (), 0)


def test_node_that_is_down_degrades_and_says_which_volumes_are_short() -> None:
    health = judge(survey(view("a"), view("b", up=False)))
    assert (health.state, health.exit_code) == ("degraded", 69)
    text = "\n".join(health.problems)
    assert "node node-b on host-b is down" in text
    assert "1 of 2 disks of the ring are not up" in text
    assert "volumes vm want 2 copies on distinct nodes, 1 nodes are up" in text
    assert "writes wait" not in text
    stuck = judge(survey(view("a"), view("b", up=False), least=2))
    assert "their writes wait" in "\n".join(stuck.problems)


def ring_of(*zones: str, out: int = 0) -> Ring:
    """Return a ring of a node in each of these zones, the last ``out`` of them without weight."""
    members = [
        RingMember(f"d{number:02}", f"n{number:02}", zone, int(number < len(zones) - out))
        for number, zone in enumerate(zones)
    ]
    return first_ring(members)


def sharded(redundancy: str, ring: Ring) -> Survey:
    """Return a cluster where all is well but, perhaps, the ring for such a volume."""
    disks = [view(f"{number:02}") for number in range(20)]
    spec = VolumeSpec(1, "vm", 1 << 30, redundancy, 1)
    volume = Volume(spec, Head(0, None, (), None), 1, 1)
    ids = {f"d{number:02}" for number in range(len(ring.members))}
    disks = [replace(d, place=replace(d.place, disk_id="d" + d.place.disk_id)) for d in disks]
    assert ids <= {disk.place.disk_id for disk in disks}
    return survey(*disks, ring=ring, volumes=(volume,))


def test_too_few_nodes_for_shards_says_how_many_and_what_to_do() -> None:
    """Nodes without weight do not count."""
    few = judge(sharded("erasure:4+2", ring_of(*[""] * 6, out=2)))
    assert (few.state, few.exit_code) == ("degraded", 1)
    assert few.problems == (
        "volumes vm are erasure:4+2, whose 6 shards take as many nodes, and 4 in the ring have "
        "weight: their chunks stay in whole copies; add 2 nodes or more, or "
        "'torus volume convert'",
    )
    assert judge(sharded("erasure:4+2", ring_of(*[""] * 6))).problems == ()


@pytest.mark.parametrize(
    ("redundancy", "zones", "parts", "wanted"),
    [
        ("erasure:4+2", "aaabbb", 3, 3),  # two zones, three shards in each
        ("erasure:4+2", "aaaabc", 4, 3),  # three, of which one has to take what two cannot
        ("erasure:8+3", "abcabcabcabc", 4, 4),
    ],
)
def test_zone_whose_loss_is_fatal_is_noted(
    redundancy: str, zones: str, parts: int, wanted: int
) -> None:
    """It changes no exit code: nothing is wrong yet."""
    health = judge(sharded(redundancy, ring_of(*zones)))
    assert (health.state, health.exit_code) == ("ok", 0)
    (note,) = health.notes
    assert note.startswith("volumes vm do not outlive the loss of a zone: ")
    assert f"{parts} of the" in note
    assert f"over {wanted} zones or more" in note


@pytest.mark.parametrize(
    ("redundancy", "zones"),
    [("erasure:4+2", "aabbcc"), ("erasure:4+2", "aaaaaa"), ("erasure:2+1", "abc"),
     ("replica:3", "aab"), ("erasure:8+3", "abcdabcdabc")],
)  # fmt: skip
def test_zones_that_do_are_not_spoken_of(redundancy: str, zones: str) -> None:
    """Nor is it where there is but one zone, or where copies are whole."""
    assert judge(sharded(redundancy, ring_of(*zones))).notes == ()


def test_failed_disk_is_told_from_a_node_that_does_not_answer() -> None:
    broken = replace(FINE, failure="write failed")
    failed = judge(survey(view("a"), view("b", answer=broken, problem="write failed")))
    silent = judge(survey(view("a"), view("b", answer=None, problem="no answer in 2 s")))
    assert failed.exit_code == 74
    assert failed.problems == ("disk b of node node-b: write failed",)
    assert silent.exit_code == 69
    assert silent.problems == ("node node-b on host-b does not answer: no answer in 2 s",)


def test_no_node_is_down_and_no_ring_is_a_problem() -> None:
    health = judge(survey(view("a", up=False), head=None, ring=None, volumes=()))
    assert (health.state, health.exit_code) == ("down", 69)
    assert health.problems[0] == "no node is running"
    assert "there is no ring yet" in "\n".join(health.problems)


def test_frozen_ring_is_a_problem_and_a_pause_is_a_note() -> None:
    frozen = judge(survey(view("a"), view("b"), head=RingHead(1, True, "too much is gone")))
    assert frozen.problems == ("the ring is frozen: too much is gone",)
    assert frozen.exit_code == 1
    assert "paused by an operator" in frozen.notes[0]


def test_removed_and_waiting_disks_are_no_problem() -> None:
    gone = view("c", up=False, state="removed")
    health = judge(survey(view("a"), view("b"), view("d", state="waiting"), volumes=()))
    assert health.exit_code == 0
    assert health.notes == ("1 disks wait for 'torus node join'",)
    kept = survey(view("a"), view("b"))
    assert judge(replace(kept, disks=(*kept.disks, gone))).exit_code == 0


def test_what_nodes_say_of_themselves_is_told() -> None:
    health = judge(survey(view("a"), view("b"), statuses={"node-a": {"problems": ["it is hot"]}}))
    assert health.problems == ("node node-a: it is hot",)


def test_upkeep_of_all_disks_is_added_up() -> None:
    one = {"lacking_bytes": {"1": 5, "2": 7}, "moving_bytes": 3, "rate_bytes": 2}
    two = {"lacking_bytes": {}, "moving_bytes": 4, "damaged_chunks": 1}
    total = upkeep_sum([one, two])
    assert (total["lacking_bytes"], total["moving_bytes"]) == (12, 7)
    assert (total["damaged_chunks"], total["rate_bytes"], total["surplus_bytes"]) == (1, 2, 0)
    notes = judge(survey(view("a"), view("b"), upkeep=(one, two))).notes
    assert any("too few copies" in note for note in notes)
