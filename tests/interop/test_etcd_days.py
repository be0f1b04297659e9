"""A real etcd of three members, killed, stopped and cut off, under writers, a watch and a lease.

What is checked: a commit that was acknowledged is there, once; one whose outcome was unknown is
there once or not at all; the watch has seen every change once, in order; the lease never ended.
"""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.etcd_members import EtcdCluster, running
from torus.errors import ShuttingDown, Unavailable
from torus.metadata.base import Event, Expect, Put
from torus.metadata.etcd import EtcdMetadata

pytestmark = [pytest.mark.interop, pytest.mark.slow]

LEASE_S = 8.0
WRITERS = 2


class Writer(threading.Thread):
    """Counts up by compare-and-swap, and writes each number under a key of its own."""

    def __init__(self, store: EtcdMetadata, name: str) -> None:
        super().__init__(name=name)
        self.store = store
        self.done: list[int] = []  # revisions of what was acknowledged or found done
        self.unknown = 0
        self.in_doubt = -1
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            number = len(self.done)
            try:
                self._write(number)
            except Unavailable:
                self.unknown += 1
                self.in_doubt = number
                self._find_out(number)

    def _write(self, number: int) -> None:
        count = self.store.get(f"counts/{self.name}")
        assert int(count.value if count else b"0") == number, "a commit was lost or doubled"
        expect = [Expect(f"counts/{self.name}", count.revision if count else 0)]
        text = b"%d" % (number + 1)
        changes = [Put(f"counts/{self.name}", text), Put(f"log/{self.name}/{number:06d}", text)]
        revision = self.store.commit(expect, changes)
        if revision is None:  # only a commit of unknown outcome may have come late
            assert self.in_doubt == number, "nobody else writes this count"
            self._find_out(number)
        else:
            self.done.append(revision)

    def _find_out(self, number: int) -> None:
        while True:
            try:
                entry = self.store.get(f"log/{self.name}/{number:06d}")
            except Unavailable:
                continue
            if entry is not None:
                self.done.append(entry.revision)
            return


class Keeper(threading.Thread):
    """Renews a lease as a node does."""

    def __init__(self, store: EtcdMetadata) -> None:
        super().__init__(name="keeper")
        self.store = store
        self.lease = store.grant(LEASE_S)
        store.commit([], [Put("nodes/me", b"", self.lease)])
        self.ending = threading.Event()
        self.lost = False

    def run(self) -> None:
        while not self.ending.wait(LEASE_S / 8):
            try:
                self.lost = self.lost or not self.store.renew(self.lease)
            except Unavailable:
                continue


class Watcher(threading.Thread):
    """Takes what a watch gives until the store is closed."""

    def __init__(self, store: EtcdMetadata) -> None:
        super().__init__(name="watcher")
        self.watch = store.watch("log/", 0)
        self.seen: list[Event] = []

    def run(self) -> None:
        try:
            while True:
                self.seen += self.watch.next(1.0)
        except ShuttingDown:
            return


@pytest.fixture
def cluster() -> Iterator[EtcdCluster]:
    with running(3) as cluster:
        yield cluster


def kill_leader(cluster: EtcdCluster, go_on: Callable[[], None]) -> None:
    leader = cluster.leader()
    assert leader is not None
    leader.kill()
    go_on()
    leader.start()


def pause_leader(cluster: EtcdCluster, go_on: Callable[[], None]) -> None:
    leader = cluster.leader()
    assert leader is not None
    leader.pause()
    go_on()
    leader.resume()


def cut_leader_off(cluster: EtcdCluster, go_on: Callable[[], None]) -> None:
    leader = cluster.leader()
    assert leader is not None
    cluster.partition(leader)
    go_on()
    cluster.heal()


def kill_all(cluster: EtcdCluster, go_on: Callable[[], None]) -> None:
    for member in cluster.members:
        member.kill()
    for member in cluster.members:
        member.start()
    go_on()


def test_nothing_is_lost_or_doubled_on_bad_days(cluster: EtcdCluster) -> None:
    stores = [cluster.open("days") for _ in range(WRITERS + 2)]
    writers = [Writer(stores[number], f"w{number}") for number in range(WRITERS)]
    keeper, watcher = Keeper(stores[-2]), Watcher(stores[-1])
    threads: list[threading.Thread] = [*writers, keeper, watcher]
    for thread in threads:
        thread.start()
    gaps: dict[str, float] = {}

    def all_go_on() -> None:
        """Wait until every writer has written, behind what happens now."""
        marks = [len(writer.done) for writer in writers]
        cluster.wait(
            lambda: all(len(w.done) > mark + 20 for w, mark in zip(writers, marks, strict=True)),
            "writers go on",
        )

    try:
        all_go_on()
        for fault in (kill_leader, pause_leader, cut_leader_off, kill_leader, kill_all):
            cluster.wait(lambda: cluster.leader() is not None, "a leader")
            began = time.monotonic()
            fault(cluster, all_go_on)
            gaps[f"{len(gaps)} {fault.__name__}"] = round(time.monotonic() - began, 2)
    finally:
        keeper.ending.set()
        for writer in writers:
            writer.stopping = True
        for thread in (*writers, keeper):
            thread.join()
    final = stores[0].list("log/")
    cluster.wait(lambda: len(watcher.seen) >= len(final.entries), "the watch sees all", 15)
    for store in stores[1:]:
        store.close()
    watcher.join()

    done = sorted(revision for writer in writers for revision in writer.done)
    print("time until all went on:", gaps, "commits:", len(done), "unknown:",
          sum(writer.unknown for writer in writers))  # fmt: skip
    assert sorted(entry.revision for entry in final.entries) == done
    assert [event.revision for event in watcher.seen] == done
    assert {event.key for event in watcher.seen} == {entry.key for entry in final.entries}
    assert not keeper.lost
    assert stores[0].get("nodes/me") is not None
    stores[0].close()
