"""Inside the virtual machine: what checks share, and the runner that tells how they went.

    python -m tests.kernel.guest CHECK...       run these checks, or all of a group: short, all

A check is a function over a `Guest`.  Every verdict is a line of JSON in /run/out/verdicts, so
that those of before a power cut are there after it.  The node's data lie on /dev/vda, ext4.
"""

import contextlib
import importlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TORUS = ROOT / "cmd" / "torus"
OUT = Path("/run/out")
STORE = Path("/store")
MIB = 1 << 20
SEED = int(os.environ.get("TORUS_SEED", "20251122"))

Check = Callable[["Guest"], None]
CHECKS: dict[str, Check] = {}
SHORT: list[str] = []
ALL: list[str] = []
MODULES = ("short", "files", "survival", "refusals", "driver", "speed", "power")


def check(*, short: bool = False, apart: bool = False) -> Callable[[Check], Check]:
    """Register a check under its function's name; ``short``: it is part of `./dev test`;
    ``apart``: it is not part of the group of all."""

    def register(function: Check) -> Check:
        CHECKS[function.__name__] = function
        if not apart:
            ALL.append(function.__name__)
        if short:
            SHORT.append(function.__name__)
        return function

    return register


class Failure(Exception):
    """A command that ended otherwise than it should."""


CAUGHT = (Failure, OSError, subprocess.SubprocessError, sqlite3.Error, LookupError, ValueError)


def run(
    *command: object,
    code: int | None = 0,
    seconds: float = 1200.0,
    given: str = "",
    env: dict[str, str] | None = None,
) -> str:
    """Run a program with ``given`` as its input and return its output; ``code`` None: whatever
    its exit code."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=seconds, input=given, env=env
    )
    if code is not None and done.returncode != code:
        raise Failure(
            f"{' '.join(words)}: exit code {done.returncode}, expected {code}\n"
            f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout + (done.stderr if code != 0 else "")


def expect(holds: object, what: str) -> None:
    """Fail with ``what`` unless it holds."""
    if not holds:
        raise Failure(what)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 600.0) -> Any:
    """Return the first true value of ``condition``; fail when time is up."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failure(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)
    return value


class Guest:
    """The machine: a node on /dev/vda, and its volumes as disks."""

    def __init__(self) -> None:
        self.home = STORE / "home"
        self.environment = {
            **os.environ, "TORUS_HOME": str(self.home), "TORUS_LOG_FORMAT": "human",
        }  # fmt: skip
        self._node: subprocess.Popen[bytes] | None = None

    # --- the node -----------------------------------------------------------------------

    def start(self) -> None:
        """Mount the store, made first if it is empty, and start the node."""
        STORE.mkdir(exist_ok=True)
        if not os.path.ismount(STORE):
            if "ext4" not in run("blkid", "/dev/vda", code=None):
                run("mkfs.ext4", "-q", "-F", "/dev/vda")
            run("mount", "/dev/vda", STORE)
        self.home.mkdir(exist_ok=True)
        self.start_node()

    def start_node(self) -> None:
        """Start the node and wait until it serves."""
        os.environ.update(self.environment)
        with open(OUT / "node.log", "ab") as log:
            self._node = subprocess.Popen(
                [TORUS, "node", "--size", "3GiB", "--nbd", f"unix:{self.socket}", "--http", "none"],
                env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for(self.socket.exists, "the node's socket")

    @property
    def socket(self) -> Path:
        """Where the node serves NBD."""
        return Path("/run/node.sock")

    def kill_node(self) -> None:
        """Kill the node as a power cut would."""
        assert self._node is not None
        self._node.kill()
        self._node.wait()
        self.socket.unlink(missing_ok=True)

    def clean(self) -> None:
        """Take away what a check that failed has left behind."""
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            place = line.split(" ")[1]
            if place.startswith("/mnt/"):
                run("umount", "-l", place, code=None)
        for one in self.ask("nbd", "list")["devices"]:
            self.torus("nbd", "detach", one["volume"] or one["device"], "--force", code=None)

    # --- torus --------------------------------------------------------------------------

    def torus(self, *words: object, code: int | None = 0) -> str:
        """Run a torus command in a fork of this process, which has imported it already."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), write_through=True)
            sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), write_through=True)
            from torus.cli.main import main

            ended = main([str(word) for word in words])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read().decode()
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code is not None and ended != code:
            raise Failure(f"torus {' '.join(map(str, words))}: exit code {ended}\n{said}")
        return said

    def ask(self, *words: object) -> Any:
        """Run a torus command and return its JSON."""
        return json.loads(self.torus(*words, "-o", "json"))

    def create(self, name: str, size: str) -> None:
        """Make a volume."""
        self.torus("volume", "create", name, size)

    def attach(self, name: str, *options: object, code: int = 0) -> str:
        """Attach a volume with a process of its own; return the device, or what was said."""
        said = run(TORUS, "nbd", "attach", name, *options, code=code, env=self.environment)
        return said.strip()

    def detach(self, name: str, *options: object, code: int = 0) -> str:
        """Detach a volume or device."""
        return self.torus("nbd", "detach", name, *options, code=code)

    def state(self, name: str) -> dict[str, Any]:
        """Return what is known of an attachment."""
        path = self.home / "attach" / f"{name}.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def wait_attached(self, name: str, *, but: int = 0, seconds: float = 600.0) -> int:
        """Wait until a gateway other than the process ``but`` serves; return its pid."""

        def look() -> int:
            with contextlib.suppress(FileNotFoundError, ValueError):
                found = self.state(name)
                if found["state"] == "attached" and found["gateway_pid"] not in (0, but):
                    return int(found["gateway_pid"])
            return 0

        return int(wait_for(look, f"a gateway of {name}", seconds))

    def kill_gateway(self, name: str) -> int:
        """Kill a volume's gateway; return the pid that it had."""
        pid = int(self.state(name)["gateway_pid"])
        os.kill(pid, signal.SIGKILL)
        return pid

    def mapped_bytes(self, name: str) -> int:
        """Return how much data a volume that is attached maps just now."""
        from torus.node.control import ask

        path = self.home / "gateways" / f"{self.state(name)['gateway_pid']}.ctl"
        volumes = ask(str(path), {"ask": "status"}, 600.0)["volumes"]
        return int(next(one["mapped_bytes"] for one in volumes if one["name"] == name))

    @contextlib.contextmanager
    def mounted(self, device: str, place: str = "/mnt/torus", *options: str) -> Iterator[Path]:
        """Mount a device meanwhile."""
        Path(place).mkdir(parents=True, exist_ok=True)
        run("mount", *options, device, place)
        try:
            yield Path(place)
        except BaseException:
            run("umount", "-l", place, code=None)  # it may have no gateway: not to wait for one
            raise
        run("umount", place)


def kernel_log() -> str:
    """Return the kernel's messages."""
    return run("dmesg")


def io_errors(since: str = "") -> list[str]:
    """Return the kernel's complaints about files or devices after the text ``since``."""
    words = ("I/O error", "EXT4-fs error", "XFS", "Buffer I/O", "Remounting", "aborting")
    lines = kernel_log()[len(since) :].splitlines()
    return [
        line for line in lines
        if any(word in line for word in words) and ("XFS" not in line or "rror" in line)
    ]  # fmt: skip


def main(names: list[str]) -> int:
    """Run checks; return 0 when all were well."""
    for module in MODULES:
        importlib.import_module(f"tests.kernel.checks_{module}")
    groups = {"short": SHORT, "all": ALL}
    chosen = [one for name in names for one in groups.get(name, [name])]
    guest = Guest()
    guest.start()
    failed = 0
    for name in chosen:
        began = time.monotonic()
        print(f"--- {name}", flush=True)
        run("dmesg", "-C")  # what a check reads in the kernel's log is its own
        verdict: dict[str, Any] = {"check": name, "ok": True, "message": ""}
        try:
            CHECKS[name](guest)
        except CAUGHT:
            verdict.update(ok=False, message=traceback.format_exc())
            print(verdict["message"], kernel_log()[-3000:], sep="\n", flush=True)
            failed += 1
            with contextlib.suppress(*CAUGHT):
                guest.clean()
        verdict["seconds"] = round(time.monotonic() - began, 1)
        print(f"--- {name}: {'ok' if verdict['ok'] else 'FAILED'}, {verdict['seconds']} s")
        with open(OUT / "verdicts", "a", encoding="utf-8") as file:
            file.write(json.dumps(verdict) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    from tests.kernel.guest import main as shared_main  # one set of CHECKS, not two

    sys.exit(shared_main(sys.argv[1:]))
