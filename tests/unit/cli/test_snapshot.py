"""Snapshots and clones on the command line, of volumes that nobody ever wrote."""

import json
import os
from typing import Any

import pytest

from torus.clock import SystemClock
from torus.metadata.open import open_metadata
from torus.metadata.schema import Reader
from torus.volume.catalog import Catalog
from torus.volume.owner import this_process


def parsed(text: str) -> dict[str, Any]:
    """Return JSON output, whose format is 1."""
    document: dict[str, Any] = json.loads(text)
    assert document.pop("format") == 1
    return document


@pytest.fixture
def family(run) -> None:
    """A volume with two snapshots, a clone with a snapshot, and that one's clone."""
    for words in (
        ("create", "vm1", "1GiB"),
        ("snapshot", "create", "vm1@a"),
        ("clone", "vm1@a", "vm2"),
        ("snapshot", "create", "vm2@x"),
        ("clone", "vm2@x", "vm3"),
        ("snapshot", "create", "vm1@b"),
    ):
        assert run("volume", *words).code == 0


def test_snapshots_are_listed_by_age(run, family) -> None:
    """Of one volume or of all, with their clones by name."""
    document = parsed(run("volume", "snapshot", "list", "-o", "json").out)["snapshots"]
    seen = [(one["volume"], one["name"], one["number"], one["clones"]) for one in document]

    assert seen == [("vm1", "a", 1, ["vm2"]), ("vm1", "b", 2, []), ("vm2", "x", 1, ["vm3"])]
    text = run("volume", "snapshot", "list", "vm1").out.splitlines()
    assert text[0].split() == ["SNAPSHOT", "SIZE", "USED", "CREATED", "STATE", "CLONES"]
    assert [line.split()[0] for line in text[1:]] == ["vm1@a", "vm1@b"]
    assert text[1].endswith("ready  vm2")


def test_tree_hangs_clones_below_their_snapshots(run, family) -> None:
    """In both forms."""
    shown = [line.split("  1 GiB")[0].rstrip() for line in run("volume", "tree").out.splitlines()]
    assert shown[1:] == ["vm1", "  @a", "    vm2", "      @x", "        vm3", "  @b"]
    [root] = parsed(run("volume", "tree", "-o", "json").out)["volumes"]
    clone = root["snapshots"][0]["clones"][0]
    assert clone["name"] == "vm2"
    assert clone["snapshots"][0]["clones"][0]["name"] == "vm3"


def test_origin_is_shown(run, family) -> None:
    """By info and list alike; a volume of its own has none."""
    info = parsed(run("volume", "info", "vm3", "-o", "json").out)["volume"]
    listed = parsed(run("volume", "list", "-o", "json").out)["volumes"]

    assert (info["origin"], info["snapshots"]) == ("vm2@x", 0)
    assert [(one["origin"], one["snapshots"]) for one in listed] == [
        (None, 2), ("vm1@a", 1), ("vm2@x", 0),
    ]  # fmt: skip
    assert "origin      vm1@a" in run("volume", "info", "vm2").out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("snapshot", "create", "vm1@a"), 3, "snapshot 'vm1@a' exists already"),
        (("snapshot", "create", "nope@a"), 5, "volume 'nope' does not exist"),
        (("snapshot", "create", "vm1"), 64, "names no snapshot"),
        (("snapshot", "create", "vm1@"), 64, "it is empty"),
        (("snapshot", "create", "vm1@a b"), 64, "' ' is not allowed"),
        (("snapshot", "list", "nope"), 5, "volume 'nope' does not exist"),
        (("snapshot", "delete", "vm1@nope"), 5, "volume 'vm1' has no snapshot 'nope'"),
        (("snapshot", "delete", "vm1@a"), 75, "is read by 1 clone(s): vm2"),
        (("snapshot", "delete", "vm1@b", "vm1@b"), 64, "named twice"),
        (("snapshot", "dlete", "vm1@b"), 64, "'torus volume snapshot dlete' is not a command"),
        (("snapshot",), 64, "a command is missing"),
        (("clone", "vm1@a", "vm2"), 3, "volume 'vm2' exists already"),
        (("clone", "vm1@a", "no good"), 64, "' ' is not allowed"),
        (("clone", "vm1@nope", "x"), 5, "no snapshot 'nope'"),
        (("protect", "vm1@nope"), 5, "no snapshot 'nope'"),
        (("rollback", "vm1@nope"), 5, "no snapshot 'nope'"),
        (("flatten", "nope"), 5, "volume 'nope' does not exist"),
        (("copy", "vm1@nope", "x"), 5, "no snapshot 'nope'"),
        (("copy", "vm1", "vm1"), 64, "cannot be copied into itself"),
        (("copy", "nope", "x"), 5, "volume 'nope' does not exist"),
        (("export", "vm1@nope", "x"), 5, "no snapshot 'nope'"),
        (("delete", "vm1"), 64, "volume 'vm1' has 2 snapshots"),
        (("delete", "vm1", "--with-snapshots"), 75, "is read by 1 clone(s): vm2"),
    ],
)
def test_wrong_request_is_refused(run, family, words, code: int, message: str) -> None:
    """One message, the documented exit code, and nothing has changed."""
    before = run("volume", "tree", "-o", "json").out
    ended = run("volume", *words)

    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert ended.err.startswith("torus: ")
    assert "Traceback" not in ended.err
    assert run("volume", "tree", "-o", "json").out == before


def test_protected_snapshot_stays(run, family) -> None:
    """Until it is allowed again; saying so twice changes nothing."""
    for _ in range(2):
        assert run("volume", "protect", "vm1@b").out == "snapshot 'vm1@b' is protected\n"
    refused = run("volume", "snapshot", "delete", "vm1@b")
    assert refused.code == 64
    assert "torus volume unprotect vm1@b" in refused.err
    assert run("volume", "unprotect", "vm1@b").out == "snapshot 'vm1@b' may be deleted\n"
    assert run("volume", "snapshot", "delete", "vm1@b").out == "snapshot 'vm1@b' deleted\n"


def test_deletion_goes_on_to_the_first_that_is_refused(run, family) -> None:
    """What was deleted before it is said, and stays deleted."""
    run("volume", "snapshot", "create", "vm1@c")
    ended = run("volume", "snapshot", "delete", "vm1@b", "vm1@a", "vm1@c")

    assert (ended.code, ended.out) == (75, "snapshot 'vm1@b' deleted\n")
    listed = parsed(run("volume", "snapshot", "list", "vm1", "-o", "json").out)["snapshots"]
    assert [one["name"] for one in listed] == ["a", "c"]
    deleted = parsed(run("volume", "snapshot", "delete", "vm1@c", "-o", "json").out)
    assert deleted == {"deleted": [{"volume": "vm1", "name": "c"}], "freed_chunks": {"vm1": 0}}


def test_snapshot_that_is_read_is_not_deleted(run, family, tmp_path) -> None:
    """Who reads it is named; one that has ended is in nobody's way."""
    store = open_metadata(f"sqlite:{tmp_path}/home/meta.sqlite", SystemClock())
    catalog = Catalog(store, SystemClock())
    me = this_process("export", "", SystemClock())
    for start, code in ((me.pid_start, 75), (me.pid_start + 1, 0)):
        entry = catalog.get_snapshot("vm1", "b")
        key = catalog.add_reader(
            entry, Reader(me.host, me.machine_boot_id, me.pid, start, "export", 1)
        )
        ended = run("volume", "snapshot", "delete", "vm1@b")
        assert ended.code == code
        if code:
            assert f"is read by export pid {os.getpid()} on {me.host}" in ended.err
            catalog.remove_reader(key)
    store.close()


def test_volume_goes_with_its_snapshots(run, family) -> None:
    """Clones first: then each with what is its own."""
    for name in ("vm3", "vm2", "vm1"):
        assert run("volume", "delete", name, "--with-snapshots").code == 0
    assert parsed(run("volume", "tree", "-o", "json").out) == {"volumes": []}
    assert "no volumes" in run("volume", "tree").err
    assert "no snapshots" in run("volume", "snapshot", "list").err


def test_what_is_no_clone_is_flat(run, family) -> None:
    """Nothing is attached to find that out."""
    assert "there is nothing to flatten" in run("volume", "flatten", "vm1").out
    document = parsed(run("volume", "flatten", "vm1", "-o", "json").out)
    assert document == {"flattened": {"volume": "vm1", "changed": False}}


def test_failed_copy_leaves_nothing(run, family) -> None:
    """Neither the new volume nor the snapshot that it was made from."""
    before = run("volume", "tree", "-o", "json").out
    assert run("volume", "copy", "vm1", "vm9").code == 5  # there is no data directory
    assert run("volume", "tree", "-o", "json").out == before


def test_commands_start_without_an_event_loop(run_process) -> None:
    """A snapshot of a volume that nobody has is one commit."""
    assert run_process("volume", "create", "vm1", "1GiB").code == 0
    ended = run_process("volume", "snapshot", "create", "vm1@a", env={"PYTHONVERBOSE": "1"})

    assert ended.code == 0
    assert "import 'torus.daemon.snapshots'" in ended.err
    assert [name for name in ("asyncio", "uvloop") if f"import '{name}'" in ended.err] == []
