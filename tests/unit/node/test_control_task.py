"""Tasks of another process, from the side that asks: polled to the end, cancelled on Ctrl-C."""

from collections.abc import Callable
from typing import Any

import pytest

from torus.errors import AlreadyExists, RemoteProtocolError, TimedOut
from torus.node import control_task
from torus.node.control_task import run_task

STARTED = {"id": 7, "state": "running", "done": 1, "total": 4}


class Owner:
    """Answers questions from a list; notes them."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        assert path == "/ctl"
        self.asked.append(question)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        found: dict[str, Any] = answer
        return found


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Owner]:
    """Make the owner that is asked, from its answers."""

    def make(*answers: Any) -> Owner:
        found = Owner(*answers)
        monkeypatch.setattr(control_task, "ask", found)
        return found

    return make


def test_short_task_is_one_question(owner: Callable[..., Owner]) -> None:
    """It waits for the end at once."""
    asked = owner({"id": 1, "state": "done", "result": {"chunks": 3}})

    assert run_task("/ctl", "reclaim", "disk", {"x": 1}) == {"chunks": 3}
    assert asked.asked == [
        {"ask": "start", "task": "reclaim", "volume": "disk", "wait_s": 2.0, "x": 1}
    ]


def test_long_task_is_looked_at_until_it_ends(owner: Callable[..., Owner]) -> None:
    """Its progress is passed on; one look that times out is repeated."""
    later = {**STARTED, "done": 2}
    asked = owner(STARTED, TimedOut("slow"), later, {**STARTED, "state": "done", "result": {}})
    seen: list[tuple[int, int]] = []

    assert run_task("/ctl", "gc", "disk", report=lambda *step: seen.append(step)) == {}
    assert seen == [(1, 4), (2, 4)]
    assert [question["ask"] for question in asked.asked] == ["start", "task", "task", "task"]
    assert asked.asked[-1]["id"] == 7


def test_failure_is_raised_as_itself(owner: Callable[..., Owner]) -> None:
    """`ask` raises what an answer holds as error; a start that times out is not repeated."""
    owner(STARTED, AlreadyExists("there"))
    with pytest.raises(AlreadyExists):
        run_task("/ctl", "snapshot", "disk")
    asked = owner(TimedOut("slow"))
    with pytest.raises(TimedOut):
        run_task("/ctl", "snapshot", "disk")
    assert len(asked.asked) == 1
    owner({"id": 1, "state": "done"})
    with pytest.raises(RemoteProtocolError, match="without a result"):
        run_task("/ctl", "snapshot", "disk")


@pytest.mark.parametrize("cancel", [True, False])
def test_interrupted_asker_cancels_or_leaves_the_task(
    owner: Callable[..., Owner], cancel: bool
) -> None:
    """As the command chose; it is interrupted all the same, even if nobody answers that."""
    asked = owner(STARTED, KeyboardInterrupt(), TimedOut("gone"))
    with pytest.raises(KeyboardInterrupt):
        run_task("/ctl", "gc", "disk", cancel=cancel)

    assert [question["ask"] for question in asked.asked] == ["start", "task"] + ["cancel"] * cancel
