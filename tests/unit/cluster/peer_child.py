"""A node in a process of its own, for `test_peer_days`: python -m ... FOLDER SOCKET."""

import asyncio
import sys
from pathlib import Path

from torus.clock import SystemClock
from torus.format.identity import DiskIdentity
from torus.limits import SEGMENT_SLOTS, SLOT_BYTES
from torus.net.address import UnixAddress
from torus.node.server import PeerServer, listen_for_peers
from torus.node.service import PeerService
from torus.store.disk import PosixDisk
from torus.store.pool import ThreadPool
from torus.store.store import Store

CLUSTER = "c1" * 16


async def serve(folder: Path, path: str) -> None:
    """Serve a new disk until the process is killed."""
    identity = DiskIdentity("d1" * 16, CLUSTER, SLOT_BYTES, SEGMENT_SLOTS, 0)
    disk = PosixDisk(folder)
    disk.use_geometry(identity.geometry)
    size = SEGMENT_SLOTS * SLOT_BYTES
    store = Store(disk, identity, ThreadPool(2, "s"), SystemClock(), 1, size_bytes=size)
    store.open()
    await listen_for_peers(UnixAddress(path), PeerServer(CLUSTER, [PeerService(store)]))
    sys.stdout.write("up\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().create_future()


asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
