"""Volumes that are disks of this machine's kernel: what was asked for, and what is known of it.

Decides where an attachment's files lie (TORUS_HOME/attach: NAME.json, NAME.log, NAME.lock), how a
device is told from another volume's, and who is alive.  Free of asyncio, so that commands start
quickly.

Implements docs/attach.md, "Files".
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torus.errors import Busy
from torus.limits import BLOCK_BYTES, SECTOR_BYTES
from torus.net.block_device import HERE, Machine, backend_of, connector_of, devices, size_of

FOLDER = "attach"
BACKEND_PREFIX = "torus:"
_LOOKS, _LOOK_AGAIN_S = 5, 0.02


@dataclass(frozen=True, slots=True)
class AttachOrder:
    """What somebody wants to be attached, and how."""

    volume: str  # or VOLUME@SNAPSHOT, read only
    backend: str  # what the kernel is told: names the cluster and the volume for good
    index: int | None = None  # of the device; None: one that is free
    read_only: bool = False
    connections: int = 1
    dead_timeout_s: int = 3600  # how long the kernel waits for a gateway that is gone
    block_bytes: int | None = None  # of the device's sectors; None: what suits the size
    takeover: bool = False
    driver: Literal["netlink", "ioctl"] = "netlink"


@dataclass(frozen=True, slots=True)
class AttachState:
    """What is known of one attachment; its supervisor writes it, anybody reads it."""

    volume: str
    backend: str
    state: str  # starting, attached, reconnecting, stopping, restarting, ended, failed
    device: str = ""
    index: int = -1
    size_bytes: int = 0
    block_bytes: int = 0
    read_only: bool = False
    connections: int = 1
    dead_timeout_s: int = 0
    supervisor_pid: int = 0
    gateway_pid: int = 0  # 0: there is none just now
    gateway_starts: int = 0
    since_ns: int = 0
    problem: str = ""  # why it is in this state, for people
    code: str = ""  # of that, in torus.errors
    log: str = ""
    driver: str = "netlink"


@dataclass(frozen=True, slots=True)
class AttachPlace:
    """Where the files of one attachment are."""

    folder: Path
    volume: str

    @property
    def state_path(self) -> Path:
        """Return the path of what is known of it."""
        return self.folder / f"{self.volume}.json"

    @property
    def log_path(self) -> Path:
        """Return the path of the log of a gateway in the background."""
        return self.folder / f"{self.volume}.log"

    @property
    def pid_path(self) -> Path:
        """Return the path of the supervisor's pid."""
        return self.folder / f"{self.volume}.pid"

    def lock(self) -> int:
        """Become the only supervisor; return the descriptor that says so while it is open.

        Raises: Busy when there is one already.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = _try_lock(self._lock_path)
        for _ in range(_LOOKS):  # somebody may just be asking whether it is locked
            if descriptor is not None:
                break
            time.sleep(_LOOK_AGAIN_S)
            descriptor = _try_lock(self._lock_path)
        if descriptor is None:
            known = self.read()
            where = known.device if known is not None and known.device else "starting just now"
            by = f", gateway pid {known.gateway_pid}" if known and known.gateway_pid else ""
            raise Busy(
                f"volume {self.volume!r} is attached on this machine already: {where}{by}",
                hint=f"see 'torus nbd list'; detach it with 'torus nbd detach {self.volume}'",
            )
        return descriptor

    def is_supervised(self) -> bool:
        """Tell whether a supervisor lives."""
        if not self._lock_path.exists():
            return False
        descriptor = _try_lock(self._lock_path)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def write(self, state: AttachState) -> None:
        """Replace what is known."""
        _replace(self.state_path, json.dumps(asdict(state), indent=1) + "\n")
        _replace(self.pid_path, f"{state.supervisor_pid}\n")

    def read(self) -> AttachState | None:
        """Return what is known, None when nothing is, or nothing that can be understood."""
        try:
            document = json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return _state_from(document)

    def forget(self) -> None:
        """Remove what is known, but not the log."""
        for path in (self.state_path, self.pid_path):
            path.unlink(missing_ok=True)

    @property
    def _lock_path(self) -> Path:
        return self.folder / f"{self.volume}.lock"


@dataclass(frozen=True, slots=True)
class AttachedDevice:
    """A device of this machine's kernel that is, or was to be, a volume."""

    index: int  # -1: none yet
    volume: str  # empty: no attachment is known here, only what the kernel says
    backend: str
    size_bytes: int
    state: str
    gateway_pid: int
    supervisor_pid: int
    known: AttachState | None

    @property
    def device(self) -> str:
        """Return the device's node, empty when there is none yet."""
        return "" if self.index < 0 else f"/dev/nbd{self.index}"


def attach_folder(home: Path) -> Path:
    """Return the folder of all attachments."""
    return home / FOLDER


def backend_name(cluster_id: str, volume: int, snapshot: str = "") -> str:
    """Return what the kernel is told of whom a device belongs to."""
    return f"{BACKEND_PREFIX}{cluster_id}:{volume:016x}" + (f"@{snapshot}" if snapshot else "")


def block_bytes_for(size_bytes: int, wanted: int | None) -> int:
    """Return the size of a device's sectors: whole blocks of the log where the size allows it."""
    if wanted is not None:
        return wanted
    return BLOCK_BYTES if size_bytes % BLOCK_BYTES == 0 else SECTOR_BYTES


def attachments(home: Path) -> Iterator[AttachPlace]:
    """Yield the attachments that this machine's folder knows of, in the order of names."""
    folder = attach_folder(home)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        yield AttachPlace(folder, path.name.removesuffix(".json"))


def attached_devices(home: Path, machine: Machine = HERE) -> list[AttachedDevice]:
    """Return the volumes that are disks here, and the devices that may be one of another home.

    An attachment whose supervisor and device are both gone is none.
    """
    found: list[AttachedDevice] = []
    seen: set[int] = set()
    for place in attachments(home):
        known = place.read()
        if known is None:
            continue
        supervised = place.is_supervised()
        there = known.index >= 0 and backend_of(known.index, machine) == known.backend
        if not supervised and not there:
            continue
        seen.add(known.index)
        gateway = known.gateway_pid if _is_running(known.gateway_pid, machine) else 0
        state = known.state if supervised and (gateway or known.state != "attached") else "orphaned"
        found.append(
            AttachedDevice(
                known.index, known.volume, known.backend,
                size_of(known.index, machine) if there else known.size_bytes, state, gateway,
                known.supervisor_pid if supervised else 0, known,
            )
        )  # fmt: skip
    for index in devices(machine):
        backend = backend_of(index, machine)
        if index not in seen and backend.startswith(BACKEND_PREFIX):
            state = "unknown" if connector_of(index, machine) is not None else "ended"
            size_bytes = size_of(index, machine)
            found.append(AttachedDevice(index, "", backend, size_bytes, state, 0, 0, None))
    return found


def device_of_backend(backend: str, machine: Machine = HERE) -> int | None:
    """Return the index of the connected device that belongs to a volume, None without one."""
    for index in devices(machine):
        if backend_of(index, machine) == backend and connector_of(index, machine) is not None:
            return index
    return None


def reserve_index(folder: Path, index: int) -> int | None:
    """Keep other attachments of this home from choosing a device; None when one has it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _try_lock(folder / f".nbd{index}.lock")


def _is_running(pid: int, machine: Machine) -> bool:
    return pid > 0 and (machine.proc / str(pid)).exists()


def _state_from(document: Any) -> AttachState | None:
    names = {field.name for field in fields(AttachState)}
    if not isinstance(document, dict) or not {"volume", "backend", "state"} <= set(document):
        return None
    return AttachState(**{name: value for name, value in document.items() if name in names})


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    with suppress(FileNotFoundError):  # two that write at once: the later one is right
        os.replace(new, path)
