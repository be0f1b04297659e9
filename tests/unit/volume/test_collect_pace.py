"""The budget of a background collection."""

from torus.volume.collect_pace import Pacer

MS = 1_000_000


def test_steps_are_spread_over_the_rate() -> None:
    """1 MB at 100 MB/s is 10 ms; a pause is not saved up."""
    pacer = Pacer(100_000_000)
    assert pacer.delay_ns(0) == 0
    pacer.moved(1_000_000, 0, 0)
    assert pacer.delay_ns(0) == 10 * MS
    assert pacer.delay_ns(4 * MS) == 6 * MS
    assert pacer.delay_ns(50 * MS) == 0
    pacer.moved(1_000_000, 0, 50 * MS)
    assert pacer.delay_ns(50 * MS) == 10 * MS


def test_clients_that_wait_slow_it_down_and_it_recovers() -> None:
    """Halved by each late step, back a little with each timely one, never to nothing."""
    pacer = Pacer(100_000_000, slow_ns=5 * MS)
    pacer.moved(0, 6 * MS, 0)
    pacer.moved(0, 6 * MS, 0)
    assert pacer.share == 0.25
    pacer.moved(1_000_000, 6 * MS, 0)
    assert pacer.delay_ns(0) == 80 * MS
    for _ in range(50):
        pacer.moved(0, 6 * MS, 0)
    assert pacer.share == 1 / 64
    for _ in range(100):
        pacer.moved(0, 1 * MS, 0)
    assert pacer.share == 1.0
