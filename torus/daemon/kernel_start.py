"""From a command to the supervisor of an attachment: a process of its own, with nothing inherited.

Decides how the command that checked everything hands over to the process that stays: by exec,
with what it found out in an environment variable, so that libraries which do not survive a fork
are not there when the gateway is forked.  A restart goes the same way.

Implements docs/attach.md, "How it survives" and "With systemd".
"""

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torus import errors, limits, log
from torus.daemon.kernel_state import AttachPlace, AttachState
from torus.daemon.systemd import notify
from torus.errors import TimedOut, TorusError, Unavailable
from torus.net import block_device

events = log.get_logger("torus.attach.supervisor")

RESUME_VARIABLE = "TORUS_ATTACH_RESUME"
START_S = 120.0  # of a gateway in the background, until it tells
_KINDS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TorusError)
}


@dataclass(frozen=True, slots=True)
class Resume:
    """What a supervisor is told by the process that it was before, or that started it."""

    backend: str
    lock: int  # the descriptor that makes it the only one
    ready: int = -1  # where it tells the command how its start went; -1: nobody waits
    background: bool = False
    takeover: bool = False  # somebody has the volume, and is to lose it
    folder: str = ""  # where the command was given: relative paths in it mean that


def resumed() -> Resume | None:
    """Return what this process was told when it was started as a supervisor, None if it was not."""
    text = os.environ.pop(RESUME_VARIABLE, "")
    if not text:
        return None
    resume = Resume(**json.loads(text))
    for descriptor in (resume.lock, resume.ready):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    return resume


def become_supervisor(resume: Resume) -> None:
    """Run this very command again, in this process, as a supervisor; never returns."""
    for descriptor in (resume.lock, resume.ready):
        if descriptor >= 0:
            os.set_inheritable(descriptor, True)
    if resume.folder:
        with suppress(OSError):  # it may be gone; most commands name nothing relative to it
            os.chdir(resume.folder)
    environment = {**os.environ, RESUME_VARIABLE: json.dumps(asdict(resume))}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def start_in_background(place: AttachPlace, resume: Resume, wait_s: float = START_S) -> AttachState:
    """Run this very command again, in a session of its own, as a supervisor; wait until it serves.

    Raises: why it does not.
    """
    reading, writing = os.pipe()
    lock = resume.lock
    resume = replace(resume, ready=writing, background=True)
    _begin_log(place)
    environment = {**os.environ, RESUME_VARIABLE: json.dumps(asdict(resume))}
    child = _spawn(environment, place.log_path, (lock, writing))
    os.close(writing)
    os.close(lock)
    try:
        told = _wait_for_word(reading, wait_s)
    except TimeoutError as late:
        raise TimedOut(
            f"the gateway of volume {place.volume!r} is still starting after {wait_s:g} s",
            hint=f"see {place.log_path}; it goes on: 'torus nbd list'",
        ) from late
    finally:
        os.close(reading)
    if told is None:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        raise Unavailable(
            f"the gateway of volume {place.volume!r} ended at its start with exit code {code}",
            hint=f"see {place.log_path}",
        )
    if "error" in told:
        failure = told["error"]
        kind = _KINDS.get(failure["code"], TorusError)
        raise kind(failure["message"], hint=failure["hint"] or f"see {place.log_path}")
    return AttachState(**told)


def announcer(ready: int) -> tuple[Callable[[AttachState], None], Callable[[TorusError], None]]:
    """Return what tells the waiting command, and systemd, of a state and of a failure."""
    waiting = [ready] if ready >= 0 else []

    def say(document: dict[str, Any]) -> None:
        if not waiting:
            return
        descriptor = waiting.pop()
        try:
            os.write(descriptor, json.dumps(document).encode() + b"\n")
        except BrokenPipeError:
            events.debug("attach.nobody_waits")
        os.close(descriptor)

    def announce(state: AttachState) -> None:
        if state.state == "attached":
            say(asdict(state))
            notify(ready="1", status=f"{state.volume} is {state.device}")
        elif state.state == "stopping":
            notify(stopping="1", status=f"{state.device}: {state.problem or 'stopping'}")
        else:
            notify(status=f"{state.state} {state.device}: {state.problem}")

    def fail(failure: TorusError) -> None:
        error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        say({"error": error})

    return announce, fail


# --- other processes' attachments ---------------------------------------------------------


def ask_for_restart(place: AttachPlace, known: AttachState, wait_s: float = START_S) -> AttachState:
    """Have a supervisor run the program as it is on disk now; wait until it serves again.

    Raises: Unavailable when there is none, or it did not come back; TimedOut.
    """
    if not _tell_process(known.supervisor_pid, signal.SIGHUP):
        raise Unavailable(
            f"the supervisor of volume {known.volume!r} (pid {known.supervisor_pid}) is gone",
            hint=f"start one anew: torus nbd attach {known.volume}",
        )
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        now = place.read()
        if now is not None and now.state == "attached" and now.gateway_pid != known.gateway_pid:
            return now
        if not place.is_supervised():
            problem = now.problem if now is not None else ""
            raise Unavailable(
                f"the new gateway of volume {known.volume!r} did not start"
                + (f": {problem}" if problem else ""),
                hint=f"see {known.log or 'its log'}; the device waits: "
                f"torus nbd attach {known.volume}",
            )
        time.sleep(0.05)
    raise TimedOut(
        f"volume {known.volume!r} is not served again after {wait_s:g} s",
        hint="see 'torus nbd list'; it goes on",
    )


def wait_until_over(place: AttachPlace, index: int, wait_s: float) -> bool:
    """Wait until neither a supervisor nor the kernel has the device; False when time is up."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if not place.is_supervised():
            return True
        time.sleep(0.05)
    return False


def end_process(pid: int, *, force: bool) -> bool:
    """Tell a process to end; tell whether there was one."""
    return _tell_process(pid, signal.SIGKILL if force else signal.SIGTERM)


def flush_device(index: int, wait_s: float | None = None) -> None:
    """Write what the page cache holds of a device, while nobody can begin to use it.

    Raises: OSError, EBUSY when somebody uses it; TimeoutError, an OSError, after ``wait_s``.
    """
    failures: list[OSError] = []

    def work() -> None:
        try:
            descriptor = block_device.claim(index)
            try:
                block_device.flush(descriptor)
            finally:
                os.close(descriptor)
        except OSError as failure:
            failures.append(failure)

    # A gateway that hangs would keep this process in the kernel beyond any signal.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(wait_s)
    if thread.is_alive():
        raise TimeoutError(f"/dev/nbd{index} was not written back in {wait_s:g} s")
    if failures:
        raise failures[0]


def _tell_process(pid: int, number: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _begin_log(place: AttachPlace) -> None:
    try:
        if place.log_path.stat().st_size > limits.ATTACH_LOG_BYTES_MAX:
            place.log_path.replace(place.log_path.with_suffix(".log.1"))
    except FileNotFoundError:
        return


def _spawn(environment: dict[str, str], log_path: Path, kept: tuple[int, ...]) -> int:
    """Run this very command in a session of its own, and return its pid."""
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        sys.executable, [sys.executable, *sys.orig_argv[1:]], environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_path), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )  # fmt: skip


def _wait_for_word(reading: int, wait_s: float) -> dict[str, Any] | None:
    """Return what the supervisor tells, None when it ends without a word.

    Raises: TimeoutError.
    """
    deadline = time.monotonic() + wait_s
    received = b""
    while not received.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([reading], [], [], left_s)[0]:
            raise TimeoutError
        piece = os.read(reading, 65536)
        if not piece:
            return None
        received += piece
    document: dict[str, Any] = json.loads(received)
    return document
