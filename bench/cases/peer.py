"""Round trips of the peer protocol to a disk of another process: python -m bench.cases.peer.

Appends, reads and syncs of 4 KiB through a unix socket, one at a time and 32 at a time, with the
processor time of both ends for each.  The disk lies in memory where there is a tmpfs.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from bench.processes import cpu_seconds
from torus import limits
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.clock import SystemClock
from torus.cluster.chunks import DiskWriter
from torus.cluster.peer import PeerChunks
from torus.format.identity import DiskIdentity
from torus.ids import ChunkId
from torus.net.address import UnixAddress
from torus.node.server import PeerServer, listen_for_peers
from torus.node.service import PeerService
from torus.store.disk import PosixDisk
from torus.store.pool import ThreadPool
from torus.store.store import Store

FIRST = limits.SLOT_HEADER_BYTES
BLOCK = limits.BLOCK_BYTES
CLUSTER, DISK = "c1" * 16, "d1" * 16
VOLUME, EPOCH = 5, 2
RECORDS = 200  # in the chunk that is read and synced
DEPTHS = (1, 32)


async def serve(folder: Path, socket: Path) -> None:
    """Serve a new disk until the process is ended."""
    identity = DiskIdentity(DISK, CLUSTER, limits.SLOT_BYTES, limits.SEGMENT_SLOTS, 0)
    disk = PosixDisk(folder)
    disk.use_geometry(identity.geometry)
    store = Store(disk, identity, ThreadPool(2, "store"), SystemClock(), 1, size_bytes=1 << 30)
    store.open()
    await listen_for_peers(UnixAddress(str(socket)), PeerServer(CLUSTER, [PeerService(store)]))
    print("serving", flush=True)
    await asyncio.Event().wait()


class OpenLog:
    """A chunk after the other, each filled with records of one block."""

    sequence = 0

    def __init__(self, chunks: PeerChunks) -> None:
        self._chunks = chunks
        self._block = os.urandom(BLOCK)
        self._builder = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, 4)
        self.chunk: ChunkId | None = None
        self._writer: DiskWriter | None = None
        self._index, self._offset = 0, FIRST

    async def append(self) -> None:
        """Append a record; in a new chunk when the present one is full."""
        if self._writer is None or self._offset + 2 * BLOCK > limits.SLOT_BYTES:
            await self._next()
        assert self._writer is not None
        assert self.chunk is not None
        builder = self._builder
        builder.clear()
        builder.add_data(7, self._block)
        builder.finish(KIND_DATA, self.chunk, self._index, self._index + 1, 0, self._offset)
        await self._writer.append_bytes(self._index, self._offset, builder.tobytes())
        self._index += 1
        self._offset += builder.size

    async def _next(self) -> None:
        await self.delete()
        OpenLog.sequence += 1
        self.chunk = ChunkId(VOLUME, EPOCH, 0, OpenLog.sequence)
        self._writer = await self._chunks.open(self.chunk, from_reserve=False)
        self._index, self._offset = 0, FIRST

    async def delete(self) -> None:
        """Give the chunk back."""
        if self.chunk is not None:
            await self._chunks.delete(VOLUME, EPOCH, [self.chunk])


async def repeat(step: Callable[[int], Awaitable[object]], depth: int, seconds: float) -> int:
    """Run ``step`` in ``depth`` places at once; return how often it was done."""
    end = time.monotonic() + seconds
    count = 0

    async def one(place: int) -> None:
        nonlocal count
        while time.monotonic() < end:
            await step(place)
            count += 1

    await asyncio.gather(*[one(place) for place in range(depth)])
    return count


async def measure(socket: Path, server: int, seconds: float) -> None:
    """Print a line for every load."""
    chunks = await PeerChunks.connect(UnixAddress(str(socket)), CLUSTER)
    kept = OpenLog(chunks)
    for _ in range(RECORDS):
        await kept.append()
    assert kept.chunk is not None
    chunk = kept.chunk
    logs = [OpenLog(chunks) for _ in range(max(DEPTHS))]
    loads: dict[str, Callable[[int], Awaitable[object]]] = {
        "append": lambda place: logs[place].append(),
        "read": lambda place: chunks.read([(chunk, FIRST + place * BLOCK, BLOCK)]),
        "sync": lambda _place: chunks.sync([chunk]),
    }
    for name, step in loads.items():
        for depth in DEPTHS:
            ours, theirs, began = time.process_time(), cpu_seconds([server]), time.monotonic()
            count = await repeat(step, depth, seconds)
            rate = count / (time.monotonic() - began)
            ours = 1e6 * (time.process_time() - ours) / count
            theirs = 1e6 * (cpu_seconds([server]) - theirs) / count
            print(
                f"{name:7} {depth:2} at a time: {rate:9,.0f}/s, "
                f"{ours:6.1f} us of CPU here, {theirs:6.1f} us there"
            )
    for log in logs:
        await log.delete()
    await chunks.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each load (2)")
    parser.add_argument("--serve", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(*options.serve))
        return
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="torus-peer-", dir=shm if shm.is_dir() else None))
    command = [sys.executable, "-m", "bench.cases.peer", "--serve"]
    command += [str(folder / "disk"), str(folder / "socket")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        uvloop.run(measure(folder / "socket", server.pid, options.seconds))
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
