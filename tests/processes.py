"""Real processes for tests: nodes, gateways and commands in a folder of their own.

Nothing waits for a time: everything polls for what should happen, with a deadline.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.disk_client import DiskClient
from torus.clock import SystemClock
from torus.metadata.open import open_metadata
from torus.volume.catalog import Catalog
from torus.volume.owner import this_process

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
    """Poll until the condition is true and return what it returned; fail when time is up."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.002)
    return found


class Service:
    """A node or a gateway: a process that runs until it is told to stop."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._skip = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def text(self) -> str:
        """What this process has said so far."""
        with self.log.open("rb") as file:
            file.seek(self._skip)
            return file.read().decode()

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Return the log lines so far, of one event or all; a line being written is left out."""
        lines = [line for line in self.text.splitlines(keepends=True) if line.endswith("\n")]
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in found if not name or event["event"] == name]

    def wait_for(self, name: str, seconds: float = DEADLINE_S, **fields: object) -> dict[str, Any]:
        """Wait for an event with these fields and return it; fail when the process ends first."""

        def look() -> dict[str, Any] | None:
            ended = self.process.poll() is not None  # looked at first: its last line counts
            for event in self.events(name):
                if fields.items() <= event.items():
                    return event
            assert not ended, (
                f"{name} never came, exit code {self.process.returncode}:\n{self.text}"
            )
            return None

        found: dict[str, Any] = wait_until(look, f"event {name} {fields}", seconds)
        return found

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE_S) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(seconds)

    def stop(self, seconds: float = DEADLINE_S) -> float:
        """End with SIGTERM, which must succeed; return how long that took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        assert self.wait(seconds) == 0, self.text
        return time.monotonic() - began

    def kill(self) -> None:
        """End with SIGKILL; idempotent."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)


class Machine:
    """A folder with a TORUS_HOME, and the processes that were started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.data = self.home / "data"
        self.socket = folder / "nbd.sock"
        self.services: list[Service] = []
        self._numbers: dict[str, int] = {}
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TORUS_", "XDG_", "PYTHON")) and name != "NO_COLOR"
        }
        self.environment = {
            **kept,
            "HOME": str(folder),
            "TORUS_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }

    # --- commands -----------------------------------------------------------------------

    def command(self, *words: str | Path) -> list[str]:
        """Return the command line of `torus WORDS`."""
        return [sys.executable, "-P", "-m", "torus.cli.main", *map(str, words)]

    def run(self, *words: str | Path, code: int = 0, stdin: bytes = b"") -> Ended:
        """Run `torus WORDS` to its end, which must have this exit code and no traceback."""
        done = subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, input=stdin,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        ended = Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert ended.code == code, f"torus {words}: {ended}"
        assert "Traceback" not in ended.err, ended.err
        return ended

    def refused(self, code: int, *words: str | Path) -> str:
        """Run `torus WORDS`, which must be refused; return what it says, one message."""
        message = self.run(*words, code=code).err
        assert message.startswith("torus: "), message
        return message

    def client(self, *words: str | Path, code: int = 0) -> str:
        """Run another project's client to its end and return its output."""
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, timeout=2 * DEADLINE_S,
            cwd=self.folder, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    # --- services -----------------------------------------------------------------------

    def service(self, kind: str, *words: str | Path) -> Service:
        """Start `torus WORDS` with its log in a file of its own."""
        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        service = Service(
            self.command(*words), self.environment, self.folder / f"{kind}.{number}.log"
        )
        self.services.append(service)
        return service

    def node(
        self, *options: str | Path, size: str | None = "256MiB", ready: bool = True
    ) -> Service:
        """Start a node on the machine's unix socket, by default without HTTP."""
        words: list[str | Path] = ["node", "--nbd", f"unix:{self.socket}"]
        words += ["--size", size] if size else []
        words += [] if "--http" in options else ["--http", "none"]
        node = self.service("node", *words, *options)
        if ready:
            node.wait_for("node.ready")
        return node

    def gateway(self, *words: str | Path, ready: bool = True) -> Service:
        """Start a gateway: volumes and options."""
        gateway = self.service("gateway", "nbd", "serve", *words)
        if ready:
            gateway.wait_for("gateway.ready")
        return gateway

    def uri(self, volume: str, socket: Path | None = None) -> str:
        """Return a volume's address for other projects' clients."""
        return f"nbd+unix:///{volume}?socket={socket or self.socket}"

    def open(self, volume: str, socket: Path | None = None) -> DiskClient:
        """Connect to a volume."""
        return DiskClient(socket or self.socket, volume)

    def client_of_new(self, volume: str, size: str) -> DiskClient:
        """Make a volume and connect to it."""
        self.run("volume", "create", volume, size)
        return self.open(volume)

    # --- what commands cannot do, or not quickly ----------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what `torus status` says, whatever it thinks of it."""
        done = subprocess.run(
            self.command("status", "-o", "json"), env=self.environment, capture_output=True,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def node_status(self) -> dict[str, Any]:
        """Return what the only node says of itself."""
        (node,) = self.status()["nodes"]
        found: dict[str, Any] = node["status"]
        return found

    def create_volumes(self, names: Sequence[str], size_bytes: int) -> None:
        """Make many volumes at once."""
        with self.catalog() as catalog:
            for name in names:
                catalog.create(name, size_bytes)

    def set_deleting(self, name: str) -> None:
        """Leave a volume as a deletion does that is interrupted behind its first step."""
        with self.catalog() as catalog:
            catalog.mark_deleting(name, force=True)

    def take_over(self, name: str) -> None:
        """Become a volume's owner by force, as this process."""
        with self.catalog() as catalog:
            owner = this_process("test", "", SystemClock())
            catalog.acquire(catalog.get(name).spec.volume, owner, takeover=True)

    def release(self, name: str) -> None:
        """Give back what `take_over` took."""
        with self.catalog() as catalog:
            found = catalog.get(name)
            catalog.release(found.spec.volume, found.head, found.head_revision)

    @contextlib.contextmanager
    def catalog(self) -> Iterator[Catalog]:
        """Open the catalog."""
        store = open_metadata(f"sqlite:{self.home / 'meta.sqlite'}", SystemClock())
        try:
            yield Catalog(store, SystemClock())
        finally:
            store.close()

    def close(self) -> None:
        """Kill what still runs."""
        for service in self.services:
            service.kill()


@contextlib.contextmanager
def machine_in(folder: Path) -> Iterator[Machine]:
    """Give a machine; whatever still runs in it at the end is killed."""
    machine = Machine(folder)
    try:
        yield machine
    finally:
        machine.close()


def http_get(address: str, path: str) -> tuple[int, str]:
    """Return status and body of a GET."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=DEADLINE_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None, f"process {pid} has ended"
    return int(found[1]) << 10
