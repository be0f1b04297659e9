"""`torus volume`: create, list, info, resize, delete.

Decides what is shown of a volume; what a volume may be is `torus.volume.catalog`'s.
Importing and exporting stand in `torus.cli.volume_copy`, snapshots in `torus.cli.snapshot`,
clones in `torus.cli.clone`.

Implements docs/cli.md, "torus volume".
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torus.cli import backup, clone, convert, diff, snapshot, volume_check, volume_copy
from torus.cli.instants import iso_instant
from torus.cli.nodes import NodeView, node_views
from torus.cli.parser import Verbs, add_command, add_data_dir, add_noun
from torus.cli.session import Session
from torus.cli.sizes import format_size, parse_size
from torus.cli.space import ask_space, space_document, space_fields
from torus.clock import SystemClock
from torus.errors import UsageError
from torus.limits import BLOCK_BYTES
from torus.metadata.base import MetadataStore
from torus.metadata.schema import Owner
from torus.redundancy.scheme import parse
from torus.volume.catalog import Catalog, Volume
from torus.volume.catalog_steps import REDUNDANCY
from torus.volume.owner import is_alive
from torus.volume.tree_steps import TreeVolume


@dataclass(frozen=True, slots=True)
class Kin:
    """What a volume has to do with snapshots."""

    origin: str | None = None  # the snapshot that it was cloned from and still reads
    snapshots: int = 0


NO_KIN = Kin()


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus volume` and its verbs."""
    _, below = add_noun(verbs, noun, summary)
    create = add_command(
        below,
        "create",
        "make a volume",
        run_create,
        description="Make a volume.  It is thin: it costs space only where it is written.",
        examples=(
            ("a disk of 10 GiB", "torus volume create disk 10GiB"),
            (
                "with three copies of everything",
                "torus volume create disk 10GiB --redundancy replica:3",
            ),
            (
                "on six nodes, any two of which may be lost, in 1.5 times the space",
                "torus volume create disk 10GiB --redundancy erasure:4+2",
            ),
        ),
    )
    create.add_argument("name", metavar="NAME")
    create.add_argument("size", metavar="SIZE", help="10GiB, 512M (= MiB), 10GB, 4096 (bytes)")
    create.add_argument(
        "--redundancy", metavar="SCHEME", default=REDUNDANCY,
        help="replica:N keeps N copies on as many nodes, 1 to 8; erasure:K+M cuts data into K "
        f"shards and M parity shards on K+M nodes, any K are enough (default: {REDUNDANCY})",
    )  # fmt: skip
    create.add_argument(
        "--min-copies", metavar="COUNT", type=int,
        help="writes wait while fewer copies can be had (default: one less than all, at least 1)",
    )  # fmt: skip
    add_command(
        below,
        "list",
        "list all volumes",
        run_list,
        examples=(("for a program", "torus volume list -o json"),),
    )
    info = add_command(
        below,
        "info",
        "show one volume",
        run_info,
        examples=(("who has it open?", "torus volume info disk"),),
    )
    info.add_argument("name", metavar="NAME")
    info.add_argument("--parts", action="store_true", help="ask all disks what they have of it")
    _declare_changes(below)
    convert.declare(below)
    snapshot.declare(below)
    clone.declare(below)
    diff.declare(below)
    backup.declare(below)
    volume_copy.declare(below)
    volume_check.declare(below)


def _declare_changes(below: Verbs) -> None:
    resize = add_command(
        below,
        "resize",
        "change a volume's size",
        run_resize,
        description="Change a volume's size, attached or not.  Shrinking drops what is cut off.",
        examples=(
            ("grow", "torus volume resize disk 20GiB"),
            ("shrink", "torus volume resize disk 5GiB --shrink"),
        ),
    )
    resize.add_argument("name", metavar="NAME")
    resize.add_argument("size", metavar="SIZE", help="the new size")
    resize.add_argument("--shrink", action="store_true", help="allow a smaller size; data is lost")
    delete = add_command(
        below,
        "delete",
        "delete a volume and its data",
        run_delete,
        description="Delete a volume and its data.  Refused while it is attached, while it has "
        "snapshots, and always while a snapshot of it is protected or has clones.",
        examples=(
            ("even if it is attached", "torus volume delete disk --force"),
            ("with its snapshots", "torus volume delete disk --with-snapshots"),
        ),
    )
    delete.add_argument("name", metavar="NAME")
    delete.add_argument("--force", action="store_true", help="cut off whoever has it attached")
    delete.add_argument("--with-snapshots", action="store_true", help="delete its snapshots, too")
    add_data_dir(delete)


def run_create(arguments: argparse.Namespace, session: Session) -> int:
    """Make a volume; warn when it is larger than all nodes together."""
    size_bytes = parse_size(arguments.size)
    output = session.output
    with session.metadata(make=True) as store:
        catalog = Catalog(store, SystemClock())
        catalog.init_cluster()
        nodes = node_views(store)
        convert.check_ring(store, parse(arguments.redundancy))
        warning = _check_nodes(arguments.redundancy, arguments.min_copies, len(nodes))
        catalog.create(arguments.name, size_bytes, arguments.redundancy, arguments.min_copies)
        volume = catalog.get(arguments.name)
    if warning:
        output.warning(f"volume {arguments.name!r}: {warning}")
    pool_bytes = sum(view.node.size_bytes for view in nodes)
    if nodes and size_bytes > pool_bytes:
        output.warning(
            f"volume {arguments.name!r} of {format_size(size_bytes)} is larger than the pool of "
            f"{format_size(pool_bytes)}: writes will pause when the pool is full"
        )
    output.show(
        {"volume": volume_document(volume, {})},
        lambda: output.line(f"volume {arguments.name!r} created: {format_size(size_bytes)}"),
    )
    return 0


def _check_nodes(redundancy: str, min_copies: int | None, nodes: int) -> str:
    """Return a warning when fewer nodes are up than copies are wanted; none are too few to tell.

    Raises: UsageError when a write would wait, as there are too few nodes.
    """
    scheme = parse(redundancy)
    least = scheme.default_min_copies if min_copies is None else min_copies
    scheme.check_min_copies(least)
    if 0 < nodes < least:
        raise UsageError(
            f"{scheme} cannot be had: {nodes} nodes are up, and writes need {least} copies",
            hint="start more nodes, or use --min-copies to go on with fewer",
        )
    if 0 < nodes < scheme.copies:
        return f"{nodes} nodes are up, so it has {nodes} copies instead of {scheme.copies}"
    return ""


def run_list(arguments: argparse.Namespace, session: Session) -> int:
    """List all volumes by name."""
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        volumes, kin = catalog.list(), kinship(catalog)
        mapped = _mapped_bytes(store)
    documents = [volume_document(volume, kin, mapped) for volume in volumes]

    def render() -> None:
        if not documents:
            session.output.note("no volumes; make one with 'torus volume create NAME SIZE'")
            return
        session.output.table(
            ("NAME", ">SIZE", ">USED", "REDUNDANCY", "STATE", "ATTACHED"),
            [
                (
                    one["name"],
                    format_size(one["size_bytes"]),
                    format_size(one["used_bytes"]),
                    one["redundancy"],
                    one["state"],
                    _attached_text(one["attached"]),
                )
                for one in documents
            ],
        )

    session.output.show({"volumes": documents}, render)
    return 0


def run_info(arguments: argparse.Namespace, session: Session) -> int:
    """Show all that is known of one volume."""
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        volume = catalog.get(arguments.name)
        document = volume_document(volume, kinship(catalog), _mapped_bytes(store))
        snapshots = len(catalog.snapshots(arguments.name))
    attached = ask_space(volume.head.owner, volume.spec.volume)
    space = space_document(attached, document["used_bytes"], snapshots)
    lines = [*_lines(document), *space_fields(attached, snapshots)]
    found = {"volume": document, "space": space}
    if arguments.parts:
        parts = convert.ask_parts(session, volume.spec.volume)
        found["parts"] = convert.parts_document(parts)
        lines.append(("parts", convert.parts_text(parts)))
    session.output.show(found, lambda: session.output.fields(lines))
    return 0


def run_resize(arguments: argparse.Namespace, session: Session) -> int:
    """Change a volume's size."""
    size_bytes = parse_size(arguments.size)
    output = session.output
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        old_bytes = catalog.get(arguments.name).spec.size_bytes
        volume = catalog.resize(arguments.name, size_bytes, shrink=arguments.shrink)
        kin = kinship(catalog)
    change = (
        f"is {format_size(size_bytes)} already"
        if old_bytes == size_bytes
        else f"resized from {format_size(old_bytes)} to {format_size(size_bytes)}"
    )
    output.show(
        {"volume": volume_document(volume, kin), "old_size_bytes": old_bytes},
        lambda: output.line(f"volume {arguments.name!r} {change}"),
    )
    return 0


def run_delete(arguments: argparse.Namespace, session: Session) -> int:
    """Delete a volume and free its space."""
    with session.metadata() as store:
        volume = Catalog(store, SystemClock()).get(arguments.name)
    # the name is right: only now pay for the asyncio side
    from torus.daemon.app import delete_volume

    delete_volume(
        session.common(), arguments.name, arguments.force, with_snapshots=arguments.with_snapshots
    )
    session.output.show(
        {"deleted": {"name": arguments.name, "volume": volume.spec.volume}},
        lambda: session.output.line(f"volume {arguments.name!r} deleted"),
    )
    return 0


def kinship(catalog: Catalog) -> dict[int, Kin]:
    """Return what each volume, by id, has to do with snapshots; others have nothing."""
    found: dict[int, Kin] = {}

    def visit(volumes: Iterable[TreeVolume], origin: str | None) -> None:
        for volume in volumes:
            found[volume.volume] = Kin(origin, len(volume.snapshots))
            for below in volume.snapshots:
                visit(below.clones, f"{volume.name}@{below.name}")

    visit(catalog.tree(), None)
    return found


def volume_document(
    volume: Volume, kin: Mapping[int, Kin], mapped_bytes: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """Return the JSON form of a volume; ``kin`` is that of all volumes, by id.

    ``mapped_bytes`` by id is newer than the metadata's.
    """
    family = kin.get(volume.spec.volume, NO_KIN)
    spec, head = volume.spec, volume.head
    used_bytes = head.mapped_blocks * BLOCK_BYTES
    root = head.root
    return {
        "name": spec.name,
        "volume": spec.volume,
        "size_bytes": spec.size_bytes,
        "used_bytes": (mapped_bytes or {}).get(spec.volume, used_bytes),
        "redundancy": spec.redundancy,
        "min_copies": spec.min_copies,
        "former": list(spec.former),
        "state": spec.state,
        "origin": family.origin,
        "snapshots": family.snapshots,
        "created": iso_instant(spec.created_ns),
        "epoch": head.epoch,
        "spans": len(head.spans),
        "root": None if root is None else {"sequence": root.sequence, "lsn": root.lsn},
        "attached": None if head.owner is None else _owner_document(head.owner),
    }


def _owner_document(owner: Owner) -> dict[str, Any]:
    return {
        "host": owner.host,
        "pid": owner.pid,
        "role": owner.role,
        "address": owner.address,
        "since": iso_instant(owner.since_ns),
        "alive": is_alive(owner),  # null: another host, cannot be told from here
    }


def _attached_text(attached: dict[str, Any] | None) -> str:
    if attached is None:
        return "-"
    ended = " (gone)" if attached["alive"] is False else ""
    return f"{attached['role']} {attached['host']}:{attached['pid']}{ended}"


def _lines(document: dict[str, Any]) -> list[tuple[str, str]]:
    attached, root = document["attached"], document["root"]
    owner = "no"
    if attached is not None:
        state = {True: "", False: ", which has ended", None: ", on another host"}
        owner = (
            f"{attached['role']}, pid {attached['pid']} on {attached['host']}"
            f" since {attached['since']}{state[attached['alive']]}"
        )
    return [
        ("name", document["name"]),
        ("id", str(document["volume"])),
        ("size", f"{format_size(document['size_bytes'])} ({document['size_bytes']} bytes)"),
        ("used", f"{format_size(document['used_bytes'])} ({document['used_bytes']} bytes)"),
        ("redundancy", _redundancy_text(document)),
        ("state", document["state"]),
        ("origin", document["origin"] or "none"),
        ("snapshots", str(document["snapshots"])),
        ("created", document["created"]),
        ("attached", owner),
        ("epoch", str(document["epoch"])),
        ("spans", str(document["spans"])),
        ("root", "none" if root is None else f"chunk {root['sequence']}, lsn {root['lsn']}"),
    ]


def _redundancy_text(document: dict[str, Any]) -> str:
    before = f"; was {', '.join(document['former'])}" if document["former"] else ""
    return f"{document['redundancy']}, writes need {document['min_copies']}{before}"


def _mapped_bytes(store: MetadataStore) -> dict[int, int]:
    """Return what running nodes say is mapped now, by volume id; metadata lags a checkpoint."""
    mapped: dict[int, int] = {}
    for view in node_views(store, ask=True):
        mapped.update(_mapped_of(view))
    return mapped


def _mapped_of(view: NodeView) -> dict[int, int]:
    volumes = (view.status or {}).get("volumes", ())
    return {int(one["volume"]): int(one["mapped_bytes"]) for one in volumes}
