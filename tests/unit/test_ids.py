"""Names of volumes and snapshots."""

import pytest

from torus.errors import UsageError
from torus.ids import check_snapshot_name, join_snapshot, split_snapshot


@pytest.mark.parametrize("text", ["a@b", "vm-1.root@2026-11-22_10.00", "x" * 128 + "@" + "y" * 128])
def test_a_snapshot_is_split_and_joined(text: str) -> None:
    volume, snapshot = split_snapshot(text)

    assert join_snapshot(volume, snapshot) == text
    assert check_snapshot_name(snapshot) == snapshot


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no '@'"),
        ("a", "there is no '@'"),
        ("@b", "volume name '' cannot be used: it is empty"),
        ("a@", "snapshot name '' cannot be used: it is empty"),
        ("a@b@c", "snapshot name 'b@c' cannot be used: '@' is not allowed"),
        ("-a@b", "volume name '-a' cannot be used: '-' is not allowed at its start"),
        ("a@é", "'é' is not allowed at its start"),
        ("a@b/c", "'/' is not allowed$"),
        ("a@b\n", r"'\\n' is not allowed"),
        ("a@" + "x" * 129, "it has 129 characters, more than 128"),
    ],
)
def test_what_names_no_snapshot_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        split_snapshot(text)
