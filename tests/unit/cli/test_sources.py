"""Every metric of the table is fed by a process, and by nothing else."""

from types import SimpleNamespace

import pytest

from torus.clock import SystemClock
from torus.daemon.metrics import METRICS, collect, render
from torus.testing.clock import ManualClock

pytest.importorskip("torus._fast.stats")

from torus._fast.stats import Histogram
from torus.daemon.cluster_source import ClusterSource
from torus.daemon.reports import ClusterStatus
from torus.daemon.scrub import NodeScrub
from torus.daemon.sources import NbdSource, ProcessSource, StoreSource, VolumesSource
from torus.daemon.upkeep import RunningUpkeep
from torus.daemon.upkeep_source import UpkeepSource
from torus.gateway.counters import GatewayStats
from torus.metadata.schema import RootRef, Snapshot, Span
from torus.store.space import Usage
from torus.upkeep.node import NodeUpkeep
from torus.volume.past import Past
from torus.volume.pins import Pins


def stand_ins() -> tuple[object, object]:
    """Return a store and volumes that have just what is read of them."""
    usage = Usage(limit=20, used=3, trash=7, reserve=4, quarantined=1, slot_bytes=1 << 22)
    store = SimpleNamespace(
        usage=usage, commits=SimpleNamespace(syncs=7, requests=9), failure=None,
        slots=SimpleNamespace(shards=12), shelves=SimpleNamespace(free_bytes=4096),
    )  # fmt: skip
    blocks = SimpleNamespace(
        resident_bytes=10, dirty_bytes=2, mapped_blocks=6, live_units=lambda: 48,
        usage=SimpleNamespace(counts=lambda: {1: 40, 2: 8, 3: 0, 4: 0, 5: 0}),
        dead=lambda first, last: [n for n in (3, 4, 5) if first <= n <= last],
        era=lambda sequence: {3: 2, 4: 1, 5: 0}[sequence],
    )  # fmt: skip
    root = RootRef(3, 512, 1024, 1, 3, 1536, 1)
    snapshots = [Snapshot(1, number, f"s{number}", "u", 1, 1 << 30, root) for number in (2, 3)]
    core = SimpleNamespace(
        journal=SimpleNamespace(records=100, appended_bytes=1000),
        blocks=blocks,
        spec=SimpleNamespace(name="disk", size_bytes=1 << 30),
        failure=OSError("lost"),
        chunks=SimpleNamespace(slot_bytes=1 << 20),
        pins=Pins(snapshots),
        spans=(Span(1, 0, 1, 2, 512), Span(2, 0, 3)),
        client_bytes=500,
        collected_bytes=100,
    )
    volume = SimpleNamespace(core=core, checkpointer=SimpleNamespace(count=2))
    volumes = SimpleNamespace(
        past=Past(11, 111, 50, 20, 1),
        attachments=lambda: [(SimpleNamespace(volume=volume), 2)],
    )
    return store, volumes


def test_sources_feed_every_metric_of_the_table() -> None:
    """Nothing documented is missing; totals include what was detached."""
    store, volumes = stand_ins()
    membership = SimpleNamespace(disks=dict, nodes=dict)
    status = lambda: ClusterStatus(True, 2, 3, 7, "", False, None, True)  # noqa: E731
    samples = collect(
        [
            ProcessSource(SystemClock()),
            NbdSource(GatewayStats()),
            StoreSource([store], Histogram()),
            ClusterSource(membership, status),
            NodeScrub(),
            UpkeepSource(RunningUpkeep(NodeUpkeep(ManualClock()), None)),  # type: ignore[arg-type]
            VolumesSource(volumes, Histogram()),
        ]
    )
    text = render(samples).decode()

    assert {metric.name for metric in METRICS} == {sample.name for sample in samples}
    assert "\ntorus_log_records_total 111.0\n" in text
    assert "\ntorus_log_bytes_total 1111.0\n" in text
    assert "\ntorus_checkpoints_total 3.0\n" in text
    assert "\ntorus_client_bytes_total 550.0\n" in text
    assert "\ntorus_collected_bytes_total 120.0\n" in text
    assert '\ntorus_volume_live_bytes{volume="disk"} 24576.0\n' in text
    assert '\ntorus_volume_pinned_bytes{volume="disk"} 1.048576e+06\n' in text
    assert '\ntorus_volume_dead_bytes{volume="disk"} 4.169728e+06\n' in text  # 4 MiB - 24 KiB
    assert '\ntorus_volume_snapshots{volume="disk"} 2.0\n' in text
    assert '\ntorus_store_slots{state="trash"} 7.0\n' in text
    assert "\ntorus_volumes_failed 1.0\n" in text
    assert '\ntorus_volume_mapped_bytes{volume="disk"} 24576.0\n' in text
    assert '\ntorus_store_bytes{state="free"} 2.097152e+07\n' in text
