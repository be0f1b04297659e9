"""The disks of one node: each a data directory and a store of its own, which may fail alone.

Decides which node the disks make, and which failures end the node and which only one disk of
several: what the operator can put right ends it, what the hardware did does not.

Implements docs/operations-cluster.md, "Nodes, disks and members".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torus import limits
from torus.clock import Clock
from torus.config import NodeConfig
from torus.daemon.disks import open_store, read_identity
from torus.daemon.reports import DiskStatus
from torus.errors import Corruption, DiskFailed, ForeignData, TorusError, UsageError
from torus.format.identity import DiskIdentity
from torus.log import get_logger
from torus.store.store import Store

log = get_logger("torus.disk")


@dataclass(frozen=True, slots=True)
class NodeDisk:
    """One data directory: its store, or why it has none."""

    data_dir: Path
    disk_id: str  # empty: it could not be read
    store: Store | None
    failure: TorusError | None = None  # why it could not be opened

    @property
    def problem(self) -> str:
        """Return why this disk takes no data, empty when it does."""
        failure = self.failure if self.store is None else self.store.failure
        return "" if failure is None else failure.message


class NodeDisks:
    """All disks of a node; made by `open_disks`."""

    def __init__(self, disks: Sequence[NodeDisk]) -> None:
        self.all = tuple(disks)
        self.stores: dict[str, Store] = {
            disk.disk_id: disk.store for disk in disks if disk.store is not None
        }
        self.first = next(iter(self.stores.values()))
        self.node_id = self.first.identity.node

    def working(self) -> tuple[str, ...]:
        """Return the ids of the disks that take data."""
        return tuple(disk.disk_id for disk in self.all if not disk.problem)

    @property
    def size_bytes(self) -> int:
        """Return the limits of all disks together."""
        return sum(store.identity.size_bytes for store in self.stores.values())

    def problems(self) -> list[str]:
        """Return a sentence for each thing that is not well."""
        found = []
        several = len(self.all) > 1
        for disk in self.all:
            where = f"disk {disk.data_dir}: " if several else ""
            if disk.problem:
                found.append(where + disk.problem)
            if disk.store is None:
                continue
            if disk.store.damaged:
                found.append(f"{where}{len(disk.store.damaged)} damaged slots: run 'torus check'")
            if disk.store.usage.available == 0:
                found.append(f"{where}the pool is full: new data waits or is refused")
        return found

    async def close(self) -> None:
        """Close every store; idempotent."""
        for store in self.stores.values():
            await store.close()


def open_disks(config: NodeConfig, cluster_id: str, clock: Clock) -> NodeDisks:
    """Open every data directory of a node; new ones are made for it.

    Of several, one that cannot be read is left out, with its reason.

    Raises: UsageError for directories of two nodes, and what `open_store` raises.
    """
    folders = config.data_dirs
    identities = _identities(folders)
    node_id = node_of([(folder, found) for folder, found in identities.items() if found])
    disks: list[NodeDisk] = []
    for folder in folders:
        known = identities.get(folder)
        try:
            store = open_store(
                folder, cluster_id, clock,
                size_bytes=config.size_bytes,
                punch_delay_s=limits.PUNCH_DELAY_S if config.punch else None,
                trash_grace_s=config.trash_grace_s, node_id=node_id,
            )  # fmt: skip
        except TorusError as exc:
            if len(folders) == 1 or not _is_the_disks_own(exc):
                for disk in disks:
                    if disk.store is not None:
                        disk.store.disk.close()
                raise
            log.error("disk.failed", data_dir=str(folder), error=str(exc))
            disks.append(NodeDisk(folder, known.disk_id if known else "", None, exc))
            continue
        node_id = node_id or store.identity.node
        disks.append(NodeDisk(folder, store.identity.disk_id, store))
    for disk in disks:
        if disk.failure is not None and all(one.store is None for one in disks):
            raise disk.failure
    return NodeDisks(disks)


def _identities(folders: Sequence[Path]) -> dict[Path, DiskIdentity | None]:
    """Return whose each directory is; one that cannot be read is left out."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError(
            f"a data directory is named twice: {', '.join(str(folder) for folder in folders)}"
        )
    found: dict[Path, DiskIdentity | None] = {}
    for folder in folders:
        try:
            found[folder] = read_identity(folder)
        except TorusError as exc:
            if len(folders) == 1 or not _is_the_disks_own(exc):
                raise
    return found


def node_of(disks: Sequence[tuple[Path, DiskIdentity]]) -> str:
    """Return the id of the node that these disks make; empty when there are none.

    Raises: UsageError when they are two nodes'.
    """
    nodes: dict[str, Path] = {}
    for folder, identity in disks:
        nodes.setdefault(identity.node, folder)
    if len(nodes) > 1:
        (one, first), (other, second) = list(nodes.items())[:2]
        raise UsageError(
            f"data directories {first} and {second} are of two nodes, {one} and {other}",
            hint="start a process for each node, each with its own --home",
        )
    return next(iter(nodes), "")


def _is_the_disks_own(error: TorusError) -> bool:
    """Tell what a disk did from what an operator did."""
    if isinstance(error, ForeignData):
        return False
    return isinstance(error, Corruption | DiskFailed) or type(error) is TorusError


def disk_status(disk: NodeDisk) -> DiskStatus:
    """Return what a status says of a disk."""
    if disk.store is None:
        return DiskStatus(disk.disk_id, str(disk.data_dir), disk.problem, failed=True)
    usage = disk.store.usage
    slot = usage.slot_bytes
    return DiskStatus(
        disk_id=disk.disk_id,
        data_dir=str(disk.data_dir),
        problem=disk.problem,
        failed=disk.store.failure is not None,
        damaged_slots=len(disk.store.damaged),
        pool_bytes=usage.limit * slot,
        used_bytes=usage.used * slot,
        trash_bytes=usage.trash * slot,
        free_bytes=usage.free * slot,
        reserve_bytes=usage.reserve * slot,
        quarantined_bytes=usage.quarantined * slot,
        chunks=len(disk.store.slots) - disk.store.slots.shards,
        shards=disk.store.slots.shards,
        shelf_free_bytes=disk.store.shelves.free_bytes,
    )
