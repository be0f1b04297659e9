"""`torus gc` without a node: what is asked for, what is refused, what is skipped."""

import dataclasses
import json

import pytest

from torus.clock import SystemClock
from torus.metadata.open import open_metadata
from torus.metadata.schema import Span
from torus.volume.catalog import Catalog
from torus.volume.owner import this_process


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nope",), 5, "volume 'nope' does not exist"),
        (("--target", "0"), 64, "--target '0' is no share between 0 and 1"),
        (("--target", "1.5"), 64, "is no share between 0 and 1"),
        (("--target", "nan"), 64, "is no share between 0 and 1"),
        (("--target", "much"), 64, "is no share between 0 and 1"),
        (("--interval", "5s"), 64, "--interval goes with --watch"),
        (("--watch", "--interval", "soon"), 64, "--interval 'soon'"),
        (("--defragment", "--dry-run"), 64, "--defragment moves everything"),
    ],
)
def test_wrong_request_is_refused(run, words, code: int, message: str) -> None:
    """With its exit code, and one message."""
    run("volume", "create", "disk", "1GiB")
    ended = run("gc", *words)

    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err


def test_volume_that_was_never_written_has_no_garbage(run) -> None:
    """And needs no data directory to know that."""
    assert run("gc").code == 5  # no metadata store
    run("volume", "create", "disk", "1GiB")
    run("volume", "create", "other", "1GiB")
    ended = run("gc", "-o", "json")
    documents = json.loads(ended.out)["gc"]

    assert ended.code == 0
    assert [(one["volume"], one["state"], one["freed_bytes"]) for one in documents] == [
        ("disk", "collected", 0),
        ("other", "collected", 0),
    ]
    assert run("gc", "disk", "disk").out.count("disk") == 1


def test_busy_volume_is_skipped(run, tmp_path) -> None:
    """The others are collected; the exit code and a warning say that one was not."""
    run("volume", "create", "disk", "1GiB")
    run("volume", "create", "other", "1GiB")
    store = open_metadata(f"sqlite:{tmp_path}/home/meta.sqlite", SystemClock())
    catalog = Catalog(store, SystemClock())
    owner = this_process("import", "", SystemClock())
    held = catalog.acquire(catalog.get("disk").spec.volume, owner)
    head = dataclasses.replace(held.head, spans=(Span(1, 0, 1),))
    catalog.publish(held.spec.volume, head, held.head_revision)
    store.close()
    ended = run("gc", "-o", "json")
    documents = json.loads(ended.out)["gc"]

    assert ended.code == 75
    assert [(one["volume"], one["state"]) for one in documents] == [
        ("disk", "skipped"),
        ("other", "collected"),
    ]
    assert "attached by import" in documents[0]["problem"]
    assert "warning: volume 'disk': volume 'disk' is attached by import" in run("gc").err
