"""Have a running process do something long, from another process of the same machine.

Decides how often it is asked how far it is, and what an interrupted asker leaves behind.
Like `torus.node.control`, which carries the questions, it is free of asyncio.

Implements docs/protocol.md, "Tasks".
"""

import contextlib
from collections.abc import Callable
from typing import Any

from torus import limits
from torus.errors import RemoteProtocolError, TimedOut, TorusError
from torus.node.control import ask

_ANSWER_S = 0.25  # how often the progress is looked at


def run_task(
    path: str,
    task: str,
    volume: str,
    arguments: dict[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
    *,
    cancel: bool = True,
) -> dict[str, Any]:
    """Have the process behind the control socket ``path`` do a task, and return its result.

    ``report`` is called with (done, total).  When this process is interrupted the task is
    cancelled, or with ``cancel`` False goes on.

    Raises: what `ask` raises; the error that the task ended with.
    """
    wait_s = limits.CONTROL_WAIT_S_MAX if report is None else _ANSWER_S
    question = {"ask": "start", "task": task, "volume": volume, "wait_s": wait_s}
    state = ask(path, {**question, **(arguments or {})})
    try:
        while state.get("state") != "done":
            if report is not None:
                report(int(state.get("done", 0)), int(state.get("total", 0)))
            state = _look(path, {"ask": "task", "id": state.get("id"), "wait_s": wait_s})
    except KeyboardInterrupt:
        if cancel:
            with contextlib.suppress(TorusError):  # it is the interruption that is told
                ask(path, {"ask": "cancel", "id": state.get("id")})
        raise
    result = state.get("result")
    if not isinstance(result, dict):
        raise RemoteProtocolError(f"the {task} at {path} ended without a result: {state}")
    return result


def _look(path: str, question: dict[str, Any]) -> dict[str, Any]:
    """Ask how far a task is; a process that is too busy to answer once is asked again."""
    try:
        return ask(path, question)
    except TimedOut:
        return ask(path, question)
