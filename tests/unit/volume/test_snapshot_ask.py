"""Two operations on one family, in every order in which their steps can meet.

Whatever the order, afterwards the bonds are true: each base is a snapshot that names its clone,
and each clone that a snapshot names reads it.  An operation either did all of what it says or
was refused.
"""

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import pytest

from torus.errors import AlreadyExists, Busy, Fenced, NotFound, TorusError, UsageError
from torus.limits import MIB
from torus.metadata.base import Delete, Entry, Expect, Put
from torus.metadata.keys import NAMES, NEXT_VOLUME, READERS, SNAPSHOTS, VOLUMES, name_key
from torus.metadata.rules import check_commit
from torus.metadata.schema import (
    Base,
    Head,
    NameRef,
    NextVolume,
    Owner,
    Reader,
    Snapshot,
    VolumeSpec,
)
from torus.volume import (
    catalog_steps,
    clone_steps,
    epoch_steps,
    removal_steps,
    snapshot_ask,
    snapshot_steps,
)
from torus.volume.catalog_ask import Commit, Get, Steps, Volume

LIVING = Owner("here", "boot", 100, 1, "node", "unix:/x", 0)
READER = Reader("here", "boot", 100, 1, "export", 0)
REFUSED = (AlreadyExists, Busy, Fenced, NotFound, UsageError)


def alive(_process: object) -> bool:
    return True


@dataclass
class Store:
    """The smallest store that answers steps; copied for each order."""

    revision: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)

    def copy(self) -> "Store":
        return Store(self.revision, dict(self.entries))

    def answer(self, step: object) -> object:
        if isinstance(step, Get):
            return self.entries.get(step.key)
        if isinstance(step, Commit):
            return self.commit(step.expect, step.changes)
        prefix = step.prefix  # type: ignore[attr-defined]
        return tuple(e for key, e in sorted(self.entries.items()) if key.startswith(prefix))

    def commit(self, expect: tuple[Expect, ...], changes: tuple[Put | Delete, ...]) -> int | None:
        check_commit(expect, changes)
        for one in expect:
            entry = self.entries.get(one.key)
            if (entry.revision if entry else 0) != one.revision:
                return None
        self.revision += 1
        for change in changes:
            if isinstance(change, Put):
                self.entries[change.key] = Entry(change.key, change.value, self.revision)
            else:
                self.entries.pop(change.key, None)
        return self.revision

    def run(self, operation: Steps) -> object:
        """Run one operation alone; return its result or raise."""
        answer: object = None
        while True:
            try:
                answer = self.answer(operation.send(answer))
            except StopIteration as end:
                return end.value


class Turn:
    """One operation that goes step by step."""

    def __init__(self, store: Store, operation: Generator) -> None:
        self._store, self._operation = store, operation
        self._answer: object = None
        self.error: TorusError | None = None
        self.ended = False
        self.steps = 0

    def step(self) -> None:
        try:
            wanted = self._operation.send(self._answer)
            self.steps += 1
            self._answer = self._store.answer(wanted)
        except StopIteration:
            self.ended = True
        except REFUSED as exc:
            self.error, self.ended = exc, True
        assert self.steps < 200, "the two keep each other from ending"


def interleave(
    start: Store,
    left: Callable[[Store], Steps],
    right: Callable[[Store], Steps],
    switches: int,
) -> list[tuple[Store, Turn, Turn]]:
    """Run both operations in every order in which the turn passes ``switches`` times or less."""
    outcomes = []
    for order in ((0, 1), (1, 0)):
        todo: list[tuple[int, ...]] = [()]
        while todo:
            lengths = todo.pop()
            store = start.copy()
            turns = [Turn(store, left(store)), Turn(store, right(store))]
            for number, length in enumerate(lengths):
                turn = turns[order[number % 2]]
                for _ in range(length):
                    if not turn.ended:
                        turn.step()
            last = turns[order[len(lengths) % 2]]
            taken = 0
            while not last.ended:
                last.step()
                taken += 1
            if len(lengths) < switches:
                todo += [(*lengths, length) for length in range(1, taken)]
            other = turns[order[(len(lengths) + 1) % 2]]
            while not other.ended:
                other.step()
            outcomes.append((store, turns[0], turns[1]))
    return outcomes


# --- what is true of every store ------------------------------------------------------------


def read_all(store: Store) -> tuple[dict[int, VolumeSpec], dict[int, Head], list[Snapshot]]:
    specs, heads, snapshots = {}, {}, []
    for key, entry in store.entries.items():
        if key.startswith(SNAPSHOTS):
            snapshots.append(Snapshot.from_bytes(entry.value, key))
        elif key.endswith("/spec"):
            spec = VolumeSpec.from_bytes(entry.value, key)
            specs[spec.volume] = spec
        elif key.endswith("/head"):
            heads[int(key.split("/")[1], 16)] = Head.from_bytes(entry.value, key)
    return specs, heads, snapshots


def check(store: Store) -> None:
    """Assert what must be true of the metadata at any time."""
    specs, heads, snapshots = read_all(store)
    assert specs.keys() == heads.keys()
    assert len({(one.volume, one.number) for one in snapshots}) == len(snapshots)
    by_base = {Base(one.volume, one.number): one for one in snapshots}
    used: dict[Base, set[int]] = {base: set() for base in by_base}
    for volume, head in heads.items():
        for base in {head.base, *(one.base for one in snapshots if one.volume == volume)} - {None}:
            assert base in by_base, f"volume {volume} reads {base}, which is gone"
            used[base].add(volume)
    for base, one in by_base.items():
        assert set(one.clones) == used[base], f"{base} names {one.clones}, read by {used[base]}"
        assert len(set(one.clones)) == len(one.clones)
        assert one.volume in specs, f"snapshot {one.name} has no volume"
        assert one.number <= heads[one.volume].newest_snapshot
        if one.clones:
            assert one.state == "ready", "it is being deleted, and has clones"
            assert not (one.protected and one.state == "deleting")
    for key, entry in store.entries.items():
        if key.startswith(NAMES):
            named = NameRef.from_bytes(entry.value, key).volume
            assert specs[named].name == key.removeprefix(NAMES)
        if key.startswith(READERS):
            _, volume, number, _ = key.split("/")
            snapshot = by_base.get(Base(int(volume, 16), int(number, 16)))
            assert snapshot is not None, "someone reads a snapshot that is gone"
            assert snapshot.state == "ready", "someone reads a snapshot that is going"
    if NEXT_VOLUME in store.entries:
        counter = NextVolume.from_bytes(store.entries[NEXT_VOLUME].value, NEXT_VOLUME)
        assert all(volume < counter.next_id for volume in specs)


# --- one family ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family() -> Store:
    """Origin 'o' with snapshots 's' (clones 'c', attached, and 'f', flattened) and 'free'.

    'c' has the snapshots 'c1' and 'c2', 'f' has 'f1' and 'f2', all of them reading 'o@s'.
    'f' is attached too.  'g' is as 'c' and 'h' as 'f', with one snapshot each.
    """
    store = Store()
    store.run(catalog_steps.create("o", MIB, "replica:1", 1))
    store.run(snapshot_steps.snapshot_detached("o", "s", 1, "u1"))
    store.run(snapshot_steps.snapshot_detached("o", "free", 1, "u2"))
    for name in "cfgh":
        spec = store.run(clone_steps.clone("o", "s", name, 1))
        for number in (1, 2) if name in "cf" else (1,):
            store.run(
                snapshot_steps.snapshot_detached(name, f"{name}{number}", 1, f"{name}{number}")
            )
        store.run(epoch_steps.acquire(spec.volume, LIVING, takeover=False, alive=alive))
    for name in "fh":
        store.run(flatten(name)(store))
    check(store)
    return store


def volume_of(store: Store, name: str) -> Volume:
    return store.copy().run(catalog_steps.get(name))


def flatten(name: str) -> Callable[[Store], Steps]:
    def begin(store: Store) -> Steps:
        found = volume_of(store, name)
        head = replace(found.head, base=None, mapped_blocks=7)
        return clone_steps.finish_flatten(found.spec.volume, head, found.head_revision)

    return begin


def roll_back(name: str, snap: str) -> Callable[[Store], Steps]:
    def begin(store: Store) -> Steps:
        found = volume_of(store, name)
        target = store.copy().run(snapshot_ask.get_snapshot(name, snap)).snapshot
        head = replace(found.head, base=target.base, mapped_blocks=9)
        return clone_steps.publish_rollback(found.spec.volume, head, found.head_revision, 2 * MIB)

    return begin


def snapshot_attached(name: str, snap: str) -> Callable[[Store], Steps]:
    def begin(store: Store) -> Steps:
        found = volume_of(store, name)
        number = found.head.newest_snapshot + 1
        head = replace(found.head, newest_snapshot=number)
        made = Snapshot(found.spec.volume, number, snap, "u", 1, MIB, None, found.head.base)
        return snapshot_steps.publish_snapshot(found.spec.volume, head, found.head_revision, made)

    return begin


def read(name: str, snap: str) -> Callable[[Store], Steps]:
    def begin(store: Store) -> Steps:
        entry = store.copy().run(snapshot_ask.get_snapshot(name, snap))
        return snapshot_steps.add_reader(entry, READER, "r")

    return begin


def remove_volume(name: str) -> Callable[[Store], Steps]:
    def both() -> Steps:
        marked = yield from removal_steps.mark_deleting(
            name, force=True, with_snapshots=True, alive=alive
        )
        yield from removal_steps.forget(marked)

    return lambda _: both()


def delete(name: str, snap: str) -> Callable[[Store], Steps]:
    return lambda _: removal_steps.delete_snapshot(name, snap, alive=alive)


OPERATIONS: dict[str, Callable[[Store], Steps]] = {
    "clone": lambda _: clone_steps.clone("o", "free", "n", 1),
    "clone again": lambda _: clone_steps.clone("o", "free", "n", 1),
    "clone more": lambda _: clone_steps.clone("o", "s", "m", 1),
    "protect": lambda _: snapshot_steps.set_protected("o", "free", True),
    "read": read("o", "free"),
    "delete free": delete("o", "free"),
    "snapshot o": lambda _: snapshot_steps.snapshot_detached("o", "x", 1, "ux"),
    "snapshot o again": lambda _: snapshot_steps.snapshot_detached("o", "x", 1, "uy"),
    "acquire o": lambda _: epoch_steps.acquire(1, LIVING, takeover=False, alive=alive),
    "resize o": lambda _: catalog_steps.resize("o", 2 * MIB, shrink=False),
    "remove c": remove_volume("c"),
    "remove f": remove_volume("f"),
    "flatten c": flatten("c"),
    "delete c1": delete("c", "c1"),
    "delete c2": delete("c", "c2"),
    "snapshot c": snapshot_attached("c", "c3"),
    "clone c": lambda _: clone_steps.clone("c", "c1", "cc", 1),
    "read c": read("c", "c1"),
    "roll back f": roll_back("f", "f1"),
    "delete f1": delete("f", "f1"),
    "delete f2": delete("f", "f2"),
    "snapshot f": snapshot_attached("f", "f3"),
    "clone f": lambda _: clone_steps.clone("f", "f1", "ff", 1),
}


# They meet only what they can disagree with: a second snapshot, and clones whose last snapshot
# with the base is deleted.
LAST: dict[str, Callable[[Store], Steps]] = {
    "snapshot o other": lambda _: snapshot_steps.snapshot_detached("o", "y", 1, "uz"),
    "flatten g": flatten("g"),
    "delete g1": delete("g", "g1"),
    "roll back h": roll_back("h", "h1"),
    "delete h1": delete("h", "h1"),
}

HOLDERS = ("flatten c", "snapshot c", "roll back f", "snapshot f")


@pytest.mark.slow
@pytest.mark.parametrize("left", OPERATIONS)
def test_whatever_meets_the_bonds_stay_true(family: Store, left: str) -> None:
    for right in list(OPERATIONS)[list(OPERATIONS).index(left) + 1 :]:
        if left in HOLDERS and right in HOLDERS and left[-1] == right[-1]:
            continue  # one holder publishes one head after the other
        for store, *_ in interleave(family, OPERATIONS[left], OPERATIONS[right], 2):
            try:
                check(store)
            except AssertionError as exc:
                raise AssertionError(f"{left!r} and {right!r}: {exc}") from exc


# --- what may come of two --------------------------------------------------------------------


def outcomes(start: Store, left: str, right: str) -> set[tuple[str, str]]:
    """Return which pairs of results the orders of two operations had."""
    found = set()
    every = OPERATIONS | LAST
    for store, *turns in interleave(start, every[left], every[right], 3):
        check(store)
        one, two = ("done" if turn.error is None else type(turn.error).__name__ for turn in turns)
        found.add((one, two))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left", "right", "possible"),
    [
        ("clone", "clone again", {("done", "AlreadyExists"), ("AlreadyExists", "done")}),
        ("snapshot o", "snapshot o again", {("done", "AlreadyExists"), ("AlreadyExists", "done")}),
        ("snapshot o", "snapshot o other", {("done", "done")}),
        ("clone", "clone more", {("done", "done")}),
        ("delete c1", "delete c2", {("done", "done")}),
        ("delete f1", "delete f2", {("done", "done")}),
        ("flatten c", "delete c1", {("done", "done")}),
        ("flatten g", "delete g1", {("done", "done")}),
        ("roll back h", "delete h1", {("done", "done"), ("Busy", "done")}),
        ("snapshot c", "delete c1", {("done", "done")}),
        ("snapshot o", "resize o", {("done", "done")}),
        (
            "clone",
            "delete free",
            {("done", "Busy"), ("Busy", "done"), ("NotFound", "done")},
        ),
        (
            "protect",
            "delete free",
            {("done", "UsageError"), ("Busy", "done"), ("NotFound", "done")},
        ),
        (
            "read",
            "delete free",
            {("done", "Busy"), ("Busy", "done"), ("Busy", "Busy")},
        ),
        ("flatten c", "remove c", {("done", "done"), ("Fenced", "done")}),
        ("clone c", "remove c", {("done", "Busy"), ("Busy", "done"), ("NotFound", "done")}),
        ("snapshot c", "remove c", {("done", "done"), ("Fenced", "done")}),
    ],
)
def test_of_two_that_exclude_each_other_one_wins(
    family: Store, left: str, right: str, possible: set[tuple[str, str]]
) -> None:
    found = outcomes(family, left, right)

    assert found <= possible, found - possible
    if ("done", "done") not in possible:
        assert any(pair[0] == "done" for pair in found)
        assert any(pair[1] == "done" for pair in found)


def test_a_detached_snapshot_never_undoes_an_attach(family: Store) -> None:
    for store, _, attach in interleave(
        family, OPERATIONS["snapshot o"], OPERATIONS["acquire o"], 3
    ):
        assert attach.error is None
        assert read_all(store)[1][1].owner == LIVING


def test_every_operation_works_when_alone(family: Store) -> None:
    """Otherwise the races above would show nothing."""
    for name, operation in (OPERATIONS | LAST).items():
        store = family.copy()
        before = store.revision
        store.run(operation(store))
        assert store.revision > before, name
        check(store)


def test_after_all_is_gone_nothing_is_left(family: Store) -> None:
    """Clones first, then the origin, whatever the order among the clones."""
    for order in itertools.permutations("cfgh"):
        store = family.copy()
        for name in (*order, "o"):
            store.run(remove_volume(name)(store))
            check(store)
        assert [key for key in store.entries if not key.startswith(NEXT_VOLUME)] == []


def test_the_name_of_a_clone_is_free_after_it(family: Store) -> None:
    store = family.copy()
    store.run(remove_volume("c")(store))

    assert name_key("c") not in store.entries
    assert not any(key.startswith(VOLUMES + f"{2:016x}") for key in store.entries)
