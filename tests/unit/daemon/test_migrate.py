"""Moving metadata: interrupted at every step, in use, into the wrong place; and backups."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from torus.clock import SystemClock
from torus.daemon import migrate as module
from torus.daemon.migrate import abort, export, migrate, restore
from torus.errors import (
    AlreadyExists,
    Busy,
    ConfigError,
    Corruption,
    ForeignData,
    NotFound,
    Unavailable,
)
from torus.metadata.base import Delete, Entry, Expect, Listing, Put
from torus.metadata.keys import CLUSTER, COORDINATOR, MOVED, MOVING, ORIGINS, head_key, node_key
from torus.metadata.memory import MemoryMetadata
from torus.metadata.open import open_metadata
from torus.metadata.schema import Cluster, Head, Moving, Node, Owner
from torus.metadata.sqlite import SqliteMetadata
from torus.metadata.transfer import parts
from torus.volume.owner import this_process

URL = "etcd://h1:2379/torus"
CLOCK = SystemClock()


class Target(MemoryMetadata):
    """An etcd in memory, whose commits can fail before or after they happened."""

    def __init__(self) -> None:
        super().__init__()
        self.commits_left = -1
        self.late = False

    def list_lasting(self) -> Listing:
        found = [one for key, one in self._entries.items() if key not in self._key_leases]
        return Listing(self._revision, tuple(sorted(found, key=lambda one: one.key)))

    def position(self) -> tuple[int, int]:
        return 0xABC, self._revision

    def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        self.commits_left -= 1
        if self.commits_left == -1 and not self.late:
            raise Unavailable("cut off before")
        revision = super().commit(expect, changes)
        if self.commits_left == -1:
            raise Unavailable("cut off after")
        return revision

    def close(self) -> None:
        pass

    def values(self) -> dict[str, bytes]:
        return {one.key: one.value for one in self.list_lasting().entries}


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    store = Target()

    @contextlib.contextmanager
    def opened(url: str, clock: SystemClock) -> Iterator[Target]:
        yield store

    monkeypatch.setattr(module, "_etcd", opened)
    return store


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Make a store with a few hundred keys, some great ones among them."""
    url = f"sqlite:{tmp_path}/meta.sqlite"
    store = open_metadata(url)
    store.commit([], [Put(CLUSTER, Cluster("c1", 1, "ab").to_bytes())])
    for number in range(3):
        changes = [Put(f"names/n{number}-{one}", bytes(100)) for one in range(100)]
        store.commit([], changes)
    store.commit([], [Put("volumes/big", bytes(1 << 20))])
    store.commit([], [Put("volumes/big2", b"\xff" * (1 << 20))])
    store.commit([], [Put(COORDINATOR, b"", store.grant(3600.0))])
    store.close()
    return url


def no_progress(done: int, total: int) -> None:
    assert 0 <= done <= total


def everything(url: str) -> dict[str, bytes]:
    store = SqliteMetadata(url.removeprefix("sqlite:"), create=False, unfinished=True)
    found = {one.key: one.value for one in store.list_lasting().entries}
    store.close()
    found.pop(MOVED, None)
    return found


def test_a_move_takes_all_and_closes_the_source(source: str, target: Target) -> None:
    before = everything(source)
    early = open_metadata(source)  # somebody who opened it before the move
    outcome = migrate(source, URL, CLOCK, no_progress)

    there = target.values()
    del there[ORIGINS]
    assert there == before
    assert outcome.cluster_id == "c1"
    assert outcome.entries == len(before)
    with pytest.raises(ConfigError, match=r"was moved to etcd://h1:2379/torus"):
        open_metadata(source, create=False)
    with pytest.raises(ConfigError, match="was moved"):
        early.commit([], [Put("names/late", b"")])
    with pytest.raises(ConfigError, match="was moved"):
        early.grant(1.0)
    early.close()
    assert migrate(source, URL, CLOCK, no_progress).repeated
    with pytest.raises(Busy, match="is on its way to"):
        migrate(source, "etcd://other/torus", CLOCK, no_progress)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_move_that_is_cut_off_anywhere_goes_on(source: str, target: Target, late: bool) -> None:
    before = everything(source)
    target.late = late
    for step in range(20):
        target.commits_left = 0 if late else min(step, 1)  # one commit more each time
        try:
            migrate(source, URL, CLOCK, no_progress)
            break
        except Unavailable:
            if CLUSTER in target.values():  # visible: then all of it is there
                assert set(before) < set(target.values())
                assert MOVING not in target.values()
            with pytest.raises(Busy, match="is being moved"):
                open_metadata(source, create=False)
    else:
        pytest.fail("it never ends")

    assert step > 3
    there = target.values()
    del there[ORIGINS]
    assert there == before


def test_an_incomplete_move_is_taken_back(source: str, target: Target) -> None:
    target.commits_left = 2
    with pytest.raises(Unavailable):
        migrate(source, URL, CLOCK, no_progress)
    assert target.values() != {}

    assert abort(source, None, CLOCK) == URL
    assert target.values() == {}
    open_metadata(source, create=False).close()
    with pytest.raises(NotFound, match="not being moved"):
        abort(source, None, CLOCK)


def test_a_complete_move_is_not_taken_back(source: str, target: Target) -> None:
    target.late = True
    target.commits_left = 5  # begin, four parts, the end: cut off behind it
    with contextlib.suppress(Unavailable):
        migrate(source, URL, CLOCK, no_progress)
    assert CLUSTER in target.values()

    with pytest.raises((AlreadyExists, NotFound)):
        abort(source, None, CLOCK)
    assert CLUSTER in target.values()
    migrate(source, URL, CLOCK, no_progress)


def test_a_target_with_another_cluster_is_refused(source: str, target: Target) -> None:
    target.commit([], [Put(CLUSTER, Cluster("c2", 1).to_bytes())])
    with pytest.raises(AlreadyExists, match="cluster c2"):
        migrate(source, URL, CLOCK, no_progress)

    target.commit([], [Delete(CLUSTER), Put("names/x", b"")])
    with pytest.raises(AlreadyExists, match="1 keys"):
        migrate(source, URL, CLOCK, no_progress)
    assert abort(source, None, CLOCK) == URL
    assert set(target.values()) == {"names/x"}


def test_two_moves_into_one_place(source: str, target: Target) -> None:
    target.commit([], [Put(MOVING, Moving("sqlite:/other", "uid", 1).to_bytes())])

    with pytest.raises(Busy, match="sqlite:/other"):
        migrate(source, URL, CLOCK, no_progress)


def test_a_store_in_use_is_not_moved(source: str, target: Target) -> None:
    me = this_process("node", "", CLOCK)
    node = Node("n1", me.host, me.machine_boot_id, me.pid, me.pid_start, (), "", (), "", 0, 0)
    store = open_metadata(source)
    store.commit([], [Put(node_key("n1"), node.to_bytes())])
    with pytest.raises(Busy, match="a node runs"):
        migrate(source, URL, CLOCK, no_progress, force=True)

    head = Head(epoch=1, owner=me, spans=(), root=None)
    store.commit([], [Delete(node_key("n1")), Put(head_key(1), head.to_bytes())])
    with pytest.raises(Busy, match="is attached"):
        migrate(source, URL, CLOCK, no_progress)

    far = Owner("elsewhere", "", 1, 1, "node", "", 0)
    store.commit([], [Put(head_key(1), Head(1, far, (), None).to_bytes())])
    with pytest.raises(Busy, match="on elsewhere"):
        migrate(source, URL, CLOCK, no_progress)
    store.close()
    open_metadata(source, create=False).close()  # no mark was left behind
    assert socket.gethostname() != "elsewhere"

    migrate(source, URL, CLOCK, no_progress, force=True)


def test_only_to_etcd(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not etcd"):
        migrate(source, f"sqlite:{tmp_path}/other", CLOCK, no_progress)
    with pytest.raises(ConfigError, match="needs the embedded one"):
        migrate(URL, URL, CLOCK, no_progress)
    with pytest.raises(NotFound):
        migrate(f"sqlite:{tmp_path}/none", URL, CLOCK, no_progress)


def test_parts_fit_into_a_commit() -> None:
    entries = [Entry(f"k{n}", bytes(100), 1) for n in range(300)]
    entries += [Entry(f"b{n}", bytes(1 << 20), 1) for n in range(3)]
    found = parts(entries)

    assert [one for part in found for one in part] == entries
    assert [len(part) for part in found] == [128, 128, 45, 1, 1]
    assert parts([]) == []


# --- backups --------------------------------------------------------------------------------


def test_a_backup_holds_all_and_fills_an_empty_store(
    source: str, target: Target, tmp_path: Path
) -> None:
    file, again = tmp_path / "meta.jsonl", f"sqlite:{tmp_path}/again.sqlite"
    store = open_metadata(source)
    assert isinstance(store, SqliteMetadata)
    outcome = export(store, "here", file, CLOCK)
    with pytest.raises(AlreadyExists, match="exists already"):
        export(store, "here", file, CLOCK)
    store.close()
    assert file.stat().st_mode & 0o777 == 0o600
    assert outcome.entries == len(everything(source))

    for url in (URL, again):
        assert not restore(file, url, CLOCK, no_progress).repeated
        assert restore(file, url, CLOCK, no_progress).repeated
    for there in (target.values(), everything(again)):
        there.pop(ORIGINS)
        assert there == everything(source)
    open_metadata(again, create=False).close()


def test_a_backup_of_etcd_remembers_where_it_was(
    source: str, target: Target, tmp_path: Path
) -> None:
    migrate(source, URL, CLOCK, no_progress)
    export(target, "there", tmp_path / "one", CLOCK)

    restore(tmp_path / "one", f"sqlite:{tmp_path}/again.sqlite", CLOCK, no_progress)

    assert (
        f'"cluster":"abc","revision":{target._revision}'.encode()
        in everything(f"sqlite:{tmp_path}/again.sqlite")[ORIGINS]
    )


def test_a_damaged_backup_is_refused(source: str, tmp_path: Path) -> None:
    file, bad = tmp_path / "meta.jsonl", tmp_path / "bad"
    store = open_metadata(source)
    assert isinstance(store, SqliteMetadata)
    export(store, "here", file, CLOCK)
    store.close()
    whole = file.read_bytes().splitlines(keepends=True)
    goal = f"sqlite:{tmp_path}/again.sqlite"
    for lines, error in (
        (whole[:-1], Corruption),
        (whole[:5] + whole[6:], Corruption),
        (whole[:1], Corruption),
        ([], Corruption),
        ([whole[0].replace(b'"c1"', b'"c2"'), *whole[1:]], Corruption),
        ([b'{"kind":"else"}\n', *whole[1:]], ForeignData),
        ([b"garbage\n", *whole[1:]], Corruption),
        ([b"[]\n", *whole[1:]], Corruption),
    ):
        bad.write_bytes(b"".join(lines))
        with pytest.raises(error):
            restore(bad, goal, CLOCK, no_progress)
    assert not (tmp_path / "again.sqlite").exists()
