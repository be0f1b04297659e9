"""Questions to all disks of the cluster about one volume: fence it, list its chunks.

Decides what it means that some of them cannot be asked.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torus import limits
from torus.cluster.answers import ask_all
from torus.errors import TorusError, Unavailable
from torus.ids import ChunkId, whole_id

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool


def everybody(pool: "DiskPool") -> list[str]:
    """Return the disks that are up, by id."""
    known = {*pool.view.disks(), *pool.local}
    return sorted(disk for disk in known if pool.is_up(disk))


async def fence(pool: "DiskPool", volume: int, epoch: int) -> None:
    """Refuse older epochs on every disk that can be reached.

    Raises: Fenced, Unavailable when none can be.
    """
    disks = everybody(pool)
    found = await ask_all(
        {disk: _fence_on(pool, disk, volume, epoch) for disk in disks}, limits.REPLICA_SCAN_S
    )
    if all(isinstance(answer, TorusError) for answer in found.values()):
        raise Unavailable(
            f"volume id {volume} cannot be fenced: none of {len(disks)} disks answers",
            hint="start their nodes: see torus node list",
        )


async def survey(pool: "DiskPool", volume: int) -> tuple[Sequence[ChunkId], bool]:
    """Return the chunks on all disks that can be reached, whole or in shards, and whether those
    are all disks.

    Raises: Unavailable when none can be.
    """
    places = pool.view.disks()
    disks = everybody(pool)
    found = await ask_all(
        {disk: _list_on(pool, disk, volume) for disk in disks}, limits.PEER_REQUEST_TIMEOUT_S
    )
    chunks: set[ChunkId] = set()
    whole = True
    for answer in found.values():
        if isinstance(answer, TorusError):
            whole = False
        else:
            chunks.update(map(whole_id, answer))
    gone = [one for one in places if one not in found and places[one].state != "removed"]
    if not any(not isinstance(answer, TorusError) for answer in found.values()):
        raise Unavailable(f"chunks of volume id {volume} cannot be listed: no disk answers")
    return sorted(chunks), whole and not gone


async def _fence_on(pool: "DiskPool", disk_id: str, volume: int, epoch: int) -> None:
    await (await pool.get(disk_id)).fence(volume, epoch)


async def _list_on(pool: "DiskPool", disk_id: str, volume: int) -> Sequence[ChunkId]:
    return await (await pool.get(disk_id)).list(volume)
