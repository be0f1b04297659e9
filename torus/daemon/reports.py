"""What long and offline operations say when they are done, and how they tell how far they are.

Decides the shapes only: `torus.daemon.offline` and `torus.daemon.app` fill them, the command
line prints them.  Every report says whether all is well in ``ok``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torus.volume.figures import SpaceFigures

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all or None when unknown); cheap, may be called often."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `torus check` found and that is not as it should be."""

    severity: str  # "error": data is wrong or missing; "warning": nothing is lost
    kind: str  # a constant phrase: "bad-record", "foreign-segment", "missing-chunk", ...
    where: str  # file and offset, or volume and chunk
    message: str


@dataclass(frozen=True, slots=True)
class SnapshotCheck:
    """What the check saw of one snapshot."""

    name: str  # VOLUME@SNAPSHOT
    size_bytes: int
    mapped_bytes: int
    verified_bytes: int  # as a volume's; what it shares with a verified map was compared there
    findings: int


@dataclass(frozen=True, slots=True)
class VolumeCheck:
    """What the check saw of one volume."""

    name: str
    volume: int
    size_bytes: int
    mapped_bytes: int
    verified_bytes: int  # block bytes whose checksum was compared with the map
    findings: int
    recovered_lsn: int | None = None  # last record that an attach would find
    snapshots: tuple[SnapshotCheck, ...] = ()  # by number


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of `torus check`."""

    data_dir: Path
    segments: int
    slots: int
    slots_free: int
    chunks: int
    records: int
    bytes_read: int
    torn_tails: int  # unflushed ends after a crash: normal, dropped at the next open
    volumes: tuple[VolumeCheck, ...]
    findings: tuple[Finding, ...]
    left_over: int = 0  # chunks that nothing needs and that were not freed yet: no error
    shards: int = 0

    @property
    def ok(self) -> bool:
        """Say whether no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class RecoveredVolume:
    """A volume whose metadata was made anew from the copies in its log."""

    name: str
    volume: int
    size_bytes: int
    epoch: int
    chunks: int
    outcome: str  # "recovered", "already known", "not recoverable: REASON"


@dataclass(frozen=True, slots=True)
class RecoveredDisk:
    """A disk that metadata was made anew from."""

    data_dir: Path
    disk_id: str
    node_id: str
    chunks: int
    shards: int


@dataclass(frozen=True, slots=True)
class RecoverReport:
    """The result of `torus recover`."""

    data_dir: Path
    meta_url: str
    cluster_id: str
    volumes: tuple[RecoveredVolume, ...]
    old_meta_kept_at: Path | None = None  # where the damaged store was moved to
    notes: tuple[str, ...] = ()  # what cannot be told from the log, for people
    disks: tuple[RecoveredDisk, ...] = ()  # of a cluster
    written: bool = True  # False: nothing was changed

    @property
    def ok(self) -> bool:
        """Say whether every volume found is known again."""
        return all(one.outcome in ("recovered", "already known") for one in self.volumes)


@dataclass(frozen=True, slots=True)
class CopyReport:
    """The result of an import or an export."""

    volume: str
    size_bytes: int
    copied_bytes: int  # data that was moved; the rest are holes
    hole_bytes: int
    verified: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class AttachedVolume:
    """A volume that a running process has open."""

    name: str
    volume: int
    size_bytes: int
    mapped_bytes: int
    epoch: int
    connections: int
    space: SpaceFigures
    write_amplification: float | None  # None: clients wrote nothing since the attach
    collector_amplification: float | None


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """What a running node says of one of its disks."""

    disk_id: str  # empty: it could not be read
    data_dir: str
    problem: str  # why it takes no data; empty: it does
    failed: bool
    damaged_slots: int = 0
    pool_bytes: int = 0
    used_bytes: int = 0
    trash_bytes: int = 0
    free_bytes: int = 0
    reserve_bytes: int = 0
    quarantined_bytes: int = 0
    chunks: int = 0  # whole copies
    shards: int = 0
    shelf_free_bytes: int = 0  # of used_bytes: what more shards find room in


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What a running node says of its cluster."""

    coordinator: bool  # this node changes the ring by itself
    disks_up: int
    disks: int
    ring_version: int | None
    ring_frozen: str
    ring_paused: bool
    metadata_away_s: float | None  # None: it is not
    registered: bool


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a running node says of itself; `dataclasses.asdict` of it is the control answer."""

    node_id: str
    pid: int
    uptime_s: float
    problems: tuple[str, ...]  # empty: healthy; else a sentence each, for people
    disk_failed: bool
    metadata_ok: bool
    pool_bytes: int  # the limit, `--size`
    used_bytes: int
    trash_bytes: int  # deleted, free when it is needed
    free_bytes: int  # for new data: without the reserve
    reserve_bytes: int
    quarantined_bytes: int
    connections: int
    volumes: tuple[AttachedVolume, ...]
    disks: tuple[DiskStatus, ...] = ()
    cluster: ClusterStatus | None = None  # None: a single machine
    scrub: tuple[dict[str, Any], ...] = ()  # of each disk: `torus.upkeep.scrub_shown`
    erasure: str = ""  # what computes shards: the kernel's instruction set, or zfec
