"""`torus volume diff`, `export-diff` and `import-diff`: what is refused early, what is shown."""

import json
from pathlib import Path

import pytest

from torus.daemon import diff as daemon_diff
from torus.daemon.diff import DiffReport
from torus.format.diffstream import Encoder, SnapshotName, StreamHeader
from torus.volume.changes import Change

REPORT = DiffReport(1 << 20, (Change(0, 4096, True), Change(65536, 8192, False)))


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("export-diff", "disk", "out"), 64, "'disk' names no snapshot"),
        (("export-diff", "disk@a", "-", "-o", "json"), 64, "both want the standard output"),
        (("export-diff", "disk@a", "out", "--from", "b@c"), 64, "'@' is not allowed"),
        (("export-diff", "disk@b", "out"), 5, "no snapshot 'b'"),
        (("export-diff", "none@a", "out"), 5, "'none' does not exist"),
        (("export-diff", "disk@a", "out", "--resume"), 5, "nothing to resume"),
        (("export-diff", "disk@a", "there"), 3, "file there exists"),
        (("export-diff", "disk@a", "no/out"), 5, "folder no does not exist"),
        (("import-diff", "none", "disk"), 5, "file none does not exist"),
        (("import-diff", "there", "disk"), 65, "not a torus backup stream"),
        (("import-diff", "there", "../x"), 64, "cannot be used"),
        (("diff", "disk@b"), 5, "no snapshot 'b'"),
        (("diff", "disk@", "disk"), 64, "is empty"),
        (("diff", "disk@a", "none"), 5, "'none' does not exist"),
    ],
)
def test_what_cannot_be_meant(
    words: tuple[str, ...], code: int, problem: str, run, tmp_path: Path
) -> None:
    """Said at once, and nothing is left behind."""
    run("volume", "create", "disk", "1MiB")
    assert run("volume", "snapshot", "create", "disk@a").code == 0
    (tmp_path / "there").write_bytes(b"something else")
    ended = run("volume", *words)

    assert (ended.code, ended.out) == (code, "")
    assert problem in ended.err
    assert {one.name for one in tmp_path.iterdir()} <= {"home", "there"}
    names = json.loads(run("volume", "snapshot", "list", "-o", "json").out)["snapshots"]
    assert [one["name"] for one in names] == ["a"]


def test_a_cut_stream_is_refused_before_anything_is_opened(run, tmp_path: Path) -> None:
    """Its trailer is looked for first."""
    run("volume", "create", "disk", "1MiB")
    header = StreamHeader("d", "ab" * 16, 1 << 20, 1, None, SnapshotName("s", "01"))
    (tmp_path / "cut").write_bytes(Encoder(header).begin())
    ended = run("volume", "import-diff", "cut", "new")

    assert ended.code == 65
    assert "is cut off" in ended.err
    assert run("volume", "info", "new").code == 5


def test_a_difference_is_shown(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a table whose numbers are bytes, and as JSON."""
    run("volume", "create", "disk", "1MiB")
    asked: list[object] = []

    def diff(_catalog: object, _config: object, *sides: object) -> DiffReport:
        asked.append(sides[:2])
        return REPORT

    monkeypatch.setattr(daemon_diff, "diff", diff)
    table = run("volume", "diff", "disk@a", "disk")
    assert [line.split() for line in table.out.splitlines()] == [
        ["OFFSET", "LENGTH", "TYPE"], ["0", "4096", "data"], ["65536", "8192", "zero"],
    ]  # fmt: skip
    assert table.err == "2 ranges: 4 KiB data, 8 KiB zero\n"
    document = json.loads(run("volume", "diff", "disk@a", "-o", "json").out)["diff"]
    assert document == {
        "from": None, "to": "disk@a", "size_bytes": 1 << 20, "data_bytes": 4096,
        "zero_bytes": 8192, "ranges": [
            {"offset": 0, "length": 4096, "type": "data"},
            {"offset": 65536, "length": 8192, "type": "zero"},
        ],
    }  # fmt: skip
    assert asked == [(("disk", "a"), ("disk", None)), (None, ("disk", "a"))]
