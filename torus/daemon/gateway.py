"""What a gateway process consists of: volumes of a node, served over NBD from here."""

import asyncio
from contextlib import AsyncExitStack

from torus._fast.stats import Histogram
from torus.config import GatewayConfig
from torus.daemon.reach import let_go, reach, volume_options
from torus.daemon.sources import NbdSource, ProcessSource, VolumesSource
from torus.daemon.status import StatusServer
from torus.gateway.server import NbdServer
from torus.log import get_logger
from torus.net.address import parse_address
from torus.volume.attached import AttachedVolumes
from torus.volume.owner import this_process

log = get_logger("torus.gateway")


async def serve_volumes(config: GatewayConfig, stack: AsyncExitStack, stop: asyncio.Event) -> None:
    """Bring a gateway up, serve until ``stop``; ``stack`` takes it down.

    The volumes are attached at once, so that what stands in the way is said now.

    Raises: TorusError when it cannot start.
    """
    reached = await stack.enter_async_context(reach(config.common, node_only=True))
    times = Histogram()
    volumes = AttachedVolumes(
        reached.metadata,
        reached.catalog,
        reached.chunks,
        this_process("gateway", ",".join(config.nbd_addresses), reached.clock),
        reached.clock,
        volume_options(config.common, times.observe),
        names=config.volumes,
        read_only=config.read_only,
    )
    stack.push_async_callback(volumes.stop)
    await volumes.start()
    for name in config.volumes:
        await let_go(reached, name)
        await volumes.open(name)  # and never closed: attached as long as the gateway runs
    server = NbdServer(volumes, clock=reached.clock)
    volumes.on_lost = server.cut_off
    stack.push_async_callback(server.close)
    stack.callback(volumes.stop_waiting)
    await server.start([parse_address(text) for text in config.nbd_addresses])
    if config.http_address is not None:
        sources = (
            ProcessSource(reached.clock),
            NbdSource(server.stats),
            VolumesSource(volumes, times),
        )
        problems = volumes.problems
        status = StatusServer(config.http_address, sources, problems)
        stack.push_async_callback(status.close)
        await status.start()
    log.info(
        "gateway.ready",
        volumes=list(config.volumes),
        nbd=[str(address) for address in server.addresses],
    )
    await stop.wait()
