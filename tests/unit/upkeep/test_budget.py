"""The budget: so many bytes and operations a second, less while clients are slow, never none."""

from collections.abc import Callable

import pytest

from torus.upkeep.budget import MOVING_SHARE_MIN, Budget, MovingShare

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


def _steps(budget: Budget, begin_s: float, seconds: float, late: Callable[[int], bool]) -> float:
    """Make sixty steps a second of which those are late, and return the mean of the share."""
    count = int(seconds * 60)
    shares = []
    for number in range(count):
        budget.waited(101 if late(number) else 0, int((begin_s + number / 60) * S))
        shares.append(budget.share)
    return sum(shares) / count


def test_rate_is_halved_while_clients_are_slow_and_comes_back() -> None:
    """Late turns, or somebody who says so, halve it again and again; it never gets to nothing."""
    budget = Budget(1000, 10**9, slow_ns=100)
    budget.waited(101, S)
    assert budget.share == 0.5
    budget.waited(0, S + S // 2, slow=True)
    assert budget.share == 0.25
    _steps(budget, 2, 3, lambda _: True)
    assert 0 < budget.share <= 0.1
    slow_s = _run(budget, 100, 1, 10)
    assert slow_s > 9.0
    _steps(budget, 5, 4.5, lambda _: False)
    assert budget.share == 1.0


def test_somebody_who_says_slow_between_two_looks_is_heard() -> None:
    """Each step asks; the look comes a quarter of a second after the last one."""
    budget = Budget(1000, 10**9, slow_ns=100)
    budget.waited(0, S)
    budget.waited(0, S + S // 10, slow=True)
    assert budget.share == 1.0
    budget.waited(0, S + S // 4)
    assert budget.share == 0.5


def test_one_late_turn_of_many_steps_counts_once() -> None:
    """Steps that run side by side all wait for the same late turn: it is one of the turns."""
    budget = Budget(1000, 10**9, slow_ns=100)
    assert _steps(budget, 1, 1, lambda _: False) == 1.0
    for _ in range(8):
        budget.waited(150, 2 * S)
    assert _steps(budget, 2.001, 1, lambda _: False) == 1.0


@pytest.mark.parametrize(("of", "least", "most"), [(20, 0.9, 1.0), (4, 0.0, 0.1)])
def test_late_turns_count_by_their_share(of: int, least: float, most: float) -> None:
    """One late turn of twenty is what a busy machine does to everybody; one of four is too much.
    Without that the rate was at its least whenever the machine had more to do."""
    budget = Budget(1000, 10**9, slow_ns=100)
    _steps(budget, 0, 10, lambda number: number % of == 0)
    assert least <= _steps(budget, 10, 10, lambda number: number % of == 0) <= most


def test_nobody_looked_for_long_is_no_reason_for_the_whole_rate() -> None:
    """The share comes back by the steps that find clients well, not by those that are not made."""
    budget = Budget(1000, 10**9, slow_ns=100)
    _steps(budget, 0, 3, lambda _: True)
    low = budget.share
    budget.waited(0, 4 * S)  # what was late before still counts here
    budget.waited(0, 1000 * S)
    assert budget.share == 2 * low < 0.2


def test_idle_time_is_not_saved_up() -> None:
    """After a pause there is no burst."""
    budget = Budget(1000, 10**9)
    budget.spent(100, 1, 0)
    assert budget.delay_ns(50 * S) == 0
    budget.spent(1000, 1, 50 * S)
    assert budget.delay_ns(50 * S) == S


def _moving(share: MovingShare, seconds: float, hurt: bool | None, begin_s: float = 0.0) -> float:
    """Make ten steps a second of what moves; return the last one's share."""
    last = 0.0
    for number in range(int(seconds * 10)):
        last = share.step(int((begin_s + number / 10) * S), hurt)
    return last


def test_what_moves_begins_slowly_and_gives_way() -> None:
    """It doubles in three seconds, is halved once for what is said within two, and never ends."""
    share = MovingShare()
    assert share.step(0, hurt=False) == MOVING_SHARE_MIN
    assert share.step(3 * S, hurt=False) == pytest.approx(2 * MOVING_SHARE_MIN)
    assert _moving(share, 12, False, 3) == 1.0
    assert share.step(15 * S, hurt=True) == 0.5
    assert share.step(16 * S, hurt=True) == 0.5
    assert share.step(17 * S, hurt=True) == 0.25
    assert _moving(share, 20, True, 18) == MOVING_SHARE_MIN


def test_what_moves_has_the_whole_rate_without_clients_and_begins_anew_with_them() -> None:
    """Clients who come are not met by a share that they never felt."""
    share = MovingShare()
    assert _moving(share, 1, None) == 1.0
    assert share.now(S) == 1.0
    assert share.step(S, hurt=False) == pytest.approx(MOVING_SHARE_MIN, rel=0.05)
    assert _moving(share, 15, False, 1) == 1.0
    assert share.step(60 * S, hurt=False) == MOVING_SHARE_MIN, "after a rest as well"
    assert share.now(61 * S) == MOVING_SHARE_MIN
    assert share.now(63 * S) == 0.0


def test_a_step_s_share_counts_for_that_step() -> None:
    """What lacks copies goes at the whole rate, whatever moves beside it."""
    budget = Budget(1000, 10**9)
    budget.spent(100, 1, 0, 0.5)
    assert budget.delay_ns(0) == S // 5
    budget.spent(100, 1, S)
    assert budget.delay_ns(S) == S // 10
