"""The short form: everything that people do with a disk, on one volume, in one go."""

import time
from pathlib import Path

from tests.kernel.checks_files import (
    check_settings,
    fill,
    make_ext4,
    read_hashes,
    reopen,
    trim,
    use_file_system,
)
from tests.kernel.checks_refusals import attach_twice
from tests.kernel.checks_survival import end_of, load
from tests.kernel.guest import MIB, Guest, check, expect, io_errors, run, wait_for


@check(short=True)
def everyday(guest: Guest) -> None:
    """Attach (twice at once), ext4 with fio, SQLite and git, fstrim, growth, a snapshot while
    mounted and its clone, kill -9 and restart under load, detach; then XFS on the same disk."""
    guest.create("day", "400MiB")
    device = attach_twice(guest, "day")
    check_settings(device)
    make_ext4(device)
    with guest.mounted(device) as place:
        hashes = use_file_system(place, small=True)
        said = guest.detach(device, code=75)
        expect(f"{device} is mounted on {place}" in said, said)
        trim(guest, "day", place)
        grow_mounted(guest, device)
        clone_mounted(guest, place, hashes)
        writing = load(place, 25)
        time.sleep(2)
        first = guest.kill_gateway("day")
        second = guest.wait_attached("day", but=first)
        guest.torus("nbd", "restart", "day")
        third = guest.wait_attached("day", but=second)
        expect(len({first, second, third}) == 3, f"gateways {first}, {second}, {third}")
        end_of(writing)
    run("e2fsck", "-fn", device)
    reopen(guest, device, "/mnt/torus", hashes)
    run("mkfs.xfs", "-q", "-f", device)
    with guest.mounted(device) as place:
        hashes = fill(place, 10, 200_000)
        run("sync", "-f", place)
        run("sysctl", "-q", "vm.drop_caches=3")
        expect(read_hashes(place) == hashes, "files on XFS are not what was written")
    run("xfs_repair", "-n", device)
    guest.detach("day")
    expect(io_errors() == [], f"the kernel complains: {io_errors()}")


def grow_mounted(guest: Guest, device: str) -> None:
    """Grow the volume and the file system on it."""
    size = Path(f"/sys/block/{Path(device).name}/size")
    guest.torus("volume", "resize", "day", "500MiB")
    wait_for(lambda: int(size.read_text()) * 512 == 500 * MIB, "the kernel's new size")
    run("resize2fs", device)


def clone_mounted(guest: Guest, place: Path, hashes: dict[str, str]) -> None:
    """Take a consistent snapshot, clone it, mount the clone."""
    run("fsfreeze", "-f", place)
    try:
        guest.torus("volume", "snapshot", "create", "day@frozen")
    finally:
        run("fsfreeze", "-u", place)
    guest.torus("volume", "clone", "day@frozen", "copy")
    clone = guest.attach("copy")
    run("e2fsck", "-fn", clone)
    with guest.mounted(clone, "/mnt/clone") as copy:
        expect(read_hashes(copy) == hashes, "the clone has other files")
    guest.detach(clone)
