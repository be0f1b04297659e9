"""What a metadata store says, read once and as a whole, for tools that doubt it.

Decides what is wrong within the metadata itself.  What is wrong between it and the data is
decided in `torus.daemon.check` and `torus.daemon.recover`.
"""

import contextlib
from dataclasses import dataclass, field

from torus.clock import SystemClock
from torus.errors import Corruption, ForeignData, NotFound, TorusError, UnknownVersion
from torus.metadata.base import Entry, MetadataStore
from torus.metadata.open import open_metadata
from torus.metadata.schema import (
    CLUSTER,
    NAMES,
    NEXT_VOLUME,
    SNAPSHOTS,
    VOLUMES,
    Base,
    Cluster,
    Head,
    NameRef,
    NextVolume,
    Snapshot,
    VolumeSpec,
    name_key,
    snapshot_key,
)
from torus.metadata.sqlite import SqliteMetadata


@dataclass(slots=True)
class Known:
    """The metadata as it was read; ``problems`` are (key or file, sentence)."""

    cluster: Cluster | None = None
    next_volume: int = 1
    specs: dict[int, VolumeSpec] = field(default_factory=dict)
    heads: dict[int, Head] = field(default_factory=dict)
    snapshots: dict[int, list[Snapshot]] = field(default_factory=dict)  # by volume
    missing: bool = False  # there is no store at all
    problems: list[tuple[str, str]] = field(default_factory=list)

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
    names = {entry.key: entry for entry in store.list(NAMES).entries}
    for volume, spec in known.specs.items():
        found = names.pop(name_key(spec.name), None)
        if found is None or NameRef.from_bytes(found.value, found.key).volume != volume:
            known.problems.append(
                (name_key(spec.name), f"does not lead to volume {volume}, whose name it is")
            )
    known.problems.extend((key, "names a volume that does not exist") for key in names)


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


def _compare_bonds(known: Known) -> None:
    """Every base is a snapshot that says so, and every clone that a snapshot names reads it."""
    uses: dict[Base, set[int]] = {}
    for volume, head in known.heads.items():
        if head.base is not None:
            uses.setdefault(head.base, set()).add(volume)
    numbers: set[Base] = set()
    for volume, snapshots in known.snapshots.items():
        if volume not in known.specs:
            known.problems.append((f"snapshots of volume {volume}", "their volume does not exist"))
            continue
        newest = known.heads[volume].newest_snapshot if volume in known.heads else 0
        for one in snapshots:
            key = snapshot_key(volume, one.name)
            if Base(volume, one.number) in numbers or one.number > newest:
                known.problems.append((key, f"its number {one.number} cannot be"))
            numbers.add(Base(volume, one.number))
            if one.base is not None:
                uses.setdefault(one.base, set()).add(volume)
    for one in [one for each in known.snapshots.values() for one in each]:
        reading = uses.pop(Base(one.volume, one.number), set())
        if reading != set(one.clones):
            names, found = sorted(one.clones), sorted(reading)
            known.problems.append(
                (snapshot_key(one.volume, one.name), f"names clones {names}, but {found} read it")
            )
    for base, volumes in uses.items():
        known.problems.append(
            (f"volume {min(volumes)}", f"is a clone of {base}, which does not exist")
        )
