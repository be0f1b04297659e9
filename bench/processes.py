"""Start servers, account for what they use, and end them by their process id.

Decides how a process of a benchmark lives and dies.  It does not know what a server is.
Every server is started in a session of its own, so that Ctrl-C reaches only the benchmark,
which then ends the servers itself; should the benchmark be killed, the kernel ends them
(``setpriv --pdeathsig``, where it is installed).
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
STOP_TIMEOUT_S = 30.0


class BenchError(Exception):
    """A measurement could not be made; the message says why."""


@dataclass(slots=True)
class ServerProcess:
    """A started server; ``log_path`` has what it printed."""

    popen: subprocess.Popen[bytes]
    log_path: Path
    started_ns: int

    @property
    def pid(self) -> int:
        """Return the process id that was started."""
        return self.popen.pid

    def log_tail(self) -> str:
        """Return the last lines that the server printed."""
        text = self.log_path.read_text(errors="replace")
        return " | ".join(text.strip().splitlines()[-5:]) or "(it printed nothing)"


def start(
    argv: Sequence[str], log_path: Path, *, environment: Mapping[str, str] | None = None
) -> ServerProcess:
    """Start ``argv`` as a server.

    Raises:
        BenchError: The program is not installed.
    """
    guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    if shutil.which(argv[0]) is None:
        raise BenchError(f"{argv[0]} is not installed")
    started_ns = time.monotonic_ns()
    with log_path.open("ab") as log:
        popen = subprocess.Popen(
            [*guard, *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    return ServerProcess(popen, log_path, started_ns)


def wait_for_socket(server: ServerProcess, path: Path, timeout_s: float) -> None:
    """Wait until something accepts connections at the unix socket ``path``.

    Raises:
        BenchError: The server ended or did not listen in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.popen.poll() is not None:
            raise BenchError(
                f"{' '.join(map(str, server.popen.args[-6:]))} ended with status "  # type: ignore[index]
                f"{server.popen.returncode}: {server.log_tail()}"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                time.sleep(0.002)
            else:
                return
    raise BenchError(f"nothing listens at {path} after {timeout_s:.0f} s: {server.log_tail()}")


def stop(server: ServerProcess, *, timeout_s: float = STOP_TIMEOUT_S) -> float:
    """Ask the server to end (SIGTERM), then make it; return how many seconds it took."""
    began = time.monotonic()
    family = process_tree(server.pid)
    if server.popen.poll() is None:
        server.popen.terminate()
        try:
            server.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            server.popen.kill()
            server.popen.wait()
    _kill_survivors(family)
    return time.monotonic() - began


def kill(server: ServerProcess) -> None:
    """End the server and its children with SIGKILL, as a crash would."""
    family = process_tree(server.pid)
    server.popen.kill()
    server.popen.wait()
    _kill_survivors(family)


def process_tree(pid: int) -> list[int]:
    """Return ``pid`` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat_fields(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    family = [pid]
    for member in family:
        family.extend(children.get(member, []))
    return family


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return user and system seconds of the processes, their threads and their children."""
    ticks = 0
    for root in pids:
        for pid in process_tree(root):
            fields = _stat_fields(pid)
            if fields:
                ticks += int(fields[11]) + int(fields[12])
                if pid == root:  # children that ended and were waited for
                    ticks += int(fields[13]) + int(fields[14])
    return ticks / TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """Return the resident set (VmRSS) of ``pid`` and its descendants, in bytes."""
    total = 0
    for member in process_tree(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


@dataclass(frozen=True, slots=True)
class MachineCpu:
    """Seconds of CPU of the whole machine since it started."""

    busy_s: float
    stolen_s: float


def machine_cpu() -> MachineCpu:
    """Return what all processors together have spent."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields
    busy = user + nice + system + irq + softirq
    return MachineCpu(busy / TICKS_PER_SECOND, steal / TICKS_PER_SECOND)


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name (state is [0], utime [11])."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _kill_survivors(family: Sequence[int]) -> None:
    for pid in family[1:]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
