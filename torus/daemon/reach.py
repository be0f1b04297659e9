"""How a command reaches the chunks: through the cluster's nodes, the one that runs on a single
machine, or the data directory itself.

Decides between these: the disks of a cluster are asked wherever they are; on a single machine a
live node that is registered in the metadata is asked, and where none runs, the directory is
opened by this process, which its lock makes safe.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from torus import limits
from torus.clock import Clock, SystemClock
from torus.cluster.chunks import Chunks, ChunksOf, chunks_of
from torus.cluster.local import LocalChunks
from torus.cluster.nearby import NearbyFiles
from torus.cluster.peer import PeerChunks
from torus.config import CommonConfig, is_shared
from torus.daemon.cluster_parts import Way, way_into
from torus.daemon.disks import open_store
from torus.daemon.owners_elsewhere import alive_in, ask_to_let_go
from torus.errors import NotFound, TorusError, Unavailable
from torus.log import get_logger
from torus.metadata.keys import NODES
from torus.metadata.loop import AsyncMetadata
from torus.metadata.open import open_metadata
from torus.metadata.schema import Cluster, Node, VolumeSpec
from torus.net.address import parse_address
from torus.node.control_task import run_task
from torus.volume.attach import VolumeOptions, attach
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.owner import is_alive, this_process

log = get_logger("torus.reach")


@dataclass(frozen=True, slots=True)
class Reach:
    """What a short-lived process works with."""

    metadata: AsyncMetadata
    catalog: AsyncCatalog
    chunks_of: ChunksOf
    clock: Clock
    way: Way | None = None  # None: a single machine


def volume_options(
    common: CommonConfig, observe_checkpoint: Callable[[int], None] = lambda _ns: None
) -> VolumeOptions:
    """Return how this configuration wants volumes to be served."""
    return VolumeOptions(
        observe_checkpoint=observe_checkpoint,
        map_cache_bytes=common.map_cache_bytes,
        checkpoint_interval_s=common.checkpoint_interval_s,
        pause_when_full=common.on_full == "pause",
        gc_rate_bytes=common.gc_rate_bytes,
        early_flush_s=limits.EARLY_FLUSH_S,
    )


async def live_node(metadata: AsyncMetadata) -> Node | None:
    """Return the registered node whose process lives, or may live on another host."""
    for entry in (await metadata.list(NODES)).entries:
        node = Node.from_bytes(entry.value, entry.key)
        if is_alive(node) is not False:
            return node
    return None


@asynccontextmanager
async def reach(common: CommonConfig, *, node_only: bool = False) -> AsyncIterator[Reach]:
    """Open the metadata and the way to the chunks; both are closed at the end.

    With ``node_only`` the data directory is never opened by this process.

    Raises: NotFound without metadata or data directory, Unavailable, Busy, ForeignData.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        metadata = AsyncMetadata(open_metadata(common.meta_url, clock, create=False))
        stack.push_async_callback(metadata.close)
        catalog = AsyncCatalog(metadata, clock)
        cluster = await catalog.get_cluster()
        if is_shared(common.meta_url):
            name = f"{socket.gethostname()}:{os.getpid()}"
            way = await way_into(stack, metadata, clock, common, cluster, name=name, local={})
            catalog = AsyncCatalog(metadata, clock, alive=alive_in(way.membership))
            yield Reach(metadata, catalog, way.pool.chunks_of, clock, way)
            return
        chunks = await _single_machine(stack, metadata, common, cluster, node_only=node_only)
        yield Reach(metadata, catalog, chunks_of(chunks), clock)


async def _single_machine(
    stack: AsyncExitStack,
    metadata: AsyncMetadata,
    common: CommonConfig,
    cluster: Cluster,
    *,
    node_only: bool,
) -> Chunks:
    """Return the chunks of the only disk: the running node's, or the data directory's own."""
    node = await live_node(metadata)
    if node is not None:
        address = parse_address(node.peer_address)
        chunks = await PeerChunks.connect(address, cluster.cluster_id, secret=cluster.secret)
        stack.push_async_callback(chunks.close)
        nearby = NearbyFiles()
        stack.push_async_callback(nearby.close)
        chunks.read_files(nearby)
        return chunks
    if node_only:
        raise Unavailable(
            "no node is running, and a gateway has no disk of its own",
            hint="start one with 'torus node', or serve the volume from it",
        )
    store = open_store(
        common.data_dir, cluster.cluster_id, SystemClock(), size_bytes=None, make=False
    )
    stack.push_async_callback(store.close)
    return LocalChunks(store)


@asynccontextmanager
async def chunks_for(reached: Reach, spec: VolumeSpec) -> AsyncIterator[Chunks]:
    """Give a volume's chunks for one operation.  Raises: Unavailable."""
    chunks = reached.chunks_of(spec)
    try:
        yield chunks
    finally:
        await chunks.stop()


async def let_go(reached: Reach, name: str) -> bool:
    """Ask the owner to give the volume up if it keeps it only for clients that might come back.

    Tells whether it did.  Nothing is lost when it does not answer: who attaches is told that
    the volume is in use.

    Raises: NotFound, Unavailable.
    """
    owner = (await reached.catalog.get(name)).head.owner
    if owner is None:
        return False
    near = is_alive(owner)
    if reached.way is not None:
        if alive_in(reached.way.membership)(owner) is False:
            return False  # one that hangs would be waited for
        if near is None:
            return await ask_to_let_go(reached.way.membership, reached.way.pool, owner, name)
    if not owner.control or not near:
        return False
    try:
        answer = await asyncio.to_thread(run_task, owner.control, "release", name)
    except TorusError as exc:
        log.debug("reach.not_released", volume=name, error=str(exc))
        return False
    return answer.get("released") is True


@asynccontextmanager
async def attached(
    reached: Reach, name: str, role: str, options: VolumeOptions
) -> AsyncIterator[Attachment]:
    """Attach a volume for the length of one operation; nothing is collected beside it.

    Raises: what `attach` and `Attachment.detach` raise.
    """
    await let_go(reached, name)
    found = await reached.catalog.get(name)
    owner = this_process(role, "", reached.clock)
    options = replace(options, gc_rate_bytes=0)
    async with chunks_for(reached, found.spec) as chunks:
        attachment = await attach(found, reached.catalog, chunks, owner, reached.clock, options)
        try:
            yield attachment
        finally:
            await attachment.detach()


async def free_volume(
    reached: Reach, name: str, *, force: bool, with_snapshots: bool = False
) -> None:
    """Delete a volume: mark it, fence its writers, free its chunks, forget it.

    Every step may be repeated after a crash; the volume's name is free only after the last.

    Raises: NotFound, UsageError, Busy, Unavailable, DiskFailed.
    """
    await let_go(reached, name)
    marked = await reached.catalog.mark_deleting(name, force=force, with_snapshots=with_snapshots)
    volume, epoch = marked.spec.volume, marked.head.epoch
    async with chunks_for(reached, marked.spec) as chunks:
        await chunks.fence(volume, epoch)
        await chunks.delete(volume, epoch, await chunks.list(volume))
    await reached.catalog.forget(marked)


async def delete_without_disk(
    common: CommonConfig, name: str, *, force: bool, with_snapshots: bool = False
) -> None:
    """Delete a volume where no data directory was ever made: there is nothing to free.

    Raises: NotFound, Busy.
    """
    clock = SystemClock()
    metadata = AsyncMetadata(open_metadata(common.meta_url, clock, create=False))
    try:
        catalog = AsyncCatalog(metadata, clock)
        found = await catalog.get(name)
        if found.head.spans:
            raise NotFound(
                f"data directory {common.data_dir} does not exist, but volume {name!r} has data",
                hint="name the right --data-dir, or start its node",
            )
        marked = await catalog.mark_deleting(name, force=force, with_snapshots=with_snapshots)
        await catalog.forget(marked)
    finally:
        await metadata.close()
