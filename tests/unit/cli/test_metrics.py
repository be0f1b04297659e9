"""Metrics have names, help and stable edges; the HTTP endpoint answers and refuses politely."""

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from torus.daemon.metrics import (
    EDGES_NS,
    METRICS,
    HistogramSample,
    Sample,
    collect,
    command_samples,
    histogram_sample,
    render,
)
from torus.daemon.status import StatusServer
from torus.errors import Busy, UsageError

DOCUMENT = Path(__file__).parents[3] / "docs" / "operations-metrics.md"


class Counting:
    """A source with one series of each kind."""

    def samples(self):
        """Return them."""
        yield Sample("torus_nbd_connections", 3)
        yield Sample("torus_nbd_requests_total", 7, ("read",))
        yield HistogramSample(
            "torus_nbd_latency_seconds",
            [(512, 1), (6144, 2), (8192, 3), (1 << 40, 4)],
            123_000,
            ("read",),
        )


def test_document_has_every_metric() -> None:
    """The table in docs/operations-metrics.md is the table in the code."""
    rows = re.findall(
        r"^\| `(torus_\w+)` \| (counter|gauge|histogram) \| (.*?) \| (.*) \|$",
        DOCUMENT.read_text(),
        re.M,
    )
    expected = [
        (one.name, one.kind, ", ".join(f"`{label}`" for label in one.labels) or "-", one.meaning)
        for one in METRICS
    ]

    assert expected == rows


def test_names_follow_the_rules_of_prometheus() -> None:
    """Counters end in _total; seconds and bytes are named; no name twice."""
    names = [metric.name for metric in METRICS]

    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"torus_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")
        assert metric.meaning.endswith(".")


def test_rendered_text_is_what_was_counted() -> None:
    """Prometheus' own parser finds the same numbers; buckets are cumulative."""
    families = {
        family.name: family
        for family in text_string_to_metric_families(render(collect([Counting()])).decode())
    }
    latency = families["torus_nbd_latency_seconds"]
    buckets = {
        sample.labels["le"]: sample.value
        for sample in latency.samples
        if sample.name.endswith("_bucket")
    }
    sums = {sample.name: sample.value for sample in latency.samples if "le" not in sample.labels}

    assert families["torus_nbd_connections"].samples[0].value == 3
    assert families["torus_nbd_requests"].samples[0].labels == {"command": "read"}
    assert len(buckets) == len(EDGES_NS) + 1
    assert buckets["4.096e-06"] == 1
    assert buckets["8.192e-06"] == 6
    assert buckets["+Inf"] == 10
    assert list(buckets.values()) == sorted(buckets.values())
    assert sums["torus_nbd_latency_seconds_sum"] == pytest.approx(123e-6)
    assert sums["torus_nbd_latency_seconds_count"] == 10


def test_compiled_counters_are_rendered_exactly() -> None:
    """The fixed edges are edges of the compiled histogram: nothing is counted too high."""
    stats = pytest.importorskip("torus._fast.stats")
    counter = stats.CommandCounter()
    for edge_ns in EDGES_NS:
        counter.add(edge_ns, 1, 4096)
        counter.add(edge_ns + 1, 1, 4096, 1)
    samples = list(command_samples({"write": counter}))
    text = render(samples).decode()

    for index, edge_ns in enumerate(EDGES_NS):
        line = f'le="{edge_ns / 1e9:.9g}"}} {2 * index + 1}.0'
        assert line in text
    assert f'torus_nbd_bytes_total{{command="write"}} {float(len(EDGES_NS) * 2 * 4096)}' in text
    assert f'torus_nbd_errors_total{{command="write"}} {float(len(EDGES_NS))}' in text


def test_empty_histogram_has_all_its_buckets() -> None:
    """A series that begins at zero gives rates from its first event."""

    class Empty:
        sum_ns = 0

        def snapshot(self) -> list[tuple[int, int]]:
            """Return nothing."""
            return []

    text = render([histogram_sample("torus_store_sync_seconds", Empty())]).decode()

    assert text.count("torus_store_sync_seconds_bucket") == len(EDGES_NS) + 1


@pytest.mark.parametrize(
    "sample",
    [
        Sample("torus_nope", 1),
        Sample("torus_nbd_requests_total", 1),
        Sample("torus_nbd_latency_seconds", 1, ("read",)),
        HistogramSample("torus_nbd_connections", [], 0),
    ],
)
def test_sample_outside_the_table_is_a_bug(sample) -> None:
    """Nothing undocumented is exposed."""

    class Wrong:
        def samples(self):
            """Return the wrong one."""
            return [sample]

    with pytest.raises(AssertionError):
        collect([Wrong()])


async def exchange(address: str, request: bytes) -> bytes:
    """Send ``request`` and return all that comes back."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    if not request.endswith(b"\r\n\r\n"):
        writer.write_eof()
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply


def ask(*requests: bytes, problems: tuple[str, ...] = ()) -> list[bytes]:
    """Start a server, send each request, return the replies."""

    async def run() -> list[bytes]:
        server = StatusServer("127.0.0.1:0", [Counting()], lambda: problems)
        await server.start()
        try:
            return [await exchange(server.address, request) for request in requests]
        finally:
            await server.close()
            await server.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("request_bytes", "first_line"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET /healthz?x HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
        (b"GET\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"NBDMAGIC\0\xff\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET / HTTP/1.1\r\n" + b"x" * 9000, b"HTTP/1.1 431"),
        (b"", b"HTTP/1.1 400 Bad Request"),
    ],
)
def test_request_gets_its_status(request_bytes: bytes, first_line: bytes) -> None:
    """Good, wrong and hostile requests get one reply and the connection ends."""
    (reply,) = ask(request_bytes)
    head, _, body = reply.partition(b"\r\n\r\n")

    assert reply.startswith(first_line)
    length = int(re.search(rb"Content-Length: (\d+)", head)[1])
    assert len(body) == (0 if request_bytes.startswith(b"HEAD") else length)


def test_metrics_are_served() -> None:
    """What is rendered is what a scrape gets, with the right content type."""
    (reply,) = ask(b"GET /metrics HTTP/1.1\r\n\r\n")

    assert b"\ntorus_nbd_connections 3.0\n" in reply
    assert b"\nprocess_resident_memory_bytes " in reply
    assert b"Content-Type: text/plain; version=0.0.4" in reply


def test_problems_make_the_health_503() -> None:
    """Each problem is a line."""
    (reply,) = ask(b"GET /healthz HTTP/1.1\r\n\r\n", problems=("disk failed", "pool full"))

    assert reply.startswith(b"HTTP/1.1 503")
    assert reply.endswith(b"\r\n\r\ndisk failed\npool full\n")


def test_address_in_use_or_wrong_is_refused() -> None:
    """The message says which address, and what to do."""

    async def run() -> None:
        server = StatusServer("127.0.0.1:0", [], lambda: ())
        await server.start()
        with pytest.raises(Busy, match=f"{server.address} is in use") as caught:
            await StatusServer(server.address, [], lambda: ()).start()
        assert "--http none" in (caught.value.hint or "")
        await server.close()

    asyncio.run(run())
    for wrong in ("unix:/x", "127.0.0.1", "host:99999"):
        with pytest.raises(UsageError):
            asyncio.run(StatusServer(wrong, [], lambda: ()).start())
