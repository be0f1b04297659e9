"""What makes a directory a store, and every reason for which one is refused."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torus import limits
from torus.daemon.disks import open_store, read_identity
from torus.errors import (
    Busy,
    Corruption,
    ForeignData,
    NotFound,
    PermissionDenied,
    PoolFull,
    TorusError,
    UnknownVersion,
    UsageError,
)
from torus.format.identity import IDENTITY_FILE, DiskIdentity
from torus.format.segment import SegmentHeader, segment_name
from torus.store.disk import PosixDisk
from torus.testing.clock import ManualClock

CLUSTER, OTHER = "22" * 16, "33" * 16
SIZE = limits.STORE_BYTES_MIN


@contextmanager
def opened(
    path: Path, cluster_id: str = CLUSTER, size_bytes: int | None = SIZE, *, make: bool = True
) -> Iterator[None]:
    store = open_store(path, cluster_id, ManualClock(), size_bytes=size_bytes, make=make)
    try:
        yield
    finally:
        store.disk.close()


def refused(
    kind: type[TorusError],
    exit_code: int,
    words: str,
    path: Path,
    cluster_id: str = CLUSTER,
    size_bytes: int | None = SIZE,
    *,
    make: bool = True,
) -> TorusError:
    """Check that the directory is refused so, and that it is let go of again."""
    with pytest.raises(kind, match=words) as caught:
        with opened(path, cluster_id, size_bytes, make=make):
            pass
    assert type(caught.value) is kind
    assert caught.value.exit_code == exit_code
    assert str(path) in caught.value.message
    return caught.value


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Return a directory that is a store already."""
    path = tmp_path / "data"
    with opened(path):
        pass
    return path


# --- made and recognised ----------------------------------------------------------------


@pytest.mark.parametrize("found", [None, [], ["lost+found"], [IDENTITY_FILE + ".new"]])
def test_an_empty_directory_is_made_a_store(found: list[str] | None, tmp_path: Path) -> None:
    """Also one that is not there, or holds what a file system or a crash left in it."""
    path = tmp_path / "one" / "data"
    if found is not None:
        path.mkdir(parents=True)
        for name in found:
            (path / name).touch()
    assert read_identity(path) is None
    with opened(path):
        pass
    identity = read_identity(path)

    assert identity is not None
    assert (identity.cluster_id, identity.size_bytes) == (CLUSTER, SIZE)
    assert (identity.slot_bytes, identity.segment_slots) == (4 << 20, 64)
    assert len(identity.disk_id) == 32


def test_a_store_is_recognised(data_dir: Path) -> None:
    """Without a size it keeps its own; another one is written down; its identity stays."""
    before = read_identity(data_dir)
    with opened(data_dir, size_bytes=None, make=False):
        pass
    assert read_identity(data_dir) == before
    with opened(data_dir, size_bytes=2 * SIZE):
        pass
    after = read_identity(data_dir)

    assert before is not None
    assert after is not None
    assert after.size_bytes == 2 * SIZE
    assert (after.disk_id, after.created_ns) == (before.disk_id, before.created_ns)


# --- refused ----------------------------------------------------------------------------


def test_a_directory_in_use_is_refused(data_dir: Path) -> None:
    """By its lock, whoever has it; afterwards it is free."""
    with opened(data_dir):
        refused(Busy, 75, "in use by another process", data_dir)
    with opened(data_dir):
        pass


def test_a_directory_that_is_not_there_is_told_from_an_empty_one(tmp_path: Path) -> None:
    """Offline commands make nothing."""
    error = refused(NotFound, 5, "does not exist", tmp_path / "no", make=False)

    assert error.hint is not None
    assert "torus node --size" in error.hint
    assert not (tmp_path / "no").exists()


def test_another_clusters_directory_is_refused(data_dir: Path) -> None:
    """Both names are said, and what to do when the metadata was lost."""
    error = refused(ForeignData, 65, f"cluster {CLUSTER}, the metadata", data_dir, OTHER)

    assert OTHER in error.message
    assert error.hint is not None
    assert "torus recover" in error.hint


def test_a_directory_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    """Nothing is written between a stranger's files."""
    (tmp_path / "photo.jpg").touch()
    refused(ForeignData, 65, "'photo.jpg'", tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_segments_without_an_identity_are_refused(tmp_path: Path) -> None:
    """They hold somebody's data: never an empty directory."""
    (tmp_path / "a.txt").touch()
    (tmp_path / segment_name(0)).touch()
    error = refused(Corruption, 65, f"segments but no {IDENTITY_FILE}", tmp_path)

    assert error.hint is not None
    assert "restore that file" in error.hint


def test_a_new_directory_needs_a_size(tmp_path: Path) -> None:
    """And it stays as new as it was."""
    path = tmp_path / "data"
    error = refused(UsageError, 64, "size is not known", path, size_bytes=None)

    assert error.hint is not None
    assert "--size" in error.hint
    with opened(path):
        pass


@pytest.mark.parametrize("make", [True, False])
def test_a_file_is_no_directory(make: bool, tmp_path: Path) -> None:
    """Nor is what lies below one."""
    path = tmp_path / "file"
    path.touch()
    if make:
        refused(UsageError, 64, "is not a folder", path)
        refused(UsageError, 64, "is not a folder", path / "below")
        with pytest.raises(UsageError, match="is not a folder"):
            read_identity(path)
    else:
        refused(NotFound, 5, "does not exist", path, make=False)


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b"{}", b"\xff", b"null", b"1"])
def test_an_identity_that_is_none_is_refused(content: bytes, data_dir: Path) -> None:
    """By both who open it and who only read it."""
    (data_dir / IDENTITY_FILE).write_bytes(content)

    refused(Corruption, 65, "not a torus disk identity", data_dir)
    with pytest.raises(Corruption):
        read_identity(data_dir)


def test_a_damaged_identity_is_refused(data_dir: Path) -> None:
    """Each of its fields is in the checksum."""
    path = data_dir / IDENTITY_FILE
    body = json.loads(path.read_bytes())
    for name in set(body) - {"format", "checksum"}:
        changed = body | {name: "0" if isinstance(body[name], str) else body[name] + 1}
        path.write_text(json.dumps(changed))
        refused(Corruption, 65, "checksum .* stored", data_dir)


def test_an_identity_of_another_version_is_refused(data_dir: Path) -> None:
    """Unknown is not damaged: another release can read it."""
    path = data_dir / IDENTITY_FILE
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": 2}))

    error = refused(UnknownVersion, 70, "disk format 2", data_dir)
    assert error.hint is not None


@pytest.mark.parametrize(("disk", "cluster"), [("aa" * 16, CLUSTER), (None, OTHER)])
def test_segments_of_another_disk_are_refused(
    disk: str | None, cluster: str, data_dir: Path
) -> None:
    """A file that was copied in among our own."""
    identity = read_identity(data_dir)
    assert identity is not None
    ids = bytes.fromhex(disk or identity.disk_id), bytes.fromhex(cluster)
    path = data_dir / segment_name(0)
    path.write_bytes(SegmentHeader(*ids, 0, 4 << 20, 16).pack())
    os.truncate(path, limits.SEGMENT_HEADER_BYTES + (64 << 20))

    with pytest.raises(ForeignData, match=path.name) as caught, opened(data_dir):
        pass
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("number", "kind", "exit_code"),
    [
        (errno.EACCES, PermissionDenied, 77),
        (errno.EPERM, PermissionDenied, 77),
        (errno.EROFS, PermissionDenied, 77),
        (errno.ENOSPC, PoolFull, 4),
        (errno.EIO, TorusError, 1),
        (errno.ENAMETOOLONG, TorusError, 1),
    ],
)
@pytest.mark.parametrize("where", ["names", "read_file", "replace_file"])
def test_what_the_operating_system_refuses(
    number: int, kind: type[TorusError], exit_code: int, where: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At whatever call: said with the directory, and the lock is let go."""

    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(PosixDisk, where, fail)
        refused(kind, exit_code, os.strerror(number), tmp_path)

    with opened(tmp_path):
        pass


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    """The folder itself cannot be made."""
    refused(TorusError, 1, "File name too long", tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's place")
def test_another_users_directory_is_refused(socket_folder: Path) -> None:
    """Who may not read it may not use it, and the offline commands say so as well."""
    data_dir = socket_folder / "data"
    with opened(data_dir):
        pass
    socket_folder.chmod(0o755)
    data_dir.chmod(0o700)
    os.seteuid(65534)
    try:
        refused(PermissionDenied, 77, "Permission denied", data_dir)
        with pytest.raises(PermissionDenied, match="may not be read"):
            read_identity(data_dir)
    finally:
        os.seteuid(0)


def test_the_identity_survives_a_round_trip() -> None:
    """What is written is what is read, the operator's size included."""
    identity = DiskIdentity("1" * 32, CLUSTER, 4 << 20, 64, 5, SIZE)

    assert DiskIdentity.from_bytes(identity.to_bytes(), "") == identity
