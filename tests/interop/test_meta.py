"""`torus meta` with a real etcd and real processes: one machine's metadata moves into a cluster."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.etcd_members import EtcdCluster, running
from torus.cli.main import main
from torus.metadata import etcd_link

pytestmark = pytest.mark.interop

ROOT = Path(__file__).parents[2]
Ended = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with running(3) as cluster:
        yield cluster


@pytest.fixture
def torus(tmp_path: Path) -> Callable[..., Ended]:
    kept = {key: text for key, text in os.environ.items() if not key.startswith("TORUS_")}
    environment = {
        **kept,
        "HOME": str(tmp_path),
        "TORUS_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }

    def run(*words: str, **variables: str) -> Ended:
        return subprocess.run(
            [sys.executable, "-P", "-m", "torus.cli.main", *words],
            env={**environment, **variables}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def test_a_machine_moves_into_etcd_and_back_up(
    etcd: EtcdCluster, torus: Callable[..., Ended], tmp_path: Path
) -> None:
    for number in range(3):
        made = torus("volume", "create", f"v{number}", "64MiB")
        assert made.returncode == 0, made.stderr
    listed = json.loads(torus("volume", "list", "-o", "json").stdout)
    there = etcd.url("moved")

    moved = torus("meta", "migrate", "--to", there)
    assert (moved.returncode, moved.stderr) == (0, "")
    assert f"start with --meta {there}" in moved.stdout
    again = torus("meta", "migrate", "--to", there)
    assert (again.returncode, "was there already" in again.stdout) == (0, True)

    refused = torus("volume", "list")
    assert refused.returncode == 78
    assert f"was moved to {there}" in refused.stderr
    assert json.loads(torus("volume", "list", "-o", "json", TORUS_META=there).stdout) == listed

    said = json.loads(torus("meta", "status", "--meta", there, "-o", "json").stdout)["meta"]
    assert len(said["members"]) == 3
    assert [one["leads"] for one in said["members"]].count(True) == 1
    assert said["alarms"] == []

    file, other = str(tmp_path / "meta.jsonl"), etcd.url("imported")
    assert torus("meta", "export", file, "--meta", there).returncode == 0
    assert torus("meta", "import", file, "--meta", there).returncode == 3
    assert torus("meta", "import", file, "--meta", other).returncode == 0
    assert json.loads(torus("volume", "list", "-o", "json", TORUS_META=other).stdout) == listed


def test_an_etcd_that_is_away_is_told_in_one_line(
    etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(etcd_link, "ETCD_OPERATION_S", 1.0)
    monkeypatch.setenv("TORUS_META", etcd.url("nothing-yet"))
    assert main(["volume", "list"]) == 5
    for member in etcd.members[:2]:
        member.kill()
    try:
        assert main(["volume", "list"]) == 69
        assert "cannot be reached" in capsys.readouterr().err
        assert main(["meta", "status"]) == 69
        said = capsys.readouterr().out
        assert (said.count("away"), said.count("has no leader")) == (2, 1)
    finally:
        for member in etcd.members[:2]:
            member.start()
