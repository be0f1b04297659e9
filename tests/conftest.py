"""What every test may use, and what every test is held to.

The header of a run names the seed, the kernels and the event loop.  Random tests take the
``seed`` fixture; TORUS_SEED repeats a run.  A test module that leaves a child process alive
fails.
"""

import gc
import importlib.util
import os
import random
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("TORUS_SEED", "20240229"))
# Two processes run the tests beside each other, on machines that may have 8 GiB.
RESIDENT_MAX_BYTES = 3 << 30
_TOLD_OF_SIZE = pytest.StashKey[bool]()

hypothesis.settings.register_profile(
    "fixed",
    deadline=None,  # the machine may be busy; a slow example is not a wrong one
    derandomize="TORUS_SEED" not in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")


def _kernels() -> str:
    build = "trace" if os.environ.get("TORUS_TRACE") == "1" else "release"
    names = sorted(path.name.partition(".")[0] for path in (ROOT / "torus/_fast").glob("*.so"))
    return f"{build} ({', '.join(names) or 'none built: run ./dev setup'})"


def pytest_report_header() -> list[str]:
    """Say what a failure report needs besides the failure."""
    loop = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
    return [f"seed: {SEED} (TORUS_SEED={SEED} repeats it)", f"kernels: {_kernels()}; loop: {loop}"]


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Put the seed beside a failure of a test that used it."""
    if call.excinfo is not None and "seed" in getattr(item, "fixturenames", ()):
        item.add_report_section(call.when, "seed", f"TORUS_SEED={SEED}")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail the test behind which this process is too large, before the system kills it."""
    yield
    if _resident_bytes() <= RESIDENT_MAX_BYTES or item.config.stash.get(_TOLD_OF_SIZE, False):
        return
    from torus._fast.reply import return_memory  # the header of a run says when it is not built

    gc.collect()
    return_memory()  # what is free and only kept for later is no leak
    if (resident := _resident_bytes()) > RESIDENT_MAX_BYTES:
        item.config.stash[_TOLD_OF_SIZE] = True  # those behind it are not to blame
        pytest.fail(f"{resident >> 20} MiB are resident behind {item.nodeid}: what keeps them?")


@pytest.fixture(scope="session")
def seed() -> int:
    """Return the seed of this run; TORUS_SEED sets it."""
    return SEED


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Return a generator that depends on the run's seed and the test's name only."""
    return random.Random(f"{seed}:{request.node.nodeid}")


@pytest.fixture
def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """Give a folder with a short name: a unix socket's path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="torus-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _living_children() -> dict[int, str]:
    """Return the living children of this process, by id, with their command lines."""
    children = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue  # it ended while we looked
        if int(parent) == os.getpid() and state != "Z":
            children[int(folder.name)] = command
    return children


@pytest.fixture(scope="module", autouse=True)
def _no_child_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a module whose tests leave a process running, and end that process."""
    before = _living_children()
    yield
    left = {
        child: command
        for child, command in _living_children().items()
        if child not in before and "multiprocessing" not in command
    }
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not left, f"{request.node.nodeid} left processes running: {left}"
