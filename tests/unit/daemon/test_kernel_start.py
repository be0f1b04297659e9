"""From a command to a supervisor: what is handed over, and what the command is told."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from torus.daemon import kernel_start
from torus.daemon.kernel_start import Resume, announcer, resumed, start_in_background
from torus.daemon.kernel_state import AttachPlace, AttachState
from torus.errors import Busy, TimedOut, Unavailable

STATE = AttachState(
    "vm1", "torus:abc:0000000000000001", "attached", "/dev/nbd0", 0, gateway_pid=12,
    supervisor_pid=11,
)  # fmt: skip
READ = f"import json, os, sys; told = json.loads(os.environ[{kernel_start.RESUME_VARIABLE!r}]);"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[AttachPlace]:
    folder = tmp_path / "attach"
    folder.mkdir()
    yield AttachPlace(folder, "vm1")
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def start(place: AttachPlace, monkeypatch, code: str, wait_s: float = 20.0) -> AttachState:
    """Start a supervisor whose program is ``code``."""
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", READ + code])
    resume = Resume(STATE.backend, place.lock(), takeover=True, folder="/")
    return start_in_background(place, resume, wait_s)


def say(document: object) -> str:
    """Return code that tells the waiting command ``document``."""
    return f"os.write(told['ready'], json.dumps({document!r}).encode() + b'\\n');"


def test_a_supervisor_that_serves(place: AttachPlace, monkeypatch) -> None:
    """It has the lock, what the command found out, and a log; the command gets the state."""
    code = (
        say(asdict(STATE)) + "print(os.getcwd(), sorted(told), os.fstat(told['lock']).st_size,"
        "os.getsid(0) == os.getpid())"
    )
    assert start(place, monkeypatch, code) == STATE
    while "True" not in place.log_path.read_text():
        os.sched_yield()
    assert "takeover" in place.log_path.read_text()


def test_a_supervisor_that_fails(place: AttachPlace, monkeypatch) -> None:
    """Its error is the command's, with its hint."""
    error = {"error": {"code": "busy", "message": "taken", "hint": None}}
    with pytest.raises(Busy, match="taken") as caught:
        start(place, monkeypatch, say(error))
    assert caught.value.hint == f"see {place.log_path}"


def test_a_supervisor_that_says_nothing(place: AttachPlace, monkeypatch) -> None:
    """Ended without a word: exit code and log; still at work: so it is told."""
    with pytest.raises(Unavailable, match="ended at its start") as caught:
        start(place, monkeypatch, "sys.exit(3)")
    assert str(place.log_path) in (caught.value.hint or "")
    with pytest.raises(TimedOut, match="still starting"):
        start(place, monkeypatch, "sys.stdin.read(); os.set_blocking(told['ready'], True);"
              "import select; select.select([], [], [], 0.5)", 0.05)  # fmt: skip


def test_a_large_log_is_put_aside(place: AttachPlace, monkeypatch) -> None:
    """At a start, once."""
    monkeypatch.setattr("torus.limits.ATTACH_LOG_BYTES_MAX", 100)
    place.log_path.write_text("x" * 101)
    start(place, monkeypatch, say(asdict(STATE)))
    assert (place.folder / "vm1.log.1").read_text() == "x" * 101


def test_what_was_handed_over_is_read_once(monkeypatch) -> None:
    """The supervisor's own children do not find it."""
    descriptor = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    resume = Resume("torus:x", descriptor, folder="/somewhere")
    monkeypatch.setenv(kernel_start.RESUME_VARIABLE, json.dumps(asdict(resume)))
    assert resumed() == resume
    assert not os.get_inheritable(descriptor)
    assert resumed() is None
    os.close(descriptor)


def test_who_waits_is_told_once() -> None:
    """The first state that serves; later ones, and a command that is gone, do not matter."""
    reading, writing = os.pipe()
    announce, _fail = announcer(writing)
    announce(replace(STATE, state="starting"))
    announce(STATE)
    announce(replace(STATE, state="reconnecting"))
    announce(STATE)
    assert json.loads(os.read(reading, 65536)) == asdict(STATE)
    assert os.read(reading, 1) == b""
    os.close(reading)
    reading, writing = os.pipe()
    os.close(reading)
    announcer(writing)[1](Busy("nobody hears"))


def test_a_restart_of_nobody(place: AttachPlace, monkeypatch) -> None:
    """Without a supervisor there is nothing to restart."""
    monkeypatch.setattr(kernel_start, "_tell_process", lambda _pid, _number: False)
    with pytest.raises(Unavailable, match="is gone") as caught:
        kernel_start.ask_for_restart(place, STATE)
    assert caught.value.hint == "start one anew: torus nbd attach vm1"


def test_a_restart_that_fails(place: AttachPlace, monkeypatch) -> None:
    """The new program did not start: the device waits, and how to go on is told."""
    monkeypatch.setattr(kernel_start, "_tell_process", lambda _pid, _number: True)
    place.write(replace(STATE, state="failed", problem="no module named torus"))
    with pytest.raises(Unavailable, match="did not start: no module named torus") as caught:
        kernel_start.ask_for_restart(place, STATE)
    assert "torus nbd attach vm1" in (caught.value.hint or "")


def test_a_restart_that_succeeds(place: AttachPlace, monkeypatch) -> None:
    """Another gateway serves."""
    monkeypatch.setattr(kernel_start, "_tell_process", lambda _pid, _number: True)
    lock = place.lock()
    place.write(replace(STATE, gateway_pid=13))
    assert kernel_start.ask_for_restart(place, STATE).gateway_pid == 13
    os.close(lock)
