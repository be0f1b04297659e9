"""Reading a shard of the own disk, verified to its last byte."""

from torus._fast.crc import checksum
from torus.cluster.local import LocalChunks
from torus.errors import Corruption
from torus.format.shard import DESCRIPTOR_BYTES, Descriptor, open_shard, payload_bytes
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.content import FIRST
from torus.store.store import Store

log = get_logger("torus.upkeep")


async def read_shard(
    store: Store, chunks: LocalChunks, shard: ChunkId
) -> tuple[Descriptor, int] | None:
    """Return what a shard of this disk is, verified to the last byte, and the CRC-32C of its
    payload; None: it is damaged.

    Raises: DiskFailed.
    """
    try:
        [head] = await chunks.read([(shard, FIRST, DESCRIPTOR_BYTES)])
        described = Descriptor.unpack(head, f"shard {shard}")
        size = min(described.payload_bytes, payload_bytes(described.data, chunks.slot_bytes))
        payload = b""
        if size:
            [payload] = await chunks.read([(shard, FIRST + DESCRIPTOR_BYTES, size)])
        await store.in_pool(open_shard, head + payload, shard, chunks.slot_bytes)
    except Corruption as exc:
        log.warning("upkeep.shard.damaged", shard=str(shard), reason=exc.message)
        return None
    return described, checksum(payload)
