"""`torus volume`, `status` and `nbd list` on a metadata store, without a node."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from torus.clock import SystemClock
from torus.metadata.base import Put
from torus.metadata.keys import node_key
from torus.metadata.open import open_metadata
from torus.metadata.schema import Node
from torus.volume.catalog import Catalog
from torus.volume.owner import this_process


def parsed(text: str) -> dict[str, Any]:
    """Return JSON output, whose format is 1."""
    document: dict[str, Any] = json.loads(text)
    assert document.pop("format") == 1
    return document


def register(tmp_path: Path, *, alive: bool, size_bytes: int = 1 << 30) -> None:
    """Register a node in the store, as this process or as one that has ended."""
    me = this_process("node", "", SystemClock())
    node = Node(
        node_id="n1",
        host=me.host,
        machine_boot_id=me.machine_boot_id,
        pid=me.pid,
        pid_start=me.pid_start if alive else me.pid_start + 1,
        data_dirs=("/data",),
        peer_address="unix:/nowhere/peer.sock",
        nbd_addresses=("127.0.0.1:10809", "unix:/run/a b.sock"),
        http_address="",
        size_bytes=size_bytes,
        since_ns=1,
    )
    store = open_metadata(f"sqlite:{tmp_path / 'home' / 'meta.sqlite'}", SystemClock())
    store.commit([], [Put(node_key("n1"), node.to_bytes())])
    store.close()


def test_volume_created_is_listed_and_shown(run) -> None:
    """What was asked for is what is found, in both forms."""
    created = run("volume", "create", "disk", "10GiB")
    listed, shown = run("volume", "list"), run("volume", "info", "disk")
    document = parsed(run("volume", "list", "-o", "json").out)

    assert (created.code, created.out) == (0, "volume 'disk' created: 10 GiB\n")
    assert re.search(r"^disk  10 GiB   0 B  replica:1   ready  -$", listed.out, re.M)
    assert re.search(r"^size +10 GiB \(10737418240 bytes\)$", shown.out, re.M)
    assert [volume["name"] for volume in document["volumes"]] == ["disk"]
    assert document["volumes"][0]["size_bytes"] == 10 << 30
    assert document["volumes"][0]["attached"] is None
    assert (
        document["volumes"][0] == parsed(run("volume", "info", "disk", "-o", "json").out)["volume"]
    )


def test_volume_that_exists_is_not_made_again(run) -> None:
    """Exit code 3, and the first one is untouched."""
    run("volume", "create", "disk", "1GiB")
    ended = run("volume", "create", "disk", "2GiB")

    assert ended.code == 3
    assert ended.err.startswith("torus: volume 'disk' exists")
    assert (
        parsed(run("volume", "info", "disk", "-o", "json").out)["volume"]["size_bytes"] == 1 << 30
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("create", "../x", "1G"), 64, "volume name '../x' cannot be used"),
        (("create", "", "1G"), 64, "volume name '' cannot be used: it is empty"),
        (("create", "a b", "1G"), 64, "volume name 'a b' cannot be used"),
        (("create", "a\n\x1b[31m", "1G"), 64, r"volume name 'a\n\x1b[31m' cannot be used"),
        (("create", "ü", "1G"), 64, "volume name 'ü' cannot be used"),
        (("create", "x" * 129, "1G"), 64, "it has 129 characters"),
        (("create", "a", "0"), 64, "size '0' is zero"),
        (("create", "a", "-5GiB"), 64, "size '-5GiB' is negative"),
        (("create", "a", "huge"), 64, "size 'huge' is not a size"),
        (("create", "a", "5000"), 64, "512"),
        (("create", "a", "512"), 64, "4096"),
        (("create", "a", "65TiB"), 64, "64 TiB"),
        (("create", "a"), 64, "SIZE"),
        (("create", "a", "1G", "b"), 64, "unrecognized arguments: b"),
        (("info", "nope"), 5, "volume 'nope'"),
        (("resize", "nope", "1G"), 5, "volume 'nope'"),
        (("delete", "nope"), 5, "volume 'nope'"),
        (("export", "nope", "x"), 5, "volume 'nope'"),
        (("import", "/nope", "x"), 5, "file /nope does not exist"),
        (("import", "-", "x"), 64, "the size of the new volume 'x' is not known"),
        (("import", "/", "x"), 64, "/ is a folder"),
        (("import", "-", "there"), 3, "volume 'there' exists"),
        (("lst",), 64, "'torus volume lst' is not a command"),
        ((), 64, "a command is missing"),
    ],
)
def test_wrong_request_is_refused_in_both_forms(run, words, code: int, message: str) -> None:
    """One message on standard error, nothing on standard output, the documented exit code."""
    run("volume", "create", "there", "1GiB")
    ended, as_json = run("volume", *words), run("-o", "json", "volume", *words)
    error = parsed(as_json.err)["error"]

    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("torus: ")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert "\x1b" not in ended.err
    assert (as_json.code, as_json.out, error["exit_code"]) == (code, "", code)
    assert message in error["message"]


def test_shrinking_needs_its_flag(run) -> None:
    """Growing does not; both sizes are said."""
    run("volume", "create", "disk", "1GiB")
    refused = run("volume", "resize", "disk", "512M")
    shrunk = run("volume", "resize", "disk", "512M", "--shrink")
    grown = run("volume", "resize", "disk", "2G", "-o", "json")

    assert refused.code == 64
    assert "1073741824" in refused.err
    assert "536870912" in refused.err
    assert shrunk.out == "volume 'disk' resized from 1 GiB to 512 MiB\n"
    assert parsed(grown.out)["old_size_bytes"] == 512 << 20
    assert run("volume", "resize", "disk", "2G").out == "volume 'disk' is 2 GiB already\n"


def test_volume_beyond_the_pool_is_made_with_a_warning(run, tmp_path: Path) -> None:
    """Thin volumes may be larger than what there is."""
    run("volume", "create", "small", "4096")
    register(tmp_path, alive=False)
    ended = run("volume", "create", "big", "2GiB")

    assert ended.code == 0
    assert "warning: volume 'big' of 2 GiB is larger than the pool of 1 GiB" in ended.err
    assert run("volume", "create", "fits", "1GiB").err == ""


def test_reading_makes_no_store(run, tmp_path: Path) -> None:
    """A mistyped --meta does not look like an empty cluster."""
    for words in (("volume", "list"), ("volume", "info", "x"), ("status",), ("nbd", "list")):
        ended = run(*words, "--meta", f"sqlite:{tmp_path}/typo.sqlite")

        assert ended.code == 5
        assert f"{tmp_path}/typo.sqlite" in ended.err
    assert not (tmp_path / "typo.sqlite").exists()
    assert not (tmp_path / "home").exists()


def test_meta_may_stand_anywhere_and_in_the_environment(run, tmp_path: Path) -> None:
    """Before the noun, behind the verb, as TORUS_META: the same store."""
    url = f"sqlite:{tmp_path}/other.sqlite"
    run("--meta", url, "volume", "create", "disk", "1GiB")

    assert "disk" in run("volume", "list", "--meta", url).out
    assert "disk" in run("volume", "list", env={"TORUS_META": url}).out
    assert run("volume", "list", "--meta", "etcd:x").code == 78


def test_owner_is_shown_with_its_state(run, tmp_path: Path) -> None:
    """Who has it, since when, and whether that process lives."""
    run("volume", "create", "disk", "1GiB")
    store = open_metadata(f"sqlite:{tmp_path}/home/meta.sqlite", SystemClock())
    catalog = Catalog(store, SystemClock())
    owner = this_process("gateway", "unix:/x", SystemClock())
    catalog.acquire(catalog.get("disk").spec.volume, owner)
    store.close()
    document = parsed(run("volume", "info", "disk", "-o", "json").out)["volume"]

    assert document["epoch"] == 1
    assert document["attached"]["alive"] is True
    assert document["attached"]["pid"] == os.getpid()
    assert f"gateway, pid {os.getpid()}" in run("volume", "info", "disk").out
    assert "nbd+unix:///disk?socket=/x" in run("nbd", "list").out


def test_nothing_served_and_nothing_there_is_a_note(run) -> None:
    """Empty lists are empty on standard output."""
    run("volume", "create", "disk", "1GiB")
    ended = run("nbd", "list")

    assert (ended.code, ended.out) == (0, "")
    assert "nothing is served" in ended.err
    assert parsed(run("nbd", "list", "-o", "json").out) == {"exports": [], "devices": []}


def test_status_of_a_node_that_is_down(run, tmp_path: Path) -> None:
    """Exit code 69 and a sentence; its volumes are not listed as served."""
    run("volume", "create", "disk", "1GiB")
    register(tmp_path, alive=False)
    ended = run("status")
    document = parsed(run("status", "-o", "json").out)

    assert ended.code == 69
    assert "node n1 is not running" in ended.out
    assert document["healthy"] is False
    assert document["nodes"][0]["running"] is False
    assert document["volumes"] == {"count": 1, "attached": 0}
    assert parsed(run("nbd", "list", "-o", "json").out) == {"exports": [], "devices": []}


def test_running_node_serves_every_volume_at_every_address(run, tmp_path: Path) -> None:
    """URIs can be given to a client as they are."""
    run("volume", "create", "disk", "1GiB")
    register(tmp_path, alive=True)
    exports = parsed(run("nbd", "list", "-o", "json").out)["exports"]

    assert [export["uri"] for export in exports] == [
        "nbd://127.0.0.1:10809/disk",
        "nbd+unix:///disk?socket=/run/a%20b.sock",
    ]
