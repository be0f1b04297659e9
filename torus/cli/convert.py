"""`torus volume convert`: keep a volume in another way.

Decides what is refused for too few nodes, and what is shown meanwhile.  The facts are the disks'
own; what is done with the data is upkeep's.

Implements docs/cli.md, "torus volume convert".
"""

import argparse
from typing import TYPE_CHECKING, Any

from torus.cli.parser import Verbs, add_command
from torus.cli.progress import ProgressLine
from torus.cli.session import Session
from torus.clock import SystemClock
from torus.errors import NotFound, UsageError
from torus.metadata.base import MetadataStore
from torus.metadata.schema import Head
from torus.redundancy.scheme import Scheme, parse
from torus.volume.catalog import Catalog, Volume

if TYPE_CHECKING:
    from torus.daemon.converting import Parts


def declare(verbs: Verbs) -> None:
    """Add `torus volume convert`."""
    parser = add_command(
        verbs,
        "convert",
        "keep a volume in another way: more copies, fewer, or shards",
        run_convert,
        description="Change a volume's redundancy while it is used.  What is written next is kept "
        "in the new way; each disk converts what it has in the background, and gives up nothing "
        "before all of the new is there.  Interrupted at any moment nothing is lost, and it goes "
        "on by itself.",
        examples=(
            (
                "half the space of three copies",
                "torus volume convert disk --redundancy erasure:4+2",
            ),
            ("back, and wait for it", "torus volume convert disk --redundancy replica:3 --wait"),
        ),
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--redundancy", metavar="SCHEME", required=True, help="replica:N or erasure:K+M"
    )
    parser.add_argument(
        "--min-copies", metavar="COUNT", type=int,
        help="writes wait while fewer copies can be had (default: one less than all, at least 1)",
    )  # fmt: skip
    parser.add_argument("--wait", action="store_true", help="return when all disks are done")


def run_convert(arguments: argparse.Namespace, session: Session) -> int:
    """Convert a volume; the data follows by itself."""
    from torus.cli.volume import kinship, volume_document

    output = session.output
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        found = catalog.get(arguments.name)
        before = found.spec.redundancy
        scheme = parse(arguments.redundancy)
        in_cluster = check_ring(store, scheme) is not None
        volume = catalog.convert(arguments.name, arguments.redundancy, arguments.min_copies)
        document: dict[str, Any] = {"volume": volume_document(volume, kinship(catalog))}
    if in_cluster:
        from torus.daemon.command import run_command

        parts = run_command(session.common(), _follow(session, volume, found.head, arguments.wait))
        if parts is not None:
            document["parts"] = parts_document(parts)
    text = (
        f"is {scheme} already"
        if before == str(scheme)
        else f"converted from {before} to {scheme}"
        + ("" if arguments.wait or not in_cluster else "; the data follows in the background")
    )
    output.show(document, lambda: output.line(f"volume {arguments.name!r} {text}"))
    return 0


async def _follow(session: Session, volume: Volume, before: Head, wait: bool) -> "Parts | None":
    from torus.daemon import converting
    from torus.daemon.rebalance import Watching

    async with Watching(session.common()) as watching:
        if not wait:
            await converting.tell(watching)
            return None
        with ProgressLine("converting", session.environment) as progress:
            await converting.wait(watching, before, volume.spec.volume, progress)
        return await converting.count_parts(watching, volume.spec.volume)


def ask_parts(session: Session, volume: int) -> "Parts":
    """Return what all disks that are up have of a volume.

    Raises: NotFound on a single machine, Unavailable.
    """
    from torus.daemon.command import run_command

    async def count() -> "Parts":
        from torus.daemon import converting
        from torus.daemon.rebalance import Watching

        async with Watching(session.common()) as watching:
            return await converting.count_parts(watching, volume)

    return run_command(session.common(), count())


def check_ring(store: MetadataStore, scheme: Scheme) -> int | None:
    """Return how many nodes take data, None on a single machine, if shards have places there.

    Raises: UsageError when they have not.
    """
    from torus.daemon.rings import current_ring

    try:
        ring = current_ring(store)
    except NotFound:
        nodes = None
    else:
        nodes = len({member.node_id for member in ring.members if member.weight})
    if scheme.erasure and (nodes is None or nodes < scheme.disks_needed):
        found = "this is a single machine" if nodes is None else f"the ring has {nodes}"
        raise UsageError(
            f"{scheme} cannot be had: its {scheme.shards} shards take {scheme.disks_needed} "
            f"nodes, {found}",
            hint="add nodes, or use fewer shards; replica:N takes N nodes",
        )
    return nodes


def parts_document(parts: "Parts") -> dict[str, int]:
    """Return the JSON form."""
    return {
        "chunks": parts.chunks,
        "chunks_in_shards": parts.cut,
        "copies": parts.copies,
        "shards": parts.shards,
        "silent_disks": parts.silent,
    }


def parts_text(parts: "Parts") -> str:
    """Return it in a line."""
    text = (
        f"{parts.chunks} chunks, {parts.cut} of them in shards alone: {parts.copies} whole copies "
        f"and {parts.shards} shards"
    )
    return text + (f"; {parts.silent} disks could not be asked" if parts.silent else "")
