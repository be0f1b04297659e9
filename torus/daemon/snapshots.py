"""Snapshots, rollback, flattening and copies: who does them, the volume's owner or this process.

Decides for each whether the metadata alone is enough, whether the volume's owner is asked, or
whether this process attaches the volume (`torus.daemon.snapshot_work`).  What may be done to a
snapshot at all is decided in `torus.volume.snapshot_steps` and its neighbours.

The event loop and all that needs it is imported only where a volume is attached here: most
snapshots are a question or a commit.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torus.config import CommonConfig
from torus.daemon.owners import ask_owner, living_owner
from torus.daemon.reports import Progress
from torus.errors import Busy, NotFound, TorusError
from torus.limits import RELEASE_HOLD_S_MAX
from torus.metadata.base import MetadataStore
from torus.metadata.schema import Snapshot
from torus.node.control import ask
from torus.node.control_task import run_task
from torus.volume.catalog import Catalog
from torus.volume.catalog_ask import describe

if TYPE_CHECKING:
    from torus.daemon.reports import CopyReport

Report = Callable[[int, int], None]
_RACES = 3  # how often somebody may attach the volume while this process is about to


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What became of the space of deleted snapshots."""

    chunks: int
    problem: str | None = None  # why nothing could be freed now


def create_snapshot(
    catalog: Catalog,
    config: CommonConfig,
    name: str,
    snap: str,
    now_ns: int,
    store: MetadataStore | None = None,
) -> Snapshot:
    """Make a snapshot of a volume, attached or not; ``store`` as in `ask_owner`.

    Raises: NotFound, UsageError, AlreadyExists, Busy, PoolFull, Unavailable.
    """
    uid = secrets.token_hex(16)
    for attempt in range(_RACES):
        made = catalog.snapshot_detached(name, snap, now_ns, uid)
        if made is not None:
            return made
        answer = ask_owner(catalog, name, "snapshot", {"name": snap, "uid": uid}, store=store)
        if answer is not None:
            return _snapshot_of(answer)
        from torus.daemon import snapshot_work
        from torus.daemon.command import run_command

        try:
            return run_command(config, snapshot_work.snapshot(config, name, snap, uid))
        except Busy:
            if attempt == _RACES - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def delete_snapshot(catalog: Catalog, name: str, snap: str) -> Snapshot:
    """Delete a snapshot; `reclaim` frees its space.

    Raises: NotFound, Busy, UsageError when it is protected.
    """
    return catalog.delete_snapshot(name, snap).snapshot


def reclaim(
    catalog: Catalog, config: CommonConfig, name: str, store: MetadataStore | None = None
) -> Reclaimed:
    """Free what only deleted snapshots of a volume needed; ``store`` as in `ask_owner`.

    A volume that cannot be reached now is no error: its next owner frees it.

    Raises: NotFound.
    """
    if not catalog.get(name).head.spans:
        return Reclaimed(0)  # nothing was ever written
    try:
        answer = ask_owner(catalog, name, "reclaim", store=store)
        if answer is not None:
            return Reclaimed(int(answer.get("chunks", 0)))
        from torus.daemon import snapshot_work
        from torus.daemon.command import run_command

        return Reclaimed(run_command(config, snapshot_work.reclaim(config, name)))
    except NotFound as exc:
        catalog.get(name)  # it is the data directory that is not found, unless this raises
        return Reclaimed(0, exc.message)
    except TorusError as exc:
        return Reclaimed(0, exc.message)


def roll_back(
    catalog: Catalog, config: CommonConfig, name: str, snap: str, *, force: bool
) -> Snapshot:
    """Make a volume what it was at a snapshot; with ``force`` its clients are cut off first.

    Raises: NotFound; Busy while it is attached; PoolFull, Corruption, Unavailable.
    """
    entry = catalog.get_snapshot(name, snap)
    with _taken_from_owner(catalog, name, f"it is rolled back to {snap!r}", force=force):
        from torus.daemon import snapshot_work
        from torus.daemon.command import run_command

        run_command(config, snapshot_work.restore(config, name, snap))
    return entry.snapshot


def flatten(
    catalog: Catalog,
    config: CommonConfig,
    name: str,
    report: Report,
    store: MetadataStore | None = None,
) -> bool:
    """Make a clone independent of its origin; False when it was that already.

    ``store`` as in `ask_owner`.

    Raises: NotFound, Busy, PoolFull, Corruption, Unavailable.
    """
    if catalog.get(name).head.base is None:
        return False
    answer = ask_owner(catalog, name, "flatten", report=report, cancel=False, store=store)
    if answer is None:
        from torus.daemon import snapshot_work
        from torus.daemon.command import run_command

        run_command(config, snapshot_work.flatten(config, name, report))
    return True


def copy(
    catalog: Catalog,
    config: CommonConfig,
    source: tuple[str, str | None],
    target: str,
    now_ns: int,
    progress: Progress,
) -> "CopyReport":
    """Copy a volume, or with a snapshot's name that, into a new volume.

    Without one a snapshot is made for the copy and deleted behind it.  A copy that fails
    leaves no new volume.

    Raises: NotFound, AlreadyExists, Busy, PoolFull, Corruption, Unavailable.
    """
    name, snap = source
    if snap is None:
        catalog.get(name)
    else:
        catalog.get_snapshot(name, snap)
    with _snapshot_for_copy(catalog, config, name, snap, now_ns) as origin:
        spec = catalog.get(name).spec
        catalog.create(target, origin.size_bytes, spec.redundancy)
        from torus.daemon import snapshot_work
        from torus.daemon.command import run_command

        work = snapshot_work.copy(config, name, origin.name, target, progress)
        try:
            return run_command(config, work)
        except TorusError:
            _remove_half_made(config, target)
            raise


@contextlib.contextmanager
def _snapshot_for_copy(
    catalog: Catalog, config: CommonConfig, name: str, snap: str | None, now_ns: int
) -> Iterator[Snapshot]:
    if snap is not None:
        yield catalog.get_snapshot(name, snap).snapshot
        return
    made = create_snapshot(catalog, config, name, f"copy-{secrets.token_hex(4)}", now_ns)
    try:
        yield made
    finally:
        delete_snapshot(catalog, name, made.name)
        reclaim(catalog, config, name)


def _remove_half_made(config: CommonConfig, name: str) -> None:
    from torus.daemon.app import delete_volume

    with contextlib.suppress(TorusError):  # the copy's own error is the one to tell
        delete_volume(config, name, force=False)


@contextlib.contextmanager
def _taken_from_owner(catalog: Catalog, name: str, reason: str, *, force: bool) -> Iterator[None]:
    """Have the volume's owner give it up, and keep it from attaching it anew meanwhile."""
    owner = living_owner(catalog.get(name))
    if owner is None:
        yield
        return
    hold_s = RELEASE_HOLD_S_MAX if force else 0
    arguments = {"force": force, "hold_s": hold_s, "reason": reason}
    run_task(owner.control, "release", name, arguments)
    try:
        _refuse_attached(catalog, name, force=force)
        yield
    finally:
        if force:
            with contextlib.suppress(TorusError):  # the hold ends by itself
                ask(owner.control, {"ask": "resume", "volume": name})


def _refuse_attached(catalog: Catalog, name: str, *, force: bool) -> None:
    left = living_owner(catalog.get(name))
    if left is None:
        return
    raise Busy(
        f"volume {name!r} is attached by {describe(left)}",
        hint="try again"
        if force
        else "disconnect its clients, or repeat with --force, which cuts them off",
    )


def _snapshot_of(answer: dict[str, object]) -> Snapshot:
    import json

    return Snapshot.from_bytes(json.dumps(answer.get("snapshot")).encode(), "answer")
