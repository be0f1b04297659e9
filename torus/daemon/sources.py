"""Where the metrics' numbers come from: the parts of a process, read when someone asks."""

from collections.abc import Iterable, Iterator

from torus import __version__
from torus._fast.stats import Histogram
from torus.clock import Clock
from torus.daemon.metrics import HistogramSample, Sample, command_samples, histogram_sample
from torus.gateway.counters import GatewayStats
from torus.store.store import Store
from torus.volume.attached import AttachedVolumes
from torus.volume.figures import space_figures

Samples = Iterable[Sample | HistogramSample]


class ProcessSource:
    """What runs since when."""

    def __init__(self, clock: Clock) -> None:
        self._began_s = clock.wall_ns() / 1e9

    def samples(self) -> Samples:
        """Return the present values."""
        yield Sample("torus_build_info", 1, (__version__,))
        yield Sample("torus_start_time_seconds", self._began_s)


class NbdSource:
    """The NBD server's counters."""

    def __init__(self, stats: GatewayStats) -> None:
        self._stats = stats

    def samples(self) -> Samples:
        """Return the present values."""
        stats = self._stats
        yield Sample("torus_nbd_connections", stats.connections_open)
        yield Sample("torus_nbd_connections_total", stats.connections)
        yield Sample("torus_nbd_connections_refused_total", stats.connections_refused)
        yield Sample("torus_nbd_handshakes_failed_total", stats.handshakes_failed)
        yield Sample("torus_nbd_protocol_errors_total", stats.protocol_errors)
        yield from command_samples(stats.by_name())


class StoreSource:
    """The disk: slots, syncs, health."""

    def __init__(self, store: Store, sync_times: Histogram) -> None:
        self._store = store
        self._sync_times = sync_times

    def samples(self) -> Samples:
        """Return the present values."""
        usage = self._store.usage
        states = {
            "used": usage.used,
            "trash": usage.trash,
            "free": usage.free,
            "reserve": usage.reserve,
            "quarantined": usage.quarantined,
        }
        for state, slots in states.items():
            yield Sample("torus_store_slots", slots, (state,))
            yield Sample("torus_store_bytes", slots * usage.slot_bytes, (state,))
        yield Sample("torus_store_sync_requests_total", self._store.commits.requests)
        yield Sample("torus_store_syncs_total", self._store.commits.syncs)
        yield histogram_sample("torus_store_sync_seconds", self._sync_times)
        yield Sample("torus_disk_failed", int(self._store.failure is not None))


class VolumesSource:
    """The attached volumes: logs, maps, checkpoints."""

    def __init__(self, volumes: AttachedVolumes, checkpoint_times: Histogram) -> None:
        self._volumes = volumes
        self._checkpoint_times = checkpoint_times

    def samples(self) -> Samples:
        """Return the present values."""
        attached = [attachment.volume for attachment, _ in self._volumes.attachments()]
        cores = [volume.core for volume in attached]
        past = self._volumes.past
        yield Sample("torus_volumes_attached", len(attached))
        yield Sample("torus_volumes_failed", sum(c.failure is not None for c in cores))
        yield Sample(
            "torus_log_records_total", past.records + sum(c.journal.records for c in cores)
        )
        yield Sample(
            "torus_log_bytes_total", past.log_bytes + sum(c.journal.appended_bytes for c in cores)
        )
        yield Sample(
            "torus_client_bytes_total", past.client_bytes + sum(c.client_bytes for c in cores)
        )
        yield Sample(
            "torus_collected_bytes_total",
            past.collected_bytes + sum(c.collected_bytes for c in cores),
        )
        yield Sample(
            "torus_checkpoints_total",
            past.checkpoints + sum(v.checkpointer.count for v in attached),
        )
        yield histogram_sample("torus_checkpoint_seconds", self._checkpoint_times)
        yield Sample("torus_map_resident_bytes", sum(c.blocks.resident_bytes for c in cores))
        yield Sample("torus_map_dirty_bytes", sum(c.blocks.dirty_bytes for c in cores))
        yield from self._each()

    def _each(self) -> Iterator[Sample]:
        for attachment, clients in self._volumes.attachments():
            core = attachment.volume.core
            labels = (core.spec.name,)
            yield Sample("torus_volume_size_bytes", core.spec.size_bytes, labels)
            figures = space_figures(core)
            yield Sample("torus_volume_mapped_bytes", figures.logical_bytes, labels)
            yield Sample("torus_volume_live_bytes", figures.live_bytes, labels)
            yield Sample("torus_volume_dead_bytes", figures.dead_bytes, labels)
            yield Sample("torus_volume_pinned_bytes", figures.pinned_bytes, labels)
            yield Sample("torus_volume_snapshots", figures.snapshots, labels)
            yield Sample("torus_volume_clients", clients, labels)
