"""The benchmark's own arithmetic: medians, ratios, verdicts, order of the servers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import compare, results
from bench.cases import throughput
from bench.compare import Goal
from bench.results import Result, Sample, Value

ROW = "randread-4k-qd1"


def _result(rates: dict[str, list[float]], values: tuple[Value, ...] = ()) -> Result:
    samples = [
        Sample(ROW, server, index, operations_per_s=rate)
        for server, series in rates.items()
        for index, rate in enumerate(series)
    ]
    return Result("2026-01-02T03:04:05+00:00", {}, {}, tuple(samples), values)


def test_judge_against_the_fastest_peer_takes_the_faster_median() -> None:
    """The faster peer is chosen by median, whatever its single rounds say."""
    result = _result(
        {"torus": [90, 110, 100], "qemu-nbd": [1, 1, 900], "nbdkit-file": [50, 80, 60]}
    )

    verdict = compare.judge(result, [Goal("g", ROW, compare.FASTEST_PEER, minimum=1.5)])[0]

    assert (verdict.against, verdict.found) == ("nbdkit-file", 100 / 60)
    assert verdict.rounds == (90 / 50, 110 / 80, 100 / 60)
    assert verdict.reached


def test_judge_without_one_of_the_peers_is_not_reached() -> None:
    """A peer that could not be measured never makes a goal easier."""
    result = _result({"torus": [100], "qemu-nbd": [1]})

    verdict = compare.judge(result, [Goal("g", ROW, compare.FASTEST_PEER, minimum=1.0)])[0]

    assert verdict.found is None
    assert not verdict.reached


def test_judge_ignores_failed_samples() -> None:
    """A failed round counts as no round, not as zero."""
    result = _result({"torus": [100, 100], "qemu-nbd": [50], "nbdkit-file": [50]})
    broken = Sample(ROW, "torus", 2, error="connection reset")
    result = replace(result, samples=(*result.samples, broken))

    assert result.rate(ROW, "torus") == 100


@pytest.mark.parametrize(("measured", "reached"), [(1.0, True), (1.2, True), (1.21, False)])
def test_judge_value_bounds_are_inclusive(measured: float, reached: bool) -> None:
    """A value may be exactly its bound."""
    result = _result({}, (Value("flush", "x", (measured,)),))

    verdict = compare.judge(result, [Goal("g", value="flush", maximum=1.2)])[0]

    assert verdict.reached is reached


def test_judge_value_that_failed_is_not_reached() -> None:
    """An error is no number."""
    result = _result({}, (Value("flush", "x", (), error="refused"),))

    assert not compare.judge(result, [Goal("g", value="flush", maximum=1.2)])[0].reached


def test_budgets_name_rows_and_values_that_exist() -> None:
    """Every row of budgets.toml is one that runs."""
    rows = {row.name for row in throughput.ROWS}

    for goal in compare.read_goals():
        assert not goal.row or goal.row in rows
        assert not goal.against or goal.against in {*rows, compare.FASTEST_PEER}


def test_read_goals_refuses_a_goal_without_a_bound(tmp_path: Path) -> None:
    """A goal that cannot fail is a mistake."""
    path = tmp_path / "budgets.toml"
    path.write_text('[[goal]]\ntitle = "t"\nvalue = "v"\n')

    with pytest.raises(ValueError, match="one bound"):
        compare.read_goals(path)


def test_save_and_load_give_the_same_result(tmp_path: Path) -> None:
    """A result file holds all that was measured."""
    result = _result({"torus": [1.5]}, (Value("v", "s", (1.0, 2.0), "how"),))
    results.save(result, tmp_path / "r.json")

    assert results.load(tmp_path / "r.json") == result


def test_load_refuses_another_format(tmp_path: Path) -> None:
    """An unknown format is named, not guessed at."""
    path = tmp_path / "r.json"
    path.write_text('{"format": 99}')

    with pytest.raises(ValueError, match="format 1"):
        results.load(path)


def test_order_of_rotates_so_that_each_server_is_first_equally_often() -> None:
    """Over as many rounds as servers, everybody begins once."""
    servers = [SimpleNamespace(name=name) for name in "abc"]

    first = [throughput.order_of(servers, index, 0)[0].name for index in range(3)]

    assert sorted(first) == ["a", "b", "c"]
