"""The peer protocol between simulated processes: the real service, the real asking end."""

from collections.abc import Sequence

from torus.cluster.membership import Place
from torus.cluster.peer import PeerChunks
from torus.net.address import TcpAddress
from torus.node.server import PeerServer
from torus.node.service import PeerService
from torus.store.store import Store
from torus.testing.simloop import SimLoop
from torus.testing.simnode import CLUSTER_ID, SECRET


async def serve(
    loop: SimLoop, address: str, stores: Sequence[Store], name: str
) -> list[PeerService]:
    """Serve the disks of a node at ``address``."""
    services = [PeerService(store, name=name) for store in stores]
    server = PeerServer(CLUSTER_ID, services, secret=SECRET, name=name)
    host, _, port = address.partition(":")
    await loop.create_server(lambda: server.protocol(near=False), host, int(port))
    return services


async def connect(
    address: str,
    disk_id: str,
    name: str,
    *,
    timeout_s: float,
    retry_s: float,
    silence_s: float | None = None,
) -> PeerChunks:
    """Connect to one disk of a node."""
    host, _, port = address.partition(":")
    return await PeerChunks.connect(
        TcpAddress(host, int(port)), CLUSTER_ID, disk_id=disk_id, secret=SECRET, name=name,
        timeout_s=timeout_s, retry_s=retry_s, silence_s=silence_s,
    )  # fmt: skip


async def connect_replica(place: Place, name: str) -> PeerChunks:
    """Connect as a pool of disks does: it tries again itself."""
    from torus import limits

    assert place.address is not None
    return await connect(
        place.address, place.disk_id, name, timeout_s=limits.PEER_REQUEST_TIMEOUT_S, retry_s=0.0,
        silence_s=limits.REPLICA_SILENCE_S,
    )  # fmt: skip
