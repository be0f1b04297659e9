"""`recover`: make a lost or damaged metadata store anew from what the log says of itself.

Decides what of the present store can be kept, and when there is nothing to recover.  The data
directory is only read; the old store is moved aside, never deleted; the new one takes its place
in one step when it is complete.

Implements docs/format.md, "Rebuilding lost metadata".
"""

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from torus.clock import SystemClock
from torus.daemon.check import ByVolume, scan_chunks
from torus.daemon.findings import Findings
from torus.daemon.known import Known, read_known
from torus.daemon.recover_meta import replace_store
from torus.daemon.recover_snapshots import Bonds
from torus.daemon.recover_volume import Rebuilt, VolumeRecovery
from torus.daemon.reports import Progress, RecoveredVolume, RecoverReport
from torus.daemon.stopped import StoppedData, StoppedDisk
from torus.errors import Corruption, ForeignData, UsageError
from torus.ids import NAME_CHARACTERS_MAX
from torus.log import get_logger
from torus.metadata.keys import (
    CLUSTER,
    NEXT_VOLUME,
    head_key,
    lost_key,
    name_key,
    snapshot_key,
    spec_key,
)
from torus.metadata.open import sqlite_path
from torus.metadata.schema import NameRef, NextVolume, VolumeSpec
from torus.volume.catalog import new_cluster

log = get_logger("torus.recover")

KNOWN = "already known"
UNLISTED = (
    "snapshots that were made when nothing had been written since the last checkpoint, as of a "
    "detached volume, stand in no log until the next one: those are not back, and snapshots that "
    "were deleted since may be; protection is as it was at the checkpoint"
)
RECOVERED = "recovered"


def recover(
    data_dir: Path, meta_url: str, progress: Progress, *, force: bool = False
) -> RecoverReport:
    """Rebuild the metadata of the volumes in ``data_dir`` under ``meta_url``.

    With ``force`` volumes are rebuilt from their logs although the present store is healthy.

    Raises: UsageError when the present store is healthy, ForeignData when it is another
        cluster's, Busy while a node runs, NotFound, PermissionDenied, ConfigError, PoolFull,
        Unavailable; Corruption when the directory's identity is damaged.
    """
    path = Path(sqlite_path(meta_url))
    disk = StoppedDisk(data_dir, Findings())
    with contextlib.closing(disk):
        known = read_known(meta_url)
        _check_cluster(known, disk, path)
        stale = _stale(known, disk)
        if not stale and not known.problems and known.usable and not force:
            raise UsageError(
                f"metadata store {path} is healthy and knows all volumes of {data_dir}: there "
                "is nothing to recover",
                hint=f"to rebuild it all the same, move it away first: mv {path} {path}.old",
            )
        seen = scan_chunks(disk, progress)
        rebuild = stale if known.usable and not force else {c.volume for c in disk.chunks}
        made = Rebuilding(disk, known)
        made.keep(rebuild)
        asyncio.run(made.rebuild(rebuild, seen))
        kept_at = replace_store(path, made.values(), SystemClock())
    log.info("metadata.recovered", path=str(path), volumes=len(made.volumes))
    return RecoverReport(
        data_dir=data_dir,
        meta_url=meta_url,
        cluster_id=disk.identity.cluster_id,
        volumes=tuple(sorted(made.volumes, key=lambda one: one.volume)),
        old_meta_kept_at=kept_at,
        notes=made.notes(),
    )


def _check_cluster(known: Known, disk: StoppedDisk, path: Path) -> None:
    found, own = known.cluster, disk.identity.cluster_id
    if found is not None and found.cluster_id != own:
        raise ForeignData(
            f"metadata store {path} belongs to cluster {found.cluster_id}, the data directory "
            f"to cluster {own}",
            hint="name the right --meta, or a file that does not exist yet",
        )


def _stale(known: Known, disk: StoppedDisk) -> set[int]:
    """Return the volumes on the disk that the metadata does not know, or knows an old head of."""
    epochs: dict[int, int] = {}
    for chunk in disk.chunks:
        epochs[chunk.volume] = max(chunk.epoch, epochs.get(chunk.volume, 0))
    stale = set()
    for volume, epoch in epochs.items():
        head = known.heads.get(volume) if volume in known.specs else None
        if head is None or head.epoch < max(epoch, disk.fences.get(volume, 0)):
            stale.add(volume)
    return stale


@dataclass(slots=True)
class Rebuilding:
    """The content of a new store; ``closed``: see `VolumeRecovery`."""

    disk: StoppedData
    known: Known
    closed: bool = False
    volumes: list[RecoveredVolume] = field(default_factory=list)
    bonds: Bonds = field(default_factory=Bonds)

    def keep(self, rebuild: set[int]) -> None:
        """Take over the volumes that the old store knows and that are not made anew."""
        known = self.known
        for volume in sorted(known.specs.keys() & known.heads.keys() - rebuild):
            taken = {other.name for other in self.bonds.specs.values()}
            spec, head = _named(known.specs[volume], taken), known.heads[volume]
            self.bonds.add(spec, head, known.snapshots.get(volume, []))
            self._report(volume, spec, head.epoch, KNOWN)

    async def rebuild(self, volumes: set[int], seen: ByVolume) -> None:
        """Make volumes anew: origins before their clones, which are younger."""
        found: dict[int, Rebuilt] = {}
        for volume in sorted(volumes):
            one = await VolumeRecovery(
                self.disk, volume, seen.get(volume, {}), self.bonds, closed=self.closed
            ).run()
            found[volume] = one
            if one.spec is not None and one.head is not None:
                self.bonds.add(one.spec, one.head, list(one.snapshots))
        kept = [spec for volume, spec in self.bonds.specs.items() if volume not in volumes]
        taken = {spec.name for spec in kept}
        for volume in sorted(volumes, reverse=True):  # the newest keeps its name
            self._take(volume, found[volume], taken)
        self._report_bonds()
        self.bonds.settle()

    def _report_bonds(self) -> None:
        """Say which volumes that were kept are clones of something that did not come back."""
        for number, one in enumerate(self.volumes):
            if one.outcome != KNOWN:
                continue
            for base in self.bonds.bases(one.volume):
                try:
                    self.bonds.origin(base)
                except Corruption as exc:
                    self.volumes[number] = replace(one, outcome=f"{KNOWN}, but {exc.message}")

    def _take(self, volume: int, found: Rebuilt, taken: set[str]) -> None:
        if found.spec is None or found.head is None:
            self._report(volume, found.spec, 0, f"not recoverable: {found.problem}")
            return
        spec = _named(found.spec, taken)
        taken.add(spec.name)
        self.bonds.specs[volume] = spec
        outcome = f"recovered, but {found.problem}" if found.problem else RECOVERED
        self._report(volume, spec, found.head.epoch, outcome)

    def _report(self, volume: int, spec: VolumeSpec | None, epoch: int, outcome: str) -> None:
        chunks = sum(chunk.volume == volume for chunk in self.disk.chunks)
        name = f"volume-{volume}" if spec is None else spec.name
        size = 0 if spec is None else spec.size_bytes
        self.volumes.append(RecoveredVolume(name, volume, size, epoch, chunks, outcome))

    def notes(self) -> tuple[str, ...]:
        """Return what the log cannot tell, for people."""
        rebuilt = [one for one in self.volumes if one.outcome != KNOWN]
        if not rebuilt:
            return ()
        found = [UNLISTED]
        for base in self.bonds.inferred:
            spec = self.bonds.specs.get(base.volume)
            if spec is not None:
                found.append(
                    f"snapshot number {base.number} of {spec.name!r} is known from its clones "
                    f"alone: it is now called {spec.name}@recovered-{base.number}"
                )
        return tuple(found)

    def values(self) -> dict[str, bytes]:
        """Return all keys and values."""
        clock = SystemClock()
        used = {0, *self.bonds.specs, *self.disk.volumes()}
        next_id = max(self.known.next_volume, max(used) + 1)
        cluster = self.known.cluster or new_cluster(clock, self.disk.cluster_id)
        values = {CLUSTER: cluster.to_bytes(), NEXT_VOLUME: NextVolume(next_id).to_bytes()}
        for volume, spec in self.bonds.specs.items():
            values[name_key(spec.name)] = NameRef(volume).to_bytes()
            values[spec_key(volume)] = spec.to_bytes()
            values[head_key(volume)] = self.bonds.heads[volume].to_bytes()
        for snapshot in self.bonds.snapshots():
            values[snapshot_key(snapshot.volume, snapshot.name)] = snapshot.to_bytes()
        for volume in {chunk.volume for chunk in self.disk.chunks} - self.bonds.specs.keys():
            values[lost_key(volume)] = NameRef(volume).to_bytes()  # not to be taken for deleted
        return values


def _named(spec: VolumeSpec, taken: set[str]) -> VolumeSpec:
    """Return the specification under a name that no other volume has."""
    if spec.name not in taken:
        return spec
    suffix = f"-recovered-{spec.volume}"
    return replace(spec, name=spec.name[: NAME_CHARACTERS_MAX - len(suffix)] + suffix)
