"""Count the results of a pytest run and name every hole: `tally.py RESULTS.xml`.

The last line is the whole truth of a run in one line.  A skipped test is a promise that
nobody checked, so each is named with its reason.  Exits 1 when a test failed or none ran.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main() -> int:
    """Print the holes, the failures and the count; return the exit code."""
    path = Path(sys.argv[1])
    if not path.exists():
        print("tests: no result file: the run did not get as far as counting")
        return 1
    passed, failed, skipped = [], [], []
    seconds = 0.0
    root = ElementTree.parse(path).getroot()
    for suite in root.iter("testsuite"):
        seconds += float(suite.get("time", "0"))
    for case in root.iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        hole = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif hole is not None:
            skipped.append(f"{name}: {hole.get('message')}")
        else:
            passed.append(name)
    for line in skipped:
        print(f"hole: {line}")
    for line in failed:
        print(f"failed: {line}")
    print(
        f"tests: {len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped"
        f" in {seconds:.0f} s"
    )
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
