"""What sysfs and proc tell of a block device of this machine: size, users, settings.

Decides what counts as a use that forbids taking the device away: a mount, swap, a device built
on it, an exclusive claim whoever has it.

Source: Documentation/ABI/stable/sysfs-block, proc(5) (mountinfo, swaps), open(2) O_EXCL.
"""

import errno
import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path

from torus.errors import UsageError
from torus.limits import SECTOR_BYTES
from torus.log import get_logger

log = get_logger(__name__)

BLKFLSBUF = 0x1261
BLKRRPART = 0x125F
_NBD = re.compile(r"(?:/dev/)?nbd(\d{1,7})(p\d+)?")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where this machine's trees are; tests have others."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")


HERE = Machine()


def parse_device(text: str) -> int:
    """Return the index in /dev/nbdN or nbdN.  Raises: UsageError."""
    match = _NBD.fullmatch(text)
    if match is None or match[2]:
        raise UsageError(
            f"{text!r} is not a network block device", hint="write /dev/nbd0, /dev/nbd1, ..."
        )
    return int(match[1])


def device_path(index: int, machine: Machine = HERE) -> Path:
    """Return a device's node."""
    return machine.dev / f"nbd{index}"


def block_folder(index: int, machine: Machine = HERE) -> Path:
    """Return a device's folder in sysfs."""
    return machine.sys / "block" / f"nbd{index}"


def size_of(index: int, machine: Machine = HERE) -> int:
    """Return what the kernel thinks is a device's size in bytes; 0 when it is not connected."""
    text = read_line(block_folder(index, machine) / "size")
    return int(text) * SECTOR_BYTES if text.isdigit() else 0


def backend_of(index: int, machine: Machine = HERE) -> str:
    """Return whom a connected device belongs to; empty when nobody said, or it is free."""
    return read_line(block_folder(index, machine) / "backend")


def connector_of(index: int, machine: Machine = HERE) -> int | None:
    """Return the pid of the process that connected a device; None when it is not connected."""
    text = read_line(block_folder(index, machine) / "pid")
    return int(text) if text.isdigit() else None


def devices(machine: Machine = HERE) -> list[int]:
    """Return the indexes of the devices that there are, in order."""
    try:
        names = os.listdir(machine.sys / "block")
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := _NBD.fullmatch(name)))


def uses_of(index: int, machine: Machine = HERE) -> list[str]:
    """Return what stands in the way of taking a device away, a phrase each; empty: nothing."""
    numbers = _device_numbers(index, machine)
    found = [
        f"{source} is mounted on {place}"
        for number, source, place in _mounts(machine)
        if number in numbers
    ]
    names = {str(device_path(index, machine)): True}
    for source in _swaps(machine):
        if source in names or source.startswith(f"{device_path(index, machine)}p"):
            found.append(f"{source} is used as swap")
    for folder in _with_partitions(index, machine):
        holders = folder / "holders"
        for name in sorted(os.listdir(holders)) if holders.is_dir() else ():
            found.append(f"{_friendly(name, machine)} is built on /dev/{folder.name}")
    if not found and is_claimed(index, machine):
        found.append("a process, or a mount in another namespace, has it exclusively")
    return found


def is_claimed(index: int, machine: Machine = HERE) -> bool:
    """Tell whether somebody has a device exclusively, as mounts, swap and mappings do."""
    try:
        os.close(claim(index, machine))
    except OSError as refused:
        return refused.errno == errno.EBUSY
    return False


def claim(index: int, machine: Machine = HERE) -> int:
    """Open a device exclusively: nobody can mount it until the descriptor is closed.

    Raises: OSError, EBUSY when somebody else has it so.
    """
    return os.open(device_path(index, machine), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)


def flush(descriptor: int) -> None:
    """Write what the page cache holds of a device.  Raises: OSError."""
    os.fsync(descriptor)
    fcntl.ioctl(descriptor, BLKFLSBUF, 0)


def forget_partitions(index: int, machine: Machine = HERE) -> None:
    """Have the kernel drop the partitions of a device that was disconnected; by itself it does so
    at the next connection."""
    if len(_with_partitions(index, machine)) == 1 or connector_of(index, machine) is not None:
        return
    try:
        descriptor = os.open(device_path(index, machine), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, BLKRRPART)
        finally:
            os.close(descriptor)
    except OSError as refused:  # somebody has one of them open, or was quicker
        log.info("device.partitions.kept", device=f"nbd{index}", error=str(refused))


def set_queue(index: int, name: str, value: int, machine: Machine = HERE) -> bool:
    """Set one of a device's queue settings; tell whether the kernel took it."""
    path = block_folder(index, machine) / "queue" / name
    try:
        path.write_text(f"{value}\n", encoding="ascii")
    except OSError as refused:
        log.info("device.setting.refused", setting=str(path), value=value, error=str(refused))
        return False
    return True


def queue_value(index: int, name: str, machine: Machine = HERE) -> int | None:
    """Return one of a device's queue settings, None when this kernel has no such."""
    text = read_line(block_folder(index, machine) / "queue" / name)
    return int(text) if text.isdigit() else None


def read_line(path: Path) -> str:
    """Return a small file's only line; empty when it is not there or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _with_partitions(index: int, machine: Machine) -> list[Path]:
    folder = block_folder(index, machine)
    return [folder, *sorted(folder.glob(f"nbd{index}p*"))]


def _device_numbers(index: int, machine: Machine) -> set[str]:
    """Return MAJOR:MINOR of a device and of its partitions."""
    return {read_line(folder / "dev") for folder in _with_partitions(index, machine)} - {""}


def _mounts(machine: Machine) -> list[tuple[str, str, str]]:
    """Return (MAJOR:MINOR, source, mount point) of every mount that this process sees."""
    found = []
    for line in _lines(machine.proc / "self" / "mountinfo"):
        before, _, behind = line.partition(" - ")
        fields, sources = before.split(" "), behind.split(" ")
        if len(fields) >= 5 and len(sources) >= 2:
            found.append((fields[2], _unescape(sources[1]), _unescape(fields[4])))
    return found


def _swaps(machine: Machine) -> list[str]:
    return [_unescape(line.split()[0]) for line in _lines(machine.proc / "swaps")[1:] if line]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _friendly(name: str, machine: Machine) -> str:
    """Return a mapping's own name instead of dm-0."""
    mapped = read_line(machine.sys / "block" / name / "dm" / "name")
    return f"/dev/mapper/{mapped}" if mapped else f"/dev/{name}"


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
