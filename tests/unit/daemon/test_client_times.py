"""Whether clients are slow: a p99 over a moving window, from histograms that only grow."""

import pytest

from torus._fast.stats import Histogram
from torus.daemon.client_times import ClientTimes
from torus.testing.clock import ManualClock

MS = 1_000_000
SECOND = 1_000_000_000


@pytest.fixture
def reads() -> Histogram:
    return Histogram()


@pytest.fixture
def times(reads: Histogram, clock: ManualClock) -> ClientTimes:
    writes = Histogram()
    return ClientTimes(lambda: (reads, writes), clock, slow_ns=50 * MS, window_s=2.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_slow_clients_are_seen_and_forgotten(
    times: ClientTimes, reads: Histogram, clock: ManualClock
) -> None:
    """Two of a hundred requests above the bound are enough, one is not; then all is well again."""
    reads.observe(500 * MS, 1000)
    assert not times.slow(), "what was before the first look does not count"
    for late, slow in ((1, False), (9, True)):
        reads.observe(1 * MS, 198)
        reads.observe(80 * MS, late)
        clock.advance(int(0.6 * SECOND))
        assert times.slow() is slow, f"{late} late ones"
    for _ in range(8):
        clock.advance(int(0.6 * SECOND))
        reads.observe(1 * MS, 200)
        last = times.slow()
    assert last is False


def test_few_requests_say_nothing(times: ClientTimes, reads: Histogram, clock: ManualClock) -> None:
    times.slow()
    reads.observe(900 * MS, 19)
    clock.advance(int(0.6 * SECOND))
    assert not times.slow()


def test_looks_are_seldom(times: ClientTimes, reads: Histogram, clock: ManualClock) -> None:
    """Between two looks the answer stays."""
    times.slow()
    reads.observe(900 * MS, 100)
    clock.advance(int(0.1 * SECOND))
    assert not times.slow()
    clock.advance(int(0.5 * SECOND))
    assert times.slow()


def test_long_silence_starts_anew(times: ClientTimes, reads: Histogram, clock: ManualClock) -> None:
    """Upkeep that begins after an hour does not judge by that hour."""
    times.slow()
    reads.observe(900 * MS, 100)
    clock.advance(3600 * SECOND)
    assert not times.slow()
