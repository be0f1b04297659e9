"""The rules of the catalog: names, ids, sizes and states of volumes.

Decides what each operation reads, what it refuses, and which compare-and-swap makes it so.
Each is a generator that yields what to ask the metadata store (`torus.volume.catalog_ask`);
it does no I/O.  Epochs and owners are decided in `torus.volume.epoch_steps`.

Each change expects the revisions that its decision was read from; when another process was
faster the operation reads and decides again.

Implements docs/metadata.md, "The catalog".
"""

import dataclasses

from torus.errors import AlreadyExists, Busy, Corruption, ForeignData, NotFound, UsageError
from torus.ids import check_volume_name
from torus.limits import (
    CATALOG_ATTEMPTS_MAX,
    SECTOR_BYTES,
    VOLUME_BYTES_MAX,
    VOLUME_BYTES_MIN,
)
from torus.metadata.base import Entry, Expect, Put
from torus.metadata.keys import CLUSTER, NEXT_VOLUME, VOLUMES, head_key, name_key, spec_key
from torus.metadata.schema import Cluster, Head, NameRef, NextVolume, VolumeSpec
from torus.redundancy.scheme import parse
from torus.volume.catalog_ask import (
    DELETING,
    Commit,
    ListUnder,
    Steps,
    Volume,
    find_volume,
    read_entry,
    read_volume,
    refuse_deleting,
    too_many_races,
)

REDUNDANCY = "replica:1"  # unless somebody asks for more

# --- reading ------------------------------------------------------------------------------


def get(name: str) -> Steps[Volume]:
    """Return the volume of that name, also when it is being deleted.

    Raises: NotFound.
    """
    check_volume_name(name)
    for _ in range(CATALOG_ATTEMPTS_MAX):
        entry = yield from read_entry(name_key(name))
        if entry is None:
            raise NotFound(f"volume {name!r} does not exist", hint="see: torus volume list")
        volume = yield from find_volume(NameRef.from_bytes(entry.value, entry.key).volume)
        if volume is not None:
            return volume
        again = yield from read_entry(name_key(name))
        if again == entry:
            raise Corruption(
                f"metadata key {entry.key!r} names a volume that has no specification",
                hint="rebuild the metadata from the volumes' logs: torus recover",
            )
    raise too_many_races(f"volume {name!r}")


def list_all() -> Steps[list[Volume]]:
    """Return all volumes by name, as they were at one moment."""
    entries: tuple[Entry, ...] = yield ListUnder(VOLUMES)
    by_volume: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        by_volume.setdefault(entry.key.rpartition("/")[0], {})[entry.key] = entry
    volumes = [read_volume(found) for found in by_volume.values()]
    return sorted(volumes, key=lambda volume: volume.spec.name)


def get_cluster() -> Steps[Cluster]:
    """Return which cluster this is.

    Raises: NotFound when nobody began one in this store.
    """
    entry = yield from read_entry(CLUSTER)
    if entry is None:
        raise NotFound(
            "this metadata store belongs to no cluster yet",
            hint="start a node, which begins one: torus node",
        )
    return Cluster.from_bytes(entry.value, CLUSTER)


# --- the cluster and its volumes ------------------------------------------------------------


def init_cluster(wanted: Cluster, *, must_match: bool) -> Steps[Cluster]:
    """Begin the cluster ``wanted`` if there is none yet; return the one that is.

    Raises: ForeignData when ``must_match`` and another cluster is there.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        entry = yield from read_entry(CLUSTER)
        if entry is not None:
            found = Cluster.from_bytes(entry.value, CLUSTER)
            if must_match and found.cluster_id != wanted.cluster_id:
                raise ForeignData(
                    f"the metadata store belongs to cluster {found.cluster_id}, "
                    f"expected {wanted.cluster_id}",
                    hint="check --meta and --data-dir: they belong to different clusters",
                )
            return found
        if (yield Commit((Expect(CLUSTER, 0),), (Put(CLUSTER, wanted.to_bytes()),))) is not None:
            return wanted
    raise too_many_races("the cluster's identity")


def create(
    name: str, size_bytes: int, redundancy: str, now_ns: int, min_copies: int | None = None
) -> Steps[VolumeSpec]:
    """Make a volume that nobody has attached yet (epoch 0), with an id never used before.

    ``min_copies``: with how many copies writing goes on; None: one less than all.

    Raises: UsageError for the name, the size or the redundancy; AlreadyExists.
    """
    check_volume_name(name)
    check_size(name, size_bytes)
    scheme = parse(redundancy)
    if min_copies is None:
        min_copies = scheme.default_min_copies
    scheme.check_min_copies(min_copies)
    for _ in range(CATALOG_ATTEMPTS_MAX):
        taken = yield from read_entry(name_key(name))
        if taken is not None:
            raise (yield from name_taken(name))
        counter = yield from read_entry(NEXT_VOLUME)
        volume_id = 1 if counter is None else next_id(counter)
        spec = VolumeSpec(volume_id, name, size_bytes, str(scheme), now_ns, min_copies=min_copies)
        revision = yield Commit(
            (
                Expect(NEXT_VOLUME, 0 if counter is None else counter.revision),
                Expect(name_key(name), 0),
                Expect(spec_key(volume_id), 0),
                Expect(head_key(volume_id), 0),
            ),
            (
                Put(NEXT_VOLUME, NextVolume(volume_id + 1).to_bytes()),
                Put(name_key(name), NameRef(volume_id).to_bytes()),
                Put(spec_key(volume_id), spec.to_bytes()),
                Put(head_key(volume_id), Head(0, None, (), None).to_bytes()),
            ),
        )
        if revision is not None:
            return spec
    raise too_many_races("the next volume's id")


def convert(name: str, redundancy: str, min_copies: int | None = None) -> Steps[Volume]:
    """Have a volume kept in another way; its owner and upkeep learn of it by watching it.

    What it was before is remembered: chunks lie as that says until upkeep has changed them, and
    spans that name no number of copies were written with the first one's.
    ``min_copies``: as for `create`.

    Raises: UsageError for the redundancy; NotFound; Busy when the volume is being deleted.
    """
    scheme = parse(redundancy)
    least = scheme.default_min_copies if min_copies is None else min_copies
    scheme.check_min_copies(least)
    for _ in range(CATALOG_ATTEMPTS_MAX):
        volume = yield from get(name)
        refuse_deleting(volume)
        former, present = volume.spec.former, volume.spec.redundancy
        if str(scheme) == present:
            least = volume.spec.min_copies if min_copies is None else min_copies
        elif present not in former:
            former = (*former, present)
        spec = dataclasses.replace(
            volume.spec, redundancy=str(scheme), min_copies=least, former=former
        )
        if spec == volume.spec:
            return volume
        key = spec_key(spec.volume)
        revision: int | None = yield Commit(
            (Expect(key, volume.spec_revision),), (Put(key, spec.to_bytes()),)
        )
        if revision is not None:
            return dataclasses.replace(volume, spec=spec, spec_revision=revision)
    raise too_many_races(f"volume {name!r}")


def resize(name: str, size_bytes: int, *, shrink: bool) -> Steps[Volume]:
    """Give a volume another size; an owner learns of it by watching the specification.

    Raises: UsageError for a size that is not legal, or smaller than before without
        ``shrink``; NotFound; Busy when the volume is being deleted.
    """
    check_size(name, size_bytes)
    for _ in range(CATALOG_ATTEMPTS_MAX):
        volume = yield from get(name)
        refuse_deleting(volume)
        present = volume.spec.size_bytes
        if size_bytes == present:
            return volume
        if size_bytes < present and not shrink:
            raise UsageError(
                f"volume {name!r} would shrink from {present} to {size_bytes} bytes, "
                f"and lose what is in the last {present - size_bytes}",
                hint="shrink the file system in it first, then repeat with --shrink",
            )
        cut = volume.spec.cut_bytes
        if size_bytes < present:
            # What is cut off must not come back when the volume grows before its writer knows.
            cut = min(cut or size_bytes, size_bytes)
        spec = dataclasses.replace(volume.spec, size_bytes=size_bytes, cut_bytes=cut)
        key = spec_key(spec.volume)
        revision: int | None = yield Commit(
            (Expect(key, volume.spec_revision),), (Put(key, spec.to_bytes()),)
        )
        if revision is not None:
            return dataclasses.replace(volume, spec=spec, spec_revision=revision)
    raise too_many_races(f"volume {name!r}")


# --- what may be asked for ------------------------------------------------------------------


def check_size(name: str, size_bytes: int) -> None:
    """Accept a volume's size.

    Raises: UsageError when it is not positive, not whole sectors, too small or too large.
    """
    problem = ""
    if size_bytes <= 0:
        problem = "it must be more than nothing"
    elif size_bytes < VOLUME_BYTES_MIN:
        problem = f"the smallest volume has {VOLUME_BYTES_MIN} bytes"
    elif size_bytes > VOLUME_BYTES_MAX:
        problem = f"the largest volume has {VOLUME_BYTES_MAX} bytes (64 TiB)"
    elif size_bytes % SECTOR_BYTES:
        below = size_bytes - size_bytes % SECTOR_BYTES
        problem = (
            f"it is not a multiple of {SECTOR_BYTES} "
            f"(the nearest are {below} and {below + SECTOR_BYTES})"
        )
    if problem:
        raise UsageError(
            f"volume {name!r} cannot have {size_bytes} bytes: {problem}",
            hint="sizes are written like 10GiB, 512MiB or 4096",
        )


def name_taken(name: str) -> Steps[AlreadyExists | Busy]:
    """Return the error for a name that was taken; its volume may be gone by now."""
    try:
        volume = yield from get(name)
    except NotFound:
        return Busy(f"volume {name!r} was being deleted; its name is free now")
    if volume.spec.state == DELETING:
        return AlreadyExists(
            f"volume {name!r} is still being deleted",
            hint=f"finish it with: torus volume delete {name}",
        )
    return AlreadyExists(
        f"volume {name!r} exists already, with {volume.spec.size_bytes} bytes",
        hint="choose another name, or see: torus volume list",
    )


def next_id(counter: Entry) -> int:
    """Return the id that the next volume gets."""
    return NextVolume.from_bytes(counter.value, counter.key).next_id
