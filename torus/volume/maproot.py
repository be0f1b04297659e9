"""A checkpoint's root brought back from the log, and the map above its leaves with it."""

from dataclasses import dataclass

from torus._fast.blockmap import BlockMap
from torus._fast.record import KIND_ROOT, RecordReader
from torus.cluster.chunks import Chunks
from torus.errors import Corruption
from torus.format.root import RootPayload
from torus.metadata.schema import RootRef
from torus.volume.family import Family
from torus.volume.leaves import load_upper

_INDEX_FIELD = slice(28, 32)  # of a record's header


@dataclass(frozen=True, slots=True)
class Root:
    """A root record that was read."""

    payload: RootPayload
    lsn: int  # of the record itself: everything before it was durable when it was published


async def read_root(chunks: Chunks, family: Family, place: RootRef, member: int, name: str) -> Root:
    """Read the root record at ``place`` of the log of family member ``member``.

    Raises: Corruption, Unavailable, UnknownVersion.
    """
    chunk = family.chunk(place.sequence, member)
    where = f"root of volume {name!r} in chunk {chunk} at {place.offset}"

    def walk(data: bytes) -> tuple[RecordReader, bool]:
        # A root's own index is not in the reference to it.
        index = int.from_bytes(data[_INDEX_FIELD], "little")
        reader = RecordReader(data, chunk, place.offset, index)
        whole = reader.advance() and reader.payload_ok and reader.kind == KIND_ROOT
        return reader, bool(whole)

    wanted = (chunk, place.offset, place.size)
    [data] = await chunks.read_checked([wanted], lambda _, data: walk(data)[1])
    reader, whole = walk(data)
    if not whole:
        raise Corruption(
            f"{where} is damaged: {reader.problem or 'its payload is'}",
            hint="run 'torus check'; the log before it may still be whole",
        )
    return Root(RootPayload.unpack(reader.payload(), where), reader.lsn)


async def load_map(
    chunks: Chunks, family: Family, root: Root, member: int, cache_bytes: int
) -> BlockMap:
    """Open the map of a root; its leaves stay in the log.

    Raises: Corruption, Unavailable, UnknownVersion.
    """
    blocks = BlockMap.from_root(root.payload.root, cache_bytes, member)
    await load_upper(blocks, family, chunks)
    return blocks
