"""A file system on a served volume: made, filled, killed, checked, as in the README's tour."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORUS = ROOT / "cmd/torus"
DEADLINE_S = 60.0

pytestmark = [
    pytest.mark.interop,
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a loop device needs root"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="no loop devices"),
]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds; fail after a minute, saying what did not happen."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def answers(path: Path) -> bool:
    """Say whether an NBD server greets on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(5)
            probe.connect(str(path))
            return probe.recv(8) == b"NBDMAGIC"
        except OSError:
            return False


class Machine:
    """A node in a folder of its own, and a volume of it as a file through FUSE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "nbd.sock"
        self.fuse = folder / "fuse"
        self.mount = folder / "mount"
        self.environment = {**os.environ, "TORUS_HOME": str(folder / "home")}
        self.node: subprocess.Popen[bytes] | None = None
        self.bridge: subprocess.Popen[bytes] | None = None
        for path in (self.fuse, self.mount):
            path.mkdir()

    def run(self, *command: str | Path) -> str:
        """Run a command to its end; its output, or a failure that shows it."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start the node and wait until it answers."""
        command = [TORUS, "node", "--size", "1GiB", "--nbd", f"unix:{self.socket}"]
        with (self.folder / "node.log").open("ab") as log:
            self.node = subprocess.Popen(
                [*command, "--http", "none"], env=self.environment, stdout=log, stderr=log
            )
        wait_until(lambda: answers(self.socket), "the node does not answer")

    def attach(self, volume: str) -> Path:
        """Show a volume as a file and return its path."""
        uri = f"nbd+unix:///{volume}?socket={self.socket}"
        self.bridge = subprocess.Popen(["nbdfuse", self.fuse, uri])
        wait_until((self.fuse / "nbd").exists, "nbdfuse shows no file")
        return self.fuse / "nbd"

    def detach(self) -> None:
        """Take the file away again."""
        if self.bridge is not None:
            self.run("fusermount3", "-u", self.fuse)
            self.bridge.wait(DEADLINE_S)
            self.bridge = None

    def end(self, how: signal.Signals) -> None:
        """Send the node a signal and wait until it is gone."""
        if self.node is not None:
            self.node.send_signal(how)
            self.node.wait(DEADLINE_S)
            self.node = None


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine with a running node; take everything down whatever happens."""
    machine = Machine(socket_folder)
    machine.start()
    yield machine
    subprocess.run(["umount", machine.mount], check=False, capture_output=True)
    machine.detach()
    machine.end(signal.SIGKILL)


def same_files(source: Path, target: Path) -> bool:
    """Say whether two folders hold the same files with the same bytes."""
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    others = sorted(path.relative_to(target) for path in target.rglob("*") if path.is_file())
    return names == others and all(
        (source / name).read_bytes() == (target / name).read_bytes() for name in names
    )


def test_file_system_survives_a_killed_node(machine: Machine) -> None:
    """Files that were synced are there after kill -9, and fsck finds nothing to repair."""
    source = machine.folder / "source"
    shutil.copytree(ROOT / "tests", source, ignore=shutil.ignore_patterns("__pycache__"))
    machine.run(TORUS, "volume", "create", "disk0", "256MiB")
    device = machine.attach("disk0")
    machine.run("mkfs.ext4", "-q", "-F", device)
    machine.run("mount", "-o", "loop", device, machine.mount)
    shutil.copytree(source, machine.mount / "files")
    machine.run("sync", "-f", machine.mount)
    machine.run("umount", machine.mount)
    machine.end(signal.SIGKILL)
    machine.detach()

    machine.start()
    device = machine.attach("disk0")
    machine.run("fsck.ext4", "-fn", device)
    machine.run("mount", "-o", "loop,ro", device, machine.mount)

    assert same_files(source, machine.mount / "files")


def test_file_system_after_trim_gives_space_back(machine: Machine) -> None:
    """fstrim reaches the volume: the trimmed range is no longer mapped."""
    machine.run(TORUS, "volume", "create", "disk1", "256MiB")
    device = machine.attach("disk1")
    machine.run("mkfs.ext4", "-q", "-F", device)
    machine.run("mount", "-o", "loop", device, machine.mount)
    (machine.mount / "large").write_bytes(os.urandom(64 << 20))
    machine.run("sync", "-f", machine.mount)
    (machine.mount / "large").unlink()
    machine.run("sync", "-f", machine.mount)
    machine.run("fstrim", machine.mount)
    machine.run("umount", machine.mount)
    machine.run("fsck.ext4", "-fn", device)
    uri = f"nbd+unix:///disk1?socket={machine.socket}"

    lines = machine.run("nbdinfo", "--map", "--totals", uri).splitlines()
    data = sum(int(line.split()[0]) for line in lines if line.split()[2] == "0")

    assert data < 32 << 20
