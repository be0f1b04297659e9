"""What a metadata store says, read once and as a whole, for tools that doubt it.

Decides what is wrong within the metadata itself.  What is wrong between it and the data is
decided in `torus.daemon.check` and `torus.daemon.recover`.
"""

import contextlib
from dataclasses import dataclass, field

from torus.clock import SystemClock
from torus.errors import Corruption, ForeignData, NotFound, TorusError, UnknownVersion
from torus.ids import join_snapshot
from torus.limits import CLONE_DEPTH_MAX
from torus.metadata.base import Entry, MetadataStore
from torus.metadata.keys import (
    CLUSTER,
    LOST,
    NAMES,
    NEXT_VOLUME,
    READERS,
    SNAPSHOTS,
    VOLUMES,
    name_key,
    readers_prefix,
    snapshot_key,
)
from torus.metadata.open import open_metadata
from torus.metadata.schema import (
    Base,
    Cluster,
    Head,
    NameRef,
    NextVolume,
    Reader,
    Snapshot,
    VolumeSpec,
)
from torus.metadata.sqlite import SqliteMetadata
from torus.volume.owner import is_alive


@dataclass(slots=True)
class Known:
    """The metadata as it was read; ``problems`` and ``oddities`` are (key or file, sentence)."""

    cluster: Cluster | None = None
    next_volume: int = 1
    specs: dict[int, VolumeSpec] = field(default_factory=dict)
    heads: dict[int, Head] = field(default_factory=dict)
    snapshots: dict[int, list[Snapshot]] = field(default_factory=dict)  # by volume
    lost: set[int] = field(default_factory=set)  # volumes that could not be recovered
    missing: bool = False  # there is no store at all
    problems: list[tuple[str, str]] = field(default_factory=list)
    oddities: list[tuple[str, str]] = field(default_factory=list)  # by which nothing is lost

    def was_deleted(self, volume: int) -> bool:
        """Tell whether a volume that is not there was there, and nothing asks for it."""
        bases = [head.base for head in self.heads.values()]
        bases += [one.base for each in self.snapshots.values() for one in each]
        named = {*self.specs, *self.heads, *self.snapshots, *self.lost}
        named |= {base.volume for base in bases if base is not None}
        return 0 < volume < self.next_volume and volume not in named

    @property
    def usable(self) -> bool:
        """True when the store could be read and names its cluster."""
        return self.cluster is not None


def read_known(meta_url: str) -> Known:
    """Read the store that ``meta_url`` names, and verify it.

    Raises: ConfigError, PermissionDenied, Unavailable: then nothing is known of it.
    """
    known = Known()
    try:
        store = open_metadata(meta_url, SystemClock(), create=False)
    except NotFound as exc:
        known.missing = True
        known.problems.append((meta_url, exc.message))
        return known
    except (Corruption, UnknownVersion) as exc:
        known.problems.append((meta_url, exc.message))
        return known
    with contextlib.closing(store):
        try:
            if isinstance(store, SqliteMetadata):
                store.verify()
            _read(store, known)
        except (Corruption, UnknownVersion) as exc:
            known.problems.append((meta_url, exc.message))
    _compare(known)
    return known


def _read(store: MetadataStore, known: Known) -> None:
    entry = store.get(CLUSTER)
    if entry is None:
        known.problems.append((CLUSTER, "the store belongs to no cluster"))
    else:
        known.cluster = Cluster.from_bytes(entry.value, CLUSTER)
    entry = store.get(NEXT_VOLUME)
    if entry is not None:
        known.next_volume = NextVolume.from_bytes(entry.value, NEXT_VOLUME).next_id
    for entry in store.list(VOLUMES).entries:
        try:
            _take(entry, known)
        except TorusError as exc:
            known.problems.append((entry.key, exc.message))
    for entry in store.list(LOST).entries:
        known.lost.add(NameRef.from_bytes(entry.value, entry.key).volume)
    _read_snapshots(store, known)
    _read_readers(store, known)
    names = {entry.key: entry for entry in store.list(NAMES).entries}
    for volume, spec in known.specs.items():
        found = names.pop(name_key(spec.name), None)
        if found is None or NameRef.from_bytes(found.value, found.key).volume != volume:
            known.problems.append(
                (name_key(spec.name), f"does not lead to volume {volume}, whose name it is")
            )
    known.problems.extend((key, "names a volume that does not exist") for key in names)


def _read_snapshots(store: MetadataStore, known: Known) -> None:
    for entry in store.list(SNAPSHOTS).entries:
        try:
            snapshot = Snapshot.from_bytes(entry.value, entry.key)
        except TorusError as exc:
            known.problems.append((entry.key, exc.message))
            continue
        if entry.key != snapshot_key(snapshot.volume, snapshot.name):
            known.problems.append((entry.key, f"holds snapshot {snapshot.name!r} of another"))
        else:
            known.snapshots.setdefault(snapshot.volume, []).append(snapshot)


def _read_readers(store: MetadataStore, known: Known) -> None:
    """Note readers that are gone; they stand in nobody's way, and a deletion removes them."""
    snapshots = {
        readers_prefix(one.volume, one.number): one
        for each in known.snapshots.values()
        for one in each
    }
    for entry in store.list(READERS).entries:
        try:
            reader = Reader.from_bytes(entry.value, entry.key)
        except TorusError as exc:
            known.problems.append((entry.key, exc.message))
            continue
        snapshot = snapshots.get(entry.key.rpartition("/")[0] + "/")
        if snapshot is None:
            known.oddities.append((entry.key, "names a reader of a snapshot that is gone"))
        elif is_alive(reader) is False:
            known.oddities.append(
                (
                    entry.key,
                    f"{_named(known, snapshot)} is still noted as read by process {reader.pid} "
                    f"on {reader.host}, which has ended; the snapshot's deletion removes the note",
                )
            )


def _take(entry: Entry, known: Known) -> None:
    number, _, what = entry.key.removeprefix(VOLUMES).partition("/")
    try:
        volume = int(number, 16)
    except ValueError as exc:
        raise Corruption(f"key {entry.key!r} names no volume") from exc
    if what == "spec":
        spec = VolumeSpec.from_bytes(entry.value, entry.key)
        if spec.volume != volume:
            raise ForeignData(f"key {entry.key!r} holds volume {spec.volume}")
        known.specs[volume] = spec
    elif what == "head":
        known.heads[volume] = Head.from_bytes(entry.value, entry.key)
    else:
        raise Corruption(f"key {entry.key!r} is unknown")


def _compare(known: Known) -> None:
    for volume in known.specs.keys() ^ known.heads.keys():
        missing = "head" if volume in known.specs else "specification"
        known.problems.append((f"volume {volume}", f"has no {missing}"))
    for volume in known.specs:
        if volume >= known.next_volume:
            known.problems.append(
                (NEXT_VOLUME, f"is {known.next_volume}, but volume {volume} exists")
            )
    _compare_bonds(known)


def _named(known: Known, snapshot: Snapshot) -> str:
    """Return VOLUME@SNAPSHOT, for people."""
    spec = known.specs.get(snapshot.volume)
    name = f"volume-{snapshot.volume}" if spec is None else spec.name
    return f"snapshot {join_snapshot(name, snapshot.name)!r}"


def _compare_bonds(known: Known) -> None:
    """Every base is a snapshot that says so, and every clone that a snapshot names reads it."""
    uses: dict[Base, set[int]] = {}
    for volume, head in known.heads.items():
        if head.base is not None:
            uses.setdefault(head.base, set()).add(volume)
    found: dict[Base, Snapshot] = {}
    for volume, snapshots in known.snapshots.items():
        if volume not in known.specs:
            known.problems.append((f"snapshots of volume {volume}", "their volume does not exist"))
            continue
        newest = known.heads[volume].newest_snapshot if volume in known.heads else 0
        for one in snapshots:
            if Base(volume, one.number) in found or one.number > newest:
                known.problems.append((_named(known, one), f"its number {one.number} cannot be"))
            found[Base(volume, one.number)] = one
            if one.base is not None:
                uses.setdefault(one.base, set()).add(volume)
    for base, one in found.items():
        reading = uses.get(base, set())
        if reading != set(one.clones):
            _report_clones(known, one, reading)
    _check_chains(known, uses, found)


def _report_clones(known: Known, snapshot: Snapshot, reading: set[int]) -> None:
    for volume in sorted(reading - set(snapshot.clones)):
        known.problems.append(
            (
                _named(known, snapshot),
                f"does not name volume id {volume}, which is a clone of it, and could be deleted",
            )
        )
    for volume in sorted(set(snapshot.clones) - reading):
        what = "is no clone of it" if volume in known.specs else "does not exist"
        known.problems.append(
            (_named(known, snapshot), f"names volume id {volume} as its clone, which {what}")
        )


def _check_chains(known: Known, uses: dict[Base, set[int]], found: dict[Base, Snapshot]) -> None:
    """Every chain of clones ends, within the depth that is allowed."""
    for base, volumes in uses.items():
        problem = _chain_problem(base, found)
        for volume in sorted(volumes) if problem else ():
            name = known.specs[volume].name if volume in known.specs else f"volume-{volume}"
            known.problems.append((f"volume {name!r}", problem))


def _chain_problem(base: Base, found: dict[Base, Snapshot]) -> str:
    """Return what is wrong with the origins of a clone with that base; "" for nothing."""
    at: Base | None = base
    for _ in range(CLONE_DEPTH_MAX):
        if at is None:
            return ""
        snapshot = found.get(at)
        if snapshot is None:
            return f"reads snapshot number {at.number} of volume id {at.volume}, which is not there"
        at = snapshot.base
    if at is None:
        return ""
    return (
        f"is a clone of a clone more than {CLONE_DEPTH_MAX} times over: its chain of origins ends "
        "nowhere"
    )
