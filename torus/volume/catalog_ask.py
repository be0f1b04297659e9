"""What the catalog's operations ask of the metadata store, and the pieces they share.

Decides how an operation is written down: as a generator that yields a `Step` and is sent the
answer.  One text then serves the blocking `torus.volume.catalog` and the event loop's
`torus.volume.catalog_async`.  The rules are in `catalog_steps` and `epoch_steps`.  No I/O.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from torus.errors import Busy, Corruption, NotFound
from torus.limits import CATALOG_ATTEMPTS_MAX
from torus.metadata.base import Delete, Entry, Expect, Put
from torus.metadata.keys import head_key, spec_key, volume_prefix
from torus.metadata.schema import Head, Owner, Reader, VolumeSpec
from torus.volume.owner import ProcessIdentity

READY = "ready"
DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Get:
    """Ask for one key; answered with its Entry or None."""

    key: str


@dataclass(frozen=True, slots=True)
class ListUnder:
    """Ask for all keys under a prefix; answered with their entries at one revision."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Ask for a transaction; answered with its revision, or None when it lost a race."""

    expect: tuple[Expect, ...]
    changes: tuple[Put | Delete, ...]


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it was at one moment, with the revisions that a change must expect."""

    spec: VolumeSpec
    head: Head
    spec_revision: int
    head_revision: int


Step: TypeAlias = Get | ListUnder | Commit
_T = TypeVar("_T")
Steps: TypeAlias = Generator[Step, Any, _T]
Alive: TypeAlias = Callable[[ProcessIdentity], bool | None]


def read_entry(key: str) -> Steps[Entry | None]:
    """Return the entry of one key."""
    entry: Entry | None = yield Get(key)
    return entry


def find_volume(volume_id: int) -> Steps[Volume | None]:
    """Return the volume with that id, or None."""
    entries: tuple[Entry, ...] = yield ListUnder(volume_prefix(volume_id))
    return read_volume({entry.key: entry for entry in entries}) if entries else None


def read_volume(found: dict[str, Entry]) -> Volume:
    """Read a volume from all entries under its prefix."""
    prefix = next(iter(found)).rpartition("/")[0]
    spec, head = found.get(f"{prefix}/spec"), found.get(f"{prefix}/head")
    if spec is None or head is None:
        missing = "specification" if spec is None else "head"
        raise Corruption(
            f"metadata of {prefix!r} has no {missing}",
            hint="rebuild the metadata from the volumes' logs: torus recover",
        )
    return Volume(
        VolumeSpec.from_bytes(spec.value, spec.key),
        Head.from_bytes(head.value, head.key),
        spec.revision,
        head.revision,
    )


def replace_volume(volume: Volume, spec: VolumeSpec, head: Head) -> Steps[Volume | None]:
    """Write the head, and the specification if it changed; None when a race was lost.

    Both are expected unchanged: a volume that turned 'deleting' must not get an owner.
    """
    spec_at, head_at = spec_key(spec.volume), head_key(spec.volume)
    changes: tuple[Put | Delete, ...] = (Put(head_at, head.to_bytes()),)
    if spec != volume.spec:
        changes += (Put(spec_at, spec.to_bytes()),)
    revision: int | None = yield Commit(
        (Expect(spec_at, volume.spec_revision), Expect(head_at, volume.head_revision)), changes
    )
    if revision is None:
        return None
    spec_revision = volume.spec_revision if spec == volume.spec else revision
    return Volume(spec, head, spec_revision, revision)


def too_many_races(what: str) -> Busy:
    """Return the error for an operation that lost every race."""
    return Busy(
        f"{what} was changed by others {CATALOG_ATTEMPTS_MAX} times in a row",
        hint="try again",
    )


def get_by_id(volume_id: int) -> Steps[Volume]:
    """Return the volume with that id.

    Raises: NotFound.
    """
    volume = yield from find_volume(volume_id)
    if volume is None:
        raise NotFound(f"volume id {volume_id} does not exist", hint="see: torus volume list")
    return volume


def describe(owner: Owner | Reader) -> str:
    """Return where a volume is attached or a snapshot is read, for people."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner.since_ns // 10**9))
    device = owner.address if isinstance(owner, Owner) else ""
    disk = f" as {device}" if device.startswith("/dev/") else ""  # of that host's kernel
    return f"{owner.role} pid {owner.pid} on {owner.host}{disk} since {since}"


def refuse_deleting(volume: Volume) -> None:
    """Raise Busy when the volume is being deleted."""
    if volume.spec.state == DELETING:
        raise Busy(
            f"volume {volume.spec.name!r} is being deleted",
            hint=f"finish it with: torus volume delete {volume.spec.name}",
        )


def refuse_attached(volume: Volume, alive: Alive, hint: str) -> None:
    """Raise Busy when the volume has an owner that is alive or may be."""
    owner = volume.head.owner
    living = False if owner is None else alive(owner)
    if owner is None or living is False:
        return
    unsure = "" if living else ", which may be alive: that cannot be told from this host"
    raise Busy(f"volume {volume.spec.name!r} is attached by {describe(owner)}{unsure}", hint=hint)
