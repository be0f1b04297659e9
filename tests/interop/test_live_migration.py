"""A machine that writes without end is migrated from one qemu to another, and its disk with it."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.processes import Machine, machine_in, wait_until

QEMU = "qemu-system-x86_64"
pytestmark = [
    pytest.mark.interop,
    pytest.mark.slow,
]

SECTOR = 512
FIRST, WINDOW = 8, 4096  # sectors that the guest writes, round and round

# The guest: counts at 0x8000 and writes that sector to FIRST + count % WINDOW, by the BIOS.
CODE = bytes.fromhex(
    "31c0 8ed8 8ec0 88160006"  # xor ax, ax; mov ds, ax; mov es, ax; mov [0x600], dl
    "66ff060080 66a10080 6625ff0f0000 6683c008 66a3887c"  # next: LBA = (++count & 0xfff) + 8
    "be807c 8a160006 b80043 cd13 73db"  # write; jnc next
    "f4 ebfd"  # an error: stop for good
)
PACKET = bytes.fromhex("1000 0100 00800000") + bytes(8)  # one sector from 0x0000:0x8000
BOOT_SECTOR = (CODE.ljust(128, b"\0") + PACKET).ljust(510, b"\0") + b"\x55\xaa"


class Qemu:
    """A virtual machine with one disk, and its monitor."""

    def __init__(self, folder: Path, name: str, disk: Path, *options: str) -> None:
        path = folder / f"{name}.qmp"
        server = f"server.type=unix,server.path={disk},export=disk,reconnect-delay=10"
        self.process = subprocess.Popen(
            [
                QEMU, "-machine", "pc,accel=tcg", "-m", "32", "-nodefaults", "-display", "none",
                "-blockdev", f"driver=nbd,node-name=disk,{server}",
                "-device", "virtio-blk-pci,drive=disk,bootindex=1",
                "-qmp", f"unix:{path},server=on,wait=off", *options,
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._lines: BinaryIO | None = None
        try:
            wait_until(lambda: self._connects(path), f"{name} listens")
        except BaseException:
            self.close()
            raise
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def _connects(self, path: Path) -> bool:
        """Try once; the socket's file is there a moment before somebody listens on it."""
        assert self.process.poll() is None, self.process.communicate()[0].decode()
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def ask(self, command: str, **arguments: object) -> Any:
        """Ask the monitor."""
        question = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(question).encode() + b"\n")
        assert self._lines is not None
        while True:
            answer = json.loads(self._lines.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def writes(self) -> int:
        """Return how many writes the guest's disk has answered."""
        (disk,) = self.ask("query-blockstats")
        count: int = disk["stats"]["wr_operations"]
        return count

    def close(self) -> None:
        """End it; idempotent."""
        if self._lines is not None:
            self._lines.close()
        self._socket.close()
        self.process.kill()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine with a running node and a bootable volume."""
    with machine_in(socket_folder) as machine:
        machine.node(size="1GiB")
        with machine.client_of_new("disk", "64MiB") as client:
            client.write(0, BOOT_SECTOR)
        yield machine


def test_running_machine_is_migrated_with_its_disk(machine: Machine) -> None:
    """It goes on writing where it goes; every write that it knows of is there."""
    places = machine.folder / "a.sock", machine.folder / "b.sock"
    source_gateway = machine.gateway("disk", "--socket", places[0])
    target_gateway = machine.gateway("disk", "--standby", "--socket", places[1])
    channel = f"unix:{machine.folder / 'migration'}"
    with (
        contextlib.closing(Qemu(machine.folder, "source", places[0])) as source,
        contextlib.closing(
            Qemu(machine.folder, "target", places[1], "-incoming", channel)
        ) as target,
    ):  # fmt: skip
        wait_until(lambda: source.writes() > 200, "the guest writes")
        assert not target_gateway.events("volume.taken")  # qemu only had a look
        source.ask("migrate", uri=channel)
        wait_until(
            lambda: source.ask("query-migrate").get("status") in ("completed", "failed"), "moved"
        )
        report = source.ask("query-migrate")
        assert report["status"] == "completed", report
        before = source.writes()
        taken = target_gateway.wait_for("volume.taken")
        wait_until(lambda: target.writes() > 200, "the guest goes on")
        assert target.ask("query-status")["status"] == "running"
        target.ask("stop")
        after = target.writes()
        source.ask("quit")
        target.ask("quit")
        target.process.wait(30)
    assert source_gateway.wait_for("volume.handed_over")
    with machine.open("disk", places[1]) as client:
        found = client.read(FIRST * SECTOR, WINDOW * SECTOR)
    counts = [
        int.from_bytes(found[at : at + 4], "little") for at in range(0, len(found), SECTOR)
    ]  # fmt: skip
    newest = max(counts)
    print(f"{newest} writes: {before} before, {after} after, volume paused {taken['pause_ms']} ms, "
          f"machine {report['downtime']} ms")  # fmt: skip
    assert newest == before + after
    for count in range(max(1, newest - WINDOW + 1), newest + 1):
        assert counts[count % WINDOW] == count
    assert taken["pause_ms"] <= 1000
