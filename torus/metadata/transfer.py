"""Filling an empty store with the content of another one, so that it may be interrupted.

Decides the order: first the key that makes everybody refuse the store, then everything else, then
in one commit the cluster's name and the end of that refusal.  Whoever finds the store sees none
of the content or all of it.  Every step may be repeated; a move knows its own steps by its uid.

Implements docs/metadata.md, "Moving to etcd".
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torus.clock import Clock
from torus.errors import AlreadyExists, Busy, NotFound
from torus.limits import METADATA_COMMIT_BYTES_MAX, METADATA_COMMIT_CHANGES_MAX
from torus.metadata.base import Delete, Entry, Expect, Listing, MetadataStore, Put
from torus.metadata.keys import CLUSTER, MOVED, MOVING, ORIGINS
from torus.metadata.schema import Cluster, Moving, Origin, Origins

Progress = Callable[[int, int], None]  # bytes that are there, of how many

_OWN_KEYS = (MOVED, MOVING, ORIGINS)  # they say something of one store, not of its content


@runtime_checkable
class WholeStore(MetadataStore, Protocol):
    """A store that can be listed as a whole."""

    def list_lasting(self) -> Listing:
        """Return all entries that are not under a lease."""


def content(store: WholeStore) -> Listing:
    """Return what a move takes along, as it is at one revision.

    Raises: NotFound when the store belongs to no cluster.
    """
    listing = store.list_lasting()
    entries = tuple(entry for entry in listing.entries if entry.key not in _OWN_KEYS)
    if not any(entry.key == CLUSTER for entry in entries):
        raise NotFound("the metadata store belongs to no cluster: there is nothing to move")
    return Listing(listing.revision, entries)


def origins_of(store: WholeStore, revision: int) -> tuple[Origin, ...]:
    """Return the etcds that have held what is in ``store`` at ``revision``, newest last."""
    entry = store.get(ORIGINS)
    places = Origins.from_bytes(entry.value, ORIGINS).places if entry is not None else ()
    position = getattr(store, "position", None)
    if position is None:
        return places
    return (*places, Origin(f"{position()[0]:x}", revision))


class Filling:
    """One move's writes into its target."""

    def __init__(self, target: WholeStore, place: str, uid: str, source: str, clock: Clock) -> None:
        self._target = target
        self._place = place
        self._uid = uid
        self._moving = Moving(source, uid, clock.wall_ns())

    def is_complete(self) -> bool:
        """Tell whether this very move has been completed."""
        entry = self._target.get(ORIGINS)
        done = entry is not None and Origins.from_bytes(entry.value, ORIGINS).uid == self._uid
        return done and self._target.get(MOVING) is None

    def fill(
        self, entries: Sequence[Entry], origins: tuple[Origin, ...], progress: Progress
    ) -> None:
        """Write ``entries``; goes on where an earlier attempt ended.

        Raises: AlreadyExists when something else is in the target, Busy when another move is on
            its way there, Unavailable: then run it again.
        """
        if self.is_complete():
            return
        revision = self._begin()
        cluster = [entry for entry in entries if entry.key == CLUSTER]
        others = [entry for entry in entries if entry.key != CLUSTER]
        there = {entry.key: entry.value for entry in self._target.list_lasting().entries}
        missing = [entry for entry in others if there.get(entry.key) != entry.value]
        total = _size_bytes(others)
        done = total - _size_bytes(missing)
        for part in parts(missing):
            progress(done, total)
            self._commit(revision, [Put(entry.key, entry.value) for entry in part])
            done += _size_bytes(part)
        self._compare(others)
        origin = Put(ORIGINS, Origins(self._uid, origins).to_bytes())
        self._commit(revision, [Put(CLUSTER, cluster[0].value), origin, Delete(MOVING)])
        progress(total, total)

    def empty(self) -> None:
        """Take everything away again that this move has brought.

        Raises: AlreadyExists when the move is complete, Busy, Unavailable.
        """
        if self.is_complete():
            raise AlreadyExists(
                f"everything has arrived at {self._place}",
                hint="finish the move by running it once more without --abort",
            )
        entry = self._target.get(MOVING)
        if entry is None:
            return
        revision = self._check_mine(entry)
        there = [one for one in self._target.list_lasting().entries if one.key != MOVING]
        for part in parts(there):
            self._commit(revision, [Delete(one.key) for one in part])
        self._commit(revision, [Delete(MOVING)])

    def _begin(self) -> int:
        """Mark the target as incomplete; the revision of that mark."""
        entry = self._target.get(MOVING)
        if entry is not None:
            return self._check_mine(entry)
        there = self._target.list_lasting().entries
        if there:
            named = next((one for one in there if one.key == CLUSTER), None)
            whose = (
                f"cluster {Cluster.from_bytes(named.value, CLUSTER).cluster_id}"
                if named is not None
                else f"{len(there)} keys, such as {there[0].key!r}"
            )
            raise AlreadyExists(
                f"metadata store {self._place} is not empty: it holds {whose}",
                hint="choose another prefix: etcd://HOST:PORT/PREFIX",
            )
        expect = [Expect(MOVING, 0), Expect(CLUSTER, 0)]
        revision = self._target.commit(expect, [Put(MOVING, self._moving.to_bytes())])
        if revision is None:
            raise self._disturbed()
        return revision

    def _check_mine(self, entry: Entry) -> int:
        moving = Moving.from_bytes(entry.value, MOVING)
        if moving.uid != self._uid:
            raise Busy(
                f"something else is on its way to metadata store {self._place}: {moving.source}",
                hint="finish that first, or choose another prefix",
            )
        return entry.revision

    def _commit(self, revision: int, changes: Sequence[Put | Delete]) -> None:
        if self._target.commit([Expect(MOVING, revision)], changes) is None:
            raise self._disturbed()

    def _compare(self, entries: Sequence[Entry]) -> None:
        there = {entry.key: entry.value for entry in self._target.list_lasting().entries}
        there.pop(MOVING)
        if there != {entry.key: entry.value for entry in entries}:
            raise self._disturbed()

    def _disturbed(self) -> Busy:
        return Busy(
            f"somebody else wrote to metadata store {self._place} meanwhile",
            hint="find out who; then run the same command again",
        )


def parts(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return ``entries`` in parts that fit into a commit each."""
    found: list[list[Entry]] = [[]]
    size_bytes = 0
    for entry in entries:
        entry_bytes = _size_bytes([entry])
        full = size_bytes + entry_bytes > METADATA_COMMIT_BYTES_MAX
        if full or len(found[-1]) == METADATA_COMMIT_CHANGES_MAX:
            found.append([])
            size_bytes = 0
        found[-1].append(entry)
        size_bytes += entry_bytes
    return found if found[-1] else found[:-1]


def _size_bytes(entries: Sequence[Entry]) -> int:
    return sum(len(entry.key.encode()) + len(entry.value) for entry in entries)
