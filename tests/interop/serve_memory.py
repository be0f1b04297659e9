"""Serve exports in memory over NBD until SIGTERM.  For tests and for measuring the gateway.

Usage: python serve_memory.py ADDRESS NAME=SIZE_BYTES[:ro]...
"""

import asyncio
import signal
import sys

import uvloop

from torus import log
from torus.gateway.server import NbdServer
from torus.net.address import parse_address
from torus.testing.memory_export import MemoryExport, MemoryExports


async def serve(address: str, exports: list[MemoryExport]) -> None:
    """Serve, say so on standard output, and stop cleanly at SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = NbdServer(MemoryExports(*exports))
    await server.start([parse_address(address)])
    sys.stdout.write(f"{server.addresses[0]}\n")
    sys.stdout.flush()
    await stop.wait()
    await server.close()


def _export(argument: str) -> MemoryExport:
    name, _, rest = argument.partition("=")
    size, _, mode = rest.partition(":")
    return MemoryExport(name, int(size), read_only=mode == "ro", description="memory")


if __name__ == "__main__":
    log.configure("warning", "json")
    uvloop.run(serve(sys.argv[1], [_export(argument) for argument in sys.argv[2:]]))
