"""What `torus ring rebalance` says in its last line."""

from torus.cli.ring_rebalance import _sentence
from torus.cluster.membership import Place
from torus.daemon.rebalance import ClusterState, DiskState
from torus.metadata.schema import RingHead
from torus.upkeep.progress import Progress, as_document


def _state(*shares: float) -> ClusterState:
    disks = []
    for number, share in enumerate(shares):
        place = Place(f"{number}" * 32, f"{number}" * 32, "h", "", "unix:x", "in")
        progress = Progress(place.disk_id, ring=1, moving_bytes=1 << 20, moving_share=share)
        disks.append(DiskState(place, as_document(progress, 100.0)))
    return ClusterState(RingHead(1), tuple(disks))


def test_it_says_when_clients_slow_it_down() -> None:
    assert "what moves goes at 6% of its rate: clients come first" in _sentence(_state(0.0625, 0.5))
    assert "clients" not in _sentence(_state(1.0, 0.0))


def test_nodes_of_an_earlier_version_say_nothing_of_it() -> None:
    state = _state(0.5)
    assert state.disks[0].report is not None
    del state.disks[0].report["moving_share"]
    assert "clients" not in _sentence(state)
