"""Metadata URLs, and what opening one costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torus.errors import ConfigError, NotFound
from torus.metadata.base import Put
from torus.metadata.memory import MemoryMetadata
from torus.metadata.open import open_metadata, sqlite_path
from torus.metadata.sqlite import SqliteMetadata

ROOT = Path(__file__).resolve().parents[3]


def test_a_sqlite_url_opens_that_file(tmp_path: Path) -> None:
    store = open_metadata(f"sqlite:{tmp_path}/home/meta.sqlite")
    store.commit([], [Put("key", b"")])
    store.close()

    assert isinstance(store, SqliteMetadata)
    assert (tmp_path / "home" / "meta.sqlite").is_file()


def test_a_missing_file_is_made_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_metadata(f"sqlite:{tmp_path}/meta.sqlite", create=False)


def test_memory_is_a_new_store_each_time() -> None:
    first, second = open_metadata("memory:"), open_metadata("memory:")
    first.commit([], [Put("key", b"")])

    assert isinstance(first, MemoryMetadata)
    assert second.get("key") is None


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:/a/b", "/a/b"),
        ("sqlite:///a/b", "/a/b"),
        ("sqlite:/a/../b", "/b"),
        ("sqlite:b c?d", f"{os.getcwd()}/b c?d"),
        ("sqlite:~/b", f"{os.path.expanduser('~')}/b"),
        ("sqlite:/a:b", "/a:b"),
    ],
)
def test_paths_are_absolute(url: str, path: str) -> None:
    assert sqlite_path(url) == path


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("etcd:host:2379", "has no '//'"),
        ("etcd:///torus", "no HOST:PORT"),
        ("etcd://host:0/torus", "no HOST:PORT"),
        ("etcd://host:70000", "no HOST:PORT"),
        ("etcd://a,,b", "no HOST:PORT"),
        ("etcd://a,a", "twice"),
        ("etcd://a/x y", "a prefix"),
        ("etcd://a/" + "x" * 200, "a prefix"),
        ("etcd://me:secret@a/torus", "holds a password"),
        ("etcd://a/torus?colour=red", "the option"),
        ("etcd://a/torus?ca=", "the option"),
        ("etcd://a/torus?cert=/c", "without its key"),
        ("etcd://a/torus?cert=/c&key=/k", "no CA"),
        ("etcd://me@a/torus", "without a password file"),
        ("etcd://a/torus?ca=/does/not/exist", "cannot be read"),
        ("", "no known scheme"),
        ("/var/lib/torus/meta.sqlite", "no known scheme"),
        ("sqlite", "no known scheme"),
        ("sqlite:", "names no file"),
        ("sqlite:/a/", "names no file"),
        ("sqlite://host/a", "names a host"),
        ("sqlite:/a\0b", "names no file"),
        ("memory:name", "takes no name"),
        ("postgres://x", "no known scheme"),
    ],
)
def test_what_cannot_be_meant_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_metadata(url)


def test_importing_the_stores_imports_nothing_slow() -> None:
    """Commands that only read metadata start with this import."""
    script = (
        "import sys, torus.metadata.open, torus.volume.catalog; "
        "print([name for name in ('asyncio', 'rich', 'uvloop', 'logging', 'concurrent.futures', "
        "'pathlib', 'urllib', 'uuid', 'grpc', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
