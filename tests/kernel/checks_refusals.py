"""What is refused, with which words and which exit code."""

import subprocess
from pathlib import Path

from tests.kernel.guest import TORUS, Guest, check, expect, run, wait_for
from torus.net.block_device import is_claimed, parse_device


def attach_twice(guest: Guest, name: str) -> str:
    """Attach a volume twice at the same moment: one device, which is returned, one refusal."""
    both = [
        subprocess.Popen(
            [TORUS, "nbd", "attach", name], env=guest.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = sorted((one.communicate(timeout=1200)[0], one.returncode) for one in both)
    expect([code for _, code in said] == [0, 75], f"{said}")
    device = said[0][0].strip()
    expect("is attached on this machine already" in said[1][0], said[1][0])
    return device


@check()
def two_at_once(guest: Guest) -> None:
    """Two attaches of one volume, and what a mounted disk refuses."""
    guest.create("twice", "100MiB")
    device = attach_twice(guest, "twice")
    run("mkfs.ext4", "-q", "-F", device)
    with guest.mounted(device):
        refused = guest.detach(device, code=75)
        expect(f"{device} is mounted on /mnt/torus" in refused, refused)
        listed = guest.ask("nbd", "list")["devices"]
        expect(listed[0]["device"] == device and listed[0]["volume"] == "twice", f"{listed}")
        refused = guest.torus("nbd", "move", "twice", "--to", "node", code=75)
        expect(device in refused, refused)
    guest.detach(device)
    refused = guest.detach(device, code=5)
    expect("is not attached on this machine" in refused, refused)
    guest.torus("volume", "delete", "twice")


@check()
def who_may_and_what_there_is(guest: Guest) -> None:
    """Not root, no such volume, no driver, a device of somebody else."""
    guest.create("picky", "100MiB")
    said = run("setpriv", "--reuid=65534", "--clear-groups", TORUS, "nbd", "attach", "picky",
               env={**guest.environment, "HOME": "/run/nobody", "TORUS_HOME": "/run/nobody"},
               code=77)  # fmt: skip
    expect("needs root" in said, said)
    expect("does not exist" in guest.attach("nothing", code=5), "no such volume")
    run("qemu-img", "create", "-q", "-f", "raw", "/run/other.img", "64M")
    run("qemu-nbd", "--fork", "-x", "x", "-f", "raw", "-k", "/run/q.sock", "/run/other.img")
    run("nbd-client", "-unix", "/run/q.sock", "/dev/nbd3", "-N", "x")
    said = guest.attach("picky", "--device", "/dev/nbd3", code=75)
    expect("/dev/nbd3 is in use by somebody else" in said, said)
    said = guest.detach("/dev/nbd3", code=5)
    expect("is not torus's" in said, said)
    run("nbd-client", "-d", "/dev/nbd3")
    wait_for(lambda: not Path("/sys/block/nbd3/pid").exists(), "the end of qemu-nbd's device")
    wait_for(lambda: run("rmmod", "nbd", code=None) == "", "the driver to go")
    said = guest.attach("picky", code=5)
    expect("driver is not loaded" in said and "modprobe nbd" in said, said)
    expect(guest.ask("nbd", "list")["devices"] == [], "devices without a driver")
    run("modprobe", "nbd", "nbds_max=8", "max_part=4")
    guest.torus("volume", "delete", "picky")


@check()
def uses_that_are_seen(guest: Guest) -> None:
    """Swap, a mapping and a mount of another namespace keep a disk from being detached."""
    guest.create("used", "100MiB")
    device = guest.attach("used", "--device", "/dev/nbd5")
    expect(device == "/dev/nbd5", device)
    run("mkswap", device)
    run("swapon", device)
    said = guest.detach(device, code=75)
    expect(f"{device} is used as swap" in said, said)
    run("swapoff", device)
    sectors = Path("/sys/block/nbd5/size").read_text().strip()
    run("dmsetup", "create", "above", "--table", f"0 {sectors} linear {device} 0")
    said = guest.detach(device, code=75)
    expect("/dev/mapper/above is built on /dev/nbd5" in said, said)
    run("dmsetup", "remove", "above")
    run("mkfs.ext4", "-q", "-F", device)
    away = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount {device} /mnt && touch /run/away; exec sleep 1000"]
    )
    wait_for(Path("/run/away").exists, "the mount of another namespace")
    said = guest.detach(device, code=75)
    expect("another namespace" in said, said)
    away.kill()
    away.wait()
    wait_for(lambda: not is_claimed(parse_device(device)), "the namespace to go")
    guest.detach(device)
    guest.torus("volume", "delete", "used")


@check()
def fifty(guest: Guest) -> None:
    """Fifty devices, more than the driver was loaded with; each is what it should be."""
    names = [f"d{number}" for number in range(50)]
    for name in names:
        guest.create(name, "64MiB")
    found = {}
    for name in names:
        found[name] = guest.attach(name, "--map-cache", "8MiB")
    expect(len(set(found.values())) == 50, f"{found}")
    for number, name in enumerate(names):
        mark = f"{name:<4096}".encode()
        with open(found[name], "r+b", buffering=0) as disk:
            disk.seek(number * 4096)
            disk.write(mark)
    listed = guest.ask("nbd", "list")["devices"]
    of_names = {one["volume"]: one["device"] for one in listed if one["volume"] in found}
    expect(of_names == found, f"{listed}")
    run("sysctl", "-q", "vm.drop_caches=3")
    for number, name in enumerate(names):
        with open(found[name], "rb", buffering=0) as disk:
            disk.seek(number * 4096)
            expect(disk.read(4096).strip() == name.encode(), f"{name} is another volume")
    for name in names:
        guest.detach(name)
        guest.torus("volume", "delete", name)
