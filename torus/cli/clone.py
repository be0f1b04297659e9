"""`torus volume clone`, `flatten`, `rollback`, `copy` and `tree`.

Decides what is shown of a family of volumes.  Who does the work is decided in
`torus.daemon.snapshots`.

Implements docs/cli.md, "torus volume clone" and its neighbours.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torus.cli.instants import iso_instant
from torus.cli.parser import Verbs, add_command, add_data_dir
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.clock import SystemClock
from torus.errors import UsageError
from torus.ids import check_volume_name, join_snapshot, split_snapshot
from torus.limits import BLOCK_BYTES
from torus.volume.catalog import Catalog

if TYPE_CHECKING:
    from torus.volume.tree_steps import TreeSnapshot, TreeVolume


def declare(below: Verbs) -> None:
    """Add the verbs to `torus volume`."""
    clone = add_command(
        below,
        "clone",
        "make a volume that begins as a snapshot",
        run_clone,
        description="Make a volume that begins as a snapshot.  It shares the snapshot's data and "
        "costs space only where it is written.  The snapshot cannot be deleted before the clone "
        "is deleted or flattened.",
        examples=(("a machine from a golden image", "torus volume clone golden@v1 vm7"),),
    )
    clone.add_argument("snapshot", metavar="NAME@SNAP")
    clone.add_argument("new", metavar="NEW")
    flatten = add_command(
        below,
        "flatten",
        "make a clone independent of its origin",
        run_flatten,
        description="Copy what a clone still shares into it.  Afterwards it does not need the "
        "snapshot any more that it was cloned from.  It may be attached and written meanwhile.  "
        "Interrupted, a flattening that the owner does goes on.",
        examples=(("so that the golden image can go", "torus volume flatten vm7"),),
    )
    flatten.add_argument("name", metavar="NAME")
    add_data_dir(flatten)
    rollback = add_command(
        below,
        "rollback",
        "make a volume what it was at a snapshot",
        run_rollback,
        description="Give a volume the data and the size that it had at a snapshot.  What was "
        "written since is lost, unless a later snapshot has it.  Refused while it is attached.",
        examples=(
            ("undo an upgrade", "torus volume rollback vm1@before-upgrade"),
            ("even if clients use it", "torus volume rollback vm1@before-upgrade --force"),
        ),
    )
    rollback.add_argument("snapshot", metavar="NAME@SNAP")
    rollback.add_argument("--force", action="store_true", help="disconnect its clients first")
    add_data_dir(rollback)
    copy = add_command(
        below,
        "copy",
        "copy a volume or a snapshot into a new volume",
        run_copy,
        description="Copy a volume's data, or a snapshot's, into a new volume that shares "
        "nothing with it.  Holes cost no space.  The volume may be attached: it is copied as it "
        "was when the copy began.",
        examples=(
            ("as it is now", "torus volume copy vm1 vm1-copy"),
            ("as it was", "torus volume copy vm1@monday vm1-monday"),
        ),
    )
    copy.add_argument("source", metavar="NAME[@SNAP]")
    copy.add_argument("new", metavar="NEW")
    add_data_dir(copy)
    add_command(
        below,
        "tree",
        "show volumes with their snapshots and clones",
        run_tree,
        examples=(("for a program", "torus volume tree -o json"),),
    )


def run_clone(arguments: argparse.Namespace, session: Session) -> int:
    """Make a clone."""
    name, snap = split_snapshot(arguments.snapshot)
    with session.metadata() as store:
        clock = SystemClock()
        catalog = Catalog(store, clock)
        catalog.clone(name, snap, arguments.new, clock.wall_ns())
        from torus.cli.volume import kinship, volume_document

        document = volume_document(catalog.get(arguments.new), kinship(catalog))
    origin = join_snapshot(name, snap)
    session.output.show(
        {"volume": document},
        lambda: session.output.line(f"volume {arguments.new!r} cloned from {origin!r}"),
    )
    return 0


def run_flatten(arguments: argparse.Namespace, session: Session) -> int:
    """Make a clone independent."""
    from torus.cli.progress import ProgressLine
    from torus.daemon.snapshots import flatten

    name = arguments.name
    with (
        session.metadata() as store,
        ProgressLine(f"flattening {name}", session.environment) as progress,
    ):
        catalog = Catalog(store, SystemClock())
        changed = flatten(catalog, session.common(), name, progress, store)
    text = "flattened" if changed else "is no clone: there is nothing to flatten"
    session.output.show(
        {"flattened": {"volume": name, "changed": changed}},
        lambda: session.output.line(f"volume {name!r} {text}"),
    )
    return 0


def run_rollback(arguments: argparse.Namespace, session: Session) -> int:
    """Make a volume what it was."""
    name, snap = split_snapshot(arguments.snapshot)
    from torus.daemon.snapshots import roll_back

    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        snapshot = roll_back(catalog, session.common(), name, snap, force=arguments.force)
    size = snapshot.size_bytes
    session.output.show(
        {"rollback": {"volume": name, "snapshot": snap, "size_bytes": size}},
        lambda: session.output.line(f"volume {name!r} is what it was at {snap!r}"),
    )
    return 0


def run_copy(arguments: argparse.Namespace, session: Session) -> int:
    """Copy a volume or a snapshot."""
    snap: str | None = None
    name = arguments.source
    if "@" in name:
        name, snap = split_snapshot(name)
    check_volume_name(arguments.new)
    if arguments.new == name:
        raise UsageError(f"volume {name!r} cannot be copied into itself")
    from torus.cli.progress import ProgressLine
    from torus.cli.volume_copy import say_copied
    from torus.daemon.snapshots import copy

    with (
        session.metadata() as store,
        ProgressLine(f"copying {arguments.source}", session.environment) as progress,
    ):
        clock = SystemClock()
        catalog = Catalog(store, clock)
        now_ns = clock.wall_ns()
        report = copy(catalog, session.common(), (name, snap), arguments.new, now_ns, progress)
    say_copied(session, report, f"copied from {arguments.source!r}")
    return 0


def run_tree(arguments: argparse.Namespace, session: Session) -> int:
    """Show all families."""
    with session.metadata() as store:
        roots = Catalog(store, SystemClock()).tree()

    def render() -> None:
        rows = [row for root in roots for row in _volume_rows(root, 0)]
        if not rows:
            session.output.note("no volumes; make one with 'torus volume create NAME SIZE'")
            return
        session.output.table(("NAME", ">SIZE", ">USED", "CREATED", "STATE"), rows)

    session.output.show({"volumes": [_volume_document(root) for root in roots]}, render)
    return 0


def _volume_rows(volume: "TreeVolume", depth: int) -> Iterator[tuple[str, ...]]:
    state = "attached" if volume.attached and volume.state == "ready" else volume.state
    yield _row(depth, volume.name, volume, state)
    for snapshot in volume.snapshots:
        state = "protected" if snapshot.protected else snapshot.state
        if snapshot.held_by:
            state += f", held by {', '.join(snapshot.held_by)}"
        yield _row(depth + 1, "@" + snapshot.name, snapshot, state)
        for clone in snapshot.clones:
            yield from _volume_rows(clone, depth + 2)


def _row(depth: int, name: str, shown: "TreeVolume | TreeSnapshot", state: str) -> tuple[str, ...]:
    return (
        "  " * depth + name,
        format_size(shown.size_bytes),
        format_size(shown.mapped_blocks * BLOCK_BYTES),
        iso_instant(shown.created_ns),
        state,
    )


def _volume_document(volume: "TreeVolume") -> dict[str, Any]:
    return {
        "name": volume.name,
        "volume": volume.volume,
        "size_bytes": volume.size_bytes,
        "used_bytes": volume.mapped_blocks * BLOCK_BYTES,
        "created": iso_instant(volume.created_ns),
        "state": volume.state,
        "attached": volume.attached,
        "snapshots": [_snapshot_document(snapshot) for snapshot in volume.snapshots],
    }


def _snapshot_document(snapshot: "TreeSnapshot") -> dict[str, Any]:
    return {
        "name": snapshot.name,
        "number": snapshot.number,
        "size_bytes": snapshot.size_bytes,
        "used_bytes": snapshot.mapped_blocks * BLOCK_BYTES,
        "created": iso_instant(snapshot.created_ns),
        "protected": snapshot.protected,
        "state": snapshot.state,
        "clones": [_volume_document(clone) for clone in snapshot.clones],
        "held_by": list(snapshot.held_by),
    }
