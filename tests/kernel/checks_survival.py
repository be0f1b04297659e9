"""Gateways that die, are replaced, lose their node: the file system does not notice."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from tests.kernel.checks_files import fill, fio_verify, read_hashes
from tests.kernel.guest import (
    SEED,
    TORUS,
    Guest,
    check,
    expect,
    io_errors,
    kernel_log,
    run,
    wait_for,
)

LOAD_OUT = Path("/run/load.out")
PAUSES = random.Random(SEED)  # between kills


def load(folder: Path, seconds: int) -> "subprocess.Popen[bytes]":
    """Begin to write, verify and sync for so long; its exit code tells of errors."""
    return subprocess.Popen(
        [
            "fio", "--name=load", f"--directory={folder}", "--size=24m", "--rw=randwrite",
            "--bs=4k", "--ioengine=libaio", "--iodepth=16", "--direct=1", "--fsync=32",
            "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--time_based",
            f"--runtime={seconds}", f"--randseed={SEED}", f"--output={LOAD_OUT}",
            "--output-format=json",
        ],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def end_of(process: "subprocess.Popen[bytes]", seconds: float = 1200) -> None:
    """Wait for a load; it must have seen no error."""
    code = process.wait(seconds)
    expect(code == 0, f"fio ended with {code}: {LOAD_OUT.read_text()[-1500:]}")


def slowest(process: "subprocess.Popen[bytes]") -> float:
    """Wait for a load, as `end_of`; return how long its slowest request took, in seconds."""
    end_of(process)
    said = LOAD_OUT.read_text()
    job = json.loads(said[said.index("{") :])["jobs"][0]
    return max(float(job[direction]["clat_ns"]["max"]) / 1e9 for direction in ("read", "write"))


@check()
def kill_and_restart(guest: Guest) -> None:
    """kill -9 of the gateway under load, then `torus nbd restart`: no error, nothing is lost."""
    guest.create("killed", "300MiB")
    device = guest.attach("killed")
    run("mkfs.ext4", "-q", "-F", device)
    with guest.mounted(device) as place:
        hashes = fill(place, 10, 100_000)
        run("sync", "-f", place)
        writing = load(place, 30)
        time.sleep(3)
        first = guest.kill_gateway("killed")
        second = guest.wait_attached("killed", but=first)
        time.sleep(8)
        said = guest.torus("nbd", "restart", "killed")
        third = guest.wait_attached("killed", but=second)
        expect(len({first, second, third}) == 3, f"gateways {first}, {second}, {third}: {said}")
        end_of(writing)
        run("sysctl", "-q", "vm.drop_caches=3")
        expect(read_hashes(place) == hashes, "files are not what was written")
    run("e2fsck", "-fn", device)
    expect(io_errors() == [], f"the kernel complains: {io_errors()}")
    guest.detach("killed")
    guest.torus("volume", "delete", "killed")


@check()
def kill_many_times(guest: Guest) -> None:
    """Ten kills at any moment, four connections, files written through the cache meanwhile."""
    guest.create("many", "400MiB")
    device = guest.attach("many", "--connections", "4")
    run("mkfs.ext4", "-q", "-F", device)
    with guest.mounted(device) as place:
        hashes: dict[str, str] = {}
        pid = 0
        for turn in range(10):
            pid = guest.wait_attached("many", but=pid)
            folder = place / str(turn)
            folder.mkdir()
            hashes = fill(folder, 20, 100_000, SEED + turn)
            guest.kill_gateway("many")
            run("sync", "-f", folder)
            run("sysctl", "-q", "vm.drop_caches=3")
            expect(read_hashes(folder) == hashes, f"turn {turn}: files are not what was written")
        guest.wait_attached("many", but=pid)
    run("e2fsck", "-fn", device)
    expect(io_errors() == [], f"the kernel complains: {io_errors()}")
    guest.detach("many")
    guest.torus("volume", "delete", "many")


@check()
def kill_under_fio(guest: Guest) -> None:
    """Ten kills and three restarts while fio writes and verifies, with one connection and with
    four; prints how long the slowest request took."""
    for connections in (1, 4):
        name = f"fio{connections}"
        guest.create(name, "300MiB")
        device = guest.attach(name, "--connections", connections)
        run("mkfs.ext4", "-q", "-F", device)
        with guest.mounted(device) as place:
            writing = load(place, 60)
            waited_s = [0.0]
            pid = 0
            for turn in range(13):
                pid = guest.wait_attached(name, but=pid)
                time.sleep(PAUSES.uniform(1.0, 7.0))
                if writing.poll() is not None:  # it was slow: the kills are what is counted
                    waited_s.append(slowest(writing))
                    writing = load(place, 60)
                if turn % 4 == 3:
                    guest.torus("nbd", "restart", name)
                else:
                    guest.kill_gateway(name)
            guest.wait_attached(name, but=pid)
            waited_s.append(slowest(writing))
            print(f"{name}: the slowest request took {max(waited_s):.1f} s", flush=True)
        run("e2fsck", "-fn", device)
        expect(io_errors() == [], f"the kernel complains: {io_errors()}")
        guest.detach(name)
        guest.torus("volume", "delete", name)


@check()
def node_comes_and_goes(guest: Guest) -> None:
    """The node is killed under load and started again: requests wait, none fails."""
    guest.create("waits", "300MiB")
    device = guest.attach("waits")
    run("mkfs.ext4", "-q", "-F", device)
    with guest.mounted(device) as place:
        hashes = fill(place, 10, 100_000)
        run("sync", "-f", place)
        writing = load(place, 40)
        time.sleep(3)
        guest.kill_node()
        time.sleep(10)
        guest.start_node()
        end_of(writing)
        run("sysctl", "-q", "vm.drop_caches=3")
        expect(read_hashes(place) == hashes, "files are not what was written")
    run("e2fsck", "-fn", device)
    expect(io_errors() == [], f"the kernel complains: {io_errors()}")
    guest.detach("waits")
    guest.torus("volume", "delete", "waits")


@check()
def everything_dies(guest: Guest) -> None:
    """Gateway and supervisor are killed: the device waits, and a new attach finds it."""
    guest.create("orphan", "200MiB")
    device = guest.attach("orphan")
    run("mkfs.ext4", "-q", "-F", device)
    with guest.mounted(device) as place:
        hashes = fill(place, 10, 100_000)
        known = guest.state("orphan")
        for key in ("supervisor_pid", "gateway_pid"):
            os.kill(known[key], signal.SIGKILL)
        wait_for(
            lambda: "orphaned" in {one["state"] for one in guest.ask("nbd", "list")["devices"]},
            "the device without gateway",
        )
        said = guest.detach("orphan", code=75)
        expect("is mounted on" in said, said)
        expect(guest.attach("orphan") == device, "another device was taken")
        run("sync", "-f", place)
        run("sysctl", "-q", "vm.drop_caches=3")
        expect(read_hashes(place) == hashes, "files are not what was written")
    run("e2fsck", "-fn", device)
    guest.detach("orphan")
    guest.torus("volume", "delete", "orphan")


@check()
def volume_is_deleted_below(guest: Guest) -> None:
    """The volume is deleted, or taken, under a mount: errors at once, and the log says why."""
    lose(guest, "deleted")
    lose(guest, "taken")


def lose(guest: Guest, how: str) -> None:
    """Lose a mounted volume."""
    guest.create(how, "100MiB")
    device = guest.attach(how)
    run("mkfs.ext4", "-q", "-F", device)
    Path("/mnt/torus").mkdir(parents=True, exist_ok=True)
    run("mount", device, "/mnt/torus")
    Path("/mnt/torus/file").write_bytes(b"x" * 5000)
    run("sync", "-f", "/mnt/torus")
    taker = None
    if how == "deleted":
        said = guest.torus("volume", "delete", how, code=75)
        expect(f"as {device}" in said, f"the refusal does not say where it is attached: {said}")
        guest.torus("volume", "delete", how, "--force")
    else:
        other = {**guest.environment, "TORUS_HOME": "/run/other"}
        taker = run(
            TORUS, "nbd", "attach", how, "--takeover", "--meta",
            f"sqlite:{guest.home}/meta.sqlite", env=other, code=None,
        )  # fmt: skip
    wait_for(lambda: not guest_has(guest, how), "the end of the gateway")
    log = (guest.home / "attach" / f"{how}.log").read_text()
    expect("is lost: epoch" in log, log[-1500:])
    run("dd", "if=/dev/zero", "of=/mnt/torus/new", "bs=1M", "count=4", "conv=fsync", code=1)
    run("umount", "-l", "/mnt/torus")
    if taker is not None:
        run(TORUS, "nbd", "detach", how, "--home", "/run/other", "--meta",
            f"sqlite:{guest.home}/meta.sqlite")  # fmt: skip
        guest.torus("volume", "delete", how)


def guest_has(guest: Guest, name: str) -> bool:
    """Tell whether a supervisor of this home has a volume."""
    devices = guest.ask("nbd", "list")["devices"]
    return any(one["volume"] == name and one["supervisor_pid"] for one in devices)


@check()
def sigterm_waits_for_the_mount(guest: Guest) -> None:
    """SIGTERM while mounted: it serves on until the file system is unmounted, then ends."""
    guest.create("stops", "100MiB")
    device = guest.attach("stops")
    run("mkfs.ext4", "-q", "-F", device)
    supervisor = guest.state("stops")["supervisor_pid"]
    with guest.mounted(device) as place:
        os.kill(supervisor, signal.SIGTERM)
        wait_for(lambda: guest.state("stops")["state"] == "stopping", "the state")
        hashes = fill(place, 5, 50_000)
        run("sync", "-f", place)
        problem = guest.state("stops")["problem"]
        expect("is mounted on /mnt/torus" in problem, problem)
    wait_for(lambda: not Path(f"/proc/{supervisor}").exists(), "the end of the supervisor")
    expect(not Path(f"/sys/block/{Path(device).name}/pid").exists(), "the device is there still")
    device = guest.attach("stops")
    with guest.mounted(device) as place:
        expect(read_hashes(place) == hashes, "files are not what was written")
    guest.detach("stops")
    guest.torus("volume", "delete", "stops")


@check()
def kernel_waits_no_longer(guest: Guest) -> None:
    """A gateway that never comes back: errors after --timeout, not before."""
    guest.create("late", "100MiB")
    device = guest.attach("late", "--timeout", "15s")
    known = guest.state("late")
    for key in ("supervisor_pid", "gateway_pid"):
        os.kill(known[key], signal.SIGKILL)
    began = time.monotonic()
    run("dd", f"if={device}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct", code=1)
    waited = time.monotonic() - began
    expect(10 < waited < 60, f"the read failed after {waited:.1f} s: {kernel_log()[-600:]}")
    guest.detach("late", "--force")
    fio = guest.attach("late")
    fio_verify(Path(fio), "8m")
    guest.detach("late")
    guest.torus("volume", "delete", "late")
