"""File systems on a volume: what people do with a disk, and that it comes back as it was."""

import hashlib
import json
import random
import sqlite3
from pathlib import Path

from tests.kernel.guest import MIB, SEED, Guest, check, expect, io_errors, kernel_log, run, wait_for


def fill(folder: Path, count: int, size: int, seed: int = SEED) -> dict[str, str]:
    """Write files of pseudo-random bytes; return their hashes by name."""
    source = random.Random(seed)
    hashes = {}
    for number in range(count):
        content = source.randbytes(source.randrange(1, size))
        (folder / f"file{number}").write_bytes(content)
        hashes[f"file{number}"] = hashlib.sha256(content).hexdigest()
    return hashes


def read_hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of the files that `fill` made."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("file*")
    }


def fio_verify(target: Path, size: str, *options: str) -> None:
    """Write and verify with fio; raises when a checksum is wrong."""
    said = run(
        "fio", "--name=verify", f"--filename={target}", f"--size={size}", "--rw=randwrite",
        "--bsrange=4k-64k", "--bs_unaligned=0", "--blockalign=4k", "--ioengine=libaio",
        "--iodepth=16", "--direct=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
        f"--randseed={SEED}", "--end_fsync=1", "--output-format=json", *options,
    )  # fmt: skip
    job = json.loads(said[said.index("{") :])["jobs"][0]
    expect(job["error"] == 0, f"fio: error {job['error']}")


def sqlite_commits(path: Path, count: int) -> None:
    """Commit so often, each durable by itself."""
    base = sqlite3.connect(path)
    base.execute("PRAGMA synchronous=FULL")
    base.execute("PRAGMA journal_mode=DELETE")
    base.execute("CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY, content BLOB)")
    for number in range(count):
        with base:
            base.execute("INSERT INTO entry (content) VALUES (?)", (bytes([number % 256]) * 900,))
    expect(base.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the database is damaged")
    base.close()


def clone_repository(folder: Path) -> None:
    """Make a git repository, clone it there, and have git check every object."""
    source = Path("/run/source")
    if not source.exists():
        run("git", "init", "-q", source)
        for number in range(60):
            (source / f"{number}.txt").write_text(f"{number}\n" * 200)
        run("git", "-C", source, "add", ".")
        who = ("-c", "user.name=guest", "-c", "user.email=guest@vm")
        run("git", *who, "-C", source, "commit", "-qm", "files")
    run("git", "clone", "-q", "--no-hardlinks", source, folder / "clone")
    run("git", "-C", folder / "clone", "fsck", "--full")
    status = run("git", "-C", folder / "clone", "status", "--porcelain")
    expect(status == "", f"the clone differs: {status}")


def use_file_system(folder: Path, *, small: bool) -> dict[str, str]:
    """Do all of it on a mounted file system; return the hashes of its files."""
    hashes = fill(folder, 20, 200_000)
    fio_verify(folder / "fio", "8m" if small else "64m")
    sqlite_commits(folder / "base.sqlite", 30 if small else 300)
    clone_repository(folder)
    return hashes


def reopen(guest: Guest, device: str, folder: str, hashes: dict[str, str], *options: str) -> None:
    """Mount anew without what the kernel remembers, and compare."""
    run("sysctl", "-q", "vm.drop_caches=3")
    with guest.mounted(device, folder, *options) as place:
        expect(read_hashes(place) == hashes, "files are not what was written")
        base = sqlite3.connect(place / "base.sqlite")
        expect(base.execute("PRAGMA integrity_check").fetchone() == ("ok",), "database damaged")
        base.close()


def make_ext4(device: str) -> None:
    """Make a file system that is whole at once: else the kernel goes on writing inode tables
    while it is mounted, and what is mapped grows by itself."""
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)


def trim(guest: Guest, name: str, place: Path) -> None:
    """Delete a large file; with fstrim its space comes back in torus."""
    (place / "ballast").write_bytes(random.Random(SEED).randbytes(24 * MIB))
    run("sync", "-f", place)
    full = guest.mapped_bytes(name)
    (place / "ballast").unlink()
    run("sync", "-f", place)
    run("fstrim", place)
    given_back = full - guest.mapped_bytes(name)
    expect(given_back > 22 * MIB, f"fstrim gave back {given_back} bytes of 24 MiB")


def check_settings(device: str) -> None:
    """The kernel knows what it may do with the device."""
    folder = Path(f"/sys/block/{Path(device).name}/queue")
    settings = {
        "max_sectors_kb": "4096", "rotational": "0", "fua": "1", "write_cache": "write back",
        "logical_block_size": "4096", "discard_granularity": "4096", "read_ahead_kb": "1024",
    }  # fmt: skip
    found = {key: (folder / key).read_text().strip() for key in settings}
    expect(found == settings, f"settings of the device: {found}")
    expect(int((folder / "discard_max_bytes").read_text()) > MIB, "no discard")


@check()
def ext4(guest: Guest) -> None:
    """mkfs.ext4, files, fio verify, SQLite, git clone; fsck finds nothing; fstrim gives back."""
    guest.create("ext4", "400MiB")
    device = guest.attach("ext4")
    check_settings(device)
    make_ext4(device)
    with guest.mounted(device) as place:
        hashes = use_file_system(place, small=True)
    run("e2fsck", "-fn", device)
    reopen(guest, device, "/mnt/torus", hashes)
    with guest.mounted(device) as place:
        trim(guest, "ext4", place)
    guest.detach("ext4")
    expect(io_errors() == [], f"the kernel complains: {io_errors()}")
    guest.torus("volume", "delete", "ext4")


@check()
def xfs(guest: Guest) -> None:
    """The same on XFS, with three connections and sectors of 512 bytes."""
    guest.create("xfs", "800MiB")
    device = guest.attach("xfs", "--connections", "3", "--block-size", "512")
    run("mkfs.xfs", "-q", "-f", device)
    with guest.mounted(device) as place:
        hashes = use_file_system(place, small=False)
        run("fstrim", place)
    run("xfs_repair", "-n", device)
    reopen(guest, device, "/mnt/torus", hashes)
    guest.detach(device)
    expect(io_errors() == [], f"the kernel complains: {io_errors()}")
    guest.torus("volume", "delete", "xfs")


LVM_SETTINGS = """
devices { dir = "/dev" scan = [ "/dev" ] use_devicesfile = 0 types = [ "nbd", 16 ]
          obtain_device_list_from_udev = 0 external_device_info_source = "none" }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
global { use_lvmlockd = 0 use_lvmpolld = 0 }
"""


@check()
def lvm(guest: Guest) -> None:
    """Two volumes below LVM: a file system over both, growth of one, a snapshot; a disk below a
    mapping is not detached."""
    settings = Path("/run/lvm-settings")
    settings.mkdir(exist_ok=True)
    (settings / "lvm.conf").write_text(LVM_SETTINGS)
    environment = {**guest.environment, "LVM_SYSTEM_DIR": str(settings)}
    devices = []
    for name in ("first", "second"):
        guest.create(name, "200MiB")
        devices.append(guest.attach(name))
        run("pvcreate", "-q", devices[-1], env=environment)
    run("vgcreate", "group", *devices, env=environment)
    run("lvcreate", "-n", "files", "-L", "300M", "-y", "group", env=environment)
    run("vgmknodes", "group", env=environment, code=None)
    logical = "/dev/mapper/group-files"
    run("mkfs.ext4", "-q", "-F", logical)
    with guest.mounted(logical) as place:
        hashes = use_file_system(place, small=True)
        said = guest.detach("second", code=75)
        expect("/dev/mapper/group-files is built on" in said, said)
        guest.torus("volume", "resize", "second", "400MiB")
        size = Path(f"/sys/block/{Path(devices[1]).name}/size")
        wait_for(lambda: int(size.read_text()) * 512 == 400 * MIB, "the kernel's new size")
        run("pvresize", devices[1], env=environment)
        run("lvextend", "-L", "+150M", "group/files", env=environment)
        run("resize2fs", logical)
        run("fstrim", place)
    run("e2fsck", "-fn", logical)
    reopen(guest, logical, "/mnt/torus", hashes)
    run("vgchange", "-an", "group", env=environment)
    for name in ("first", "second"):
        guest.detach(name)
    again = [guest.attach(name, "--device", f"/dev/nbd{5 - number}")
             for number, name in enumerate(("first", "second"))]  # fmt: skip
    run("vgchange", "-ay", "group", env=environment)
    run("vgmknodes", "group", env=environment, code=None)
    reopen(guest, logical, "/mnt/torus", hashes)
    run("vgchange", "-an", "group", env=environment)
    for device in again:
        guest.detach(device)
    for name in ("first", "second"):
        guest.torus("volume", "delete", name)


@check()
def grow(guest: Guest) -> None:
    """A mounted file system grows: the kernel sees the new size of the volume by itself."""
    guest.create("grow", "200MiB")
    device = guest.attach("grow")
    run("mkfs.ext4", "-q", "-F", device)
    size = Path(f"/sys/block/{Path(device).name}/size")
    with guest.mounted(device) as place:
        hashes = fill(place, 5, 100_000)
        guest.torus("volume", "resize", "grow", "300MiB")
        wait_for(lambda: int(size.read_text()) * 512 == 300 * MIB, "the kernel's new size")
        run("resize2fs", device)
        after = fill(place, 8, 100_000, SEED + 1)
        (place / "large").write_bytes(bytes(220 * MIB))
        run("sync", "-f", place)
        expect(read_hashes(place) == hashes | after, "files changed while it grew")
    run("e2fsck", "-fn", device)
    guest.detach("grow")
    guest.torus("volume", "delete", "grow")


@check()
def snapshots(guest: Guest) -> None:
    """A snapshot of a mounted file system: frozen it is clean, without that it is as after a
    power cut; a clone of either mounts, and the snapshot itself is a read-only disk."""
    guest.create("origin", "200MiB")
    device = guest.attach("origin")
    run("mkfs.ext4", "-q", "-F", device)
    with guest.mounted(device) as place:
        hashes = fill(place, 8, 100_000)
        run("fsfreeze", "-f", place)
        guest.torus("volume", "snapshot", "create", "origin@frozen")
        run("fsfreeze", "-u", place)
        run("sync", "-f", place)
        guest.torus("volume", "snapshot", "create", "origin@running")
        (place / "file0").write_bytes(b"changed since")
        run("sync", "-f", place)
        for kind in ("frozen", "running"):
            guest.torus("volume", "clone", f"origin@{kind}", f"of-{kind}")
            clone = guest.attach(f"of-{kind}")
            if kind == "frozen":
                run("e2fsck", "-fn", clone)
            with guest.mounted(clone, "/mnt/clone") as copy:
                expect(read_hashes(copy) == hashes, f"the clone of {kind} has other files")
            run("e2fsck", "-fn", clone)
            guest.detach(clone)
            guest.torus("volume", "delete", f"of-{kind}")
        readonly = guest.attach("origin@frozen")
        with guest.mounted(readonly, "/mnt/clone", "-o", "ro,noload") as copy:
            expect(read_hashes(copy) == hashes, "the snapshot has other files")
        run("dd", "if=/dev/zero", f"of={readonly}", "bs=4k", "count=1", "conv=fsync", code=1)
        guest.detach("origin@frozen")
    guest.detach("origin")
    for kind in ("frozen", "running"):
        guest.torus("volume", "snapshot", "delete", f"origin@{kind}")
    guest.torus("volume", "delete", "origin")
    expect("I/O error" not in kernel_log().split("nbd1")[0], kernel_log()[-2000:])
