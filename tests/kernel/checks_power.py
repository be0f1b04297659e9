"""Power cuts: the machine is killed while it writes; the next one looks at what is there.

What was answered is written down in /run/out/acknowledged, on the host, before anything else is
done: that list is what has to be there.
"""

import hashlib
import os
import random
import subprocess
import threading
import time
from pathlib import Path

from tests.kernel.guest import OUT, SEED, Guest, check, expect, run

ACKNOWLEDGED = OUT / "acknowledged"
CUTTING = OUT / "cutting"  # its appearance asks the host for the cut
PLACE = Path("/mnt/cut")
WRITERS = 3


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_for_ever(writer: int, boot: int, acknowledge: "Acknowledge") -> None:
    """Write files; some are made durable and acknowledged, every third is not."""
    source = random.Random(SEED + 1000 * boot + writer)
    folder = PLACE / f"{boot}-{writer}"
    folder.mkdir()
    fsync_folder(PLACE)
    number = 0
    while True:
        number += 1
        content = source.randbytes(source.randrange(1, 60_000))
        path = folder / str(number)
        with open(path, "wb") as file:
            file.write(content)
            if number % 3 == 0:
                continue
            file.flush()
            os.fsync(file.fileno())
        if number % 4 == 0:
            path = path.rename(folder / f"{number}-renamed")
        fsync_folder(folder)
        acknowledge(path, content)


class Acknowledge:
    """Writes down what is durable, where the cut does not reach."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file = open(ACKNOWLEDGED, "ab", buffering=0)  # noqa: SIM115

    def __call__(self, path: Path, content: bytes) -> None:
        line = f"{path.relative_to(PLACE)} {hashlib.sha256(content).hexdigest()}\n"
        with self._lock:
            self._file.write(line.encode())


@check(apart=True)
def after_the_cut(guest: Guest) -> None:
    """Everything that was acknowledged before the cuts is there, and fsck finds nothing."""
    device = guest.attach("cut")
    PLACE.mkdir(parents=True, exist_ok=True)
    run("mount", device, PLACE)  # replays the journal
    run("umount", PLACE)
    run("e2fsck", "-fn", device)
    lines = ACKNOWLEDGED.read_text().splitlines()
    with guest.mounted(device, str(PLACE)):
        lost = [line for line in lines if not is_there(*line.split(" "))]
    expect(lost == [], f"{len(lost)} of {len(lines)} files are lost or other: {lost[:5]}")
    expect(len(lines) > 0, "nothing was written before the cut")
    print(f"{len(lines)} acknowledged files are there", flush=True)


def is_there(name: str, digest: str) -> bool:
    """Tell whether a file is what it was when it was acknowledged."""
    path = PLACE / name
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


@check(apart=True)
def until_the_cut(guest: Guest) -> None:
    """Write until the host cuts the power."""
    volumes = [one["name"] for one in guest.ask("volume", "list")["volumes"]]
    if "cut" not in volumes:
        guest.create("cut", "600MiB")
    listed = [one for one in guest.ask("nbd", "list")["devices"] if one["volume"] == "cut"]
    device = listed[0]["device"] if listed else guest.attach("cut")
    if "ext4" not in run("blkid", device, code=None):
        run("mkfs.ext4", "-q", "-F", device)
    PLACE.mkdir(parents=True, exist_ok=True)
    run("mount", device, PLACE)
    boot = len(list(PLACE.glob("*-0")))
    acknowledge = Acknowledge()
    for writer in range(WRITERS):
        threading.Thread(
            target=write_for_ever, args=(writer, boot, acknowledge), daemon=True
        ).start()
    beside = subprocess.Popen(
        [
            "fio", "--name=beside", f"--filename={PLACE}/beside", "--size=48m", "--rw=randwrite",
            "--bsrange=4k-64k", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--fsync=16",
            "--time_based", "--runtime=600", f"--randseed={SEED}", "--output=/run/beside.out",
        ],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    before = ACKNOWLEDGED.stat().st_size
    while ACKNOWLEDGED.stat().st_size == before:
        expect(beside.poll() is None, f"fio ended with {beside.returncode}")
        time.sleep(0.1)
    CUTTING.touch()
    time.sleep(300)
    expect(False, "nobody cut the power")
