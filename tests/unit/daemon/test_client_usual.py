"""Clients are hurt when they are slower than they were while nothing moved."""

import random

from torus.daemon.client_usual import Feeling, Usual
from torus.upkeep.budget import MOVING_SHARE_MIN

MS = 1_000_000
S = 1_000_000_000


def _look(usual: Usual, p99s_ms: list[float], share: float, begin_s: float = 0.0) -> list[bool]:
    """Look twice a second."""
    return [
        usual.look(int((begin_s + number / 2) * S), p99_ms * MS, share)
        for number, p99_ms in enumerate(p99s_ms)
    ]


def test_half_more_than_usual_hurts() -> None:
    usual = Usual()
    assert not any(_look(usual, [4.0] * 20, 0.0))
    assert _look(usual, [5.9, 6.1, 20.0, 4.0], 1.0, 10) == [False, True, True, False]


def test_what_nobody_feels_does_not_hurt() -> None:
    """Three times of next to nothing is next to nothing."""
    usual = Usual()
    _look(usual, [0.2] * 20, 0.0)
    assert _look(usual, [0.9, 1.1], 1.0, 10) == [False, True]


def test_single_slow_looks_do_not_make_the_usual() -> None:
    usual = Usual()
    rng = random.Random(1)
    noisy = [50.0 if number % 4 == 0 else rng.uniform(1.8, 2.2) for number in range(30)]
    _look(usual, noisy, 0.0)
    assert _look(usual, [2.5, 3.5], 1.0, 15) == [False, True]


def test_while_nothing_is_known_moves_are_slowed_down_until_it_is() -> None:
    """A gateway that starts in the middle of a move learns at the least share."""
    usual = Usual()
    assert _look(usual, [5.0] * 3, 1.0) == [True] * 3
    assert _look(usual, [5.0] * 3, MOVING_SHARE_MIN, 2) == [True] * 3
    assert _look(usual, [5.0, 7.0, 8.0], MOVING_SHARE_MIN, 4) == [False] * 2 + [True]
    assert _look(Usual(), [5.0] * 3, 0.0) == [False] * 3, "where nothing moves nobody is slowed"


def test_a_load_that_changed_becomes_the_usual_and_the_old_one_is_forgotten() -> None:
    """More load is slower whatever moves: at the least share that is soon known."""
    usual = Usual()
    _look(usual, [2.0] * 30, 0.0)
    assert all(_look(usual, [9.0] * 10, MOVING_SHARE_MIN, 15))
    assert not _look(usual, [9.0] * 10, MOVING_SHARE_MIN, 20)[-1]
    assert _look(usual, [9.0], 1.0, 25) == [False]
    assert _look(usual, [9.0], 1.0, 90) == [True], "what was a minute ago says nothing"


def test_each_kind_of_request_has_its_own_usual() -> None:
    feeling = Feeling(2)
    for number in range(10):
        assert feeling.look(number * S // 2, [2.0 * MS, 40.0 * MS], 0.0) is False
    assert feeling.look(5 * S, [2.0 * MS, 50.0 * MS], 1.0) is False
    assert feeling.look(6 * S, [5.0 * MS, None], 1.0) is True
    assert feeling.look(7 * S, [None, None], 1.0) is None
