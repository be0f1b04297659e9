"""The documents and the code say the same, and no link leads nowhere."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("README.md")]
)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
SAMPLE = re.compile(r"^```(?:sh|console|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", Path(__file__).with_name("tables.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _anchors(page: Path) -> set[str]:
    """Return the anchors that a forge makes from a page's headings."""
    heads = re.findall(r"^#+ +(.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def sample_lines() -> list[tuple[str, str]]:
    """Return every command line of the shell samples: (page, line), joined at backslashes."""
    found = []
    for page in PAGES:
        for block in SAMPLE.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ").partition("  #")[0].strip()
                if line and not line.startswith("#"):
                    found.append((_name(page), line))
    return found


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_resolve(page: Path) -> None:
    """A relative link leads to a file that exists and to a heading that stands in it."""
    broken = []
    for target in LINK.findall(page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_tables_are_those_of_the_code(page: Path) -> None:
    """A table made from the code is up to date (tests/tidy/tables.py writes it)."""
    text = page.read_text()

    assert _tables().rendered(text) == text, "run ./dev fmt"


def test_error_codes_are_unique() -> None:
    """Each error has a code and a wire code of its own: a peer and a script can tell them apart."""
    kinds = _tables().error_classes()

    assert len({kind.code for kind in kinds}) == len(kinds)
    assert len({kind.wire_code for kind in kinds}) == len(kinds)


def test_every_error_is_in_the_operations_page() -> None:
    """The page that operators read has the table of errors and that of limits."""
    page = (ROOT / "docs/operations.md").read_text()

    assert "<!-- table: errors -->" in page
    assert "<!-- table: limits -->" in page


def test_samples_use_commands_of_dev() -> None:
    """A sample's ./dev command exists."""
    listed = subprocess.run([ROOT / "dev"], capture_output=True, text=True, check=True).stdout
    commands = set(re.findall(r"^  (\w+) ", listed, re.MULTILINE))
    used = {line.split()[1] for _, line in sample_lines() if re.match(r"\./dev \w", line)}

    assert used - commands == set()
    assert used >= {"demo", "test"}


def test_pages_are_reachable() -> None:
    """Every page of docs is linked from another page."""
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in LINK.findall(page.read_text())
        if not re.match(r"\w+:|#", target)
    }
    orphans = [_name(page) for page in (ROOT / "docs").rglob("*.md") if page not in linked]

    assert orphans == []
