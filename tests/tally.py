"""Count the results of a pytest run and name every hole: `tally.py RESULTS.xml [AGAIN.xml]`.

The last line is the whole truth of a run in one line.  A skipped test is a promise that
nobody checked, so each is named with its reason; so is a test that failed beside others and
passed alone (AGAIN).  `--failed` prints how many failed, and nothing else.  Exits 1 when a test
failed, also alone, or none ran.
"""

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Results:
    """What one run said."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)  # with the reason
    seconds: float = 0.0


def read(path: Path) -> Results:
    """Return the results in a JUnit file; a test that failed in any phase has failed."""
    found = Results()
    root = ElementTree.parse(path).getroot()
    for suite in root.iter("testsuite"):
        found.seconds += float(suite.get("time", "0"))
    for case in root.iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        hole = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            found.failed.add(name)
        elif hole is not None:
            found.skipped[name] = str(hole.get("message"))
        else:
            found.passed.add(name)
    found.passed -= found.failed
    return found


def main(paths: list[Path]) -> int:
    """Print the holes, the failures and the count; return the exit code."""
    if not paths[0].exists():
        print("tests: no result file: the run did not get as far as counting")
        return 1
    found = read(paths[0])
    unsteady = set()
    if len(paths) > 1 and paths[1].exists():
        again = read(paths[1])
        unsteady = found.failed & again.passed
        found.failed = (found.failed | again.failed) - unsteady
        found.seconds += again.seconds
    for name, reason in found.skipped.items():
        print(f"hole: {name}: {reason}")
    for name in sorted(unsteady):
        print(f"unsteady: failed beside others, passed alone: {name}")
    for name in sorted(found.failed):
        print(f"failed: {name}")
    print(
        f"tests: {len(found.passed)} passed, {len(found.failed)} failed, "
        f"{len(found.skipped)} skipped, {len(unsteady)} unsteady in {found.seconds:.0f} s"
    )
    return 0 if found.passed and not found.failed else 1


if __name__ == "__main__":
    if sys.argv[1] == "--failed":
        print(len(read(Path(sys.argv[2])).failed))
        sys.exit(0)
    sys.exit(main([Path(one) for one in sys.argv[1:]]))
