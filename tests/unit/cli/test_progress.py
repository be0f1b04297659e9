"""Progress is shown on a terminal, with rate and time left, and nowhere else."""

import io

import pytest

from torus.cli.progress import ProgressLine

SECOND_NS = 1_000_000_000


class StillClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic_ns(self) -> int:
        """Return the moment that was set."""
        return self.now_ns

    def wall_ns(self) -> int:
        """Return the same moment."""
        return self.now_ns


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def show(stream: io.StringIO, environment: dict[str, str], steps: int = 10) -> str:
    """Copy 100 MiB in ``steps`` seconds and return what was shown."""
    clock = StillClock()
    with ProgressLine("copying", environment, stream=stream, clock=clock) as progress:
        for step in range(1, steps + 1):
            clock.now_ns = step * SECOND_NS
            progress(step * (100 << 20) // steps, 100 << 20)
    return stream.getvalue()


def test_without_a_terminal_nothing_is_shown() -> None:
    """A log file gets no progress."""
    assert show(io.StringIO(), {}) == ""


def test_on_a_terminal_the_line_has_rate_and_time_left() -> None:
    """Half way through, half the time is left."""
    lines = show(Terminal(), {}).split("\r")

    assert "50%" in lines[5]
    assert "50 MiB of 100 MiB" in lines[5]
    assert "10 MiB/s" in lines[5]
    assert "5.0 s left" in lines[5]
    assert "left" not in lines[-1]
    assert lines[-1].endswith("\n")


def test_on_a_dumb_terminal_lines_are_whole_and_rare() -> None:
    """No control characters, one line in five seconds and one at the end."""
    shown = show(Terminal(), {"TERM": "dumb"}, steps=12)

    assert "\r" not in shown
    assert "\x1b" not in shown
    assert shown.count("\n") == 3


def test_of_unknown_total_only_done_and_rate_are_shown() -> None:
    """A pipe has no percentage."""
    clock, stream = StillClock(), Terminal()
    progress = ProgressLine("reading", {}, stream=stream, clock=clock)
    clock.now_ns = SECOND_NS
    progress(3 << 20, None)
    progress.close()
    progress.close()

    assert stream.getvalue() == "\rreading  3 MiB  3 MiB/s\x1b[K\n"


def test_calls_between_two_drawings_cost_no_output() -> None:
    """A million calls in a tenth of a second write nothing."""
    stream = Terminal()
    progress = ProgressLine("reading", {}, stream=stream, clock=StillClock())
    for done in range(1000):
        progress(done, 1 << 30)

    assert stream.getvalue() == ""


@pytest.mark.parametrize("total", [0, None])
def test_empty_thing_is_no_division_by_zero(total: int | None) -> None:
    """Nothing to do is done at once."""
    stream = Terminal()
    with ProgressLine("reading", {}, stream=stream, clock=StillClock()) as progress:
        progress(0, total)

    assert "%" not in stream.getvalue()
