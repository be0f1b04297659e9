"""The commands beside a running `torus node`: they find it, and say what it says."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torus._fast.datapath")
pytestmark = pytest.mark.slow


@pytest.fixture
def node(environment, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A node on a unix socket; it is ready, and ends with 0 on SIGTERM."""
    command = [sys.executable, "-P", "-m", "torus.cli.main", "node", "--size", "256MiB"]
    command += ["--nbd", f"unix:{tmp_path}/nbd", "--http", "127.0.0.1:0", "--log-format", "json"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if '"node.ready"' in line:
                break
        else:
            pytest.fail("the node did not start: " + "".join(seen))
        yield process
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL)


def test_volume_through_its_life_beside_a_node(node, run_process, tmp_path: Path) -> None:
    """Import, look, export, resize, delete: what goes in comes out, and all agree."""
    image = tmp_path / "image"
    chunk = bytes(range(256)) * 4096
    image.write_bytes(chunk)
    with image.open("r+b") as file:
        file.truncate(16 << 20)

    imported = run_process("volume", "import", str(image), "disk")
    assert (imported.code, imported.out) == (0, "")
    assert "verified" in imported.err
    assert run_process("volume", "import", str(image), "disk").code == 3

    exported = run_process("volume", "export", "disk", str(tmp_path / "out"))
    assert exported.code == 0, exported.err
    assert (tmp_path / "out").read_bytes() == image.read_bytes()
    assert run_process("volume", "export", "disk", str(tmp_path / "out")).code == 3
    (tmp_path / "out").unlink()

    document = json.loads(run_process("volume", "info", "disk", "-o", "json").out)["volume"]
    assert document["used_bytes"] == len(chunk)
    exports = json.loads(run_process("nbd", "list", "-o", "json").out)["exports"]
    assert [one["uri"] for one in exports] == [f"nbd+unix:///disk?socket={tmp_path}/nbd"]

    assert run_process("volume", "resize", "disk", "32MiB").code == 0
    deleted = run_process("volume", "delete", "disk")
    assert deleted.code == 0, deleted.err
    assert run_process("volume", "info", "disk").code == 5


def test_status_is_the_running_nodes_own(node, run_process) -> None:
    """Healthy, with its pool; its HTTP endpoint says the same."""
    ended = run_process("status", "-o", "json")
    document = json.loads(ended.out)
    (seen,) = document["nodes"]
    base = f"http://{seen['http']}"
    with urllib.request.urlopen(f"{base}/metrics", timeout=30) as reply:
        metrics = reply.read().decode()
    with urllib.request.urlopen(f"{base}/healthz", timeout=30) as reply:
        health = reply.read()

    assert (ended.code, document["healthy"], document["problems"]) == (0, True, [])
    assert seen["pid"] == node.pid
    assert seen["status"]["pool_bytes"] == 256 << 20
    assert "\ntorus_disk_failed 0.0\n" in metrics
    assert health == b"ok\n"
    assert "health     ok" in run_process("status").out


def test_second_node_is_refused(node, run_process) -> None:
    """One node has the directory."""
    ended = run_process("node", "--nbd", "none", "--http", "none")

    assert ended.code == 75, ended.err
    assert ended.err.startswith("torus: ")
    assert "hint: " in ended.err


def test_check_beside_a_running_node_is_refused(node, run_process) -> None:
    """A check of a moving target would find what is not wrong."""
    pytest.importorskip("torus.daemon.offline")
    ended = run_process("check")

    assert ended.code == 75, ended.err
    assert ended.err.startswith("torus: ")


def test_node_that_was_killed_is_seen_as_down(node, run_process) -> None:
    """kill -9 leaves a registration; status says the truth about it."""
    node.kill()
    node.wait(timeout=60)
    ended = run_process("status")

    assert ended.code == 69
    assert "is not running" in ended.out
