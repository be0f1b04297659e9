"""What changed between two snapshots, or between a snapshot and a volume as it is now.

Decides what is held still while it is compared: a snapshot by being its reader, a volume by a
snapshot made for the purpose, which its owner makes if it is attached.
"""

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from torus.config import CommonConfig
from torus.daemon.command import run_command
from torus.daemon.reach import reach, volume_options
from torus.daemon.snapshot_work import opened
from torus.daemon.snapshots import create_snapshot, delete_snapshot
from torus.errors import UsageError
from torus.ids import join_snapshot
from torus.volume.catalog import Catalog
from torus.volume.changes import Change, changes
from torus.volume.view import View

Side = tuple[str, str | None]
"""A volume's name and that of its snapshot; None: the volume as it is now."""


@dataclass(frozen=True, slots=True)
class DiffReport:
    """The result of a comparison; the ranges are in order and do not touch the same kind."""

    size_bytes: int  # of what was compared with the base
    changes: tuple[Change, ...]

    def changed_bytes(self, *, mapped: bool) -> int:
        """Return how much has new data, or became zeroes."""
        return sum(one.length for one in self.changes if one.mapped == mapped)


def diff(
    catalog: Catalog, config: CommonConfig, base: Side | None, to: Side, now_ns: int
) -> DiffReport:
    """Compare; without a base, everything that has data is a change.

    Raises: NotFound, UsageError when the two have no log in common, Busy, Corruption,
        Unavailable.
    """
    with contextlib.ExitStack() as stack:
        sides = [
            None if side is None else stack.enter_context(_still(catalog, config, side, now_ns))
            for side in (base, to)
        ]
        return run_command(config, _compare(config, *sides))


def refuse_unrelated(base: View, view: View) -> None:
    """Raise UsageError when nothing of one map could be found in the other."""
    if not set(base.family.volumes) & set(view.family.volumes):
        raise UsageError(
            f"{base.name!r} and {view.name!r} have nothing in common: neither volume is a clone "
            "of the other, or of the same one",
            hint="a clone that was flattened has nothing in common with its origin any more",
        )


async def _compare(
    config: CommonConfig, base: tuple[str, str] | None, to: tuple[str, str] | None
) -> DiffReport:
    assert to is not None
    cache_bytes = volume_options(config).map_cache_bytes // 2
    async with AsyncExitStack() as stack:
        reached = await stack.enter_async_context(reach(config))
        view = await stack.enter_async_context(opened(reached, *to, "diff", cache_bytes))
        before = None
        if base is not None:
            before = await stack.enter_async_context(opened(reached, *base, "diff", cache_bytes))
            refuse_unrelated(before, view)
        size_bytes = view.snapshot.size_bytes
        found = [change async for change in changes(before, view, size_bytes)]
        return DiffReport(size_bytes, tuple(found))


@contextlib.contextmanager
def _still(
    catalog: Catalog, config: CommonConfig, side: Side, now_ns: int
) -> Iterator[tuple[str, str]]:
    """Give a snapshot of that side; one that was made for this goes afterwards."""
    name, snap = side
    if snap is not None:
        catalog.get_snapshot(name, snap)
        yield name, snap
        return
    made = create_snapshot(catalog, config, name, f"diff-{secrets.token_hex(4)}", now_ns)
    try:
        yield name, made.name
    finally:
        delete_snapshot(catalog, name, made.name)


def side_name(side: Side) -> str:
    """Return a side as people write it."""
    name, snap = side
    return name if snap is None else join_snapshot(name, snap)
