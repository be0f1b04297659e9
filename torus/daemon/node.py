"""What a node process consists of, and the order in which it comes up and goes down.

Up: metadata, cluster, disks, unfinished deletions, peer service, membership, volumes, control,
NBD, HTTP, registration.  Down: the other way round, so that nothing is promised that is no
longer kept.
"""

import asyncio
import json
import os
import uuid
from contextlib import AsyncExitStack
from dataclasses import asdict

from torus import __version__
from torus._fast.stats import Histogram
from torus.clock import Clock, SystemClock
from torus.cluster.chunks import ChunksOf, chunks_of
from torus.cluster.local import LocalChunks
from torus.config import NodeConfig, is_shared
from torus.daemon.advertise import advertised, listen_address
from torus.daemon.client_times import ClientTimes, client_histograms
from torus.daemon.client_voice import OwnersVoice
from torus.daemon.cluster_parts import ClusterParts
from torus.daemon.dialing import tls_files
from torus.daemon.disks import read_identity
from torus.daemon.handover import Mover
from torus.daemon.housekeeping import Housekeeping
from torus.daemon.metrics import Source
from torus.daemon.node_disks import NodeDisks, disk_status, open_disks
from torus.daemon.orphans import OrphanRounds
from torus.daemon.owner_control import OwnerControl, attached_now
from torus.daemon.owners_elsewhere import alive_in
from torus.daemon.reach import Reach, free_volume, let_go, live_node, volume_options
from torus.daemon.remembered import RememberedHistory
from torus.daemon.reports import NodeStatus
from torus.daemon.scrub import NodeScrub, is_scrub_question, start_scrub
from torus.daemon.sources import NbdSource, ProcessSource, StoreSource, VolumesSource
from torus.daemon.status import StatusServer
from torus.daemon.survey import NODE_QUESTION
from torus.daemon.systemd import notify
from torus.daemon.upkeep import RunningUpkeep, start_upkeep
from torus.daemon.upkeep_source import UpkeepSource
from torus.errors import Busy, NotFound, TorusError, Unavailable, UsageError
from torus.gateway.server import NbdServer
from torus.log import get_logger
from torus.metadata.base import Delete, Expect, Put
from torus.metadata.keys import node_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.open import open_metadata
from torus.metadata.schema import Cluster, Node
from torus.net.address import TcpAddress, UnixAddress, parse_address
from torus.node.control import control_path_beside
from torus.node.places import Places
from torus.node.server import PeerServer, listen_for_peers
from torus.node.service import PeerService
from torus.redundancy.codec import engine_in_use
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
        node=node.disks.node_id,
    )
    notify(ready="1", status="serving")
    await stop.wait()
    notify(stopping="1", status="finishing what is in flight")


class RunningNode:
    """The parts of a node, once `start` has made them."""

    metadata: AsyncMetadata
    disks: NodeDisks
    volumes: AttachedVolumes
    nbd: NbdServer
    _serves = False  # NBD is up

    def __init__(self, config: NodeConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._began_ns = clock.monotonic_ns()
        self._instance_id = uuid.uuid4().hex
        self._me = this_process("node", "", clock)
        self._peer = UnixAddress(str(config.common.home / "peer.sock"))
        self._peer_tcp = ""
        self.http: StatusServer | None = None
        self.cluster: ClusterParts | None = None  # None: a single machine
        self.upkeep: RunningUpkeep | None = None
        self.scrub = NodeScrub()
        self.sync_times = Histogram()
        self.checkpoint_times = Histogram()

    async def start(self, stack: AsyncExitStack) -> None:
        """Bring everything up in order; what is up goes onto ``stack``."""
        config, common = self._config, self._config.common
        common.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        shared = is_shared(common.meta_url)
        if not shared and len(config.data_dirs) > 1:
            raise UsageError(
                f"{len(config.data_dirs)} data directories need the metadata store of a cluster",
                hint="--meta etcd://HOST:2379; on one machine, join the disks below one folder",
            )
        self.metadata = AsyncMetadata(open_metadata(common.meta_url, self._clock))
        stack.push_async_callback(self.metadata.close)
        catalog = AsyncCatalog(self.metadata, self._clock)
        cluster = self._cluster = await self._join(catalog)
        if not shared:
            await self._be_alone()
        self.disks = open_disks(config, cluster.cluster_id, self._clock)
        stack.push_async_callback(self.disks.close)
        usable = [disk.data_dir for disk in self.disks.all if disk.store is not None]
        await RememberedHistory(self.metadata, usable).start(stack)
        self._keep_disks(stack)
        if not shared:
            await self._finish_deletions(self._reach(catalog))
        await self._serve_peers(stack)
        if shared:
            catalog = await self._join_cluster(stack)
        await self._serve_volumes(stack, catalog)
        if self.cluster is not None:
            await self._begin_upkeep(stack, self.cluster)
        self.scrub = await start_scrub(
            stack, self.disks.stores, self.metadata, self._clock,
            self.upkeep.menders if self.upkeep else {}, rate_bytes=config.scrub_rate_bytes,
            clients_slow=ClientTimes(self._client_times, self._clock).slow,
        )  # fmt: skip
        await self._serve_http(stack)
        if self.cluster is not None:
            self._keep_house(stack, catalog, self.cluster)
        await self._register(stack)
        for rounds in self._orphans:
            rounds.start()

    async def _join(self, catalog: AsyncCatalog) -> Cluster:
        """Return the cluster; a disk that belongs to one is not given to a new one."""
        try:
            return await catalog.get_cluster()
        except NotFound as exc:
            for data_dir in self._config.data_dirs:
                identity = read_identity(data_dir)
                if identity is None:
                    continue
                raise NotFound(
                    f"the metadata store {self._config.common.meta_url} is new, but data directory "
                    f"{data_dir} belongs to cluster {identity.cluster_id}",
                    hint="name the right --meta; if the metadata was lost, run 'torus recover'; "
                    "to take a single machine's volumes along, 'torus meta migrate'",
                ) from exc
        return await catalog.init_cluster()

    def _keep_disks(self, stack: AsyncExitStack) -> None:
        self._orphans: list[OrphanRounds] = []
        for store in self.disks.stores.values():
            store.commits.observe = self.sync_times.observe
            rounds = OrphanRounds(store, self.metadata, self._clock)
            self._orphans.append(rounds)
            stack.push_async_callback(rounds.close)

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
                hint="several nodes need the metadata store of a cluster: --meta etcd://HOST:2379",
            )

    async def _serve_peers(self, stack: AsyncExitStack) -> None:
        """Open the peer sockets."""
        cluster, name = self._cluster, self.disks.node_id
        services = [PeerService(store, name=name) for store in self.disks.stores.values()]
        self._places = Places(self.disks.stores)
        for service in services:
            service.on_report = self.report
        stack.push_async_callback(self._places.close)
        self._places.start()
        server = PeerServer(cluster.cluster_id, services, secret=cluster.secret, name=name)
        stack.push_async_callback(server.close)
        listener = await listen_for_peers(self._peer, server)
        stack.callback(listener.close)
        config = self._config
        if not is_shared(config.common.meta_url):
            return
        wanted = await asyncio.to_thread(
            listen_address, config.peer_address, config.common.meta_url
        )
        if wanted is None:
            return
        tcp = await listen_for_peers(wanted, server, tls=tls_files(config.common))
        stack.callback(tcp.close)
        assert isinstance(tcp.address, TcpAddress), "it was asked for one"
        self._peer_tcp = await asyncio.to_thread(advertised, tcp.address, config.common.meta_url)

    async def _join_cluster(self, stack: AsyncExitStack) -> AsyncCatalog:
        """Become one of the cluster's nodes; return the catalog as it is seen from one."""
        self.cluster = ClusterParts(self.metadata, self._clock, self._config)
        await self.cluster.start(stack, self._cluster, self.disks, self.registration)
        alive = alive_in(self.cluster.membership)
        return AsyncCatalog(self.metadata, self._clock, alive=alive)

    async def _begin_upkeep(self, stack: AsyncExitStack, cluster: ClusterParts) -> None:
        """Let the disks have what the ring wants them to have."""
        self.upkeep = await start_upkeep(
            stack, self.disks.stores, cluster.membership, self.metadata, cluster.way.dialing,
            self._clock, rate_bytes=self._config.repair_rate_bytes,
            clients_slow=ClientTimes(self._client_times, self._clock).slow,
        )  # fmt: skip
        cluster.coordinator.settled = self.upkeep.settled
        pool = cluster.way.pool
        voice = OwnersVoice(self._client_times, pool, self._clock, self.upkeep.node)
        stack.push_async_callback(voice.close)
        voice.start()

    def _client_times(self) -> list[Histogram]:
        return client_histograms(self.nbd.stats)

    def _reach(self, catalog: AsyncCatalog) -> Reach:
        """Return this process's way to chunks."""
        way = None if self.cluster is None else self.cluster.way
        return Reach(self.metadata, catalog, self._chunks_of(), self._clock, way)

    def _chunks_of(self) -> ChunksOf:
        """Return where volumes have their chunks."""
        if self.cluster is None:
            return chunks_of(LocalChunks(self.disks.first))
        return self.cluster.way.pool.chunks_of

    async def _serve_volumes(self, stack: AsyncExitStack, catalog: AsyncCatalog) -> None:
        """Offer the volumes over NBD, and answer questions about them."""
        config = self._config
        options = volume_options(config.common, self.checkpoint_times.observe)
        owner = this_process(
            "node", ",".join(config.nbd_addresses), self._clock,
            control=control_path_beside(str(self._peer)),
        )  # fmt: skip
        self.volumes = AttachedVolumes(
            self.metadata, catalog, self._chunks_of(), owner, self._clock, options
        )
        stack.push_async_callback(self.volumes.stop)
        await self.volumes.start()
        self.nbd = NbdServer(self.volumes, clock=self._clock)
        self.volumes.on_lost = self.nbd.cut_off
        if self.cluster is not None:
            reached = self._reach(catalog)
            self.volumes.let_go = lambda name: let_go(reached, name)
        mover = Mover(self.volumes, catalog, self._clock, owner, self.nbd.hand_over)
        self._control = OwnerControl(
            self.volumes, catalog, self._clock, lambda: asdict(self.status()), mover=mover
        )
        await self._control.serve(owner.control, stack)
        stack.push_async_callback(self.nbd.close)
        stack.callback(self.volumes.stop_waiting)
        await self.nbd.start([parse_address(text) for text in config.nbd_addresses])
        self._serves = True

    def _keep_house(
        self, stack: AsyncExitStack, catalog: AsyncCatalog, cluster: ClusterParts
    ) -> None:
        housekeeping = Housekeeping(self._reach(catalog), lambda: cluster.coordinator.elected)
        stack.push_async_callback(housekeeping.close)
        housekeeping.start()

    async def _serve_http(self, stack: AsyncExitStack) -> None:
        if self._config.http_address is None:
            return
        sources: list[Source] = [
            ProcessSource(self._clock),
            NbdSource(self.nbd.stats),
            StoreSource(
                tuple(self.disks.stores.values()),
                self.sync_times,
                unreadable=len(self.disks.all) - len(self.disks.stores),
            ),
            VolumesSource(self.volumes, self.checkpoint_times),
            *(self.cluster.sources() if self.cluster else ()),
            *((UpkeepSource(self.upkeep),) if self.upkeep else ()),
            self.scrub,
        ]
        self.http = StatusServer(self._config.http_address, sources, self.problems)
        stack.push_async_callback(self.http.close)
        await self.http.start()

    # --- registration -------------------------------------------------------------------

    def registration(self) -> Node:
        """Return this node's registration as it should read now."""
        return Node(
            node_id=self.disks.node_id,
            host=self._me.host,
            machine_boot_id=self._me.machine_boot_id,
            pid=self._me.pid,
            pid_start=self._me.pid_start,
            data_dirs=tuple(str(disk.data_dir) for disk in self.disks.all),
            peer_address=str(self._peer),
            nbd_addresses=tuple(str(one) for one in self.nbd.addresses) if self._serves else (),
            http_address=self.http.address if self.http else "",
            size_bytes=self.disks.size_bytes,
            since_ns=self._me.since_ns,
            disks=self.disks.working(),
            peer_tcp=self._peer_tcp,
            instance_id=self._instance_id,
            version=__version__,
        )

    async def _register(self, stack: AsyncExitStack) -> None:
        if self.cluster is not None:
            await self.cluster.refresh()
            return
        node = self.registration()
        key = node_key(node.node_id)
        revision = await self.metadata.commit((), (Put(key, node.to_bytes()),))
        assert revision is not None, "a change without expectations is not refused"
        stack.push_async_callback(self._unregister, key, revision)

    async def _unregister(self, key: str, revision: int) -> None:
        try:
            await self.metadata.commit((Expect(key, revision),), (Delete(key),))
        except TorusError as exc:
            log.warning("node.not_unregistered", error=str(exc))

    async def report(self, question: bytes) -> bytes:
        """Answer a question of another process of the cluster.

        Raises: RemoteProtocolError for one that is not known, NotFound.
        """
        if question == NODE_QUESTION:
            if not self._serves:
                raise Unavailable("the node is starting", hint="try again in a moment")
            documents = [] if self.upkeep is None else self.upkeep.documents()
            answer = {"status": asdict(self.status()), "upkeep": documents}
            return json.dumps(answer, sort_keys=True).encode()
        if Places.is_question(question):
            return self._places.answer(question)
        if is_scrub_question(question):
            return await self.scrub.answer(question)
        if self._serves and question.startswith(b'{"ask": "release"'):
            return json.dumps(await self._control.answer(json.loads(question))).encode()
        if self.upkeep is None:
            raise Unavailable("this node does no upkeep: it is starting, or of no cluster")
        return await self.upkeep.answer(question)

    # --- what it says of itself ---------------------------------------------------------

    def problems(self) -> list[str]:
        """Return a sentence for each thing that is not well."""
        cluster = [] if self.cluster is None else self.cluster.problems()
        return self.disks.problems() + self.volumes.problems() + cluster

    def status(self) -> NodeStatus:
        """Return the state for `torus status`."""
        disks = tuple(disk_status(disk) for disk in self.disks.all)
        return NodeStatus(
            node_id=self.disks.node_id,
            pid=os.getpid(),
            uptime_s=(self._clock.monotonic_ns() - self._began_ns) / 1e9,
            problems=(*self.problems(), *self.scrub.problems()),
            disk_failed=any(disk.failed for disk in disks),
            metadata_ok=self.cluster is None or self.cluster.away_since_s() is None,
            pool_bytes=sum(disk.pool_bytes for disk in disks),
            used_bytes=sum(disk.used_bytes for disk in disks),
            trash_bytes=sum(disk.trash_bytes for disk in disks),
            free_bytes=sum(disk.free_bytes for disk in disks),
            reserve_bytes=sum(disk.reserve_bytes for disk in disks),
            quarantined_bytes=sum(disk.quarantined_bytes for disk in disks),
            connections=self.nbd.stats.connections_open,
            volumes=attached_now(self.volumes),
            disks=disks,
            cluster=None if self.cluster is None else self.cluster.status(),
            scrub=tuple(self.scrub.documents(most=20)),
            erasure=engine_in_use(),
        )
