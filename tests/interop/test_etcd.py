"""What is etcd's own: its bounds, its failures, its users, its certificates, its backups."""

import asyncio
import itertools
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.etcd_members import EtcdCluster, free_ports, running
from torus.errors import (
    Corruption,
    ForeignData,
    NotFound,
    PermissionDenied,
    ShuttingDown,
    Unavailable,
)
from torus.limits import ETCD_PAGE_KEYS, METADATA_HISTORY_CHANGES_MAX, METADATA_VALUE_BYTES_MAX
from torus.metadata import etcd as etcd_module
from torus.metadata import etcd_link
from torus.metadata.base import Delete, Event, Expect, Put
from torus.metadata.etcd import EtcdMetadata
from torus.metadata.etcd_url import parse_etcd
from torus.metadata.loop import AsyncMetadata
from torus.metadata.open import open_metadata

pytestmark = pytest.mark.interop

WAIT_S = 20.0


@pytest.fixture(scope="module")
def shared() -> Iterator[EtcdCluster]:
    """An etcd of one member that no test hurts."""
    with running(1) as cluster:
        yield cluster


@pytest.fixture
def own() -> Iterator[EtcdCluster]:
    """An etcd of one member for one test."""
    with running(1) as cluster:
        yield cluster


@pytest.fixture
def store(shared: EtcdCluster, request: pytest.FixtureRequest) -> Iterator[EtcdMetadata]:
    store = shared.open(request.node.name)
    yield store
    store.close()


def raw(store: EtcdMetadata, ask: Callable[[Any, Any], Any]) -> Any:
    """Ask etcd itself: ``ask(member, messages)``."""
    link = store.link
    return ask(link.member(link.deadline_ns(WAIT_S)), link.package.messages)


# --- listings and watches -------------------------------------------------------------------


def test_pages_of_a_listing_are_of_one_revision(store: EtcdMetadata, shared: EtcdCluster) -> None:
    count = 2 * ETCD_PAGE_KEYS + 7
    for begin in range(0, count, 100):
        stop = min(begin + 100, count)
        store.commit([], [Put(f"p/{n:05d}", b"0") for n in range(begin, stop)])
    other = shared.open(store.access.prefix.rstrip("/"))

    def write() -> None:
        for number in range(1, 100):  # first and last change together, far apart in the listing
            other.commit(
                [], [Put("p/00000", b"%d" % number), Put(f"p/{count:05d}", b"%d" % number)]
            )

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            entries = store.list("p/").entries
            if len(entries) > count:
                assert entries[0].value == entries[-1].value
        writing.result()
    assert len(store.list("p/").entries) == count + 1
    other.close()


def test_a_watch_whose_holder_lags_too_far_says_so(
    store: EtcdMetadata, shared: EtcdCluster
) -> None:
    slow, quick = store.watch("a/", 0), store.watch("a/", 0)
    seen: list[Event] = []
    for _ in range(METADATA_HISTORY_CHANGES_MAX // 100 + 1):
        store.commit([], [Put(f"a/{number}", b"") for number in range(100)])
        seen += quick.next(WAIT_S)
    while len(seen) < METADATA_HISTORY_CHANGES_MAX // 100 * 100 + 100:
        seen += quick.next(WAIT_S)

    shared.wait(lambda: slow._ended is not None, "the slow one is ended")
    for _ in range(2):
        with pytest.raises(Unavailable, match="wait than"):
            slow.next(0)
    store.commit([], [Put("a/after", b"")])
    assert [event.key for event in quick.next(WAIT_S)] == ["a/after"]


def test_what_waits_for_a_watch_is_bounded_in_bytes(
    store: EtcdMetadata, shared: EtcdCluster
) -> None:
    slow = store.watch("a/", 0)
    for _ in range(17):
        store.commit([], [Put("a/1", bytes(METADATA_VALUE_BYTES_MAX))])

    shared.wait(lambda: slow._ended is not None, "the slow one is ended")
    with pytest.raises(Unavailable, match="wait than"):
        slow.next(0)


def test_a_compacted_history_ends_a_watch_and_not_the_others(store: EtcdMetadata) -> None:
    for number in range(10):
        last = store.commit([], [Put("a/1", b"%d" % number)])
    assert last is not None
    raw(store, lambda m, pb: m.kv.Compact(pb.CompactionRequest(revision=last)))

    good = store.watch("a/", last)
    late = store.watch("a/", last - 5)
    with pytest.raises(Unavailable, match="no longer kept"):
        late.next(WAIT_S)
    store.commit([], [Put("a/1", b"new")])
    assert [event.value for event in good.next(WAIT_S)] == [b"new"]


def test_torus_cuts_the_history_itself(own: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "ETCD_COMPACT_EVERY", 10)
    monkeypatch.setattr(etcd_module, "ETCD_HISTORY_REVISIONS", 20)
    store = own.open("torus")
    revision = 0
    for number in range(60):
        revision = store.commit([], [Put("a/1", b"%d" % number)]) or 0

    def cut() -> bool:  # the next commit asks again when a busy etcd was late
        nonlocal revision
        revision = store.commit([], [Put("a/1", b"once more")]) or 0
        return _is_compacted(store, revision - 31)

    own.wait(cut, "old revisions are gone")
    assert not _is_compacted(store, revision - 15)
    store.close()


def _is_compacted(store: EtcdMetadata, revision: int) -> bool:
    watch = store.watch("a/", revision)
    try:
        watch.next(WAIT_S)
    except Unavailable:
        return True
    finally:
        watch.close()
    return False


# --- etcd away ------------------------------------------------------------------------------


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_link, "ETCD_OPERATION_S", 1.0)
    url = f"etcd://127.0.0.1:{free_ports(1)[0]}/torus"
    began = time.monotonic()

    with pytest.raises(Unavailable, match="cannot be reached"):
        open_metadata(url, create=False)
    assert time.monotonic() - began < 3


def test_an_empty_prefix_is_no_cluster(shared: EtcdCluster) -> None:
    with pytest.raises(NotFound, match="no torus cluster"):
        open_metadata(shared.url("nothing-here"), create=False)


def test_closing_ends_what_waits_for_a_stopped_etcd(own: EtcdCluster) -> None:
    """The loop goes on, no thread stays, and closing does not wait for the network."""
    store = own.open("torus")
    store.commit([], [Put("a/1", b"")])
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def test() -> float:
        metadata = AsyncMetadata(store)
        watch = await metadata.watch("a/", 0)
        await anext(watch)
        beating = asyncio.ensure_future(beat())
        own.members[0].pause()
        waiting = [asyncio.ensure_future(anext(watch))]
        for number in range(20):
            waiting.append(asyncio.ensure_future(metadata.commit([], [Put("a/2", b"%d" % number)])))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await metadata.close()
        took = time.monotonic() - began
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        beating.cancel()
        assert isinstance(outcomes[0], StopAsyncIteration)
        assert all(isinstance(one, ShuttingDown) for one in outcomes[1:])
        return took

    assert asyncio.run(test()) < 3
    assert max(after - before for before, after in itertools.pairwise(beats)) < 0.5
    own.members[0].resume()


def test_operations_go_on_when_etcd_comes_back(own: EtcdCluster) -> None:
    store = own.open("torus")
    first = store.commit([], [Put("a/1", b"1")])
    watch = store.watch("a/", 0)
    assert [event.revision for event in watch.next(WAIT_S)] == [first]
    own.members[0].kill()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(store.get, "a/1")
        own.members[0].start()
        assert reading.result() is not None

    second = store.commit([Expect("a/1", first or 0)], [Delete("a/1")])
    assert list(watch.next(WAIT_S)) == [Event("a/1", None, second or 0)]
    store.close()


# --- users and certificates -----------------------------------------------------------------


def test_users_and_passwords(own: EtcdCluster, tmp_path: Path) -> None:
    """A token that etcd has forgotten is asked for anew, also by an open watch."""
    plain = own.open("torus")
    raw(plain, lambda m, pb: m.auth.UserAdd(pb.AuthUserAddRequest(name="root", password="s3cret")))
    raw(plain, lambda m, pb: m.auth.RoleAdd(pb.AuthRoleAddRequest(name="root")))
    raw(plain, lambda m, pb: m.auth.UserGrantRole(
        pb.AuthUserGrantRoleRequest(user="root", role="root")))  # fmt: skip
    raw(plain, lambda m, pb: m.auth.AuthEnable(pb.AuthEnableRequest()))
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("s3cret\n")
    bad.write_text("guess\n")

    with pytest.raises(PermissionDenied, match="asks for a user"):
        plain.commit([], [Put("a/1", b"")])
    with pytest.raises(PermissionDenied, match="user or password"):
        EtcdMetadata(parse_etcd(f"{own.url('torus')}?user=root&password-file={bad}")).get("a/1")
    store = EtcdMetadata(parse_etcd(f"{own.url('torus')}?user=root&password-file={good}"))
    watch = store.watch("a/", 0)
    store.commit([], [Put("a/1", b"")])
    assert len(watch.next(WAIT_S)) == 1

    own.members[0].kill()
    own.members[0].start()  # simple tokens are gone

    assert store.get("a/1") is not None
    assert store.commit([], [Put("a/1", b"2")]) is not None
    assert len(watch.next(WAIT_S)) == 1
    store.close()
    plain.close()


def _make_certificates(folder: Path) -> None:
    """Make a CA, and from it a certificate for 127.0.0.1 that serves both sides."""
    (folder / "extensions").write_text(
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        "keyUsage=digitalSignature\nauthorityKeyIdentifier=keyid\n"
    )
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca "
        "-addext keyUsage=critical,keyCertSign,cRLSign",
        "req -newkey rsa:2048 -nodes -keyout me.key -out me.csr -subj /CN=me",
        "x509 -req -in me.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out me.pem -days 2 "
        "-extfile extensions",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def test_certificates_of_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make_certificates(tmp_path)
    client, peer = free_ports(2)
    url = f"https://127.0.0.1:{client}"
    process = subprocess.Popen(
        ["etcd", "--data-dir", str(tmp_path / "data"),
         "--listen-client-urls", url, "--advertise-client-urls", url,
         "--listen-peer-urls", f"http://127.0.0.1:{peer}",
         "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
         "--initial-cluster", f"default=http://127.0.0.1:{peer}",
         "--client-cert-auth", "--trusted-ca-file", str(tmp_path / "ca.pem"),
         "--cert-file", str(tmp_path / "me.pem"), "--key-file", str(tmp_path / "me.key"),
         "--log-level", "error"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        place = f"etcd://127.0.0.1:{client}/torus?ca={tmp_path}/ca.pem"
        store = EtcdMetadata(parse_etcd(f"{place}&cert={tmp_path}/me.pem&key={tmp_path}/me.key"))
        assert store.commit([], [Put("a/1", b"")]) is not None
        store.close()
        monkeypatch.setattr(etcd_link, "ETCD_OPERATION_S", 1.0)
        nameless = EtcdMetadata(parse_etcd(place))
        with pytest.raises(Unavailable):
            nameless.get("a/1")
        nameless.close()
    finally:
        process.kill()
        process.wait()


# --- an older copy --------------------------------------------------------------------------


def _restore(cluster: EtcdCluster, backup: Path) -> None:
    """Put the data of an earlier moment back, as a restored backup would."""
    member = cluster.members[0]
    member.kill()
    shutil.rmtree(member.folder)
    shutil.copytree(backup, member.folder)
    member.start()


def _back_up(cluster: EtcdCluster, folder: Path) -> Path:
    member = cluster.members[0]
    member.kill()
    shutil.copytree(member.folder, folder / "backup")
    member.start()
    return folder / "backup"


def test_an_older_copy_is_refused_by_who_saw_more(own: EtcdCluster, tmp_path: Path) -> None:
    store = own.open("torus")
    store.commit([], [Put("a/1", b"old")])
    token = store.history_token()
    backup = _back_up(own, tmp_path)
    revision = 0
    for number in range(5):
        revision = store.commit([], [Put("a/1", b"%d" % number)]) or 0
    watch = store.watch("a/", revision)
    _restore(own, backup)

    with pytest.raises(Corruption, match="has gone back"):
        store.get("a/1")
    with pytest.raises(Corruption, match="has gone back"):
        store.commit([], [Put("a/1", b"new")])
    with pytest.raises(Corruption, match="has gone back"):
        watch.next(WAIT_S)
    store.close()
    fresh = own.open("torus")
    fresh.check_not_older(token)  # made before the backup
    fresh.close()


def test_an_older_copy_is_told_by_the_mark_when_it_has_grown(
    own: EtcdCluster, tmp_path: Path
) -> None:
    store = own.open("torus")
    first = store.history_token()
    backup = _back_up(own, tmp_path)
    second = store.history_token(first)
    store.check_not_older(first)  # whoever died before keeping the second one
    store.check_not_older(second)
    store.close()
    _restore(own, backup)

    fresh = own.open("torus")
    with pytest.raises(Corruption, match="older copy: it is at revision"):
        fresh.check_not_older(second)
    for number in range(5):
        fresh.commit([], [Put("a/1", b"%d" % number)])
    with pytest.raises(Corruption, match="does not hold the mark"):
        fresh.check_not_older(second)
    fresh.check_not_older(first)
    fresh.close()


def test_another_etcd_is_refused(own: EtcdCluster) -> None:
    store = own.open("torus")
    token = store.history_token()
    member = own.members[0]
    member.kill()
    shutil.rmtree(member.folder)
    member.extra = ["--initial-cluster-token", "another"]
    member.start()

    with pytest.raises(ForeignData, match="another etcd cluster"):
        store.get("a/1")
    store.close()
    fresh = own.open("torus")
    with pytest.raises(ForeignData, match="last saw cluster"):
        fresh.check_not_older(token)
    fresh.close()
