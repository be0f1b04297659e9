"""Where the metrics' numbers come from: the parts of a process, read when someone asks."""

from collections.abc import Iterable, Iterator, Sequence

from torus import __version__
from torus._fast.stats import Histogram
from torus.clock import Clock
from torus.daemon.metrics import HistogramSample, Sample, command_samples, histogram_sample
from torus.gateway.counters import GatewayStats
from torus.redundancy.codec import engine_in_use
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
        yield Sample("torus_build_info", 1, (__version__, engine_in_use()))
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
    """The disks of a node together: slots, syncs, health."""

    def __init__(
        self, stores: Sequence[Store], sync_times: Histogram, *, unreadable: int = 0
    ) -> None:
        """``unreadable``: disks that could not be opened."""
        self._stores = stores
        self._sync_times = sync_times
        self._unreadable = unreadable

    def samples(self) -> Samples:
        """Return the present values."""
        stores, usages = self._stores, [store.usage for store in self._stores]
        for state in ("used", "trash", "free", "reserve", "quarantined"):
            slots = [getattr(usage, state) for usage in usages]
            sizes = [count * usage.slot_bytes for count, usage in zip(slots, usages, strict=True)]
            yield Sample("torus_store_slots", sum(slots), (state,))
            yield Sample("torus_store_bytes", sum(sizes), (state,))
        yield Sample("torus_store_shards", sum(store.slots.shards for store in stores))
        free_bytes = sum(store.shelves.free_bytes for store in stores)
        yield Sample("torus_store_shelf_free_bytes", free_bytes)
        yield Sample("torus_store_sync_requests_total", sum(one.commits.requests for one in stores))
        yield Sample("torus_store_syncs_total", sum(one.commits.syncs for one in stores))
        yield histogram_sample("torus_store_sync_seconds", self._sync_times)
        failed = sum(store.failure is not None for store in stores)
        yield Sample("torus_disk_failed", self._unreadable + failed)


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
