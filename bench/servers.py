"""The servers that are compared: how each is prepared, started, addressed and ended.

Decides the command lines.  All of them serve the same sizes from the same file system:
one main export, and ``many`` small ones for the rows with several clients.  Raw files are
written completely and synced before they are served, so that no row pays for allocation.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench import processes
from bench.nbd_client import NbdClient
from bench.processes import BenchError, ServerProcess

REPOSITORY = Path(__file__).resolve().parent.parent
MIB = 1 << 20
START_TIMEOUT_S = 30.0
MAIN = "main"


@dataclass(frozen=True, slots=True)
class Site:
    """Where and how large: files below ``work_dir``, sockets below ``socket_dir``."""

    work_dir: Path
    socket_dir: Path  # short, because a unix socket's path has at most 107 bytes
    main_bytes: int
    many_bytes: int
    many_count: int
    pool_bytes: int

    def many_names(self) -> list[str]:
        """Return the names of the small exports."""
        return [f"many{index:02d}" for index in range(self.many_count)]


class Server(Protocol):
    """What a row needs to know of a server."""

    name: str

    def start(self) -> None:
        """Prepare the storage, start, and wait until every export answers."""

    def stop(self) -> None:
        """End every process; calling it again does nothing."""

    def main_uri(self) -> str:
        """Return the NBD URI of the main export."""

    def many_uris(self) -> list[str]:
        """Return the NBD URIs of the small exports."""

    def pids(self) -> list[int]:
        """Return the started processes (their children are found from them)."""


@dataclass(slots=True)
class _Processes:
    """The processes that one server consists of."""

    running: list[ServerProcess] = field(default_factory=list)

    def start(self, argv: Sequence[str], log_path: Path, socket_path: Path) -> ServerProcess:
        server = processes.start(argv, log_path)
        self.running.append(server)
        processes.wait_for_socket(server, socket_path, START_TIMEOUT_S)
        return server

    def stop(self) -> None:
        while self.running:
            processes.stop(self.running.pop())


def uri(socket_path: Path, export: str = "") -> str:
    """Return the URI of an export on a unix socket."""
    return f"nbd+unix:///{export}?socket={socket_path}"


def write_raw_file(path: Path, size_bytes: int) -> None:
    """Fill ``path`` with incompressible bytes and sync it."""
    block = os.urandom(MIB)
    with path.open("wb") as raw:
        for _ in range(size_bytes // MIB):
            raw.write(block)
        raw.flush()
        os.fsync(raw.fileno())


def fill(socket_path: Path, export: str) -> None:
    """Write the whole export through NBD, then flush."""
    block = os.urandom(MIB)
    with NbdClient(socket_path, export) as client:
        blocks = range(0, client.size_bytes, MIB)
        client.write_all(((offset, block) for offset in blocks), depth=8)
        client.flush()


class QemuNbd:
    """``qemu-nbd`` on raw files, one process an export."""

    name = "qemu-nbd"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._processes = _Processes()

    def start(self) -> None:
        folder = self._site.work_dir / self.name
        folder.mkdir()
        exports = [(MAIN, self._site.main_bytes)]
        exports += [(name, self._site.many_bytes) for name in self._site.many_names()]
        for name, size_bytes in exports:
            raw_path = folder / f"{name}.raw"
            write_raw_file(raw_path, size_bytes)
            argv = ["qemu-nbd", "--cache=writeback", "-f", "raw", "-t", "-e", "8"]
            argv += ["-k", str(self._socket_path(name)), str(raw_path)]
            self._processes.start(argv, folder / "log", self._socket_path(name))

    def stop(self) -> None:
        self._processes.stop()

    def main_uri(self) -> str:
        return uri(self._socket_path(MAIN))

    def many_uris(self) -> list[str]:
        return [uri(self._socket_path(name)) for name in self._site.many_names()]

    def pids(self) -> list[int]:
        return [server.pid for server in self._processes.running]

    def _socket_path(self, name: str) -> Path:
        return self._site.socket_dir / f"qemu-{name}"


class NbdkitFile:
    """``nbdkit file``: one process for the main file, one for the folder of small ones."""

    name = "nbdkit-file"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._processes = _Processes()
        self._main_socket = site.socket_dir / "nbdkit-main"
        self._many_socket = site.socket_dir / "nbdkit-many"

    def start(self) -> None:
        folder = self._site.work_dir / self.name
        many = folder / "many"
        many.mkdir(parents=True)
        raw_path = folder / "main.raw"
        write_raw_file(raw_path, self._site.main_bytes)
        for name in self._site.many_names():
            write_raw_file(many / name, self._site.many_bytes)
        for socket_path, argument in (
            (self._main_socket, str(raw_path)),
            (self._many_socket, f"dir={many}"),
        ):
            argv = ["nbdkit", "-f", "-U", str(socket_path), "file", argument]
            self._processes.start(argv, folder / "log", socket_path)

    def stop(self) -> None:
        self._processes.stop()

    def main_uri(self) -> str:
        return uri(self._main_socket)

    def many_uris(self) -> list[str]:
        return [uri(self._many_socket, name) for name in self._site.many_names()]

    def pids(self) -> list[int]:
        return [server.pid for server in self._processes.running]


class NbdkitMemory:
    """``nbdkit memory``: no disk at all; what the protocol and the socket alone cost."""

    name = "nbdkit-memory"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._processes = _Processes()
        self._socket_path = site.socket_dir / "memory"

    def start(self) -> None:
        folder = self._site.work_dir / self.name
        folder.mkdir()
        argv = ["nbdkit", "-f", "-U", str(self._socket_path), "memory"]
        argv.append(str(self._site.main_bytes))
        self._processes.start(argv, folder / "log", self._socket_path)
        fill(self._socket_path, "")

    def stop(self) -> None:
        self._processes.stop()

    def main_uri(self) -> str:
        return uri(self._socket_path)

    def many_uris(self) -> list[str]:
        """Return the one export as often as asked: nbdkit memory has a single disk."""
        return [uri(self._socket_path)] * self._site.many_count

    def pids(self) -> list[int]:
        return [server.pid for server in self._processes.running]


class Torus:
    """``torus node`` with a store, SQLite metadata and volumes of its own."""

    name = "torus"

    def __init__(self, site: Site, *, folder_name: str = "torus") -> None:
        self._site = site
        self.folder = site.work_dir / folder_name
        self.socket_path = site.socket_dir / folder_name
        self._process: ServerProcess | None = None
        self.node_options: list[str] = []

    def start(self) -> None:
        """Start the node, create and fill the volumes of the comparison."""
        self.start_node()
        self.create(MAIN, self._site.main_bytes)
        fill(self.socket_path, MAIN)
        for name in self._site.many_names():
            self.create(name, self._site.many_bytes)
            fill(self.socket_path, name)

    def start_node(self) -> ServerProcess:
        """Start ``torus node`` without waiting for more than its socket."""
        self.folder.mkdir(exist_ok=True)
        argv = [*torus_command(), "node", "--data-dir", str(self.folder / "data")]
        argv += ["--size", str(self._site.pool_bytes), "--nbd", f"unix:{self.socket_path}"]
        argv += ["--http", "none", *self.node_options]
        self.socket_path.unlink(missing_ok=True)
        server = processes.start(argv, self.folder / "log", environment=self._environment())
        self._process = server
        processes.wait_for_socket(server, self.socket_path, START_TIMEOUT_S)
        return server

    def create(self, name: str, size_bytes: int) -> None:
        """Create a volume.

        Raises:
            BenchError: torus refused.
        """
        self.run("volume", "create", name, str(size_bytes))

    def run(self, *arguments: str) -> str:
        """Run a torus command and return what it printed.

        Raises:
            BenchError: torus refused.
        """
        finished = subprocess.run(
            [*torus_command(), *arguments],
            env={**os.environ, **self._environment()},
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise BenchError(f"torus {' '.join(arguments)}: {finished.stderr.strip()}")
        return finished.stdout

    def client(self, name: str) -> NbdClient:
        """Connect to a volume."""
        return NbdClient(self.socket_path, name)

    def stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process)
            self._process = None

    def kill(self) -> None:
        """End the node as a crash would (SIGKILL)."""
        if self._process is not None:
            processes.kill(self._process)
            self._process = None

    def main_uri(self) -> str:
        return self.uri(MAIN)

    def many_uris(self) -> list[str]:
        return [self.uri(name) for name in self._site.many_names()]

    def uri(self, name: str) -> str:
        """Return the NBD URI of a volume."""
        return uri(self.socket_path, name)

    def pids(self) -> list[int]:
        return [self._process.pid] if self._process is not None else []

    def log_tail(self) -> str:
        """Return the last lines that the node printed."""
        return self._process.log_tail() if self._process is not None else "(not running)"

    def log_lines(self) -> list[str]:
        """Return all that the node printed so far."""
        return (self.folder / "log").read_text(errors="replace").splitlines()

    def _environment(self) -> dict[str, str]:
        return {"TORUS_HOME": str(self.folder), "TORUS_META": f"sqlite:{self.folder}/meta.sqlite"}


SERVERS: dict[str, type[Torus] | type[QemuNbd] | type[NbdkitFile] | type[NbdkitMemory]] = {
    "torus": Torus,
    "qemu-nbd": QemuNbd,
    "nbdkit-file": NbdkitFile,
    "nbdkit-memory": NbdkitMemory,
}


def torus_command() -> list[str]:
    """Return how to call torus: TORUS_COMMAND, else this checkout's launcher."""
    given = os.environ.get("TORUS_COMMAND")
    return given.split() if given else [str(REPOSITORY / "cmd" / "torus")]
