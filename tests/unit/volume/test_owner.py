"""Which process owns a volume, and whether it lives."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from torus.clock import SystemClock
from torus.errors import Unavailable
from torus.metadata.schema import Owner
from torus.volume import owner as owner_module
from torus.volume.owner import is_alive, same_process, this_process


@pytest.fixture
def me() -> Owner:
    return this_process("node", "unix:/run/torus.sock", SystemClock())


def test_this_process_lives(me: Owner) -> None:
    assert (me.pid, me.host, me.role) == (os.getpid(), socket.gethostname(), "node")
    assert is_alive(me) is True


def test_the_start_time_is_in_ticks_since_boot(me: Owner) -> None:
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])

    assert 0 < me.pid_start <= uptime_s * os.sysconf("SC_CLK_TCK") + 1


def test_a_reused_pid_is_another_process(me: Owner) -> None:
    assert is_alive(dataclasses.replace(me, pid_start=me.pid_start - 1)) is False


def test_a_process_of_an_earlier_boot_is_dead(me: Owner) -> None:
    assert is_alive(dataclasses.replace(me, machine_boot_id="earlier")) is False


def test_a_process_of_another_host_is_unknown(me: Owner) -> None:
    assert is_alive(dataclasses.replace(me, host="elsewhere")) is None


def test_a_killed_process_is_dead_even_as_a_zombie(me: Owner) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = owner_module._stat(child.pid, "/proc")
    assert found is not None
    owner = dataclasses.replace(me, pid=child.pid, pid_start=found[1])
    assert is_alive(owner) is True

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now

    assert is_alive(owner) is False
    child.communicate()
    assert is_alive(owner) is False


@pytest.mark.parametrize("command", ["python", "a b", "(x) S 1 2", ")", ""])
def test_odd_command_names_do_not_confuse(tmp_path: Path, me: Owner, command: str) -> None:
    _fake_proc(tmp_path, me, f"{me.pid} ({command}) S {' '.join(str(n) for n in range(4, 53))}")

    assert is_alive(dataclasses.replace(me, pid_start=22), proc_dir=str(tmp_path)) is True


@pytest.mark.parametrize(("state", "alive"), [("R", True), ("D", True), ("T", True), ("X", False)])
def test_only_the_dead_states_are_dead(tmp_path: Path, me: Owner, state: str, alive: bool) -> None:
    _fake_proc(tmp_path, me, f"{me.pid} (x) {state} {' '.join(str(n) for n in range(4, 53))}")

    assert is_alive(dataclasses.replace(me, pid_start=22), proc_dir=str(tmp_path)) is alive


def test_a_process_that_proc_hides_is_unknown(tmp_path: Path, me: Owner) -> None:
    _fake_proc(tmp_path, me, None)

    assert is_alive(me, proc_dir=str(tmp_path)) is None


def test_without_proc_nobody_is_taken_for_dead(tmp_path: Path, me: Owner) -> None:
    with pytest.raises(Unavailable):
        is_alive(me, proc_dir=str(tmp_path))
    with pytest.raises(Unavailable):
        this_process("node", "", SystemClock(), proc_dir=str(tmp_path))


def test_same_process_ignores_role_and_time(me: Owner) -> None:
    assert same_process(me, dataclasses.replace(me, role="import", since_ns=1, address=""))
    assert not same_process(me, dataclasses.replace(me, pid_start=1))
    assert not same_process(me, None)
    assert not same_process(None, None)


def _fake_proc(root: Path, me: Owner, stat: str | None) -> None:
    boot = root / "sys" / "kernel" / "random" / "boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text(f"{me.machine_boot_id}\n")
    if stat is not None:
        (root / str(me.pid)).mkdir()
        (root / str(me.pid) / "stat").write_text(stat)
