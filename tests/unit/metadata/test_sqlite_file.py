"""The SQLite file: which ones are opened, which are refused, and how that is said."""

import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torus.errors import (
    ConfigError,
    Corruption,
    ForeignData,
    NotFound,
    PermissionDenied,
    PoolFull,
    TorusError,
    Unavailable,
    UnknownVersion,
)
from torus.limits import METADATA_HISTORY_CHANGES_MAX
from torus.metadata import sqlite_file
from torus.metadata.base import Put
from torus.metadata.sqlite import SqliteMetadata

HEADER_BYTES = 100  # of SQLite's first page


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meta.sqlite"


@pytest.fixture
def made(path: Path) -> Path:
    """A store with something in it, closed."""
    store = SqliteMetadata(str(path))
    for number in range(200):
        store.commit([], [Put(f"names/{number:03}", b"value %d" % number)])
    store.close()
    return path


def test_a_new_store_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "home" / "meta.sqlite"
    mask = os.umask(0)
    try:
        store = SqliteMetadata(str(path))
        store.commit([], [Put("key", b"")])
        files = sorted(path.parent.iterdir())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
        store.close()
    finally:
        os.umask(mask)

    assert modes == dict.fromkeys(["meta.sqlite", "meta.sqlite-shm", "meta.sqlite-wal"], 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_closed_store_leaves_one_file(made: Path) -> None:
    assert [file.name for file in made.parent.iterdir()] == ["meta.sqlite"]


def test_every_commit_is_synced(path: Path) -> None:
    store = SqliteMetadata(str(path))
    settings = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "application_id", "user_version")
    }
    store.close()

    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "application_id": int.from_bytes(b"TORU", "big"),
        "user_version": 1,
    }


def test_odd_characters_in_a_path_are_only_characters(tmp_path: Path) -> None:
    for name in ("a b", "100%25", "what?mode=ro", "x#y", "ünï", "new\nline", os.fsdecode(b"\xff")):
        path = tmp_path / name / "meta.sqlite"
        SqliteMetadata(str(path)).close()
        assert path.is_file()


def test_a_missing_store_is_not_made_when_it_must_exist(path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist") as caught:
        SqliteMetadata(str(path), create=False)

    assert caught.value.hint is not None
    assert not path.exists()


def test_racing_creators_make_one_store(path: Path) -> None:
    start = threading.Barrier(8)

    def open_one(number: int) -> None:
        start.wait()
        store = SqliteMetadata(str(path))
        assert store.commit([], [Put(f"names/{number}", b"")]) is not None
        store.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_one, range(8)))

    store = SqliteMetadata(str(path))
    listing = store.list("names/")
    store.close()
    assert (listing.revision, len(listing.entries)) == (8, 8)
    assert [file.name for file in path.parent.iterdir()] == ["meta.sqlite"]


def test_another_programs_sqlite_file_is_refused_and_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE entries (key)")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(ForeignData, match="another program"):
        SqliteMetadata(str(path))
    assert path.read_bytes() == before


def test_an_unknown_format_is_refused(made: Path) -> None:
    with sqlite3.connect(made) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()

    with pytest.raises(UnknownVersion, match="format 2, this torus knows 1"):
        SqliteMetadata(str(made))


def test_an_empty_file_is_damage_not_a_new_store(path: Path) -> None:
    path.touch()

    with pytest.raises(Corruption, match="truncated") as caught:
        SqliteMetadata(str(path))
    assert "torus recover" in (caught.value.hint or "")


def test_garbage_is_damage(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)

    with pytest.raises(Corruption) as caught:
        SqliteMetadata(str(path))
    assert "torus recover" in (caught.value.hint or "")


@pytest.mark.parametrize("keep", [1, 50, 100, 4096, 5000, 8192, 20000])
def test_a_truncated_file_is_damage(made: Path, keep: int) -> None:
    os.truncate(made, keep)

    with pytest.raises(Corruption) as caught:
        _read_all(made)
    assert "torus recover" in (caught.value.hint or "")


def test_a_flipped_bit_is_found_or_harmless(made: Path, tmp_path: Path) -> None:
    """Flip one bit in every 397th byte: a reader gets the old content or `Corruption`."""
    good = [b"value %d" % number for number in range(200)]
    damaged = tmp_path / "damaged" / "meta.sqlite"
    damaged.parent.mkdir()
    found = 0
    for offset in range(0, made.stat().st_size, 397):
        shutil.copy(made, damaged)
        with damaged.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ (1 << offset % 8)]))
        try:
            assert _read_all(damaged) == good, f"silent damage at offset {offset}"
        except (Corruption, UnknownVersion):
            found += 1
        except (ConfigError, Unavailable):
            assert offset < HEADER_BYTES
        for leftover in damaged.parent.iterdir():
            leftover.unlink()
    assert found > 20


def test_a_changed_value_fails_its_checksum(made: Path) -> None:
    with sqlite3.connect(made) as connection:
        connection.execute("UPDATE entries SET value = 'value 8' WHERE key = 'names/007'")
        connection.execute("UPDATE entries SET revision = 1 WHERE key = 'names/009'")
    connection.close()
    store = SqliteMetadata(str(made))

    calls: list[Callable[[], object]] = [
        lambda: store.get("names/007"),
        lambda: store.get("names/009"),
        lambda: store.list("names/"),
        store.verify,
    ]
    for call in calls:
        with pytest.raises(Corruption, match="checksum"):
            call()
    assert store.get("names/008") is not None
    store.close()


@pytest.mark.parametrize("statement", ["DELETE FROM state", "UPDATE state SET revision = 100"])
def test_a_lost_counter_is_damage(made: Path, statement: str) -> None:
    with sqlite3.connect(made) as connection:
        connection.execute(statement)
    connection.close()
    store = SqliteMetadata(str(made))

    with pytest.raises(Corruption, match="counters"):
        store.list("names/")
    with pytest.raises(Corruption, match="counters"):
        store.commit([], [Put("key", b"")])
    store.close()


def test_a_log_without_its_file_is_refused(path: Path) -> None:
    log = Path(f"{path}-wal")
    log.write_bytes(b"x")

    with pytest.raises(Corruption, match="is missing, but its log"):
        SqliteMetadata(str(path))
    assert not path.exists()


@pytest.mark.parametrize("replace", [False, True])
def test_a_store_that_was_removed_or_replaced_takes_nothing_more(
    made: Path, tmp_path: Path, replace: bool
) -> None:
    copy = tmp_path / "copy.sqlite"
    shutil.copy(made, copy)
    store = SqliteMetadata(str(made))
    watch = store.watch("names/", 0)
    made.unlink()
    if replace:
        copy.rename(made)

    calls: list[Callable[[], object]] = [
        lambda: store.get("names/007"),
        lambda: store.commit([], [Put("key", b"")]),
        lambda: watch.next(0),
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="removed or replaced"):
            call()
    store.close()


def test_a_directory_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        SqliteMetadata(str(tmp_path))


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises((ConfigError, Unavailable)):
        SqliteMetadata(str(tmp_path / "file" / "meta.sqlite"))


def test_a_place_that_takes_no_files_is_refused() -> None:
    """Even root makes no file in /proc or /sys."""
    for place in ("/proc/torus/meta.sqlite", "/sys/torus/meta.sqlite"):
        with pytest.raises(TorusError, match="cannot be made") as caught:
            SqliteMetadata(place)
        assert "--meta" in (caught.value.hint or "")


def test_what_the_system_refuses_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may do all, so the refusals of others are played by os.access."""
    SqliteMetadata(str(path)).close()
    monkeypatch.setattr(os, "access", lambda *_: False)

    with pytest.raises(PermissionDenied, match="may not read and write"):
        SqliteMetadata(str(path))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(13, PermissionDenied), (30, PermissionDenied), (28, PoolFull), (122, PoolFull)],
)
def test_a_refused_creation_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[TorusError]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sqlite_file.os, "link", refuse)

    with pytest.raises(expected, match="cannot be made"):
        SqliteMetadata(str(path))
    assert list(path.parent.iterdir()) == []


def test_no_space_is_said_and_nothing_is_changed(made: Path) -> None:
    store = SqliteMetadata(str(made))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(PoolFull, match="no space"):
        store.commit([], [Put("names/007", b""), Put("big", bytes(200_000))])
    entry = store.get("names/007")
    assert entry is not None
    assert entry.value == b"value 7"
    store._connection.execute("PRAGMA max_page_count = 1000000")
    assert store.commit([], [Put("big", bytes(200_000))]) == 201
    store.close()


def test_a_lock_that_stays_is_said(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "METADATA_BUSY_TIMEOUT_S", 0.05)
    store = SqliteMetadata(str(made))
    blocker = sqlite3.connect(made, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    with pytest.raises(Unavailable, match="locked"):
        store.commit([], [Put("key", b"")])
    assert store.get("names/001") is not None, "a writer must not stop readers"
    blocker.execute("ROLLBACK")
    blocker.close()
    assert store.commit([], [Put("key", b"")]) == 201
    store.close()


def test_a_watch_that_failed_looks_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteMetadata(str(made))
    watch = store.watch("names/", 199)

    def fail(*_: object) -> None:
        raise Unavailable("a moment's trouble")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_position", fail)
        with pytest.raises(Unavailable):
            watch.next(0)

    assert [event.revision for event in watch.next(0)] == [200]
    store.close()


@pytest.mark.slow
def test_a_waiting_watch_notices_that_its_file_is_gone(made: Path) -> None:
    store = SqliteMetadata(str(made))
    watch = store.watch("names/", 200)
    assert list(watch.next(0)) == []
    made.unlink()

    with pytest.raises(Unavailable, match="removed or replaced"):
        watch.next(20.0)
    store.close()


def test_an_exception_in_the_middle_leaves_no_transaction(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteMetadata(str(made))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("torus.metadata.sqlite.Change.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            store.commit([], [Put("names/007", b"half")])

    entry = store.get("names/007")
    assert entry is not None
    assert entry.value == b"value 7"
    assert store.commit([], [Put("key", b"")]) == 201
    store.close()


def test_the_history_takes_no_more_rows_than_its_bound(path: Path) -> None:
    store = SqliteMetadata(str(path))
    for _ in range(METADATA_HISTORY_CHANGES_MAX // 100 + 5):
        store.commit([], [Put(f"a/{number}", b"") for number in range(100)])
    (rows,) = store._connection.execute("SELECT count(*) FROM changes").fetchone()
    store.close()

    assert METADATA_HISTORY_CHANGES_MAX - 100 < rows <= METADATA_HISTORY_CHANGES_MAX


def test_verify_accepts_a_good_store(made: Path) -> None:
    store = SqliteMetadata(str(made))
    store.verify()
    store.close()


def _read_all(path: Path) -> list[bytes]:
    """Open, verify, list and write."""
    store = SqliteMetadata(str(path))
    try:
        store.verify()
        values = [entry.value for entry in store.list("names/").entries]
        assert store.commit([], [Put("key", b"")]) == 201
        return values
    finally:
        store.close()
