"""The budget: so many bytes and operations a second, less while clients are slow, never none."""

from torus.upkeep.budget import Budget

S = 1_000_000_000


def _run(budget: Budget, count: int, operations: int, steps: int) -> float:
    """Return how many seconds so many steps take."""
    now_ns = 0
    for _ in range(steps):
        now_ns += budget.delay_ns(now_ns)
        budget.spent(count, operations, now_ns)
    return now_ns / S


def test_rate_of_bytes_and_of_operations_is_kept() -> None:
    """Whichever of the two is used up first counts."""
    assert 9.0 <= _run(Budget(1000, 10**9), 100, 1, 100) <= 10.0
    assert 9.0 <= _run(Budget(10**12, 10), 1, 1, 100) <= 10.0


def test_rate_is_halved_while_clients_are_slow_and_comes_back() -> None:
    """Late turns, or somebody who says so, halve it step by step; it never gets to nothing."""
    budget = Budget(1000, 10**9, slow_ns=100)
    budget.waited(101)
    assert budget.share == 0.5
    budget.waited(0, slow=True)
    assert budget.share == 0.25
    for _ in range(100):
        budget.waited(101)
    assert 0 < budget.share <= 0.1
    slow_s = _run(budget, 100, 1, 10)
    assert slow_s > 9.0
    for _ in range(200):
        budget.waited(0)
    assert budget.share == 1.0


def test_idle_time_is_not_saved_up() -> None:
    """After a pause there is no burst."""
    budget = Budget(1000, 10**9)
    budget.spent(100, 1, 0)
    assert budget.delay_ns(50 * S) == 0
    budget.spent(1000, 1, 50 * S)
    assert budget.delay_ns(50 * S) == S
