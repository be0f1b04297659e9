"""The command line agrees with its documents and starts without what it does not need."""

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from torus.cli.parser import Parser, build_parser
from torus.errors import TorusError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("asyncio", "uvloop", "rich", "grpc", "prometheus_client", "sqlite3", "shtab")

# What a distribution is called where its module has another name.
DISTRIBUTION_OF = {
    "google": "protobuf",
    "grpc": "grpcio",
    "prometheus_client": "prometheus-client",
}


def _docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", Path(__file__).with_name("test_docs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _commands(parser: Parser) -> Iterator[str]:
    """Yield every command that can be run, as a person types it."""
    for verb in parser.verbs.values():
        if verb.verbs:
            yield from _commands(verb)
        else:
            yield verb.prog


def _sampled() -> list[tuple[str, str]]:
    """Return the torus commands in the shell samples of all documents: (page, command)."""
    found = []
    for page, line in _docs().sample_lines():
        for part in re.split(r"\s(?:\||&&|;)\s", line.removesuffix("&").strip()):
            words = shlex.split(part)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and words[0] in ("torus", "./cmd/torus"):
                found.append((page, shlex.join(words[1:])))
    return found


@pytest.mark.parametrize(("page", "words"), _sampled())
def test_sample_commands_can_be_meant(page: str, words: str) -> None:
    """A command in a document parses: its nouns, verbs and options exist."""
    if "..." in words or re.search(r"\b[A-Z]{3,}\b", words):
        return  # a pattern, not a command
    arguments = re.sub(r"\s[<>]\s*\S+", "", words)
    try:
        found = build_parser(shlex.split(arguments)).parse_args(shlex.split(arguments))
    except TorusError as exc:
        raise AssertionError(f"{page}: torus {words}: {exc}") from exc
    except SystemExit:
        return  # --help or --version

    assert isinstance(found, argparse.Namespace)


def test_every_command_is_documented() -> None:
    """The command reference names every command."""
    page = (ROOT / "docs/cli.md").read_text()

    assert [command for command in _commands(build_parser(None)) if command not in page] == []


def test_the_tour_shows_the_main_commands() -> None:
    """The ten-minute tour touches each noun that a newcomer needs."""
    readme = (ROOT / "README.md").read_text()

    assert [noun for noun in ("node", "volume", "nbd", "status", "check")
            if f"torus {noun}" not in readme] == []  # fmt: skip


def test_version_imports_nothing_heavy() -> None:
    """`torus --version` starts without the event loop, tables and the metadata store."""
    code = (
        "import sys; from torus.cli.main import main; main(['--version']);"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stderr.strip() == "[]"


def test_what_ships_imports_only_what_is_declared() -> None:
    """Every outside module is one of the dependencies in pyproject.toml, and each is used."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    imported = set()
    for path in (ROOT / "torus").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            imported |= {name.partition(".")[0] for name in names}
    outside = imported - set(sys.stdlib_module_names) - {"torus"}

    assert {DISTRIBUTION_OF.get(name, name) for name in outside} == declared


def test_every_dependency_has_its_reason() -> None:
    """The decision about dependencies has a row for each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs/decisions/0002-dependencies.md").read_text()
    names = [re.split(r"[<>=]", line)[0] for line in project["dependencies"]]

    assert [name for name in names if f"| {name} |" not in page] == []
