"""Every class of torus/errors.py is raised somewhere: none is only for show."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ERRORS = ROOT / "torus/errors.py"


def _classes() -> set[str]:
    tree = ast.parse(ERRORS.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def _made() -> set[str]:
    """Return the names that are called as ``Name(...)`` in the package, kernels included."""
    found: set[str] = set()
    for path in (ROOT / "torus").rglob("*.py"):
        if path == ERRORS or "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.add(node.func.id)
    for path in (ROOT / "torus").rglob("*.pyx"):
        found |= set(re.findall(r"\braise (\w+)\(", path.read_text()))
    return found


def test_every_error_is_raised() -> None:
    """A class that nothing makes is removed, with its exit code in the documents."""
    assert _classes() - _made() == set()


def test_every_error_is_expected_by_a_test() -> None:
    """By its name, wherever that may be."""
    tests = "\n".join(
        path.read_text()
        for path in (ROOT / "tests").rglob("*.py")
        if path.name not in ("test_errors.py", "tables.py")
    )
    expected = set(re.findall(r"\w+", tests))

    assert _classes() - expected == set()
