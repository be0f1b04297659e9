"""All records of a chunk out of its shards, and one shard out of the others.

Decides that what was put together counts only when it has the checksum that the shards name.
Implements docs/replication.md, "Reading shards".
"""

import asyncio

from torus._fast.crc import checksum
from torus.cluster.sharded_reads import ShardReads
from torus.errors import TorusError, Unavailable
from torus.format.shard import pack_shard, stored_bytes
from torus.ids import ChunkId
from torus.log import get_logger
from torus.redundancy.stripe import Piece
from torus.store.content import FIRST

log = get_logger("torus.shards")


async def remake_shard(reads: ShardReads, chunk: ChunkId, number: int) -> bytes:
    """Return a shard as it travels, made of others.

    Raises: Corruption, Unavailable.
    """
    known = reads.places.get(chunk)
    if known is None:
        raise Unavailable(f"where the shards of chunk {chunk} are is not known")
    shards = await reads.described(chunk, known)
    assert shards.content is not None
    stripe, content = reads.stripe(shards), shards.content
    size = stored_bytes(content.end - FIRST, stripe.data, number, reads.slot_bytes)
    payload = b""
    if size:
        payload = await reads.columns(chunk, shards, Piece(number, 0, size), own=False)
    return pack_shard(
        chunk, number, stripe.data, stripe.parity,
        content_end=content.end, content_crc=content.crc, payload=payload,
    )  # fmt: skip


async def remake_content(reads: ShardReads, chunk: ChunkId) -> tuple[bytes | None, frozenset[str]]:
    """Ask everybody, and return all records of a chunk, whole and right; None without enough right
    shards.  Return also which disks could not be asked."""
    shards, silent = await reads.places.search(chunk)
    if shards is None or shards.content is None:
        return None, silent
    size, stripe = shards.content.end - FIRST, reads.stripe(shards)
    numbers = range(-(-size // stripe.shard_bytes))
    wanted = [Piece(number, 0, stripe.shard_bytes) for number in numbers]
    try:
        pieces = await asyncio.gather(*[reads.columns(chunk, shards, one) for one in wanted])
    except Unavailable:
        return None, silent | frozenset(shards.disks.values())
    except TorusError as exc:
        log.warning("shards.content.lost", chunk=str(chunk), reason=str(exc))
        return None, silent
    data = b"".join(pieces)[:size]
    if checksum(data) != shards.content.crc:
        log.error("shards.content.wrong", chunk=str(chunk))
        return None, silent
    reads.places.note(chunk, shards)
    return data, silent
