"""The catalog's rules, over the memory store: names, sizes, states, epochs, owners, races."""

import asyncio
import dataclasses
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from torus.clock import SystemClock
from torus.errors import (
    AlreadyExists,
    Busy,
    Corruption,
    Fenced,
    ForeignData,
    LocalProtocolError,
    NotFound,
    Unavailable,
    UnknownVersion,
    UsageError,
)
from torus.limits import CATALOG_ATTEMPTS_MAX, GIB, KIB, MIB, TIB
from torus.metadata.base import Delete, Expect, Put
from torus.metadata.keys import head_key, name_key, spec_key, volume_prefix
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Head, NameRef, Owner, RootRef, Span
from torus.volume.catalog import Catalog, Volume
from torus.volume.catalog_async import AsyncCatalog

LIVING = Owner("here", "boot", 100, 1, "node", "unix:/x", 1_700_000_000 * 10**9)
DEAD = dataclasses.replace(LIVING, pid=200)
REMOTE = dataclasses.replace(LIVING, host="elsewhere", pid=300)
ALIVE = {LIVING.pid: True, DEAD.pid: False, REMOTE.pid: None}


class RacingStore(MemoryMetadata):
    """A store in which something else happens right before a commit."""

    def __init__(self) -> None:
        super().__init__()
        self.races: list[Callable[[], object]] = []
        self.commits = 0

    def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        self.commits += 1
        if self.races:
            self.races.pop(0)()
        return super().commit(expect, changes)


@pytest.fixture
def store() -> RacingStore:
    return RacingStore()


@pytest.fixture
def catalog(store: RacingStore) -> Catalog:
    return Catalog(store, SystemClock(), alive=lambda owner: ALIVE[owner.pid])


# --- the cluster --------------------------------------------------------------------


def test_a_cluster_is_begun_once(catalog: Catalog) -> None:
    with pytest.raises(NotFound):
        catalog.get_cluster()
    cluster = catalog.init_cluster()

    assert catalog.init_cluster() == cluster == catalog.get_cluster()
    assert catalog.init_cluster(cluster.cluster_id) == cluster
    assert len(bytes.fromhex(cluster.cluster_id)) == 16


def test_a_named_cluster_is_begun_or_refused(catalog: Catalog) -> None:
    assert catalog.init_cluster("ab" * 16).cluster_id == "ab" * 16

    with pytest.raises(ForeignData, match="belongs to cluster abab"):
        catalog.init_cluster("cd" * 16)


def test_of_two_racing_beginnings_one_counts(catalog: Catalog, store: RacingStore) -> None:
    store.races.append(lambda: Catalog(store).init_cluster("ab" * 16))

    assert catalog.init_cluster().cluster_id == "ab" * 16


# --- create, get, list --------------------------------------------------------------


def test_a_created_volume_is_found(catalog: Catalog) -> None:
    spec = catalog.create("vm-1.root", 10 * GIB)

    volume = catalog.get("vm-1.root")
    assert volume.spec == spec
    assert volume.head == Head(0, None, (), None)
    assert (spec.name, spec.size_bytes, spec.redundancy) == ("vm-1.root", 10 * GIB, "replica:1")
    assert spec.state == "ready"
    assert catalog.get_by_id(spec.volume) == volume == catalog.list()[0]


def test_ids_are_never_reused(catalog: Catalog) -> None:
    first = catalog.create("a", MIB).volume
    catalog.forget(catalog.mark_deleting("a"))
    second = catalog.create("a", MIB).volume

    assert (first, second) == (1, 2)


def test_volumes_are_listed_by_name(catalog: Catalog) -> None:
    for name in ("b", "a", "C"):
        catalog.create(name, MIB)

    assert [volume.spec.name for volume in catalog.list()] == ["C", "a", "b"]


def test_a_name_is_given_once(catalog: Catalog) -> None:
    catalog.create("a", MIB)

    with pytest.raises(AlreadyExists, match="'a' exists already, with 1048576 bytes"):
        catalog.create("a", GIB)
    assert [volume.spec.volume for volume in catalog.list()] == [1]


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "ä", "a/b", "a\n", "x" * 129])
def test_odd_names_are_refused(catalog: Catalog, name: str) -> None:
    for call in (
        lambda: catalog.create(name, MIB),
        lambda: catalog.get(name),
        lambda: catalog.resize(name, MIB),
        lambda: catalog.mark_deleting(name),
    ):
        with pytest.raises(UsageError, match="cannot be used"):
            call()


@pytest.mark.parametrize("size", [4 * KIB, 4 * KIB + 512, 64 * TIB])
def test_legal_sizes(catalog: Catalog, size: int) -> None:
    assert catalog.create("a", size).size_bytes == size


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "more than nothing"),
        (-512, "more than nothing"),
        (512, "the smallest volume has 4096"),
        (4095, "the smallest volume has 4096"),
        (MIB + 1, "not a multiple of 512 .*are 1048576 and 1049088"),
        (64 * TIB + 512, "the largest volume has 70368744177664 bytes"),
    ],
)
def test_illegal_sizes_are_refused_precisely(catalog: Catalog, size: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        catalog.create("a", size)
    catalog.create("b", MIB)
    with pytest.raises(UsageError, match=reason):
        catalog.resize("b", size, shrink=True)


@pytest.mark.parametrize(
    "redundancy", ["", "replica:0", "replica:9", "erasure:17+2", "erasure:4+7", "raid5"]
)
def test_other_redundancy_is_not_promised(catalog: Catalog, redundancy: str) -> None:
    with pytest.raises(UsageError, match="cannot be had"):
        catalog.create("a", MIB, redundancy)


def test_an_absent_volume_is_not_found(catalog: Catalog) -> None:
    for call in (
        lambda: catalog.get("a"),
        lambda: catalog.get_by_id(7),
        lambda: catalog.resize("a", MIB),
        lambda: catalog.mark_deleting("a"),
        lambda: catalog.acquire(7, LIVING),
    ):
        with pytest.raises(NotFound, match="does not exist"):
            call()


def test_racing_creations_get_ids_of_their_own(catalog: Catalog, store: RacingStore) -> None:
    other = Catalog(store)
    store.races += [lambda: other.create("b", MIB), lambda: None, lambda: other.create("c", MIB)]
    catalog.create("a", MIB)

    ids = {volume.spec.name: volume.spec.volume for volume in catalog.list()}
    assert sorted(ids.values()) == [1, 2, 3]


def test_of_racing_creations_of_a_name_one_wins(catalog: Catalog, store: RacingStore) -> None:
    other = Catalog(store)
    store.races.append(lambda: other.create("a", GIB))

    with pytest.raises(AlreadyExists):
        catalog.create("a", MIB)
    assert [volume.spec.size_bytes for volume in catalog.list()] == [GIB]


def test_many_threads_create_many_volumes() -> None:
    store = MemoryMetadata()

    def create(number: int) -> int:
        return Catalog(store).create(f"v{number}", MIB).volume

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(create, range(64)))
    assert sorted(ids) == list(range(1, 65))


def test_endless_races_end(catalog: Catalog, store: RacingStore) -> None:
    other = Catalog(store)
    numbers = iter(range(10 * CATALOG_ATTEMPTS_MAX))
    store.races += [
        lambda: MemoryMetadata.commit(
            store, [], [Put("next-volume", b'{"format":1,"next_id":%d}' % (1000 + next(numbers)))]
        )
    ] * (CATALOG_ATTEMPTS_MAX + 1)

    with pytest.raises(Busy, match="in a row"):
        catalog.create("a", MIB)
    assert store.commits == CATALOG_ATTEMPTS_MAX
    assert other.list() == []


# --- resize -------------------------------------------------------------------------


def test_growing_needs_no_flag_and_keeps_the_head(catalog: Catalog) -> None:
    catalog.create("a", MIB)
    before = catalog.get("a")

    grown = catalog.resize("a", 2 * MIB)

    assert grown == catalog.get("a")
    assert grown.spec == dataclasses.replace(before.spec, size_bytes=2 * MIB)
    assert grown.head_revision == before.head_revision


def test_shrinking_needs_the_flag_and_says_both_sizes(catalog: Catalog) -> None:
    catalog.create("a", 2 * MIB)

    with pytest.raises(UsageError, match="from 2097152 to 1048576 bytes"):
        catalog.resize("a", MIB)
    assert catalog.get("a").spec.size_bytes == 2 * MIB
    assert catalog.resize("a", MIB, shrink=True).spec.size_bytes == MIB


def test_the_same_size_changes_nothing(catalog: Catalog, store: RacingStore) -> None:
    catalog.create("a", MIB)
    commits = store.commits

    assert catalog.resize("a", MIB) == catalog.get("a")
    assert store.commits == commits


def test_a_resize_that_lost_a_race_decides_again(catalog: Catalog, store: RacingStore) -> None:
    """Growing from 1 to 2 MiB must not shrink what another just made 4 MiB."""
    catalog.create("a", MIB)
    other = Catalog(store)
    store.races.append(lambda: other.resize("a", 4 * MIB))

    with pytest.raises(UsageError, match="would shrink from 4194304"):
        catalog.resize("a", 2 * MIB)


# --- acquire, publish, release ------------------------------------------------------


def test_acquiring_raises_the_epoch(catalog: Catalog) -> None:
    volume_id = catalog.create("a", MIB).volume
    volume = catalog.acquire(volume_id, LIVING)

    assert (volume.head.epoch, volume.head.owner) == (1, LIVING)
    assert volume == catalog.get("a")


def test_an_attached_volume_is_refused_and_says_where(catalog: Catalog) -> None:
    volume_id = catalog.create("a", MIB).volume
    catalog.acquire(volume_id, LIVING)

    with pytest.raises(Busy, match="node pid 100 on here since 2023-11-14 22:13:20 UTC") as caught:
        catalog.acquire(volume_id, DEAD)
    assert "may be alive" not in str(caught.value)


def test_an_owner_that_cannot_be_judged_is_not_dead(catalog: Catalog) -> None:
    volume_id = catalog.create("a", MIB).volume
    catalog.acquire(volume_id, REMOTE)

    with pytest.raises(Busy, match=r"pid 300 on elsewhere .* which may be alive"):
        catalog.acquire(volume_id, LIVING)


@pytest.mark.parametrize(("first", "takeover"), [(DEAD, False), (LIVING, True), (REMOTE, True)])
def test_the_dead_and_the_overruled_lose_the_volume(
    catalog: Catalog, first: Owner, takeover: bool
) -> None:
    volume_id = catalog.create("a", MIB).volume
    lost = catalog.acquire(volume_id, first)
    new = dataclasses.replace(LIVING, pid_start=99)

    volume = catalog.acquire(volume_id, new, takeover=takeover)

    assert (volume.head.epoch, volume.head.owner) == (2, new)
    for write in (catalog.publish, catalog.release):
        with pytest.raises(Fenced, match="held epoch 1, now epoch 2 is held by node pid 100"):
            write(volume_id, lost.head, lost.head_revision)
    assert catalog.get("a") == volume


def test_of_racing_owners_one_wins(catalog: Catalog, store: RacingStore) -> None:
    volume_id = catalog.create("a", MIB).volume
    store.races.append(lambda: Catalog(store).acquire(volume_id, LIVING))

    with pytest.raises(Busy):
        catalog.acquire(volume_id, DEAD)
    assert catalog.get("a").head.owner == LIVING


def test_a_resize_does_not_stop_an_acquisition(catalog: Catalog, store: RacingStore) -> None:
    volume_id = catalog.create("a", MIB).volume
    store.races.append(lambda: Catalog(store).resize("a", GIB))

    volume = catalog.acquire(volume_id, LIVING)

    assert (volume.spec.size_bytes, volume.head.epoch) == (GIB, 1)
    assert volume == catalog.get("a")


def test_a_holder_publishes_again_and_again(catalog: Catalog, rng: random.Random) -> None:
    volume_id = catalog.create("a", MIB).volume
    volume = catalog.acquire(volume_id, LIVING)
    head, revision = volume.head, volume.head_revision
    for number in range(1, 6):
        head = dataclasses.replace(
            head,
            spans=(*head.spans, Span(1, number, number, None, rng.randrange(512), 0, ("n",))),
            root=RootRef(number, 512, 1024, 7, number, 0, 0),
        )
        revision = catalog.publish(volume_id, head, revision)
        assert catalog.get("a").head == head
        assert catalog.get("a").head_revision == revision


def test_publishing_may_be_repeated_when_its_outcome_was_unknown(catalog: Catalog) -> None:
    volume_id = catalog.create("a", MIB).volume
    volume = catalog.acquire(volume_id, LIVING)
    head = dataclasses.replace(volume.head, mapped_blocks=5)

    revision = catalog.publish(volume_id, head, volume.head_revision)
    assert catalog.publish(volume_id, head, volume.head_revision) == revision
    released = catalog.release(volume_id, head, revision)
    assert catalog.release(volume_id, head, revision) == released


def test_a_holder_cannot_undo_its_own_publication(catalog: Catalog) -> None:
    volume_id = catalog.create("a", MIB).volume
    volume = catalog.acquire(volume_id, LIVING)
    spans = dataclasses.replace(volume.head, spans=(Span(1, 0, 1),))
    root = dataclasses.replace(volume.head, mapped_blocks=5)
    catalog.publish(volume_id, spans, volume.head_revision)

    with pytest.raises(LocalProtocolError, match="published twice at once"):
        catalog.publish(volume_id, root, volume.head_revision)
    assert catalog.get("a").head == spans


def test_a_process_that_takes_over_from_itself_fences_its_older_epoch(catalog: Catalog) -> None:
    volume_id = catalog.create("a", MIB).volume
    older = catalog.acquire(volume_id, LIVING)
    catalog.acquire(volume_id, LIVING, takeover=True)

    with pytest.raises(Fenced, match="held epoch 1, now epoch 2"):
        catalog.publish(volume_id, older.head, older.head_revision)


def test_releasing_clears_the_owner_and_keeps_the_rest(catalog: Catalog) -> None:
    volume_id = catalog.create("a", MIB).volume
    volume = catalog.acquire(volume_id, LIVING)
    head = dataclasses.replace(volume.head, mapped_blocks=5)
    catalog.release(volume_id, head, volume.head_revision)

    assert catalog.get("a").head == dataclasses.replace(head, owner=None)
    with pytest.raises(Fenced, match="epoch 1 has no owner"):
        catalog.publish(volume_id, head, volume.head_revision)
    assert catalog.acquire(volume_id, REMOTE).head.epoch == 2


# --- deletion -----------------------------------------------------------------------


def test_deletion_goes_in_two_steps(catalog: Catalog, store: RacingStore) -> None:
    spec = catalog.create("a", MIB)
    volume = catalog.mark_deleting("a")

    assert volume.spec.state == "deleting"
    assert volume.head.epoch == 1, "whoever still writes is fenced"
    assert volume == catalog.get("a")
    catalog.forget(volume)
    assert catalog.list() == []
    assert store.list(volume_prefix(spec.volume)).entries == ()
    assert store.get(name_key("a")) is None
    catalog.forget(volume)  # again, after an interruption


def test_a_volume_that_is_being_deleted_takes_nothing_else(catalog: Catalog) -> None:
    volume_id = catalog.create("a", MIB).volume
    marked = catalog.mark_deleting("a")

    with pytest.raises(AlreadyExists, match="still being deleted"):
        catalog.create("a", MIB)
    for call in (
        lambda: catalog.resize("a", GIB),
        lambda: catalog.acquire(volume_id, LIVING, takeover=True),
    ):
        with pytest.raises(Busy, match="is being deleted"):
            call()
    assert catalog.mark_deleting("a") == marked


@pytest.mark.parametrize("owner", [LIVING, REMOTE])
def test_an_attached_volume_is_deleted_only_by_force(catalog: Catalog, owner: Owner) -> None:
    volume_id = catalog.create("a", MIB).volume
    held = catalog.acquire(volume_id, owner)

    with pytest.raises(Busy, match=f"attached by node pid {owner.pid}"):
        catalog.mark_deleting("a")
    assert catalog.get("a") == held
    deleted = catalog.mark_deleting("a", force=True)
    assert (deleted.head.epoch, deleted.head.owner) == (2, None)
    with pytest.raises(Fenced, match="epoch 2 has no owner"):
        catalog.publish(volume_id, held.head, held.head_revision)
    catalog.forget(deleted)
    with pytest.raises(Fenced, match="the volume was deleted"):
        catalog.publish(volume_id, held.head, held.head_revision)


def test_a_dead_owner_does_not_stop_a_deletion(catalog: Catalog) -> None:
    catalog.acquire(catalog.create("a", MIB).volume, DEAD)

    assert catalog.mark_deleting("a").head.owner is None


def test_an_owner_that_comes_first_stops_a_deletion(catalog: Catalog, store: RacingStore) -> None:
    volume_id = catalog.create("a", MIB).volume
    store.races.append(lambda: Catalog(store).acquire(volume_id, LIVING))

    with pytest.raises(Busy, match="attached"):
        catalog.mark_deleting("a")


def test_a_deletion_that_comes_first_stops_an_owner(catalog: Catalog, store: RacingStore) -> None:
    volume_id = catalog.create("a", MIB).volume
    store.races.append(lambda: Catalog(store).mark_deleting("a"))

    with pytest.raises(Busy, match="is being deleted"):
        catalog.acquire(volume_id, LIVING, takeover=True)


def test_what_is_not_being_deleted_is_not_forgotten(catalog: Catalog) -> None:
    catalog.create("a", MIB)

    with pytest.raises(Busy, match="its data is not freed"):
        catalog.forget(catalog.get("a"))


def test_a_volume_that_changed_is_not_forgotten(catalog: Catalog) -> None:
    catalog.create("a", MIB)
    marked = catalog.mark_deleting("a")
    stale = dataclasses.replace(marked, head_revision=marked.head_revision - 1)

    with pytest.raises(Busy, match="changed while"):
        catalog.forget(stale)
    assert catalog.get("a") == marked


# --- damage -------------------------------------------------------------------------


def test_damaged_metadata_is_named(catalog: Catalog, store: RacingStore) -> None:
    volume_id = catalog.create("a", MIB).volume
    good = catalog.get("a")

    def damaged(change: Put | Delete, error: type[Exception], match: str) -> None:
        store.commit([], [change])
        for call in (lambda: catalog.get("a"), catalog.list):
            with pytest.raises(error, match=match):
                call()
        store.commit([], [Put(spec_key(volume_id), good.spec.to_bytes())])
        store.commit([], [Put(head_key(volume_id), good.head.to_bytes())])

    damaged(Delete(head_key(volume_id)), Corruption, "has no head")
    damaged(Delete(spec_key(volume_id)), Corruption, "has no specification")
    damaged(Put(head_key(volume_id), b"{}"), Corruption, "holds no torus value")
    damaged(Put(head_key(volume_id), b'{"format":2}'), UnknownVersion, "has format 2")
    store.commit([], [Put(name_key("a"), NameRef(99).to_bytes())])
    with pytest.raises(Corruption, match="names a volume that has no specification"):
        catalog.get("a")


def test_an_unreachable_store_is_not_an_absent_volume(catalog: Catalog, store: RacingStore) -> None:
    def fail() -> None:
        raise Unavailable("the store is away")

    catalog.create("a", MIB)
    store.races.append(fail)
    with pytest.raises(Unavailable):
        catalog.resize("a", GIB)


# --- on the event loop --------------------------------------------------------------


def test_the_async_catalog_runs_the_same_rules() -> None:
    async def test() -> list[Volume]:
        metadata = AsyncMetadata(MemoryMetadata())
        catalog = AsyncCatalog(metadata, alive=lambda owner: ALIVE[owner.pid])
        assert await catalog.init_cluster() == await catalog.get_cluster()
        spec = await catalog.create("a", MIB)
        await catalog.resize("a", GIB)
        volume = await catalog.acquire(spec.volume, LIVING)
        with pytest.raises(Busy):
            await catalog.acquire(spec.volume, LIVING)
        revision = await catalog.publish(spec.volume, volume.head, volume.head_revision)
        await catalog.release(spec.volume, volume.head, revision)
        with pytest.raises(Fenced):
            await catalog.publish(spec.volume, volume.head, revision)
        assert await catalog.get("a") == await catalog.get_by_id(spec.volume)
        listed = await catalog.list()
        await catalog.forget(await catalog.mark_deleting("a"))
        assert await catalog.list() == []
        await metadata.close()
        return listed

    (volume,) = asyncio.run(test())
    assert (volume.spec.size_bytes, volume.head.epoch, volume.head.owner) == (GIB, 1, None)


def test_a_deletion_touches_no_volume_whose_number_begins_the_same(
    catalog: Catalog, store: RacingStore
) -> None:
    """Of 300 volumes those with the numbers 1, 2 and 20 go: nothing else changes."""
    for number in range(300):
        catalog.create(f"vm{number}", MIB)
    everything = {entry.key: entry for entry in store.list("volumes/").entries}
    for volume in catalog.list():
        if volume.spec.volume in (1, 2, 20):
            catalog.forget(catalog.mark_deleting(volume.spec.name))
    left = {entry.key: entry for entry in store.list("volumes/").entries}
    gone = {spec_key(number) for number in (1, 2, 20)} | {head_key(n) for n in (1, 2, 20)}
    assert left == {key: entry for key, entry in everything.items() if key not in gone}
    assert len(catalog.list()) == 297


def test_a_conversion_remembers_what_was(catalog: Catalog) -> None:
    """The first redundancy stays first: spans that name no number of copies are its."""
    catalog.create("disk", 1 << 20, "replica:2")
    assert catalog.get("disk").spec.former == ()
    changed = catalog.convert("disk", "erasure:4+2")
    assert changed.spec == catalog.get("disk").spec
    spec = changed.spec
    assert (spec.redundancy, spec.min_copies, spec.former) == ("erasure:4+2", 2, ("replica:2",))
    spec = catalog.convert("disk", "replica:3", 1).spec
    assert (spec.min_copies, spec.former) == (1, ("replica:2", "erasure:4+2"))
    again = catalog.convert("disk", "replica:3")
    assert again.spec == spec
    spec = catalog.convert("disk", "replica:2").spec
    assert spec.former == ("replica:2", "erasure:4+2", "replica:3")
    for redundancy, least in (("erasure:1+2", None), ("replica:2", 3)):
        with pytest.raises(UsageError):
            catalog.convert("disk", redundancy, least)
    with pytest.raises(NotFound):
        catalog.convert("other", "replica:2")
