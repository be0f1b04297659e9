"""`torus volume snapshot`, `protect` and `unprotect`.

Decides what is shown of a snapshot.  Who makes one is decided in `torus.daemon.snapshots`, what
may be done to one in `torus.volume.snapshot_steps`.

Implements docs/cli.md, "torus volume snapshot create" and its neighbours.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from torus.cli.instants import iso_instant
from torus.cli.parser import Verbs, add_command, add_data_dir, add_noun
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.clock import SystemClock
from torus.errors import UsageError
from torus.ids import join_snapshot, split_snapshot
from torus.limits import BLOCK_BYTES
from torus.metadata.schema import Snapshot
from torus.volume.catalog import Catalog


def declare(below: Verbs) -> None:
    """Add the verbs to `torus volume`."""
    _, verbs = add_noun(below, "snapshot", "make, list and delete snapshots of volumes")
    create = add_command(
        verbs,
        "create",
        "make a snapshot",
        run_create,
        description="Keep a volume as it is now, under a name.  It may be attached and written "
        "meanwhile: the snapshot is what a power cut at this moment would have left.",
        examples=(("before an upgrade", "torus volume snapshot create vm1@before-upgrade"),),
    )
    create.add_argument("snapshot", metavar="NAME@SNAP")
    add_data_dir(create)
    listed = add_command(
        verbs,
        "list",
        "list snapshots",
        run_list,
        description="List the snapshots of one volume, or of all, oldest first.",
        examples=(
            ("of one volume", "torus volume snapshot list vm1"),
            ("for a program", "torus volume snapshot list -o json"),
        ),
    )
    listed.add_argument("name", metavar="NAME", nargs="?")
    delete = add_command(
        verbs,
        "delete",
        "delete snapshots",
        run_delete,
        description="Delete snapshots, and free what only they needed.  Refused while a snapshot "
        "is protected, is read by somebody or has clones.",
        examples=(
            ("one", "torus volume snapshot delete vm1@monday"),
            ("many", "torus volume snapshot delete vm1@monday vm1@tuesday"),
        ),
    )
    delete.add_argument("snapshots", metavar="NAME@SNAP", nargs="+")
    add_data_dir(delete)
    for verb, summary, run in (
        ("protect", "forbid that a snapshot is deleted", run_protect),
        ("unprotect", "allow again that a snapshot is deleted", run_unprotect),
    ):
        parser = add_command(
            below, verb, summary, run, examples=((summary, f"torus volume {verb} vm1@golden"),)
        )
        parser.add_argument("snapshot", metavar="NAME@SNAP")


def run_create(arguments: argparse.Namespace, session: Session) -> int:
    """Make a snapshot."""
    name, snap = split_snapshot(arguments.snapshot)
    with session.metadata() as store:
        clock = SystemClock()
        from torus.daemon.snapshots import create_snapshot

        catalog = Catalog(store, clock)
        made = create_snapshot(catalog, session.common(), name, snap, clock.wall_ns(), store)
    document = snapshot_document(name, made, {})
    session.output.show(
        {"snapshot": document},
        lambda: session.output.line(f"snapshot '{join_snapshot(name, snap)}' created"),
    )
    return 0


def run_list(arguments: argparse.Namespace, session: Session) -> int:
    """List snapshots by volume and age."""
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        volumes = catalog.list()
        names = {volume.spec.volume: volume.spec.name for volume in volumes}
        chosen = [catalog.get(arguments.name)] if arguments.name else volumes
        documents = [
            snapshot_document(volume.spec.name, snapshot, names)
            for volume in chosen
            for snapshot in catalog.snapshots(volume.spec.name)
        ]

    def render() -> None:
        if not documents:
            session.output.note("no snapshots; make one: torus volume snapshot create NAME@SNAP")
            return
        session.output.table(
            ("SNAPSHOT", ">SIZE", ">USED", "CREATED", "STATE", "CLONES"),
            [
                (
                    join_snapshot(one["volume"], one["name"]),
                    format_size(one["size_bytes"]),
                    format_size(one["used_bytes"]),
                    one["created"],
                    state_text(one),
                    ", ".join(one["clones"]) or "-",
                )
                for one in documents
            ],
        )

    session.output.show({"snapshots": documents}, render)
    return 0


def run_delete(arguments: argparse.Namespace, session: Session) -> int:
    """Delete snapshots one after the other, then free space once for each volume."""
    wanted = [split_snapshot(text) for text in arguments.snapshots]
    if len(set(wanted)) < len(wanted):
        raise UsageError("a snapshot is named twice")
    from torus.daemon.snapshots import delete_snapshot, reclaim

    output = session.output
    deleted: list[dict[str, str]] = []
    freed: dict[str, int | None] = {}
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        try:
            for name, snap in wanted:
                delete_snapshot(catalog, name, snap)
                deleted.append({"volume": name, "name": snap})
                if not output.as_json:
                    output.line(f"snapshot '{join_snapshot(name, snap)}' deleted")
        finally:  # what was deleted before one is refused frees its space all the same
            for name in dict.fromkeys(one["volume"] for one in deleted):
                found = reclaim(catalog, session.common(), name, store)
                freed[name] = found.chunks if found.problem is None else None
                if found.problem is not None:
                    output.note(f"its space is freed when {name!r} is attached: {found.problem}")
    output.show({"deleted": deleted, "freed_chunks": freed}, lambda: None)
    return 0


def run_protect(arguments: argparse.Namespace, session: Session) -> int:
    """Forbid that a snapshot is deleted."""
    return _set_protected(arguments, session, protected=True)


def run_unprotect(arguments: argparse.Namespace, session: Session) -> int:
    """Allow again that a snapshot is deleted."""
    return _set_protected(arguments, session, protected=False)


def _set_protected(arguments: argparse.Namespace, session: Session, *, protected: bool) -> int:
    name, snap = split_snapshot(arguments.snapshot)
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        changed = catalog.set_protected(name, snap, protected)
        names = {one.spec.volume: one.spec.name for one in catalog.list()}
    state = "is protected" if protected else "may be deleted"
    session.output.show(
        {"snapshot": snapshot_document(name, changed, names)},
        lambda: session.output.line(f"snapshot '{join_snapshot(name, snap)}' {state}"),
    )
    return 0


def snapshot_document(volume: str, snapshot: Snapshot, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the JSON form of a snapshot; ``names`` of volumes, by id, name its clones."""
    return {
        "volume": volume,
        "name": snapshot.name,
        "number": snapshot.number,
        "uid": snapshot.uid,
        "size_bytes": snapshot.size_bytes,
        "used_bytes": snapshot.mapped_blocks * BLOCK_BYTES,
        "created": iso_instant(snapshot.created_ns),
        "protected": snapshot.protected,
        "state": snapshot.state,
        "clones": sorted(names.get(one, f"id {one}") for one in snapshot.clones),
    }


def state_text(document: Mapping[str, Any]) -> str:
    """Return a snapshot's state as one word."""
    return "protected" if document["protected"] else str(document["state"])
