"""Who serves a volume, and whether that process still lives.

Decides what names a process of this machine for good (its kernel's boot, its pid and its
start time) and how to tell whether it is alive.  The answer is for people and for refusing a
mistake early; safety rests on the epoch alone.

Source: proc(5), /proc/PID/stat fields 3 (state) and 22 (start time).
"""

import os
import socket
from typing import Protocol

from torus.clock import Clock
from torus.errors import Unavailable
from torus.metadata.schema import Owner

_STATE = 0  # field 3, counted behind the command's ')'
_START = 19  # field 22


class ProcessIdentity(Protocol):
    """What `schema.Owner` and `schema.Node` say of their process."""

    @property
    def host(self) -> str:
        """Return the host's name."""

    @property
    def machine_boot_id(self) -> str:
        """Return the kernel's boot id."""

    @property
    def pid(self) -> int:
        """Return the process id."""

    @property
    def pid_start(self) -> int:
        """Return the start time in clock ticks since boot."""


def this_process(
    role: str, address: str, clock: Clock, *, control: str = "", proc_dir: str = "/proc"
) -> Owner:
    """Return this process as an owner since now; ``role`` is a word such as 'node'.

    ``control`` is the path of the socket where it answers questions, empty if it has none.

    Raises: Unavailable when /proc does not tell who this process is.
    """
    found = _stat(os.getpid(), proc_dir)
    if found is None:
        raise Unavailable(
            f"{proc_dir}/{os.getpid()}/stat cannot be read: torus cannot tell its own start time",
            hint="mount the proc file system: mount -t proc proc /proc",
        )
    return Owner(
        host=socket.gethostname(),
        machine_boot_id=_boot_id(proc_dir),
        pid=os.getpid(),
        pid_start=found[1],
        role=role,
        address=address,
        since_ns=clock.wall_ns(),
        control=control,
    )


def is_alive(process: ProcessIdentity, *, proc_dir: str = "/proc") -> bool | None:
    """Tell whether ``process`` lives; None when that cannot be told from here.

    A process of another host is unknown.  One of this host is dead when the kernel was booted
    again, when its pid is free, or when the pid belongs to a process that started at another
    time.
    """
    if process.host != socket.gethostname():
        return None
    if process.machine_boot_id != _boot_id(proc_dir):
        return False
    found = _stat(process.pid, proc_dir)
    if found is None:
        return _answers(process.pid)
    state, start = found
    return state not in "ZXx" and start == process.pid_start


def same_process(left: ProcessIdentity | None, right: ProcessIdentity | None) -> bool:
    """Tell whether both name one process."""
    if left is None or right is None:
        return False
    return (left.host, left.machine_boot_id, left.pid, left.pid_start) == (
        right.host,
        right.machine_boot_id,
        right.pid,
        right.pid_start,
    )


def _boot_id(proc_dir: str) -> str:
    path = f"{proc_dir}/sys/kernel/random/boot_id"
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError as exc:
        raise Unavailable(f"{path} cannot be read: {exc.strerror}") from exc


def _stat(pid: int, proc_dir: str) -> tuple[str, int] | None:
    """Return a process's state and start time; None when there is none to be seen."""
    try:
        with open(f"{proc_dir}/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the command may hold blanks and parentheses
    return fields[_STATE], int(fields[_START])


def _answers(pid: int) -> bool | None:
    """Tell a free pid from one that /proc hides (mount option hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return None
    return None
