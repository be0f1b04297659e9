"""Every metric of the table is fed by a process, and by nothing else."""

from types import SimpleNamespace

import pytest

from torus.clock import SystemClock
from torus.daemon.metrics import METRICS, collect, render

pytest.importorskip("torus._fast.stats")

from torus._fast.stats import Histogram
from torus.daemon.sources import NbdSource, ProcessSource, StoreSource, VolumesSource
from torus.gateway.counters import GatewayStats


def stand_ins() -> tuple[object, object]:
    """Return a store and volumes that have just what is read of them."""
    usage = SimpleNamespace(used=3, free=5, reserve=4, quarantined=1, slot_bytes=1 << 22)
    store = SimpleNamespace(usage=usage, commits=SimpleNamespace(syncs=7, requests=9), failure=None)
    blocks = SimpleNamespace(
        resident_bytes=10, dirty_bytes=2, mapped_blocks=6, live_units=lambda: 48
    )
    core = SimpleNamespace(
        journal=SimpleNamespace(records=100, appended_bytes=1000),
        blocks=blocks,
        spec=SimpleNamespace(name="disk", size_bytes=1 << 30),
        failure=OSError("lost"),
    )
    volume = SimpleNamespace(core=core, checkpointer=SimpleNamespace(count=2))
    volumes = SimpleNamespace(
        past=SimpleNamespace(records=11, log_bytes=111, checkpoints=1),
        attachments=lambda: [(SimpleNamespace(volume=volume), 2)],
    )
    return store, volumes


def test_sources_feed_every_metric_of_the_table() -> None:
    """Nothing documented is missing; totals include what was detached."""
    store, volumes = stand_ins()
    samples = collect(
        [
            ProcessSource(SystemClock()),
            NbdSource(GatewayStats()),
            StoreSource(store, Histogram()),
            VolumesSource(volumes, Histogram()),
        ]
    )
    text = render(samples).decode()

    assert {metric.name for metric in METRICS} == {sample.name for sample in samples}
    assert "\ntorus_log_records_total 111.0\n" in text
    assert "\ntorus_log_bytes_total 1111.0\n" in text
    assert "\ntorus_checkpoints_total 3.0\n" in text
    assert "\ntorus_volumes_failed 1.0\n" in text
    assert '\ntorus_volume_mapped_bytes{volume="disk"} 24576.0\n' in text
    assert '\ntorus_store_bytes{state="free"} 2.097152e+07\n' in text
