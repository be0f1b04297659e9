"""The driver's own corners: what blktests' group nbd asks, put to torus, and the ioctl way.

The source of blktests is in no package registry; its tests 001 to 004 are written here anew, after
what they are about: a device that is resized while connected, partitions that come and go with a
connection, a device that is taken away while it is mounted and unmounted, and the driver loaded
and unloaded beside connections.
"""

import os
import threading
import time
from pathlib import Path

from tests.kernel.checks_files import fill, fio_verify, read_hashes
from tests.kernel.guest import MIB, TORUS, Guest, check, expect, run, wait_for


def partitions(device: str) -> list[str]:
    """Return the partitions that the kernel sees."""
    name = Path(device).name
    return sorted(path.name for path in Path(f"/sys/block/{name}").glob(f"{name}p*"))


@check()
def resize_many_times(guest: Guest) -> None:
    """blktests nbd/001: the size follows, up and down, also below a partition table."""
    guest.create("sizes", "100MiB")
    device = guest.attach("sizes")
    size = Path(f"/sys/block/{Path(device).name}/size")
    # Not GPT: its second copy is at the end, so that the kernel refuses what was made smaller.
    run("sfdisk", "-q", device, given="label: dos\nsize=40MiB\n")
    wait_for(lambda: len(partitions(device)) == 1, "the partition")
    for mib in (120, 200, 150, 64, 100):
        guest.torus("volume", "resize", "sizes", f"{mib}MiB", "--shrink")
        wait_for(lambda mib=mib: int(size.read_text()) * 512 == mib * MIB, f"{mib} MiB")
        expect(int(run("blockdev", "--getsize64", device)) == mib * MIB, "blockdev says otherwise")
        wait_for(lambda: len(partitions(device)) == 1, f"the partition at {mib} MiB")
    guest.detach(device)
    guest.torus("volume", "delete", "sizes")


@check()
def partitions_come_and_go(guest: Guest) -> None:
    """blktests nbd/002: a partition is there after a connection, and gone without one."""
    guest.create("parts", "100MiB")
    for block in ("512", "4096"):
        device = guest.attach("parts", "--block-size", block)
        run("sfdisk", "-q", device, given="label: gpt\nsize=40MiB\n")
        wait_for(lambda device=device: len(partitions(device)) == 1, "the partition")
        first = f"{device}p1"
        wait_for(Path(first).exists, first)
        run("mkfs.ext4", "-q", "-F", first)
        with guest.mounted(first) as place:
            hashes = fill(place, 5, 50_000)
            said = guest.detach(device, code=75)
            expect(f"{first} is mounted" in said, said)
        guest.detach(device)
        expect(partitions(device) == [], f"left behind: {partitions(device)}")
        device = guest.attach("parts", "--block-size", block)
        run("blockdev", "--rereadpt", device, code=None)
        wait_for(lambda device=device: len(partitions(device)) == 1, "the partition again")
        wait_for(Path(f"{device}p1").exists, "its node")
        with guest.mounted(f"{device}p1") as place:
            expect(read_hashes(place) == hashes, "files are not what was written")
        guest.detach(device)
    guest.torus("volume", "delete", "parts")


@check()
def taken_away_while_mounting(guest: Guest) -> None:
    """blktests nbd/003: mounts and unmounts beside a forced detach; nothing hangs or crashes."""
    guest.create("race", "100MiB")
    device = guest.attach("race")
    run("mkfs.ext4", "-q", "-F", device)
    guest.detach(device)
    Path("/mnt/race").mkdir(exist_ok=True)
    for _ in range(3):
        device = guest.attach("race")
        over = threading.Event()

        def mount_and_unmount(device: str = device, over: threading.Event = over) -> None:
            while not over.is_set():
                run("mount", device, "/mnt/race", code=None)
                run("umount", "/mnt/race", code=None)

        thread = threading.Thread(target=mount_and_unmount)
        thread.start()
        time.sleep(1)
        guest.detach(device, "--force")
        over.set()
        thread.join()
        run("umount", "/mnt/race", code=None)
        wait_for(lambda: guest.ask("nbd", "list")["devices"] == [], "the end of the gateway")
    device = guest.attach("race")
    run("e2fsck", "-fy", device, code=None)
    run("e2fsck", "-fn", device)
    guest.detach(device)
    guest.torus("volume", "delete", "race")


@check()
def driver_comes_and_goes(guest: Guest) -> None:
    """blktests nbd/004: the driver is unloaded and loaded beside attach and detach."""
    guest.create("loads", "64MiB")
    for _ in range(3):
        device = guest.attach("loads")
        expect("in use" in run("rmmod", "nbd", code=1), "the driver went below a device")
        fio_verify(Path(device), "4m")
        guest.detach("loads")
        wait_for(lambda: run("rmmod", "nbd", code=None) == "", "the driver to go")
        run("modprobe", "nbd", "nbds_max=2", "max_part=4")
    run("rmmod", "nbd")
    run("modprobe", "nbd", "nbds_max=8", "max_part=4")
    guest.torus("volume", "delete", "loads")


@check()
def without_netlink(guest: Guest) -> None:
    """The ioctl way: attach, use, resize, detach; SIGTERM."""
    environment = {**guest.environment, "TORUS_NBD_IOCTL": "1"}
    guest.create("ioctl", "100MiB")
    device = run(TORUS, "nbd", "attach", "ioctl", env=environment).strip()
    run("mkfs.ext4", "-q", "-F", device)
    with guest.mounted(device) as place:
        hashes = fill(place, 8, 100_000)
        run("sysctl", "-q", "vm.drop_caches=3")
        expect(read_hashes(place) == hashes, "files are not what was written")
        run("fstrim", place)
        said = guest.detach(device, code=75)
        expect("is mounted" in said, said)
    run("e2fsck", "-fn", device)
    pid = guest.state("ioctl")["supervisor_pid"]
    os.kill(pid, 15)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of the supervisor")
    wait_for(lambda: not Path(f"/sys/block/{Path(device).name}/pid").exists(), "the end of it")
    guest.torus("volume", "delete", "ioctl")
