"""Histograms: every duration is in the bucket whose edge is the first at or above it."""

import random

from torus._fast.stats import CommandCounter, Histogram


def test_observe_falls_into_the_right_bucket():
    """Two buckets an octave, edges inclusive."""
    chance = random.Random(11)
    values = [0, 1, 511, 512, 513, 768, 769, 1024, 1025, 2**40, 2**63, 2**64 - 1]
    values += [chance.randrange(2**42) for _ in range(2000)]
    edges = [edge for edge, _ in full().snapshot()]
    assert edges == sorted(set(edges))
    assert edges[:4] == [512, 768, 1024, 1536]
    for value in values:
        histogram = Histogram()
        histogram.observe(value, 3)
        found = histogram.snapshot()
        assert [count for _, count in found] == [0] * (len(found) - 1) + [3]
        index = len(found) - 1
        assert value <= edges[index] or index == len(edges) - 1
        assert index == 0 or value > edges[index - 1]


def full() -> Histogram:
    histogram = Histogram()
    histogram.observe(2**64 - 1)
    return histogram


def test_counter_adds_up():
    """Requests, bytes and errors are summed, latencies counted once a request."""
    counter = CommandCounter()
    counter.add(1000, 32, 131072)
    counter.add(9000, 1, 0, 1)

    assert (counter.requests, counter.bytes, counter.errors) == (33, 131072, 1)
    assert counter.latency.count == 33
    assert counter.latency.sum_ns == 32 * 1000 + 9000
    assert counter.latency.quantile_ns(0.5) == 1024
    assert counter.latency.quantile_ns(1.0) == 9000
    assert Histogram().quantile_ns(0.5) == 0
