"""Which process a move's target names."""

import pytest

from torus.daemon.move import Target, find_target
from torus.errors import NotFound, UsageError

NODE = Target("node", "one", 10, ("127.0.0.1:10809", "unix:/run/n.sock"), "/n.ctl", True)
FIRST = Target("gateway", "one", 11, ("unix:/run/a.sock",), "/a.ctl", True)
SECOND = Target("gateway", "two", 12, ("two:10810",), "/b.ctl", None)
KNOWN = [NODE, FIRST, SECOND]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("node", NODE),
        ("127.0.0.1:10809", NODE),
        ("nbd://127.0.0.1:10809/", NODE),
        ("unix:/run/n.sock", NODE),
        ("/run/a.sock", FIRST),
        ("11", FIRST),
        ("two", SECOND),
        ("two:10810", SECOND),
    ],
)
def test_target_is_found(wanted: str, meant: Target) -> None:
    """By role, address, pid, or host where it is the only one."""
    assert find_target(KNOWN, wanted) is meant


@pytest.mark.parametrize("wanted", ["three", "1", "", "unix:/run/other.sock", "run/a.sock"])
def test_unknown_target_lists_those_that_are_known(wanted: str) -> None:
    """So that the next attempt succeeds."""
    with pytest.raises(NotFound) as caught:
        find_target(KNOWN, wanted)
    assert all(str(target) in caught.value.message for target in KNOWN)
    with pytest.raises(NotFound, match="none"):
        find_target([], wanted)


@pytest.mark.parametrize(("wanted", "count"), [("gateway", 2), ("one", 2)])
def test_ambiguous_target_lists_those_that_are_meant(wanted: str, count: int) -> None:
    """And no others."""
    with pytest.raises(UsageError) as caught:
        find_target(KNOWN, wanted)
    assert sum(str(target) in caught.value.message for target in KNOWN) == count
