"""What a result was measured on: processor, kernel, disk, versions, how busy it was."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.servers import REPOSITORY, torus_command

FDATASYNC_PROBES = 50
_PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Environment:
    """Facts about the machine and the programs of one run."""

    commit: str
    uncommitted_changes: bool
    processor: str
    processors: int
    memory_bytes: int
    kernel: str
    file_system: str
    device: str
    versions: dict[str, str]
    torus_command: str
    load_average: tuple[float, float, float]
    fdatasync_us: dict[str, float]  # 4 KiB overwrite + fdatasync, in the folder of the run

    def as_json(self) -> dict[str, object]:
        """Return the facts as plain values."""
        return asdict(self)


def describe(work_dir: Path) -> Environment:
    """Look at the machine; takes a fraction of a second."""
    device, file_system = _mount_of(work_dir)
    return Environment(
        commit=_git("rev-parse", "--short=10", "HEAD") or "unknown",
        uncommitted_changes=bool(_git("status", "--porcelain", "--untracked-files=no")),
        processor=_first_field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        processors=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        file_system=file_system,
        device=device,
        versions=_versions(),
        torus_command=" ".join(torus_command()).replace(f"{REPOSITORY}/", ""),
        load_average=os.getloadavg(),
        fdatasync_us=probe_fdatasync(work_dir),
    )


def probe_fdatasync(work_dir: Path) -> dict[str, float]:
    """Overwrite 4 KiB of a preallocated file and fdatasync, repeatedly; microseconds."""
    path = work_dir / "fdatasync.probe"
    block = os.urandom(_PROBE_BYTES)
    took: list[float] = []
    with path.open("wb") as probe:
        probe.write(block * FDATASYNC_PROBES)
        probe.flush()
        os.fsync(probe.fileno())
        for index in range(FDATASYNC_PROBES):
            os.pwrite(probe.fileno(), block, index * _PROBE_BYTES)
            began = time.monotonic_ns()
            os.fdatasync(probe.fileno())
            took.append((time.monotonic_ns() - began) / 1000)
    path.unlink()
    return {"min": min(took), "median": statistics.median(took), "max": max(took)}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for program in ("fio", "qemu-nbd", "nbdkit"):
        try:
            text = subprocess.run(
                [program, "--version"], capture_output=True, text=True, check=False
            ).stdout
        except FileNotFoundError:
            versions[program] = "not installed"
            continue
        versions[program] = text.splitlines()[0] if text else "unknown"
    for package in ("uvloop", "cython"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _git(*arguments: str) -> str:
    finished = subprocess.run(
        ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False
    )
    return finished.stdout.strip()


def _first_field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _mount_of(path: Path) -> tuple[str, str]:
    """Return (device, file system type) of the mount that holds ``path``."""
    best = ("", "unknown", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, point, kind = line.split()[:3]
        if path.resolve().is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, device, kind)
    return best[1], best[2]
