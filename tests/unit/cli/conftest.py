"""Running the command line: in this process where that is enough, else as a process."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from torus.cli.main import main

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Ended:
    """What a run left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A clean environment whose home is a temporary folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TORUS_", "XDG_", "PYTHON")) and name not in ("NO_COLOR", "TERM")
    }
    return {
        **kept,
        "HOME": str(tmp_path),
        "TORUS_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def run_process(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run `torus WORDS` as a process of its own."""

    def run(*words: str, env: Mapping[str, str] | None = None, **options: object) -> Ended:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "torus.cli.main", *words],
            env={**environment, **(env or {})},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def run(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run `torus WORDS` in this process."""
    for name in list(os.environ):
        if name not in environment:
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main sets it; put it back

    def run_here(*words: str, env: Mapping[str, str] | None = None) -> Ended:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = main(words)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run_here
