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
from torus.daemon.recover_volume import Rebuilt, VolumeRecovery
from torus.daemon.reports import Progress, RecoveredVolume, RecoverReport
from torus.daemon.stopped import StoppedDisk
from torus.errors import ForeignData, UsageError
from torus.log import get_logger
from torus.metadata.open import sqlite_path
from torus.metadata.schema import (
    CLUSTER,
    NEXT_VOLUME,
    Cluster,
    Head,
    NameRef,
    NextVolume,
    VolumeSpec,
    head_key,
    name_key,
    spec_key,
)

log = get_logger("torus.recover")

_NAME_CHARACTERS_MAX = 128
KNOWN = "already known"
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
        made = _Store(disk, known)
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
class _Store:
    """The content of the new store."""

    disk: StoppedDisk
    known: Known
    volumes: list[RecoveredVolume] = field(default_factory=list)
    specs: dict[int, VolumeSpec] = field(default_factory=dict)
    heads: dict[int, Head] = field(default_factory=dict)

    def keep(self, rebuild: set[int]) -> None:
        """Take over the volumes that the old store knows and that are not made anew."""
        for volume in sorted(self.known.specs.keys() & self.known.heads.keys() - rebuild):
            spec, head = self.known.specs[volume], self.known.heads[volume]
            self.specs[volume], self.heads[volume] = self._named(spec), head
            self._report(volume, self.specs[volume], head.epoch, KNOWN)

    async def rebuild(self, volumes: set[int], seen: ByVolume) -> None:
        """Make volumes anew; the newest first, so that it keeps its name."""
        for volume in sorted(volumes, reverse=True):
            found = await VolumeRecovery(self.disk, volume, seen.get(volume, {})).run()
            self._take(volume, found)

    def _take(self, volume: int, found: Rebuilt) -> None:
        if found.spec is None or found.head is None:
            self._report(volume, found.spec, 0, f"not recoverable: {found.problem}")
            return
        spec = self._named(found.spec)
        self.specs[volume], self.heads[volume] = spec, found.head
        outcome = f"recovered, but {found.problem}" if found.problem else RECOVERED
        self._report(volume, spec, found.head.epoch, outcome)

    def _report(self, volume: int, spec: VolumeSpec | None, epoch: int, outcome: str) -> None:
        chunks = sum(chunk.volume == volume for chunk in self.disk.chunks)
        name = f"volume-{volume}" if spec is None else spec.name
        size = 0 if spec is None else spec.size_bytes
        self.volumes.append(RecoveredVolume(name, volume, size, epoch, chunks, outcome))

    def _named(self, spec: VolumeSpec) -> VolumeSpec:
        """Return the specification under a name that no other volume has."""
        taken = {other.name for other in self.specs.values()}
        if spec.name not in taken:
            return spec
        suffix = f"-recovered-{spec.volume}"
        return replace(spec, name=spec.name[: _NAME_CHARACTERS_MAX - len(suffix)] + suffix)

    def values(self) -> dict[str, bytes]:
        """Return all keys and values."""
        clock = SystemClock()
        identity = self.disk.identity
        used = {0, *self.disk.fences, *self.specs, *(c.volume for c in self.disk.chunks)}
        next_id = max(self.known.next_volume, max(used) + 1)
        cluster = self.known.cluster or Cluster(identity.cluster_id, clock.wall_ns())
        values = {CLUSTER: cluster.to_bytes(), NEXT_VOLUME: NextVolume(next_id).to_bytes()}
        for volume, spec in self.specs.items():
            values[name_key(spec.name)] = NameRef(volume).to_bytes()
            values[spec_key(volume)] = spec.to_bytes()
            values[head_key(volume)] = self.heads[volume].to_bytes()
        return values
