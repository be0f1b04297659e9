"""What every metadata store promises: `torus.metadata.base`, one test per promise."""

import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract.etcd_store import SettledEtcd, pass_time
from tests.etcd_members import EtcdCluster, running
from torus.clock import SystemClock
from torus.errors import NotFound, ShuttingDown, Unavailable, UsageError
from torus.limits import (
    METADATA_COMMIT_BYTES_MAX,
    METADATA_COMMIT_CHANGES_MAX,
    METADATA_HISTORY_BYTES_MAX,
    METADATA_HISTORY_CHANGES_MAX,
    METADATA_KEY_BYTES_MAX,
    METADATA_VALUE_BYTES_MAX,
)
from torus.metadata.base import Delete, Entry, Event, Expect, Listing, MetadataStore, Put
from torus.metadata.memory import MemoryMetadata
from torus.metadata.sqlite import SqliteMetadata

SECOND_NS = 1_000_000_000
WAIT_S = 20.0  # far longer than needed: a test that waits this long has failed


class WallClock(SystemClock):
    """A clock whose wall time stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * SECOND_NS
        self.on_advance: Callable[[float], None] = lambda _seconds: None

    def wall_ns(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)
        self.on_advance(seconds)


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with running(1) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", pytest.param("etcd", marks=pytest.mark.interop)])
def open_store(
    request: pytest.FixtureRequest, clock: WallClock, tmp_path: Path
) -> Iterator[Callable[[], MetadataStore]]:
    """Open the same store once more, as another process would, where the backend can."""
    opened: list[MetadataStore] = []
    memory = MemoryMetadata(clock)
    leases: dict[int, float] = {}
    prefix = uuid.uuid4().hex

    def open_one() -> MetadataStore:
        if request.param == "memory":
            opened.append(memory)
        elif request.param == "sqlite":
            opened.append(SqliteMetadata(str(tmp_path / "meta.sqlite"), clock))
        else:
            cluster = request.getfixturevalue("etcd")
            clock.on_advance = lambda seconds: pass_time(cluster, leases, seconds)
            opened.append(SettledEtcd(cluster, prefix, leases))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()
    if leases:  # one that ended in a later test would raise the revision there
        cleaner = request.getfixturevalue("etcd").open(prefix)
        for lease in leases:
            cleaner.revoke(lease)
        cleaner.close()


# Bounds and clocks of our own; etcd has others, tests/interop/test_etcd.py has their tests.
embedded = pytest.mark.parametrize("open_store", ["memory", "sqlite"], indirect=True)


@pytest.fixture
def store(open_store: Callable[[], MetadataStore]) -> MetadataStore:
    return open_store()


# --- get, list, commit ----------------------------------------------------------------------


def test_get_of_an_absent_key_is_none(store: MetadataStore) -> None:
    assert store.get("cluster") is None


def test_a_put_is_read_back_with_its_revision(store: MetadataStore) -> None:
    revision = store.commit([], [Put("cluster", b"\x00\xff value")])

    assert revision is not None
    assert store.get("cluster") == Entry("cluster", b"\x00\xff value", revision)


def test_a_put_replaces_and_raises_the_revision(store: MetadataStore) -> None:
    first = store.commit([], [Put("key", b"1")])
    second = store.commit([], [Put("key", b"2")])

    assert first is not None
    assert second is not None
    assert second > first
    assert store.get("key") == Entry("key", b"2", second)


def test_an_empty_value_is_a_value(store: MetadataStore) -> None:
    revision = store.commit([], [Put("key", b"")])

    assert store.get("key") == Entry("key", b"", revision or 0)


def test_all_changes_of_a_commit_have_one_revision(store: MetadataStore) -> None:
    store.commit([], [Put("a/old", b"")])
    revision = store.commit([], [Put("a/1", b"1"), Put("a/2", b"2"), Delete("a/old")])

    entries = store.list("a/").entries
    assert [(e.key, e.revision) for e in entries] == [("a/1", revision), ("a/2", revision)]


def test_other_keys_keep_their_revision(store: MetadataStore) -> None:
    first = store.commit([], [Put("a", b"")])
    store.commit([], [Put("b", b"")])

    assert store.get("a") == Entry("a", b"", first or 0)


def test_expecting_zero_means_absent(store: MetadataStore) -> None:
    assert store.commit([Expect("key", 0)], [Put("key", b"mine")]) is not None
    assert store.commit([Expect("key", 0)], [Put("key", b"yours")]) is None

    entry = store.get("key")
    assert entry is not None
    assert entry.value == b"mine"


def test_expecting_zero_holds_again_after_a_deletion(store: MetadataStore) -> None:
    store.commit([], [Put("key", b"")])
    store.commit([], [Delete("key")])

    assert store.commit([Expect("key", 0)], [Put("key", b"")]) is not None


def test_a_stale_revision_is_refused_and_changes_nothing(store: MetadataStore) -> None:
    old = store.commit([], [Put("key", b"1")]) or 0
    new = store.commit([], [Put("key", b"2")])

    assert store.commit([Expect("key", old)], [Put("key", b"3"), Put("other", b"")]) is None
    assert store.get("key") == Entry("key", b"2", new or 0)
    assert store.get("other") is None


def test_one_wrong_expectation_of_many_refuses_all(store: MetadataStore) -> None:
    a = store.commit([], [Put("a", b"")]) or 0

    assert store.commit([Expect("a", a), Expect("b", 7)], [Put("c", b"")]) is None
    assert store.commit([Expect("a", a), Expect("b", 0)], [Put("c", b"")]) is not None


def test_an_expectation_without_changes_is_a_question(store: MetadataStore) -> None:
    revision = store.commit([], [Put("key", b"")])

    assert store.commit([Expect("key", revision or 0)], []) == revision
    assert store.commit([Expect("key", 0)], []) is None


def test_a_deletion_of_nothing_makes_no_revision(store: MetadataStore) -> None:
    revision = store.commit([], [Put("key", b"")])

    assert store.commit([], [Delete("absent")]) == revision
    assert store.list("names/").revision == revision


def test_list_is_ordered_and_complete_and_only_under_its_prefix(
    store: MetadataStore, rng: random.Random
) -> None:
    keys = [f"volumes/{number:04x}" for number in range(1000)]
    shuffled = rng.sample(keys, len(keys))
    for begin in range(0, len(shuffled), 100):
        store.commit([], [Put(key, key.encode()) for key in shuffled[begin : begin + 100]])
    last = store.commit([], [Put("volumes", b""), Put("volumes0", b""), Put("volume/1", b"")])

    listing = store.list("volumes/")

    assert [entry.key for entry in listing.entries] == keys
    assert [entry.value for entry in listing.entries] == [key.encode() for key in keys]
    assert listing.revision == last


def test_list_of_nothing_is_empty_at_the_present_revision(store: MetadataStore) -> None:
    before = store.commit([], [])
    assert before is not None
    assert store.list("names/") == Listing(before, ())
    revision = store.commit([], [Put("other", b"")])

    assert store.list("names/") == Listing(revision or 0, ())


def test_keys_are_ordered_by_their_bytes(store: MetadataStore) -> None:
    names = ["n/Z", "n/a", "n/a/b", "n/a0", "n/\u00e9", "n/\uffff", "n/\U0001f300"]
    store.commit([], [Put(name, b"") for name in reversed(names)])

    listed = [entry.key for entry in store.list("n/").entries]
    assert listed == sorted(names, key=str.encode)


def test_a_value_of_the_greatest_size_is_kept(store: MetadataStore, rng: random.Random) -> None:
    value = rng.randbytes(METADATA_VALUE_BYTES_MAX)
    revision = store.commit([], [Put("volumes/big", value)])

    assert store.get("volumes/big") == Entry("volumes/big", value, revision or 0)
    assert store.watch("volumes/", 0).next(0) == [Event("volumes/big", value, revision or 0)]


def test_what_one_handle_commits_another_sees(open_store: Callable[[], MetadataStore]) -> None:
    first, second = open_store(), open_store()
    revision = first.commit([], [Put("key", b"1")])

    assert second.get("key") == Entry("key", b"1", revision or 0)
    assert second.commit([Expect("key", revision or 0)], [Put("key", b"2")]) is not None
    assert first.commit([Expect("key", revision or 0)], [Put("key", b"3")]) is None


# --- bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "volumes", "volumes/1", "\0/"])
def test_a_prefix_must_end_in_a_slash(store: MetadataStore, prefix: str) -> None:
    with pytest.raises(UsageError):
        store.list(prefix)
    with pytest.raises(UsageError):
        store.watch(prefix, 0)


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800", "x" * (METADATA_KEY_BYTES_MAX + 1)])
def test_an_illegal_key_is_refused(store: MetadataStore, key: str) -> None:
    with pytest.raises(UsageError):
        store.get(key)
    with pytest.raises(UsageError):
        store.commit([], [Put(key, b"")])
    with pytest.raises(UsageError):
        store.commit([Expect(key, 0)], [])


def test_a_key_of_the_greatest_size_is_kept(store: MetadataStore) -> None:
    key = "x" * METADATA_KEY_BYTES_MAX

    assert store.commit([Expect(key, 0)], [Put(key, b"v")]) is not None
    assert store.get(key) is not None


@pytest.mark.parametrize(
    ("expect", "changes"),
    [
        ([], [Put("a", b""), Put("a", b"")]),
        ([], [Put("a", b""), Delete("a")]),
        ([], [Put("a", bytes(METADATA_VALUE_BYTES_MAX + 1))]),
        ([], [Put("a", bytes(METADATA_VALUE_BYTES_MAX)), Put("b", bytes(256 * 1024))]),
        ([], [Delete(f"k{n}") for n in range(METADATA_COMMIT_CHANGES_MAX + 1)]),
        ([Expect(f"k{n}", 0) for n in range(METADATA_COMMIT_CHANGES_MAX + 1)], []),
        ([Expect("a", -1)], []),
        ([], [Put("a", bytearray(b"mutable"))]),  # type: ignore[list-item]
    ],
    ids=["twice", "put+delete", "value", "total", "changes", "expect", "negative", "type"],
)
def test_an_illegal_commit_is_refused_and_changes_nothing(
    store: MetadataStore, expect: list[Expect], changes: list[Put | Delete]
) -> None:
    before = store.list("names/").revision
    with pytest.raises(UsageError):
        store.commit(expect, changes)

    assert store.get("a") is None
    assert store.list("names/").revision == before


def test_a_commit_of_the_greatest_size_is_kept(store: MetadataStore) -> None:
    each = METADATA_COMMIT_BYTES_MAX // METADATA_COMMIT_CHANGES_MAX - 8
    changes = [Put(f"k/{n}", bytes(each)) for n in range(METADATA_COMMIT_CHANGES_MAX)]

    assert store.commit([], changes) is not None
    assert len(store.list("k/").entries) == METADATA_COMMIT_CHANGES_MAX


# --- watch ----------------------------------------------------------------------------------


def test_a_watch_gives_puts_and_deletions_in_order(store: MetadataStore) -> None:
    watch = store.watch("a/", 0)
    first = store.commit([], [Put("a/1", b"1"), Put("a/2", b"2")]) or 0
    second = store.commit([], [Put("a/1", b"new")]) or 0
    third = store.commit([], [Delete("a/1"), Delete("a/absent")]) or 0

    assert watch.next(0) == [
        Event("a/1", b"1", first),
        Event("a/2", b"2", first),
        Event("a/1", b"new", second),
        Event("a/1", None, third),
    ]
    assert list(watch.next(0)) == []


def test_a_watch_begins_after_its_revision(store: MetadataStore) -> None:
    store.commit([], [Put("a/1", b"")])
    after = store.list("a/").revision
    later = store.commit([], [Put("a/2", b"")]) or 0

    assert store.watch("a/", after).next(0) == [Event("a/2", b"", later)]


def test_a_watch_gives_only_its_prefix(store: MetadataStore) -> None:
    watch = store.watch("a/", 0)
    store.commit([], [Put("a", b""), Put("a0", b""), Put("b/1", b""), Put("A/1", b"")])
    revision = store.commit([], [Put("a/x/y", b"")]) or 0

    assert watch.next(0) == [Event("a/x/y", b"", revision)]


def test_a_refused_commit_makes_no_event(store: MetadataStore) -> None:
    watch = store.watch("a/", 0)
    store.commit([Expect("a/1", 9)], [Put("a/1", b"")])

    assert list(watch.next(0)) == []


def test_a_waiting_watch_wakes_for_another_handle(open_store: Callable[[], MetadataStore]) -> None:
    watch = open_store().watch("a/", 0)
    other = open_store()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watch.next, WAIT_S)
        revision = other.commit([], [Put("a/1", b"")]) or 0

        assert waiting.result() == [Event("a/1", b"", revision)]


def test_a_watch_loses_and_merges_nothing_under_load(
    open_store: Callable[[], MetadataStore],
) -> None:
    count = 150
    watcher = open_store()
    watch = watcher.watch("n/", 0)
    seen: list[bytes | None] = []

    def write(writer: MetadataStore) -> None:
        for number in range(count):
            writer.commit([], [Put("n/one", b"%d" % number), Put("other", b"")])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, open_store())
        while len(seen) < count:
            events = watch.next(WAIT_S)
            assert events, "the watch ran dry"
            seen.extend(event.value for event in events)
        writing.result()

    assert seen == [b"%d" % number for number in range(count)]


@embedded
def test_a_watch_that_lags_too_far_says_so(store: MetadataStore) -> None:
    slow, ignored = store.watch("a/", 0), store.watch("a/", 0)
    rounds = METADATA_HISTORY_CHANGES_MAX // 100 + 1
    for _ in range(rounds):
        store.commit([], [Put(f"a/{number}", b"") for number in range(100)])

    for watch in (slow, slow, ignored):
        with pytest.raises(Unavailable):
            watch.next(0)


@embedded
def test_the_history_is_bounded_in_bytes(store: MetadataStore) -> None:
    value = bytes(METADATA_VALUE_BYTES_MAX)
    rounds = METADATA_HISTORY_BYTES_MAX // METADATA_VALUE_BYTES_MAX + 1
    revisions = [store.commit([], [Put("a/1", value)]) or 0 for _ in range(rounds)]

    with pytest.raises(Unavailable):
        store.watch("a/", 0).next(0)
    kept = store.watch("a/", revisions[4]).next(0)
    assert [event.revision for event in kept] == revisions[5:]


@embedded
def test_the_history_is_trimmed_by_whole_revisions(store: MetadataStore) -> None:
    """A watch either gets all changes of a revision or is told that it missed some."""
    per_commit = METADATA_COMMIT_CHANGES_MAX - 3  # does not divide the bound
    rounds = METADATA_HISTORY_CHANGES_MAX // per_commit + 3
    for _ in range(rounds):
        store.commit([], [Put(f"a/{number}", b"") for number in range(per_commit)])

    complete = 0
    for after in range(rounds):
        try:
            events = store.watch("a/", after).next(0)
        except Unavailable:
            assert complete == 0
            continue
        complete += 1
        assert len(events) == per_commit * (rounds - after)
    assert complete == METADATA_HISTORY_CHANGES_MAX // per_commit


def test_a_watch_ahead_of_the_store_is_told(store: MetadataStore) -> None:
    revision = store.commit([], [Put("a/1", b"")]) or 0

    with pytest.raises(Unavailable, match="replaced"):
        store.watch("a/", revision + 1).next(0)


def test_closing_a_watch_ends_its_wait(store: MetadataStore) -> None:
    watch = store.watch("a/", 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watch.next, WAIT_S)
        watch.close()
        watch.close()

        with pytest.raises(ShuttingDown):
            waiting.result(WAIT_S / 2)


# --- leases ---------------------------------------------------------------------------------


def test_a_lease_ends_with_its_keys(store: MetadataStore, clock: WallClock) -> None:
    lease = store.grant(10.0)
    store.commit([], [Put("nodes/a", b"", lease), Put("nodes/b", b"", lease), Put("nodes/c", b"")])
    watch = store.watch("nodes/", store.list("nodes/").revision)
    clock.advance(9.9)
    assert store.get("nodes/a") is not None
    assert list(watch.next(0)) == []

    clock.advance(0.2)

    assert store.get("nodes/a") is None
    assert [entry.key for entry in store.list("nodes/").entries] == ["nodes/c"]
    gone = store.list("nodes/").revision
    assert watch.next(0) == [Event("nodes/a", None, gone), Event("nodes/b", None, gone)]
    assert not store.renew(lease)


def test_a_watch_alone_lets_a_lease_end(store: MetadataStore, clock: WallClock) -> None:
    lease = store.grant(10.0)
    store.commit([], [Put("nodes/a", b"", lease)])
    watch = store.watch("nodes/", 0)
    watch.next(0)
    assert list(watch.next(0)) == []

    clock.advance(11)

    assert [event.value for event in watch.next(0)] == [None]


def test_an_ended_lease_frees_its_key_for_a_commit(store: MetadataStore, clock: WallClock) -> None:
    lease = store.grant(10.0)
    revision = store.commit([], [Put("nodes/a", b"", lease)]) or 0
    clock.advance(11)

    assert store.commit([Expect("nodes/a", revision)], [Put("nodes/a", b"late")]) is None
    assert store.commit([Expect("nodes/a", 0)], [Put("nodes/a", b"new")]) is not None


def test_renewing_keeps_a_lease(store: MetadataStore, clock: WallClock) -> None:
    lease = store.grant(10.0)
    store.commit([], [Put("nodes/a", b"", lease)])
    for _ in range(5):
        clock.advance(9)
        assert store.renew(lease)

    assert store.get("nodes/a") is not None


def test_revoking_ends_a_lease_at_once(store: MetadataStore) -> None:
    lease, other = store.grant(10.0), store.grant(10.0)
    store.commit([], [Put("nodes/a", b"", lease), Put("nodes/b", b"", other)])
    watch = store.watch("nodes/", store.list("nodes/").revision)
    store.revoke(lease)
    store.revoke(lease)

    assert [(event.key, event.value) for event in watch.next(0)] == [("nodes/a", None)]
    assert not store.renew(lease)
    assert store.renew(other)
    assert store.get("nodes/b") is not None


def test_a_put_under_an_ended_lease_changes_nothing(store: MetadataStore, clock: WallClock) -> None:
    before = store.list("nodes/").revision
    lease = store.grant(1.0)
    clock.advance(2)

    with pytest.raises(NotFound):
        store.commit([], [Put("nodes/b", b""), Put("nodes/a", b"", lease)])
    with pytest.raises(NotFound):
        store.commit([], [Put("nodes/a", b"", 999)])
    assert store.list("nodes/").entries == ()
    assert store.list("nodes/").revision == before


def test_a_put_without_lease_takes_a_key_from_its_lease(store: MetadataStore) -> None:
    lease = store.grant(10.0)
    store.commit([], [Put("nodes/a", b"1", lease)])
    store.commit([], [Put("nodes/a", b"2")])
    store.revoke(lease)

    entry = store.get("nodes/a")
    assert entry is not None
    assert entry.value == b"2"


def test_lease_ids_are_not_reused(store: MetadataStore, clock: WallClock) -> None:
    first = store.grant(1.0)
    clock.advance(2)
    second = store.grant(1.0)
    store.revoke(second)

    assert len({first, second, store.grant(1.0)}) == 3


@embedded
def test_a_clock_that_goes_back_does_not_keep_a_lease_for_ever(
    store: MetadataStore, clock: WallClock
) -> None:
    lease = store.grant(10.0)
    store.commit([], [Put("nodes/a", b"", lease)])
    clock.advance(-365 * 86400)
    assert store.get("nodes/a") is not None

    clock.advance(11)

    assert store.get("nodes/a") is None


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_an_illegal_lease_is_refused(store: MetadataStore, ttl_s: float) -> None:
    with pytest.raises(UsageError):
        store.grant(ttl_s)


# --- threads and closing --------------------------------------------------------------------


def test_threads_that_race_lose_no_update(open_store: Callable[[], MetadataStore]) -> None:
    """Eight threads on two handles count to 160 by compare-and-swap."""
    handles = [open_store(), open_store()]
    before = handles[0].list("counters/").revision
    start = threading.Barrier(8)

    def count(number: int) -> int:
        store = handles[number % 2]
        lost = 0
        start.wait()
        for _ in range(20):
            while True:
                entry = store.get("counter")
                value = int(entry.value) if entry else 0
                expect = Expect("counter", entry.revision if entry else 0)
                if store.commit([expect], [Put("counter", b"%d" % (value + 1))]) is not None:
                    break
                lost += 1
        return lost

    with ThreadPoolExecutor(8) as pool:
        lost = sum(pool.map(count, range(8)))

    entry = handles[0].get("counter")
    assert entry is not None
    assert entry.value == b"160"
    assert entry.revision == before + 160, f"lost races must not make revisions ({lost} lost)"


def test_a_reader_never_sees_half_a_commit(open_store: Callable[[], MetadataStore]) -> None:
    writer, reader = open_store(), open_store()
    writer.commit([], [Put("p/a", b"0"), Put("p/b", b"0")])

    def write() -> None:
        for number in range(1, 150):
            writer.commit([], [Put("p/a", b"%d" % number), Put("p/b", b"%d" % number)])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            listing = reader.list("p/")
            assert len({entry.value for entry in listing.entries}) == 1
            assert {entry.revision for entry in listing.entries} == {listing.revision}
        writing.result()


def test_a_closed_store_refuses_everything(store: MetadataStore) -> None:
    watch = store.watch("a/", 0)
    store.close()
    store.close()

    calls: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.list("a/"),
        lambda: store.commit([], [Put("a", b"")]),
        lambda: store.watch("a/", 0),
        lambda: store.grant(1.0),
        lambda: store.renew(1),
        lambda: store.revoke(1),
        lambda: watch.next(0),
    ]
    for call in calls:
        with pytest.raises(ShuttingDown):
            call()
    watch.close()


def test_closing_the_store_ends_a_waiting_watch(store: MetadataStore) -> None:
    watch = store.watch("a/", 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watch.next, WAIT_S)
        store.close()

        with pytest.raises(ShuttingDown):
            waiting.result(WAIT_S / 2)
