"""The names of all metrics, and their way from plain counters to Prometheus' text.

Decides what is called how and what it means, in one table; what is counted is decided where
it happens.  Counters are plain numbers and compiled arrays: a prometheus_client counter costs
2 to 5 microseconds an increment, which the data path cannot pay, so they are collected when
someone asks.  prometheus_client (a quarter of a second to import) is loaded at the first
scrape, so that starting a node does not wait for it.

Implements docs/operations-metrics.md; tests/unit/cli/test_metrics.py compares the two.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name, what kind it is, what it means, which labels tell its series apart."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric(
        "torus_build_info",
        "gauge",
        "Always 1; the labels say what runs, `erasure` what computes shards.",
        ("version", "erasure"),
    ),
    Metric("torus_start_time_seconds", "gauge", "When the process started, seconds since 1970."),
    Metric("torus_nbd_connections", "gauge", "Clients connected now."),
    Metric("torus_nbd_connections_total", "counter", "Clients that ever connected."),
    Metric("torus_nbd_connections_refused_total", "counter", "Clients beyond the limit."),
    Metric("torus_nbd_handshakes_failed_total", "counter", "Clients that got no export."),
    Metric("torus_nbd_protocol_errors_total", "counter", "Connections ended for breaking NBD."),
    Metric("torus_nbd_requests_total", "counter", "Requests answered.", ("command",)),
    Metric("torus_nbd_bytes_total", "counter", "Payload bytes read or written.", ("command",)),
    Metric("torus_nbd_errors_total", "counter", "Requests answered with an error.", ("command",)),
    Metric("torus_nbd_latency_seconds", "histogram", "From request to reply.", ("command",)),
    Metric("torus_log_records_total", "counter", "Records appended to logs."),
    Metric("torus_log_bytes_total", "counter", "Bytes appended to logs, headers included."),
    Metric("torus_client_bytes_total", "counter", "Bytes that clients wrote."),
    Metric("torus_collected_bytes_total", "counter", "Bytes that the collector wrote again."),
    Metric("torus_checkpoints_total", "counter", "Checkpoints written."),
    Metric("torus_checkpoint_seconds", "histogram", "Time of one checkpoint."),
    Metric("torus_map_resident_bytes", "gauge", "Memory of the resident block maps."),
    Metric("torus_map_dirty_bytes", "gauge", "Memory of map leaves newer than their page."),
    Metric("torus_volumes_attached", "gauge", "Volumes that this process has open."),
    Metric("torus_volumes_failed", "gauge", "Attached volumes that stopped serving."),
    Metric("torus_volume_size_bytes", "gauge", "Size of an attached volume.", ("volume",)),
    Metric("torus_volume_mapped_bytes", "gauge", "Bytes written and not trimmed.", ("volume",)),
    Metric("torus_volume_live_bytes", "gauge", "Bytes of its log that are live.", ("volume",)),
    Metric("torus_volume_dead_bytes", "gauge", "Bytes of its chunks to be freed.", ("volume",)),
    Metric("torus_volume_pinned_bytes", "gauge", "Chunks only snapshots need.", ("volume",)),
    Metric("torus_volume_snapshots", "gauge", "Snapshots of the volume.", ("volume",)),
    Metric("torus_volume_clients", "gauge", "Clients of an attached volume.", ("volume",)),
    Metric("torus_store_slots", "gauge", "used, trash, free, reserve, quarantined.", ("state",)),
    Metric("torus_store_shards", "gauge", "Shards of chunks under an erasure code."),
    Metric("torus_store_shelf_free_bytes", "gauge", "Of used slots: free cells for more shards."),
    Metric("torus_store_bytes", "gauge", "The same in bytes.", ("state",)),
    Metric("torus_store_sync_requests_total", "counter", "Waits for a segment to be durable."),
    Metric("torus_store_syncs_total", "counter", "fdatasync calls that answered them."),
    Metric("torus_store_sync_seconds", "histogram", "Time of one fdatasync."),
    Metric("torus_cluster_nodes", "gauge", "Nodes that have disks in the cluster."),
    Metric("torus_cluster_nodes_up", "gauge", "Nodes that are registered now."),
    Metric("torus_cluster_disks", "gauge", "Disks of the cluster.", ("state",)),
    Metric("torus_cluster_disks_up", "gauge", "Those that can be reached.", ("state",)),
    Metric("torus_ring_version", "gauge", "Version of the ring; 0: there is none."),
    Metric("torus_ring_frozen", "gauge", "1 while too much is gone to change the ring."),
    Metric("torus_ring_paused", "gauge", "1 while an operator lets no data move."),
    Metric("torus_coordinator", "gauge", "1 on the node that changes the ring."),
    Metric("torus_node_registered", "gauge", "1 while the node holds its registration."),
    Metric("torus_metadata_away_seconds", "gauge", "Since when it cannot be reached; 0: it can."),
    Metric("torus_upkeep_lacking_bytes", "gauge", "To be pulled, too few copies.", ("copies",)),
    Metric("torus_upkeep_degraded_bytes", "gauge", "Copies on disks not up.", ("copies",)),
    Metric("torus_upkeep_moving_bytes", "gauge", "To be pulled, all copies are elsewhere."),
    Metric("torus_upkeep_moving_share", "gauge", "Of the rate, that clients leave what moves."),
    Metric("torus_upkeep_surplus_bytes", "gauge", "Copies that others are to have instead."),
    Metric("torus_upkeep_encoding_bytes", "gauge", "Whole copies whose chunks become shards."),
    Metric(
        "torus_upkeep_short_volumes", "gauge", "Volumes whose shards lack nodes or zones.", ("of",)
    ),
    Metric("torus_upkeep_suspect_chunks", "gauge", "Deleted while a disk was away that has them."),
    Metric("torus_upkeep_damaged_chunks", "gauge", "Lacking, and whole nowhere."),
    Metric("torus_upkeep_unsettled_disks", "gauge", "Disks of the node that lack something."),
    Metric("torus_upkeep_pulled_bytes_total", "counter", "Read from other disks for copies."),
    Metric("torus_upkeep_pulled_chunks_total", "counter", "Copies that were pulled."),
    Metric("torus_upkeep_built_shards_total", "counter", "Shards that were made here."),
    Metric("torus_upkeep_dropped_chunks_total", "counter", "Copies that were given up."),
    Metric("torus_upkeep_errors_total", "counter", "Pulls and rounds that failed."),
    Metric("torus_scrub_read_bytes_total", "counter", "Read again by the scrub."),
    Metric("torus_scrub_chunks_total", "counter", "Chunks and shards that were looked at."),
    Metric("torus_scrub_found_total", "counter", "Damage found, ever.", ("kind",)),
    Metric("torus_scrub_repaired_total", "counter", "Damage repaired, ever.", ("kind",)),
    Metric("torus_scrub_open", "gauge", "Damage that is not repaired yet."),
    Metric("torus_scrub_lost", "gauge", "Damage that nobody has whole."),
    Metric("torus_scrub_running", "gauge", "Disks of the node on a tour now."),
    Metric("torus_scrub_paused", "gauge", "Disks that an operator lets not scrub."),
    Metric("torus_scrub_last_seconds", "gauge", "End of the last whole tour; 0: none.", ("depth",)),
    Metric("torus_disk_failed", "gauge", "Disks of the node that failed and take no data."),
)
# powers of two from 4 microseconds to 34 seconds: edges that the compiled histogram has, too
EDGES_NS = tuple(1 << power for power in range(12, 36))
_BY_NAME = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Sample:
    """A counter's or a gauge's present value; ``labels`` in the order of the table."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HistogramSample:
    """A histogram as `torus._fast.stats.Histogram` keeps it.

    ``counts`` are (upper edge in ns, observations in that bucket alone), edges rising.
    """

    name: str
    counts: Sequence[tuple[int, int]]
    sum_ns: int
    labels: tuple[str, ...] = ()


class Histogram(Protocol):
    """What `torus._fast.stats.Histogram` offers."""

    @property
    def sum_ns(self) -> int:
        """Return the sum of all observations."""

    def snapshot(self) -> list[tuple[int, int]]:
        """Return (upper edge in ns, count) of each bucket."""


class CommandCounter(Protocol):
    """What `torus._fast.stats.CommandCounter` offers."""

    @property
    def requests(self) -> int:
        """Return the requests answered."""

    @property
    def errors(self) -> int:
        """Return those answered with an error."""

    @property
    def bytes(self) -> int:
        """Return their payload bytes."""

    @property
    def latency(self) -> Histogram:
        """Return how long they took."""


class Source(Protocol):
    """Something that counts."""

    def samples(self) -> Iterable[Sample | HistogramSample]:
        """Return the present values; called in the event loop, so it must be quick."""


def command_samples(
    counters: Mapping[str, CommandCounter],
) -> Iterator[Sample | HistogramSample]:
    """Return the samples of NBD commands; keys are their names in lower case: "read", ..."""
    for command, counter in counters.items():
        yield Sample("torus_nbd_requests_total", counter.requests, (command,))
        yield Sample("torus_nbd_bytes_total", counter.bytes, (command,))
        yield Sample("torus_nbd_errors_total", counter.errors, (command,))
        yield histogram_sample("torus_nbd_latency_seconds", counter.latency, command)


def histogram_sample(name: str, histogram: Histogram, *labels: str) -> HistogramSample:
    """Return a histogram's present state under ``name``."""
    return HistogramSample(name, histogram.snapshot(), histogram.sum_ns, labels)


def collect(sources: Iterable[Source]) -> list[Sample | HistogramSample]:
    """Return the samples of all ``sources``, checked against the table.

    Raises: AssertionError for a name that the table does not have, or wrong labels.
    """
    samples = [sample for source in sources for sample in source.samples()]
    for sample in samples:
        metric = _BY_NAME.get(sample.name)
        assert metric is not None, f"metric {sample.name} is not in METRICS"
        assert len(sample.labels) == len(metric.labels), f"{sample.name} has {sample.labels}"
        is_histogram = isinstance(sample, HistogramSample)
        assert is_histogram == (metric.kind == "histogram"), f"{sample.name} is a {metric.kind}"
    return samples


def render(samples: Sequence[Sample | HistogramSample]) -> bytes:
    """Return ``samples``, and the process's own memory and CPU, as Prometheus' text (0.0.4).

    May be called in any thread: it only reads ``samples``.
    """
    from prometheus_client.exposition import generate_latest
    from prometheus_client.process_collector import ProcessCollector

    families = [*_families(samples), *ProcessCollector(registry=None).collect()]
    return generate_latest(_Families(families))


class _Families:
    """What prometheus_client's encoder wants to be given: something that can be collected."""

    def __init__(self, families: "Sequence[Family]") -> None:
        self._families = families

    def collect(self) -> "Sequence[Family]":
        """Return the families."""
        return self._families


def _families(samples: Sequence[Sample | HistogramSample]) -> "list[Family]":
    """Return one family for each metric that has samples, in the table's order."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    families: list[Family] = []
    for metric in METRICS:
        found = [sample for sample in samples if sample.name == metric.name]
        if not found:
            continue
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
            for sample in found:
                if isinstance(sample, HistogramSample):
                    histogram.add_metric(sample.labels, _buckets(sample), sample.sum_ns / 1e9)
            families.append(histogram)
            continue
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.meaning, labels=metric.labels)
        for sample in found:
            if isinstance(sample, Sample):
                family.add_metric(sample.labels, sample.value)
        families.append(family)
    return families


def _buckets(sample: HistogramSample) -> list[tuple[str, float]]:
    """Return cumulative buckets in seconds, ending in +Inf as Prometheus requires.

    The edges are the same in every scrape: Prometheus computes rates bucket by bucket.
    """
    buckets = []
    for edge_ns in EDGES_NS:
        below = sum(count for upper_ns, count in sample.counts if upper_ns <= edge_ns)
        buckets.append((f"{edge_ns / 1e9:.9g}", float(below)))
    return [*buckets, ("+Inf", float(sum(count for _, count in sample.counts)))]
