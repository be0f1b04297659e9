"""The demonstration behind `./dev demo`: real data, a real client, a kill, the data again.

Everything happens in a temporary folder and on unix sockets; nothing is left behind but what
is printed.  `--keep` keeps the folder.  Exits 1 and says why when a promise does not hold.
"""

import argparse
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORUS = ROOT / "cmd/torus"
MIB = 1 << 20
BLOCK = 4096
FILE_MIB = 192  # of 256: the rest is a hole, as in a disk image
DEADLINE_S = 60.0


class DemoFailed(Exception):
    """A step did not do what it should; the message is for a person."""


def say(text: str) -> None:
    """Print one line at once, so that the reader sees what is going on."""
    print(text, flush=True)


class Demo:
    """The folder, the node that runs in it, and what is done to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "nbd.sock"
        self.log = folder / "node.log"
        self.environment = {**os.environ, "TORUS_HOME": str(folder / "home")}
        self.node: subprocess.Popen[bytes] | None = None

    def run(self, *command: str | Path) -> str:
        """Run a command to its end and return what it printed; DemoFailed when it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            words = " ".join(map(str, command))
            raise DemoFailed(f"`{words}` ended with {done.returncode}:\n{done.stderr.strip()}")
        return done.stdout

    def start(self) -> float:
        """Start the node and return the seconds until it answers clients."""
        command = [TORUS, "node", "--size", "2GiB", "--nbd", f"unix:{self.socket}"]
        started = time.monotonic()
        with self.log.open("ab") as log:
            self.node = subprocess.Popen(
                [*command, "--http", "none"], env=self.environment, stdout=log, stderr=log
            )
        while not self._answers():
            if self.node.poll() is not None:
                raise DemoFailed(f"the node ended with {self.node.returncode} at its start")
            if time.monotonic() - started > DEADLINE_S:
                raise DemoFailed(f"the node does not answer after {DEADLINE_S:.0f} s")
            time.sleep(0.01)
        return time.monotonic() - started

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.settimeout(5)
                probe.connect(str(self.socket))
                return probe.recv(8) == b"NBDMAGIC"
            except OSError:
                return False

    def end(self, how: signal.Signals) -> float:
        """Send the node a signal and return the seconds until it is gone."""
        assert self.node is not None
        started = time.monotonic()
        self.node.send_signal(how)
        self.node.wait(DEADLINE_S)
        return time.monotonic() - started

    def uri(self, volume: str) -> str:
        """Return the address of a volume for NBD clients."""
        return f"nbd+unix:///{volume}?socket={self.socket}"

    def copy(self, source: str | Path, target: str | Path) -> float:
        """Copy with nbdcopy, flush at the end, and return the seconds it took."""
        started = time.monotonic()
        self.run("nbdcopy", "--flush", source, target)
        return time.monotonic() - started


def make_image(path: Path) -> str:
    """Make a file of 256 MiB with a hole in it and return its digest."""
    with path.open("wb") as image:
        for index in range(FILE_MIB):
            image.seek((index if index < FILE_MIB // 2 else index + 64) * MIB)
            image.write(os.urandom(MIB))
        image.truncate(256 * MIB)
    return digest(path)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_read(process: int) -> int:
    """Return how many bytes a process has read so far; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
    except OSError:
        return 0
    return int(lines[0].removeprefix("rchar: "))


def kill_while_writing(demo: Demo, image: Path) -> bool:
    """Kill -9 the node while nbdcopy writes to `scratch`; say whether that cut the copy short."""
    client = subprocess.Popen(
        ["nbdcopy", image, demo.uri("scratch")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while client.poll() is None and bytes_read(client.pid) < FILE_MIB // 3 * MIB:
        time.sleep(0.001)
    demo.end(signal.SIGKILL)
    return client.wait(DEADLINE_S) != 0


def compare(demo: Demo, volume: str, expected: str) -> float:
    """Read a volume back with nbdcopy; DemoFailed unless it is the image.  Returns seconds."""
    copy = demo.folder / "copy.raw"
    copy.unlink(missing_ok=True)
    seconds = demo.copy(demo.uri(volume), copy)
    if digest(copy) != expected:
        raise DemoFailed(f"volume {volume} differs from what was written to it")
    return seconds


def arrived_mib(demo: Demo, image: Path) -> float:
    """Read `scratch` back and return how much of the cut copy is there.

    Raises: DemoFailed when a block is neither what the client wrote nor still zeroes.
    """
    copy = demo.folder / "cut.raw"
    demo.copy(demo.uri("scratch"), copy)
    arrived = 0
    with image.open("rb") as wanted, copy.open("rb") as found:
        while block := wanted.read(BLOCK):
            other = found.read(BLOCK)
            if other == bytes(BLOCK):
                continue
            if other != block:
                raise DemoFailed(f"scratch has a foreign block before byte {wanted.tell()}")
            arrived += BLOCK
    return arrived / MIB


def show(demo: Demo) -> None:
    """Go through the demonstration step by step."""
    image = demo.folder / "image.raw"
    say(f"1. start a node with an empty store in {demo.folder}")
    say(f"   it answers after {demo.start():.2f} s")

    say("2. create two volumes of 256 MiB")
    started = time.monotonic()
    demo.run(TORUS, "volume", "create", "disk", "256MiB")
    demo.run(TORUS, "volume", "create", "scratch", "256MiB")
    say(f"   done in {time.monotonic() - started:.2f} s")

    say(f"3. write {FILE_MIB} MiB of random data and 64 MiB of hole to `disk` with nbdcopy, flush")
    expected = make_image(image)
    seconds = demo.copy(image, demo.uri("disk"))
    say(f"   done in {seconds:.2f} s ({FILE_MIB / seconds:.0f} MiB/s), SHA-256 {expected[:16]}...")

    say("4. kill -9 the node while a client writes to `scratch`")
    cut_short = kill_while_writing(demo, image)
    say(f"   the client {'lost its connection in mid-copy' if cut_short else 'was done before'}")

    say("5. start the node again")
    say(f"   it answers after {demo.start():.2f} s")

    say("6. read `disk` back with nbdcopy and compare")
    seconds = compare(demo, "disk", expected)
    say(f"   every byte is there; read in {seconds:.2f} s ({256 / seconds:.0f} MiB/s)")

    say("7. read `scratch` back: nobody flushed it, but the page cache outlives a killed process")
    say(f"   {arrived_mib(demo, image):.0f} MiB had arrived; every block is whole or still zeroes")

    say("8. write `scratch` again, in full, and compare")
    demo.copy(image, demo.uri("scratch"))
    compare(demo, "scratch", expected)
    say("   every byte is there")

    say("9. stop the node with SIGTERM and verify the whole store with `torus check`")
    seconds = demo.end(signal.SIGTERM)
    if demo.node is None or demo.node.returncode != 0:
        raise DemoFailed(f"the node ended with {demo.node and demo.node.returncode} on SIGTERM")
    say(f"   stopped in {seconds:.2f} s")
    started = time.monotonic()
    demo.run(TORUS, "check")
    say(f"   checked in {time.monotonic() - started:.2f} s: nothing is damaged")


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration in a folder of its own; return the exit code."""
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the folder and say where it is")
    keep = parser.parse_args(arguments).keep
    started = time.monotonic()
    demo = Demo(Path(tempfile.mkdtemp(prefix="torus-demo-")))
    try:
        show(demo)
        say(f"demo: all as promised, in {time.monotonic() - started:.1f} s")
        return 0
    except DemoFailed as failure:
        say(f"demo: FAILED: {failure}")
        if demo.log.exists():
            say("the node's last words:")
            say("\n".join(demo.log.read_text(errors="replace").splitlines()[-20:]))
        return 1
    finally:
        if demo.node is not None and demo.node.poll() is None:
            demo.end(signal.SIGKILL)
        if keep:
            say(f"demo: the folder is {demo.folder}")
        else:
            shutil.rmtree(demo.folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
