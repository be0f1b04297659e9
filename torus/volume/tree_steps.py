"""The family tree of all volumes: which snapshots each has, and which clones grew from those.

Decides how the catalog's facts are put together for `torus volume tree`; changes nothing.
Volumes and snapshots are listed one after the other, so what is made or removed in between may
be half there.

Implements docs/metadata.md, "The family tree".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torus.metadata.base import Entry
from torus.metadata.keys import SNAPSHOTS
from torus.metadata.schema import Base, Snapshot
from torus.volume.catalog_ask import ListUnder, Steps, Volume
from torus.volume.catalog_steps import list_all


@dataclass(frozen=True, slots=True)
class TreeVolume:
    """A volume and what hangs below it; ``snapshots`` by number."""

    volume: int
    name: str
    size_bytes: int
    mapped_blocks: int
    created_ns: int
    state: str
    attached: bool  # an owner is registered, dead or alive
    snapshots: tuple["TreeSnapshot", ...]


@dataclass(frozen=True, slots=True)
class TreeSnapshot:
    """A snapshot and the clones that read it, by name.

    ``held_by`` names flattened volumes that only need it for a snapshot of their own.
    """

    number: int
    name: str
    size_bytes: int
    mapped_blocks: int
    created_ns: int
    protected: bool
    state: str
    clones: tuple[TreeVolume, ...]
    held_by: tuple[str, ...] = ()


def tree() -> Steps[tuple[TreeVolume, ...]]:
    """Return the volumes that are no clones, by name, with everything below them."""
    volumes = yield from list_all()
    entries: tuple[Entry, ...] = yield ListUnder(SNAPSHOTS)
    snapshots = [Snapshot.from_bytes(entry.value, entry.key) for entry in entries]
    return _Grower(volumes, snapshots).roots()


class _Grower:
    """What the tree grows from: volumes by name, snapshots of each volume by number."""

    def __init__(self, volumes: Sequence[Volume], snapshots: Sequence[Snapshot]) -> None:
        self._volumes = volumes
        self._names: Mapping[int, str] = {one.spec.volume: one.spec.name for one in volumes}
        self._snapshots: dict[int, list[Snapshot]] = {}
        for snapshot in sorted(snapshots, key=lambda one: one.number):
            self._snapshots.setdefault(snapshot.volume, []).append(snapshot)
        known = {Base(one.volume, one.number) for one in snapshots if one.volume in self._names}
        self._clones: dict[Base, list[Volume]] = {}
        self._roots = []
        for volume in volumes:
            base = volume.head.base
            # An origin is older than its clones; damage that says otherwise must not hide them.
            if base is None or base not in known or base.volume >= volume.spec.volume:
                self._roots.append(volume)
            else:
                self._clones.setdefault(base, []).append(volume)

    def roots(self) -> tuple[TreeVolume, ...]:
        return tuple(self._grow(volume) for volume in self._roots)

    def _grow(self, volume: Volume) -> TreeVolume:
        spec, head = volume.spec, volume.head
        below = self._snapshots.get(spec.volume, ())
        return TreeVolume(
            spec.volume, spec.name, spec.size_bytes, head.mapped_blocks, spec.created_ns,
            spec.state, head.owner is not None, tuple(self._grow_from(one) for one in below),
        )  # fmt: skip

    def _grow_from(self, one: Snapshot) -> TreeSnapshot:
        clones = self._clones.get(Base(one.volume, one.number), [])
        shown = {clone.spec.volume for clone in clones}
        held_by = [self._names[i] for i in one.clones if i in self._names and i not in shown]
        return TreeSnapshot(
            one.number, one.name, one.size_bytes, one.mapped_blocks, one.created_ns,
            one.protected, one.state, tuple(self._grow(clone) for clone in clones),
            tuple(sorted(held_by)),
        )  # fmt: skip
