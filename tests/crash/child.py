"""A process to be killed: writes stamped blocks and says on stdout what was answered.

Lines: "a N" operation N was answered, "f N" everything up to N was flushed.  Operation N writes
`stamp(seed, N)`; the parent knows what that is.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from torus import limits
from torus.clock import SystemClock
from torus.cluster.local import LocalChunks
from torus.format.identity import IDENTITY_FILE, DiskIdentity
from torus.format.segment import Geometry
from torus.metadata.loop import AsyncMetadata
from torus.metadata.sqlite import SqliteMetadata
from torus.store.disk import PosixDisk
from torus.store.pool import ThreadPool
from torus.store.store import Store
from torus.volume.attach import VolumeOptions, attach
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.owner import this_process

VOLUME_BYTES = 4 * limits.MIB
GEOMETRY = Geometry(256 * limits.KIB, 16)
STORE_BYTES = 1000 * GEOMETRY.slot_bytes  # nothing is collected: each attach keeps a chunk


def stamp(seed: int, number: int) -> tuple[int, bytes]:
    """Return where operation ``number`` writes, and what."""
    rng = random.Random(f"{seed}:{number}")
    size = rng.choice((512, 4096, 4096, 8192, 3 * 512, 65536))
    unit = 4096 if size % 4096 == 0 else 512
    return rng.randrange(0, (VOLUME_BYTES - size) // unit + 1) * unit, rng.randbytes(size)


def open_store(folder: Path) -> Store:
    """Open the data directory, made if need be."""
    disk = PosixDisk(folder)
    data = disk.read_file(IDENTITY_FILE)
    if data is None:
        identity = DiskIdentity(
            "11" * 16, "22" * 16, GEOMETRY.slot_bytes, GEOMETRY.segment_slots, 1
        )
        disk.replace_file(IDENTITY_FILE, identity.to_bytes())
    else:
        identity = DiskIdentity.from_bytes(data, IDENTITY_FILE)
    disk.use_geometry(identity.geometry)
    pool = ThreadPool(2, "disk")
    store = Store(disk, identity, pool, SystemClock(), os.getpid(), size_bytes=STORE_BYTES)
    store.open()
    return store


async def open_volume(folder: Path, store: Store) -> tuple[Attachment, AsyncMetadata]:
    """Attach the volume, made if need be."""
    clock = SystemClock()
    metadata = AsyncMetadata(SqliteMetadata(str(folder / "metadata.db"), clock))
    catalog = AsyncCatalog(metadata, clock)
    await catalog.init_cluster()
    if not await catalog.list():
        await catalog.create("v", VOLUME_BYTES)
    found = await catalog.get("v")
    owner = this_process("test", "", clock)
    return await attach(found, catalog, LocalChunks(store), owner, clock, VolumeOptions()), metadata


async def work(folder: Path, seed: int, number: int) -> None:
    """Write until killed, from operation ``number`` on."""
    store = open_store(folder / "data")
    attachment, _ = await open_volume(folder, store)
    volume = attachment.volume
    print("a", number - 1, flush=True)
    while True:
        offset, data = stamp(seed, number)
        await volume.write(offset, data, durable=number % 13 == 0)
        print("a", number, flush=True)
        if number % 7 == 0:
            await volume.flush()
            print("f", number, flush=True)
        if number % 40 == 0:
            await volume.checkpointer.write()
        number += 1


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
