"""The rules of snapshots, clones and their deletion, one by one, over two stores."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from torus.clock import SystemClock
from torus.errors import (
    AlreadyExists,
    Busy,
    Corruption,
    Fenced,
    LocalProtocolError,
    NotFound,
    UsageError,
)
from torus.limits import CLONE_DEPTH_MAX, MIB, SNAPSHOTS_MAX
from torus.metadata.base import MetadataStore, Put
from torus.metadata.keys import READERS, SNAPSHOTS, head_key, snapshot_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Base, Owner, Reader, RootRef, Snapshot, Span
from torus.metadata.sqlite import SqliteMetadata
from torus.volume.catalog import Catalog
from torus.volume.catalog_async import AsyncCatalog

LIVING = Owner("here", "boot", 100, 1, "node", "unix:/x", 0)
ALIVE = {100: True, 200: False, 300: None}
ROOT = RootRef(3, 512, 1024, 9, 4, 2048, 1)


def reader(pid: int) -> Reader:
    return Reader("here", "boot", pid, 1, "export", 0)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    clock = SystemClock()
    made: MetadataStore = MemoryMetadata(clock)
    if request.param == "sqlite":
        made = SqliteMetadata(str(tmp_path / "meta.sqlite"), clock)
    yield made
    made.close()


@pytest.fixture
def catalog(store: MetadataStore) -> Catalog:
    made = Catalog(store, alive=lambda process: ALIVE[process.pid])
    made.create("a", MIB)
    return made


def take(catalog: Catalog, name: str, snap: str) -> Snapshot:
    made = catalog.snapshot_detached(name, snap, 5, f"{name}-{snap}")
    assert made is not None
    return made


# --- making -----------------------------------------------------------------------------


def test_a_detached_snapshot_is_the_head(catalog: Catalog, store: MetadataStore) -> None:
    spans = (Span(1, 0, 1, 4, 2048),)
    head = replace(catalog.get("a").head, root=ROOT, spans=spans, mapped_blocks=3)
    store.commit((), (Put(head_key(1), head.to_bytes()),))

    made = take(catalog, "a", "s")

    assert made == Snapshot(1, 1, "s", "a-s", 5, MIB, ROOT, None, 3)
    assert catalog.get("a").head == replace(head, newest_snapshot=1)
    assert catalog.snapshots("a") == catalog.snapshots_of(1) == [made]
    assert catalog.get_snapshot("a", "s").snapshot == made == catalog.snapshot_by_number(1, 1)
    assert take(catalog, "a", "s") == made, "asked again with the same uid"


@pytest.mark.parametrize(
    ("spans", "root", "clean"),
    [
        ((), None, True),
        ((Span(1, 0, 1, 4, 2048),), ROOT, True),
        ((Span(1, 0, 1, 3, None),), ROOT, True),
        ((Span(1, 0, 1, 4, 2560),), ROOT, False),
        ((Span(1, 0, 1, 4, None),), ROOT, False),
        ((Span(1, 0, 1, 5, 1024),), ROOT, False),
        ((Span(1, 0, 1, 4, 2048),), None, False),
        ((Span(1, 0, 1, 4, 2048), Span(2, 0, 5)), ROOT, False),
        ((Span(1, 0, 1),), ROOT, False),
    ],
)
def test_only_a_clean_log_is_snapshot_from_the_metadata(
    catalog: Catalog,
    store: MetadataStore,
    spans: tuple[Span, ...],
    root: RootRef | None,
    clean: bool,
) -> None:
    head = replace(catalog.get("a").head, root=root, spans=spans)
    store.commit((), (Put(head_key(1), head.to_bytes()),))

    assert (catalog.snapshot_detached("a", "s", 5, "u") is not None) is clean
    for pid in ALIVE:
        owned = replace(head, owner=replace(LIVING, pid=pid))
        store.commit((), (Put(head_key(1), owned.to_bytes()),))
        assert catalog.snapshot_detached("a", "t", 5, "u") is None, "an owner, even a dead one"


def test_a_size_that_no_attach_applied_is_not_clean(catalog: Catalog, store: MetadataStore) -> None:
    head = replace(catalog.get("a").head, root=ROOT, spans=(Span(1, 0, 1, 4, 2048),))
    store.commit((), (Put(head_key(1), head.to_bytes()),))
    catalog.resize("a", MIB // 2, shrink=True)

    assert catalog.snapshot_detached("a", "s", 5, "u") is None


def test_numbers_are_never_used_again(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    catalog.delete_snapshot("a", "s")

    assert take(catalog, "a", "s").number == 2


def test_a_name_is_given_once(catalog: Catalog) -> None:
    take(catalog, "a", "s")

    with pytest.raises(AlreadyExists, match="'a@s' exists already"):
        catalog.snapshot_detached("a", "s", 5, "another")
    catalog.begin_snapshot_deletion("a", "s")
    with pytest.raises(AlreadyExists, match="still being deleted"):
        catalog.check_new_snapshot("a", "s")


def test_what_cannot_be_a_snapshot_is_refused(catalog: Catalog) -> None:
    for snap in ("", "x@y", "a/b", "ä", "x" * 129):
        with pytest.raises(UsageError, match="snapshot name"):
            catalog.snapshot_detached("a", snap, 5, "u")
    with pytest.raises(NotFound, match="volume 'b' does not exist"):
        catalog.snapshot_detached("b", "s", 5, "u")
    with pytest.raises(NotFound, match="volume 'a' has no snapshot 's'"):
        catalog.get_snapshot("a", "s")
    catalog.mark_deleting("a")
    with pytest.raises(Busy, match="is being deleted"):
        catalog.snapshot_detached("a", "s", 5, "u")


def test_the_holder_writes_head_and_snapshot_at_once(catalog: Catalog) -> None:
    held = catalog.acquire(1, LIVING)
    head = replace(held.head, newest_snapshot=1, root=ROOT)
    made = Snapshot(1, 1, "s", "u", 5, MIB, ROOT)
    revision = catalog.publish_snapshot(1, head, held.head_revision, made)

    assert catalog.get_snapshot("a", "s").revision == catalog.get("a").head_revision == revision
    assert catalog.publish_snapshot(1, head, held.head_revision, made) == revision, "repeated"
    catalog.delete_snapshot("a", "s")
    assert catalog.publish_snapshot(1, head, held.head_revision, made) == revision, "still done"
    assert catalog.snapshots("a") == []


def test_the_holder_is_refused_a_name_that_is_there(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    held = catalog.acquire(1, LIVING)
    head = replace(held.head, newest_snapshot=2)
    made = Snapshot(1, 2, "s", "u", 5, MIB, ROOT)

    with pytest.raises(AlreadyExists):
        catalog.publish_snapshot(1, head, held.head_revision, made)
    with pytest.raises(LocalProtocolError):
        catalog.publish_snapshot(1, held.head, held.head_revision, made)
    catalog.mark_deleting("a", force=True, with_snapshots=True)
    with pytest.raises(Fenced):
        catalog.publish_snapshot(1, head, held.head_revision, replace(made, name="t"))


def test_snapshots_are_bounded(catalog: Catalog, store: MetadataStore) -> None:
    for first in range(1, SNAPSHOTS_MAX + 1, 128):
        store.commit(
            (),
            [
                Put(snapshot_key(1, f"s{n}"), Snapshot(1, n, f"s{n}", "", 0, 1, None).to_bytes())
                for n in range(first, first + 128)
            ],
        )

    with pytest.raises(UsageError, match="no more than 1024"):
        catalog.snapshot_detached("a", "more", 5, "u")
    catalog.forget(catalog.mark_deleting("a", with_snapshots=True))
    assert store.list(SNAPSHOTS).entries == ()


# --- deleting ---------------------------------------------------------------------------


def test_a_protected_snapshot_stays(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    assert catalog.set_protected("a", "s", True).protected

    with pytest.raises(UsageError, match="'a@s' is protected"):
        catalog.delete_snapshot("a", "s")
    with pytest.raises(UsageError, match="'a@s' is protected"):
        catalog.mark_deleting("a", with_snapshots=True)
    catalog.set_protected("a", "s", False)
    catalog.delete_snapshot("a", "s")


@pytest.mark.parametrize("pid", [100, 300])
def test_a_snapshot_that_is_read_stays(catalog: Catalog, pid: int) -> None:
    take(catalog, "a", "s")
    key = catalog.add_reader(catalog.get_snapshot("a", "s"), reader(pid))

    with pytest.raises(Busy, match=f"'a@s' is read by export pid {pid} on here"):
        catalog.delete_snapshot("a", "s")
    with pytest.raises(Busy, match="is read by"):
        catalog.mark_deleting("a", with_snapshots=True)
    assert catalog.get_snapshot("a", "s").snapshot.state == "ready"
    assert [one.key for one in catalog.readers(1, 1)] == [key]
    catalog.remove_reader(key)
    catalog.remove_reader(key)
    catalog.delete_snapshot("a", "s")


def test_dead_readers_go_with_the_snapshot(catalog: Catalog, store: MetadataStore) -> None:
    take(catalog, "a", "s")
    catalog.add_reader(catalog.get_snapshot("a", "s"), reader(200))
    catalog.delete_snapshot("a", "s")

    assert store.list(READERS).entries == store.list(SNAPSHOTS).entries == ()


def test_an_interrupted_deletion_is_finished_or_taken_back(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    entry = catalog.get_snapshot("a", "s")
    begun = catalog.begin_snapshot_deletion("a", "s")

    for call in (
        lambda: catalog.add_reader(entry, reader(100)),
        lambda: catalog.clone("a", "s", "b", 5),
        lambda: catalog.set_protected("a", "s", True),
    ):
        with pytest.raises(Busy, match="'a@s' is being deleted"):
            call()
    assert catalog.begin_snapshot_deletion("a", "s") == begun
    catalog.abort_snapshot_deletion(begun)
    assert catalog.get_snapshot("a", "s").snapshot == entry.snapshot
    with pytest.raises(Busy, match="changed while"):
        catalog.finish_snapshot_deletion(begun)
    begun = catalog.begin_snapshot_deletion("a", "s")
    catalog.finish_snapshot_deletion(begun)
    catalog.finish_snapshot_deletion(begun)
    catalog.abort_snapshot_deletion(begun)
    assert catalog.snapshots("a") == []


def test_a_volume_goes_with_its_snapshots_only_when_told(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    take(catalog, "a", "t")

    with pytest.raises(UsageError, match="'a' has 2 snapshots") as caught:
        catalog.mark_deleting("a", force=True)
    assert "--with-snapshots" in str(caught.value.hint)
    marked = catalog.mark_deleting("a", with_snapshots=True)
    assert catalog.mark_deleting("a") == marked, "asked again"
    catalog.forget(marked)


# --- clones -----------------------------------------------------------------------------


def test_a_clone_is_a_volume_with_a_base(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    catalog.resize("a", 2 * MIB)

    spec = catalog.clone("a", "s", "b", 7)

    assert (spec.volume, spec.size_bytes, spec.created_ns) == (2, MIB, 7)
    head = catalog.get("b").head
    assert (head.base, head.root, head.spans, head.epoch) == (Base(1, 1), None, (), 0)
    assert catalog.get_snapshot("a", "s").snapshot.clones == (2,)
    assert catalog.create("c", MIB).volume == 3
    with pytest.raises(AlreadyExists):
        catalog.clone("a", "s", "c", 7)


def test_clones_stand_in_the_way_by_name(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    for name in "bc":
        catalog.clone("a", "s", name, 5)

    for call in (
        lambda: catalog.delete_snapshot("a", "s"),
        lambda: catalog.mark_deleting("a", force=True, with_snapshots=True),
    ):
        with pytest.raises(Busy, match=r"2 clone\(s\): b, c"):
            call()
    assert catalog.get("a").spec.state == "ready"
    for name in "bc":
        catalog.forget(catalog.mark_deleting(name))
    catalog.delete_snapshot("a", "s")


def flatten(catalog: Catalog, name: str) -> int:
    found = catalog.get(name)
    held = catalog.acquire(found.spec.volume, LIVING)
    head = replace(held.head, base=None)
    revision = catalog.finish_flatten(found.spec.volume, head, held.head_revision)
    assert catalog.finish_flatten(found.spec.volume, head, held.head_revision) == revision
    return catalog.release(found.spec.volume, head, revision)


def test_a_flattened_clone_lets_its_origin_go(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    catalog.clone("a", "s", "b", 5)
    flatten(catalog, "b")

    assert catalog.get_snapshot("a", "s").snapshot.clones == ()
    assert catalog.get("b").head.base is None


def test_a_clones_snapshots_hold_its_origin(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    catalog.clone("a", "s", "b", 5)
    assert take(catalog, "b", "t").base == Base(1, 1)
    take(catalog, "b", "u")
    flatten(catalog, "b")

    assert catalog.get_snapshot("a", "s").snapshot.clones == (2,)
    catalog.delete_snapshot("b", "t")
    assert catalog.get_snapshot("a", "s").snapshot.clones == (2,)
    catalog.delete_snapshot("b", "u")
    assert catalog.get_snapshot("a", "s").snapshot.clones == ()


def test_a_rollback_sets_size_and_base(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    catalog.clone("a", "s", "b", 5)
    take(catalog, "b", "t")
    flatten(catalog, "b")
    catalog.resize("b", 2 * MIB)
    held = catalog.acquire(2, LIVING)
    head = replace(held.head, base=Base(1, 1), root=ROOT)

    revision = catalog.publish_rollback(2, head, held.head_revision, MIB)

    assert catalog.publish_rollback(2, head, held.head_revision, MIB) == revision
    assert (catalog.get("b").spec.size_bytes, catalog.get("b").head) == (MIB, head)
    catalog.delete_snapshot("b", "t")
    assert catalog.get_snapshot("a", "s").snapshot.clones == (2,), "the head holds it again"
    flat = replace(head, base=None)
    revision = catalog.finish_flatten(2, flat, revision)
    with pytest.raises(Busy, match="no snapshot any more"):
        catalog.publish_rollback(2, head, revision, MIB)


def test_a_chain_of_clones_is_bounded(catalog: Catalog) -> None:
    name = "a"
    for number in range(CLONE_DEPTH_MAX):
        take(catalog, name, "s")
        catalog.clone(name, "s", f"c{number}", 5)
        name = f"c{number}"
    take(catalog, name, "s")

    with pytest.raises(UsageError, match="65th clone") as caught:
        catalog.clone(name, "s", "more", 5)
    assert "flatten" in str(caught.value.hint)
    chain = catalog.ancestors(catalog.get(name).head.base)
    assert [one.snapshot.volume for one in chain] == list(range(CLONE_DEPTH_MAX, 0, -1))
    with pytest.raises(Corruption, match="does not exist"):
        catalog.ancestors(Base(1, 9))


# --- the tree ---------------------------------------------------------------------------


def test_the_tree_shows_clones_below_their_origin(catalog: Catalog) -> None:
    take(catalog, "a", "s")
    catalog.clone("a", "s", "b", 5)
    catalog.clone("a", "s", "c", 5)
    take(catalog, "c", "t")
    flatten(catalog, "c")

    first, third = catalog.tree()

    assert (first.name, third.name) == ("a", "c")
    [snapshot] = first.snapshots
    assert (snapshot.number, snapshot.name, snapshot.held_by) == (1, "s", ("c",))
    assert [clone.name for clone in snapshot.clones] == ["b"]
    assert [one.name for one in third.snapshots] == ["t"]


# --- on the event loop ------------------------------------------------------------------


def test_the_async_catalog_runs_the_same_rules() -> None:
    async def test() -> None:
        metadata = AsyncMetadata(MemoryMetadata())
        catalog = AsyncCatalog(metadata, alive=lambda process: ALIVE[process.pid])
        await catalog.create("a", MIB)
        made = await catalog.snapshot_detached("a", "s", 5, "u")
        assert await catalog.snapshots("a") == [made] == await catalog.snapshots_of(1)
        await catalog.clone("a", "s", "b", 5)
        assert len(await catalog.tree()) == 1
        entry = await catalog.get_snapshot("a", "s")
        key = await catalog.add_reader(entry, reader(100))
        await catalog.remove_reader(key)
        await catalog.forget(await catalog.mark_deleting("b", with_snapshots=True))
        await catalog.set_protected("a", "s", False)
        await catalog.delete_snapshot("a", "s")
        assert await catalog.snapshots("a") == []
        await metadata.close()

    asyncio.run(test())
