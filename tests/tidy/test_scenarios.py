"""docs/testing.md names tests; each of them exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/testing.md").read_text()
SHORT = dict(re.findall(r"\*(\w+)\* (?:is )?`(tests/[\w/]+\.py)`", TEXT))
# A test, behind the file that it is in: given by its path, or by a short name.
NAMED = re.compile(r"\*(\w+)\*|`(?:((?:tests|bench)/[\w/.]+\.py)(?:::)?)?(\w*)`")


def named_in(row: str) -> list[tuple[str, str]]:
    """Return the (file, test) that a row of a table names; a test without a file is of the one
    before."""
    found, file = [], ""
    for short, path, test in NAMED.findall(row.rpartition("| ")[2] if row.count("|") else row):
        file = SHORT.get(short, path or file)
        if (short and short in SHORT) or path or test.startswith("test_"):
            found.append((file, test if test.startswith("test_") else ""))
    return found


def scenarios() -> list[tuple[str, str]]:
    """Return all that the tables of scenarios name."""
    part = TEXT[TEXT.index("## Scenarios of others") : TEXT.index("## What a test may use")]
    rows = [line.rstrip(" |") for line in part.splitlines() if line.startswith("| ")]
    return sorted({one for row in rows for one in named_in(row)})


def test_many_scenarios_are_found() -> None:
    """The tables are understood."""
    assert len(SHORT) >= 10
    assert len(scenarios()) > 100


@pytest.mark.parametrize(("file", "test"), scenarios(), ids=str)
def test_scenario_names_a_test_that_exists(file: str, test: str) -> None:
    """A scenario without a test is a promise that nobody checks."""
    path = ROOT / file
    assert path.is_file(), f"{test or 'a scenario'} is said to be in {file!r}"

    if test:
        assert re.search(rf"^(?:async )?def {test}\(", path.read_text(), re.MULTILINE)
