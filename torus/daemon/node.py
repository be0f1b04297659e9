"""What a node process consists of, and the order in which it comes up and goes down.

Up: metadata, cluster, disk, unfinished deletions, peer service, volumes, control, NBD, HTTP,
registration.  Down: the other way round, so that nothing is promised that is no longer kept.
"""

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import asdict

from torus._fast.stats import Histogram
from torus.clock import Clock, SystemClock
from torus.cluster.local import LocalChunks
from torus.config import NodeConfig
from torus.daemon.disks import open_store, read_identity
from torus.daemon.handover import Mover
from torus.daemon.orphans import OrphanRounds
from torus.daemon.owner_control import OwnerControl, attached_now
from torus.daemon.reach import Reach, free_volume, live_node, volume_options
from torus.daemon.reports import NodeStatus
from torus.daemon.sources import NbdSource, ProcessSource, StoreSource, VolumesSource
from torus.daemon.status import StatusServer
from torus.errors import Busy, NotFound, TorusError
from torus.gateway.server import NbdServer
from torus.limits import PUNCH_DELAY_S
from torus.log import get_logger
from torus.metadata.base import Delete, Expect, Put
from torus.metadata.keys import node_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.open import open_metadata
from torus.metadata.schema import Node
from torus.net.address import UnixAddress, parse_address
from torus.node.control import control_path_beside
from torus.node.service import PeerService, listen_for_peers
from torus.store.store import Store
from torus.volume.attached import AttachedVolumes
from torus.volume.catalog_ask import DELETING
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.owner import this_process

log = get_logger("torus.node")


async def serve_node(config: NodeConfig, stack: AsyncExitStack, stop: asyncio.Event) -> None:
    """Bring a node up, serve until ``stop``; ``stack`` takes it down.

    Raises: TorusError when it cannot start.
    """
    node = RunningNode(config, SystemClock())
    await node.start(stack)
    log.info(
        "node.ready",
        data_dir=str(config.common.data_dir),
        nbd=[str(address) for address in node.nbd.addresses],
        http=node.http.address if node.http else "none",
    )
    await stop.wait()


class RunningNode:
    """The parts of a node, once `start` has made them."""

    metadata: AsyncMetadata
    store: Store
    volumes: AttachedVolumes
    nbd: NbdServer

    def __init__(self, config: NodeConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._began_ns = clock.monotonic_ns()
        self.http: StatusServer | None = None
        self.sync_times = Histogram()
        self.checkpoint_times = Histogram()

    async def start(self, stack: AsyncExitStack) -> None:
        """Bring everything up in order; what is up goes onto ``stack``."""
        config, common = self._config, self._config.common
        common.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.metadata = AsyncMetadata(open_metadata(common.meta_url, self._clock))
        stack.push_async_callback(self.metadata.close)
        catalog = AsyncCatalog(self.metadata, self._clock)
        cluster_id = await self._join(catalog)
        await self._be_alone()
        self.store = open_store(
            common.data_dir, cluster_id, self._clock,
            size_bytes=config.size_bytes, punch_delay_s=PUNCH_DELAY_S if config.punch else None,
            trash_grace_s=config.trash_grace_s,
        )  # fmt: skip
        stack.push_async_callback(self.store.close)
        self.store.commits.observe = self.sync_times.observe
        chunks = LocalChunks(self.store)
        self._orphans = OrphanRounds(self.store, self.metadata, self._clock)
        stack.push_async_callback(self._orphans.close)
        await self._finish_deletions(Reach(self.metadata, catalog, chunks, self._clock))
        peer = await self._serve_peers(stack)
        options = volume_options(common, self.checkpoint_times.observe)
        addresses = ",".join(config.nbd_addresses)
        owner = this_process("node", addresses, self._clock, control=control_path_beside(peer))
        self.volumes = AttachedVolumes(self.metadata, catalog, chunks, owner, self._clock, options)
        stack.push_async_callback(self.volumes.stop)
        await self.volumes.start()
        self.nbd = NbdServer(self.volumes, clock=self._clock)
        self.volumes.on_lost = self.nbd.cut_off
        mover = Mover(self.volumes, catalog, self._clock, owner, self.nbd.hand_over)
        control = OwnerControl(
            self.volumes, catalog, self._clock, lambda: asdict(self.status()), mover=mover
        )
        await control.serve(owner.control, stack)
        stack.push_async_callback(self.nbd.close)
        stack.callback(self.volumes.stop_waiting)
        await self.nbd.start([parse_address(text) for text in config.nbd_addresses])
        await self._serve_http(stack)
        await self._register(stack, peer)
        self._orphans.start()

    async def _join(self, catalog: AsyncCatalog) -> str:
        """Return the cluster's id; a disk that belongs to one is not given to a new one."""
        data_dir = self._config.common.data_dir
        identity = read_identity(data_dir)
        try:
            return (await catalog.get_cluster()).cluster_id
        except NotFound as exc:
            if identity is not None:
                raise NotFound(
                    f"the metadata store {self._config.common.meta_url} is new, but data directory "
                    f"{data_dir} belongs to cluster {identity.cluster_id}",
                    hint="name the right --meta; if the metadata was lost, run 'torus recover'",
                ) from exc
        return (await catalog.init_cluster()).cluster_id

    async def _finish_deletions(self, reached: Reach) -> None:
        """Go on with deletions that a crash interrupted."""
        for volume in await reached.catalog.list():
            if volume.spec.state == DELETING:
                log.info("node.deletion.resumed", volume=volume.spec.name)
                await free_volume(reached, volume.spec.name, force=True)

    async def _be_alone(self) -> None:
        """Refuse to start beside another node; what this misses, the directory's lock finds."""
        other = await live_node(self.metadata)
        if other is not None:
            raise Busy(
                f"another node serves this metadata store: pid {other.pid} on {other.host} with "
                f"{', '.join(other.data_dirs)}",
                hint="one node for each metadata store in this release",
            )

    async def _serve_peers(self, stack: AsyncExitStack) -> str:
        """Open the peer socket; return its address."""
        folder = self._config.common.home
        peer = UnixAddress(str(folder / "peer.sock"))
        service = PeerService(self.store, name=self.store.identity.disk_id)
        stack.push_async_callback(service.close)
        listener = await listen_for_peers(peer, service)
        stack.callback(listener.close)
        return str(peer)

    async def _serve_http(self, stack: AsyncExitStack) -> None:
        if self._config.http_address is None:
            return
        sources = (
            ProcessSource(self._clock),
            NbdSource(self.nbd.stats),
            StoreSource(self.store, self.sync_times),
            VolumesSource(self.volumes, self.checkpoint_times),
        )
        self.http = StatusServer(self._config.http_address, sources, self.problems)
        stack.push_async_callback(self.http.close)
        await self.http.start()

    async def _register(self, stack: AsyncExitStack, peer: str) -> None:
        config, identity = self._config, self.store.identity
        me = this_process("node", "", self._clock)
        node = Node(
            node_id=identity.disk_id,
            host=me.host,
            machine_boot_id=me.machine_boot_id,
            pid=me.pid,
            pid_start=me.pid_start,
            data_dirs=(str(config.common.data_dir),),
            peer_address=peer,
            nbd_addresses=tuple(str(address) for address in self.nbd.addresses),
            http_address=self.http.address if self.http else "",
            size_bytes=identity.size_bytes,
            since_ns=me.since_ns,
        )
        key = node_key(node.node_id)
        revision = await self.metadata.commit((), (Put(key, node.to_bytes()),))
        assert revision is not None, "a change without expectations is not refused"
        stack.push_async_callback(self._unregister, key, revision)

    async def _unregister(self, key: str, revision: int) -> None:
        try:
            await self.metadata.commit((Expect(key, revision),), (Delete(key),))
        except TorusError as exc:
            log.warning("node.not_unregistered", error=str(exc))

    # --- what it says of itself ---------------------------------------------------------

    def problems(self) -> list[str]:
        """Return a sentence for each thing that is not well."""
        found = []
        if self.store.failure is not None:
            found.append(self.store.failure.message)
        if self.store.damaged:
            found.append(f"{len(self.store.damaged)} damaged slots: run 'torus check'")
        if self.store.usage.available == 0:
            found.append("the pool is full: new data waits or is refused")
        return found + self.volumes.problems()

    def status(self) -> NodeStatus:
        """Return the state for `torus status`."""
        usage = self.store.usage
        slot = usage.slot_bytes
        return NodeStatus(
            node_id=self.store.identity.disk_id,
            pid=os.getpid(),
            uptime_s=(self._clock.monotonic_ns() - self._began_ns) / 1e9,
            problems=tuple(self.problems()),
            disk_failed=self.store.failure is not None,
            metadata_ok=True,
            pool_bytes=usage.limit * slot,
            used_bytes=usage.used * slot,
            trash_bytes=usage.trash * slot,
            free_bytes=usage.free * slot,
            reserve_bytes=usage.reserve * slot,
            quarantined_bytes=usage.quarantined * slot,
            connections=self.nbd.stats.connections_open,
            volumes=attached_now(self.volumes),
        )
