"""`torus volume check`: which blocks of a volume and of its snapshots cannot be read.

Decides what is held still meanwhile: a snapshot by being its reader, the volume as it is now by
a snapshot made for the purpose.

Implements docs/scrub.md, "Which blocks are lost".
"""

import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass

from torus.config import CommonConfig
from torus.daemon.command import run_command
from torus.daemon.reach import Reach, reach, volume_options
from torus.daemon.reports import Progress
from torus.daemon.snapshot_work import opened
from torus.daemon.snapshots import create_snapshot, delete_snapshot
from torus.errors import Corruption, TorusError, Unavailable
from torus.ids import join_snapshot
from torus.limits import BLOCK_BYTES
from torus.metadata.schema import Snapshot
from torus.volume.catalog import Catalog
from torus.volume.catalog_ask import READY
from torus.volume.readable import Bad, MapReader
from torus.volume.snapshot_map import SnapshotMap


@dataclass(frozen=True, slots=True)
class SideCheck:
    """The volume as it is now, or one of its snapshots."""

    name: str  # "vm1", or "vm1@monday"
    size_bytes: int
    read_bytes: int  # of blocks that no newer one has at the same place
    bad: tuple[Bad, ...]
    problem: str = ""  # why its map cannot be opened: then nothing of it can be read
    known: bool = True  # False: that may be because a disk is silent


@dataclass(frozen=True, slots=True)
class VolumeReadable:
    """The result of `torus volume check`."""

    name: str
    sides: tuple[SideCheck, ...]  # the newest first

    @property
    def exit_code(self) -> int:
        """Return 0 when all can be read, 65 when something is lost, 69 when that is not known."""
        certain = [one.known for side in self.sides for one in side.bad]
        certain += [side.known for side in self.sides if side.problem]
        if not certain:
            return 0
        return Corruption.exit_code if any(certain) else Unavailable.exit_code


def check_volume(
    catalog: Catalog, config: CommonConfig, name: str, now_ns: int, progress: Progress
) -> VolumeReadable:
    """Read every block of a volume and of its snapshots.

    Raises: NotFound, Busy, Unavailable when the metadata or no disk can be reached.
    """
    spec = catalog.get(name).spec
    snapshots = [one for one in catalog.snapshots(name) if one.state == READY]
    made, failed = None, None
    try:
        made = create_snapshot(catalog, config, name, f"check-{secrets.token_hex(4)}", now_ns)
    except Corruption as exc:
        failed = SideCheck(name, spec.size_bytes, 0, (), exc.message)
    try:
        sides = [*snapshots, *([] if made is None else [made])]
        work = _check(config, name, sides, None if made is None else made.name, progress)
        found = run_command(config, work)
    finally:
        if made is not None:
            delete_snapshot(catalog, name, made.name)
    return VolumeReadable(name, (*([] if failed is None else [failed]), *found))


async def _check(
    config: CommonConfig,
    name: str,
    snapshots: list[Snapshot],
    now: str | None,
    progress: Progress,
) -> list[SideCheck]:
    mapped = max((one.mapped_blocks for one in snapshots), default=0) * BLOCK_BYTES
    done = [0]

    def step(count: int) -> None:
        done[0] += count
        progress(done[0], max(mapped, done[0]))

    reader = MapReader(step)
    found: list[SideCheck] = []
    async with reach(config) as reached:
        cache_bytes = volume_options(config).map_cache_bytes // 2
        checks = _Sides(reached, name, now, reader, cache_bytes)
        for snapshot in reversed(snapshots):
            found.append(await checks.next(snapshot))
        await checks.close()
    return found


class _Sides:
    """Goes from one snapshot to the next older one; the newer stays open to compare with."""

    def __init__(
        self, reached: Reach, name: str, now: str | None, reader: MapReader, cache_bytes: int
    ) -> None:
        self._reached = reached
        self._name = name
        self._now = now
        self._reader = reader
        self._cache_bytes = cache_bytes
        self._newer: SnapshotMap | None = None
        self._newer_bad: tuple[Bad, ...] = ()
        self._leave = AsyncExitStack()

    async def close(self) -> None:
        """Let go of what is open."""
        await self._leave.aclose()

    async def next(self, snapshot: Snapshot) -> SideCheck:
        """Read what a snapshot has and the one before, which is newer, has not."""
        is_now = snapshot.name == self._now
        shown = self._name if is_now else join_snapshot(self._name, snapshot.name)
        stack = AsyncExitStack()
        try:
            view = await stack.enter_async_context(
                opened(self._reached, self._name, snapshot.name, "check", self._cache_bytes)
            )
            found = await self._reader.read(view, self._newer, self._newer_bad)
        except TorusError as exc:
            await stack.aclose()
            known = not isinstance(exc, Unavailable)
            return SideCheck(shown, snapshot.size_bytes, 0, (), exc.message, known)
        except BaseException:
            await stack.aclose()
            raise
        await self._leave.aclose()
        self._leave, self._newer, self._newer_bad = stack, view, tuple(found.bad)
        return SideCheck(
            shown, snapshot.size_bytes, found.mapped_blocks * BLOCK_BYTES, tuple(found.bad)
        )
