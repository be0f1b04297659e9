"""The rules about compiled kernels that no tool checks."""

import importlib.machinery
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAST = ROOT / "torus/_fast"
PYX = sorted(FAST.glob("*.pyx"))
ALLOWED = ("torus._fast", "torus.errors", "torus.limits")
IMPORT = re.compile(r"^\s*(?:from\s+(\S+)\s+c?import|c?import\s+(\S+))", re.MULTILINE)


def _kernels() -> tuple[str, ...]:
    """Return the names that setup.py builds, without building."""
    text = (ROOT / "setup.py").read_text()
    names = re.search(r"^KERNELS = \((.*?)\)", text, re.MULTILINE | re.DOTALL)
    assert names is not None, "setup.py has no KERNELS"
    return tuple(re.findall(r'"(\w+)"', names.group(1)))


@pytest.mark.parametrize("path", sorted(FAST.glob("*.p[yx][xd]")), ids=lambda path: path.name)
def test_kernels_import_downwards(path: Path) -> None:
    """import-linter reads only .py files: a kernel's imports are checked here."""
    upward = [
        module
        for match in IMPORT.finditer(path.read_text())
        if (module := match.group(1) or match.group(2)).startswith("torus")
        and not module.startswith(ALLOWED)
    ]

    assert upward == []


def test_every_kernel_is_built() -> None:
    """setup.py names every kernel, and no kernel that does not exist."""
    assert sorted(_kernels()) == [path.stem for path in PYX]


@pytest.mark.parametrize("path", PYX, ids=lambda path: path.stem)
def test_every_kernel_has_a_stub(path: Path) -> None:
    """Type checking sees a kernel through its .pyi only."""
    assert path.with_suffix(".pyi").exists()


@pytest.mark.parametrize("path", PYX, ids=lambda path: path.stem)
def test_no_kernel_is_stale(path: Path) -> None:
    """A kernel that is older than its source would test yesterday's code."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    built = FAST / f"{path.stem}{suffix}"
    assert built.exists(), "not built: run ./dev setup"

    sources = [path, path.with_suffix(".pxd")]
    newest = max(source.stat().st_mtime for source in sources if source.exists())

    assert built.stat().st_mtime >= newest, "stale: run ./dev setup"


def test_no_kernel_has_a_python_twin() -> None:
    """The extension would win the import silently; twins live in tests/contract."""
    assert [path.name for path in PYX if path.with_suffix(".py").exists()] == []


@pytest.mark.slow
def test_stubs_match_the_kernels() -> None:
    """mypy's stubtest finds what a .pyi says and the compiled module does not have."""
    modules = [f"torus._fast.{path.stem}" for path in PYX]
    allow = ROOT / "tests/tidy/stubtest.allow"
    options = ["--allowlist", str(allow), "--ignore-missing-stub", "--ignore-unused-allowlist"]
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
