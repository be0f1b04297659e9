"""What a gateway process consists of: volumes of a node, served over NBD from here.

Decides where its control socket lies and what becomes of those that dead gateways left.
"""

import asyncio
import os
import socket
import uuid
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from torus import limits
from torus._fast.stats import Histogram
from torus.config import GatewayConfig, is_shared
from torus.daemon.client_times import client_histograms
from torus.daemon.client_voice import OwnersVoice
from torus.daemon.handover import Mover
from torus.daemon.leased_key import LeasedKey
from torus.daemon.owner_control import OwnerControl, attached_now
from torus.daemon.reach import Reach, let_go, reach, volume_options
from torus.daemon.reports import AttachedVolume
from torus.daemon.sources import NbdSource, ProcessSource, VolumesSource
from torus.daemon.status import StatusServer
from torus.daemon.systemd import notify
from torus.errors import TorusError
from torus.gateway.server import NbdServer
from torus.log import get_logger
from torus.metadata.base import Delete, Expect, Put
from torus.metadata.keys import GATEWAYS, gateway_key
from torus.metadata.schema import Gateway, Owner
from torus.net.address import parse_address
from torus.redundancy.codec import engine_in_use
from torus.volume.attached import AttachedVolumes
from torus.volume.owner import is_alive, this_process

log = get_logger("torus.gateway")


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """What a running gateway says of itself; `dataclasses.asdict` of it is the control answer."""

    gateway_id: str
    pid: int
    uptime_s: float
    problems: tuple[str, ...]  # empty: healthy; else a sentence each, for people
    connections: int
    volumes: tuple[AttachedVolume, ...]
    erasure: str = ""  # what computes shards: the kernel's instruction set, or zfec


async def serve_volumes(config: GatewayConfig, stack: AsyncExitStack, stop: asyncio.Event) -> None:
    """Bring a gateway up, serve until ``stop``; ``stack`` takes it down.

    Raises: TorusError when it cannot start.
    """
    gateway = RunningGateway(config)
    await gateway.start(stack)
    log.info(
        "gateway.ready",
        volumes=list(config.volumes),
        nbd=[str(address) for address in gateway.nbd.addresses],
        control=gateway.owner.control,
    )
    notify(ready="1", status="serving")
    await stop.wait()
    notify(stopping="1", status="finishing what is in flight")


class RunningGateway:
    """The parts of a gateway, once `start` has made them."""

    volumes: AttachedVolumes
    nbd: NbdServer
    owner: Owner

    def __init__(self, config: GatewayConfig, *, device: str = "", takeover: bool = False) -> None:
        """``device``: the disk of this machine's kernel that the only volume is, which does not
        move; ``takeover``: take the volumes from whoever has them."""
        self._config = config
        self._device = device
        self._takeover = takeover
        self.gateway_id = uuid.uuid4().hex
        self._leased: LeasedKey | None = None  # on a shared store
        self.checkpoint_times = Histogram()

    async def start(self, stack: AsyncExitStack) -> None:
        """Bring everything up in order; what is up goes onto ``stack``.

        The volumes are attached at once, so that what stands in the way is said now, unless
        they stand by; they stay attached as long as the gateway runs, or until they move.
        """
        config = self._config
        reached = await stack.enter_async_context(reach(config.common, node_only=True))
        self._reached, self._began_ns = reached, reached.clock.monotonic_ns()
        self.owner = this_process(
            "gateway", self._device or ",".join(config.nbd_addresses), reached.clock,
            control=control_path_of(config.common.home, os.getpid()),
        )  # fmt: skip
        options = volume_options(config.common, self.checkpoint_times.observe)
        self.volumes = AttachedVolumes(
            reached.metadata, reached.catalog, reached.chunks_of, self.owner, reached.clock,
            options, names=config.volumes, read_only=config.read_only, linger_s=None,
            standby=config.standby,
        )  # fmt: skip
        stack.push_async_callback(self.volumes.stop)
        await self.volumes.start()
        self.nbd = NbdServer(self.volumes, clock=reached.clock)
        self.volumes.on_lost = self.nbd.cut_off
        if reached.way is not None:
            self.volumes.let_go = lambda name: let_go(reached, name)
        mover = Mover(
            self.volumes, reached.catalog, reached.clock, self.owner, self.nbd.hand_over,
            device=self._device,
        )  # fmt: skip
        self.volumes.standbys.take, self.volumes.standbys.look = mover.take_open, mover.look
        control = OwnerControl(
            self.volumes, reached.catalog, reached.clock, lambda: asdict(self.status()),
            mover=mover,
        )  # fmt: skip
        await control.serve(self.owner.control, stack)
        if is_shared(config.common.meta_url):  # who has a volume and no lease counts as dead
            await forget_dead_gateways(reached)
            await self._lease(stack, reached)
        for name in config.volumes:
            if "@" in name:
                await self.volumes.open(name)  # and never closed: it is not deleted meanwhile
                continue
            if config.standby:
                continue  # attached at the first request of a client
            if self._takeover:
                await mover.take(name, lambda _done, _total: None, force=True)
                continue
            await let_go(reached, name)
            await self.volumes.close(await self.volumes.open(name))
        stack.push_async_callback(self.nbd.close)
        stack.callback(self.volumes.stop_waiting)
        await self.nbd.start([parse_address(text) for text in config.nbd_addresses])
        if reached.way is not None:
            voice = OwnersVoice(
                lambda: client_histograms(self.nbd.stats), reached.way.pool, reached.clock
            )
            stack.push_async_callback(voice.close)
            voice.start()
        await self._serve_http(stack, reached)
        await self._register(stack, reached)

    async def _serve_http(self, stack: AsyncExitStack, reached: Reach) -> None:
        if self._config.http_address is None:
            return
        sources = (
            ProcessSource(reached.clock),
            NbdSource(self.nbd.stats),
            VolumesSource(self.volumes, self.checkpoint_times),
        )
        status = StatusServer(self._config.http_address, sources, self.volumes.problems)
        stack.push_async_callback(status.close)
        await status.start()

    def registration(self) -> Gateway:
        """Return this gateway's registration as it should read now."""
        return Gateway(
            gateway_id=self.gateway_id,
            host=self.owner.host,
            machine_boot_id=self.owner.machine_boot_id,
            pid=self.owner.pid,
            pid_start=self.owner.pid_start,
            nbd_addresses=tuple(str(address) for address in self.nbd.addresses),
            control=self.owner.control,
            since_ns=self.owner.since_ns,
        )

    async def _register(self, stack: AsyncExitStack, reached: Reach) -> None:
        if self._leased is not None:
            await self._leased.refresh()
            return
        await forget_dead_gateways(reached)
        key = gateway_key(self.gateway_id)
        value = self.registration().to_bytes()
        revision = await reached.metadata.commit((), (Put(key, value),))
        assert revision is not None, "a change without expectations is not refused"
        stack.push_async_callback(self._unregister, reached, key, revision)

    async def _lease(self, stack: AsyncExitStack, reached: Reach) -> None:
        """Be registered as long as this process is well: other hosts cannot see it end."""
        leased = self._leased = LeasedKey(
            reached.metadata, reached.clock, gateway_key(self.gateway_id),
            lambda: self.registration().to_bytes(),
            ttl_s=limits.NODE_LEASE_S, is_mine=self._is_mine,
        )  # fmt: skip
        stack.push_async_callback(leased.close)
        await leased.claim(0)
        leased.start()

    def _is_mine(self, value: bytes) -> bool:
        return Gateway.from_bytes(value, "gateways/").gateway_id == self.gateway_id

    async def _unregister(self, reached: Reach, key: str, revision: int) -> None:
        try:
            await reached.metadata.commit((Expect(key, revision),), (Delete(key),))
        except TorusError as exc:
            log.warning("gateway.not_unregistered", error=str(exc))

    def status(self) -> GatewayStatus:
        """Return the state for whoever asks at the control socket."""
        return GatewayStatus(
            gateway_id=self.gateway_id,
            pid=os.getpid(),
            uptime_s=(self._reached.clock.monotonic_ns() - self._began_ns) / 1e9,
            problems=tuple(self.volumes.problems()),
            connections=self.nbd.stats.connections_open,
            volumes=attached_now(self.volumes),
            erasure=engine_in_use(),
        )


def control_path_of(home: Path, pid: int) -> str:
    """Return the control socket of the gateway ``pid``; makes its folder, for this user only.

    Sockets that nobody listens on, because their gateway was killed, are removed.
    """
    folder = home / "gateways"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob("*.ctl"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.setblocking(False)  # a busy listener is no dead one
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError as exc:
                log.debug("gateway.socket.unclear", path=str(path), error=str(exc))
    return str(folder / f"{pid}.ctl")


async def forget_dead_gateways(reached: Reach) -> None:
    """Remove the registrations of gateways of this machine that were killed."""
    for entry in (await reached.metadata.list(GATEWAYS)).entries:
        if is_alive(Gateway.from_bytes(entry.value, entry.key)) is False:
            await reached.metadata.commit(
                (Expect(entry.key, entry.revision),), (Delete(entry.key),)
            )
