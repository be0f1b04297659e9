"""Several data directories make a node, and each may fail alone."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torus import limits
from torus.config import CommonConfig, NodeConfig
from torus.daemon.disks import open_store
from torus.daemon.node_disks import NodeDisks, disk_status, open_disks
from torus.errors import Busy, Corruption, ForeignData, TorusError, UsageError
from torus.format.identity import IDENTITY_FILE, DiskIdentity
from torus.testing.clock import ManualClock

CLUSTER, OTHER = "22" * 16, "33" * 16


def config(*folders: Path, size: int | None = limits.STORE_BYTES_MIN) -> NodeConfig:
    common = CommonConfig(folders[0].parent, "memory:", folders[0])
    return NodeConfig(common, size, (), None, data_dirs=folders)


@contextmanager
def opened(*folders: Path, cluster: str = CLUSTER) -> Iterator[NodeDisks]:
    disks = open_disks(config(*folders), cluster, ManualClock())
    try:
        yield disks
    finally:
        asyncio.run(disks.close())


def identity(folder: Path) -> DiskIdentity:
    return DiskIdentity.from_bytes((folder / IDENTITY_FILE).read_bytes(), str(folder))


def test_new_disks_belong_to_the_node_of_the_first(tmp_path: Path) -> None:
    """The node is called by its first disk; one that is added later is adopted."""
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    with opened(one, two) as disks:
        first, second = identity(one), identity(two)
        assert disks.node_id == first.disk_id == first.node == second.node
        assert first.node_id == ""
        assert second.disk_id != first.disk_id
        assert disks.working() == (first.disk_id, second.disk_id)
        assert disks.size_bytes == 2 * limits.STORE_BYTES_MIN
    with opened(three, two) as disks:  # the first was lost
        assert disks.node_id == first.disk_id == identity(three).node


def test_disks_of_two_nodes_are_refused_and_let_go_of(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        with opened(folder):
            pass
    with pytest.raises(UsageError, match="are of two nodes"), opened(one, two):
        pass
    with pytest.raises(UsageError, match="named twice"), opened(one, one):
        pass
    with opened(one), opened(two):
        pass


@pytest.mark.parametrize("damage", [b"{", b""])
def test_disk_that_cannot_be_read_is_left_out(tmp_path: Path, damage: bytes) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with opened(one, two) as disks:
        second = identity(two).disk_id
    (two / IDENTITY_FILE).write_bytes(damage)
    with opened(one, two) as disks:
        assert disks.working() == (identity(one).disk_id,)
        assert [disk.disk_id for disk in disks.all] == [disks.working()[0], ""]
        (problem,) = disks.problems()
        assert str(two) in problem
        status = disk_status(disks.all[1])
        assert status.failed
        assert status.problem
    assert second
    with pytest.raises(Corruption), opened(two):
        pass


def test_disk_whose_device_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with opened(one, two):
        pass
    real = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.parent == two:
            raise OSError(5, os.strerror(5))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(TorusError, match="Input/output error"), opened(two):
        pass


def test_what_the_operator_did_ends_the_node(tmp_path: Path) -> None:
    """Another cluster's disk, a directory in use, strangers' files: nothing stays open."""
    one, two = tmp_path / "one", tmp_path / "two"
    with opened(two, cluster=OTHER):
        pass
    with pytest.raises(ForeignData), opened(one, two):
        pass
    three = tmp_path / "three"
    three.mkdir()
    (three / "letter").write_text("mine")
    with pytest.raises(ForeignData), opened(one, three):
        pass
    with opened(one), pytest.raises(Busy), opened(one):
        pass


def test_failed_disk_is_a_problem_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path / "one", tmp_path / "two") as disks:
        assert disks.problems() == []
        broken = disks.all[1].store
        assert broken is not None
        broken.disk.close()
        from torus.errors import DiskFailed

        broken.failure = DiskFailed("write failed")
        assert disks.working() == (disks.all[0].disk_id,)
        assert disks.problems() == [f"disk {tmp_path / 'two'}: write failed"]


def test_single_disk_is_as_it_was_before_nodes_had_several(tmp_path: Path) -> None:
    """Its file has no node, and says the same in words as ever."""
    folder = tmp_path / "one"
    store = open_store(folder, CLUSTER, ManualClock(), size_bytes=limits.STORE_BYTES_MIN)
    store.disk.close()
    assert b"node_id" not in (folder / IDENTITY_FILE).read_bytes()
    with opened(folder) as disks:
        assert disks.node_id == identity(folder).disk_id
