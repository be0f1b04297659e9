"""History tokens in data directories: what a node does with them at its start and its end."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from torus.daemon.remembered import TOKEN_FILE, RememberedHistory
from torus.errors import Corruption, ForeignData
from torus.metadata import history
from torus.metadata.base import Put
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata


class Etcd(MemoryMetadata):
    """A store in memory that can be set back to an older copy of itself."""

    def position(self) -> tuple[int, int]:
        return 0xA, self._revision

    def history_token(self, token: str = "") -> str:
        return history.make_token(self, token)

    def check_not_older(self, token: str) -> None:
        history.check_token(self, token)

    def close(self) -> None:
        pass


def run(
    store: MemoryMetadata, data_dirs: list[Path], then: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Be a node with these disks, from start to end."""

    async def node() -> None:
        metadata = AsyncMetadata(store)
        try:
            async with AsyncExitStack() as stack:
                await RememberedHistory(metadata, data_dirs).start(stack)
                if then is not None:
                    await then()
        finally:
            await metadata.close()

    asyncio.run(node())


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("a", "b")]
    for folder in found:
        folder.mkdir()
    return found


def test_each_disk_remembers_by_itself(disks: list[Path]) -> None:
    store = Etcd()
    for _ in range(3):
        run(store, disks)
    run(store, disks[1:])
    run(store, disks[::-1])

    assert len({(folder / TOKEN_FILE).read_text() for folder in disks}) == 2
    assert len(store.list("marks/").entries) == 2


def test_a_disk_that_saw_more_refuses(disks: list[Path]) -> None:
    store = Etcd()
    run(store, disks)
    entries, revision = dict(store._entries), store._revision
    run(store, disks)
    store._entries, store._revision = entries, revision
    with pytest.raises(Corruption, match=rf"a/{TOKEN_FILE}: etcd is an older copy"):
        run(store, disks)
    for number in range(20):
        store.commit([], [Put("names/x", b"%d" % number)])
    with pytest.raises(Corruption, match="does not hold the mark"):
        run(store, disks)
    for folder in disks:
        (folder / TOKEN_FILE).unlink()
    run(store, disks)


def test_a_token_that_could_not_be_kept_is_not_needed(
    disks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Etcd()
    run(store, disks)
    with monkeypatch.context() as patched:

        def full(data_dir: Path, token: str) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr("torus.daemon.remembered._write", full)
        run(store, disks)
    run(store, disks)


def test_an_embedded_store_leaves_no_file(disks: list[Path]) -> None:
    run(MemoryMetadata(), disks)
    assert not (disks[0] / TOKEN_FILE).exists()

    run(Etcd(), disks)
    with pytest.raises(ForeignData, match="is on etcd"):
        run(MemoryMetadata(), disks)
