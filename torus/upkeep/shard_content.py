"""Making shards of a chunk's content, and content of shards.  Pure.

Decides that a shard is made only of content that is known to be right: a whole copy whose
records were verified, or shards of which each fits its own table and all together fit the
checksum of the content.  Implements docs/upkeep.md, "Shards".
"""

from collections.abc import Mapping
from typing import NamedTuple

from torus._fast.crc import checksum
from torus.errors import Corruption
from torus.format.shard import (
    DESCRIPTOR_BYTES,
    content_max,
    pack_shard,
    payload_bytes,
    stored_bytes,
)
from torus.ids import ChunkId
from torus.redundancy.codec import codec
from torus.redundancy.scheme import Scheme
from torus.store.content import FIRST, Bytes


class Version(NamedTuple):
    """Which content a part was made of; of several that can be had the one that reaches
    furthest is right."""

    end: int  # offset in a whole copy's slot behind its last record
    crc: int  # CRC-32C of the records


def fits(end: int, scheme: Scheme, slot_bytes: int) -> bool:
    """Say whether content that ends at ``end`` can be cut into shards."""
    return end - FIRST <= content_max(scheme.data, slot_bytes)


def shard_content_bytes(end: int, scheme: Scheme, number: int, slot_bytes: int) -> int:
    """Return how long a shard is as it travels: descriptor and payload."""
    return DESCRIPTOR_BYTES + stored_bytes(end - FIRST, scheme.data, number, slot_bytes)


def data_range(end: int, scheme: Scheme, number: int, slot_bytes: int) -> tuple[int, int]:
    """Return the (offset in a whole copy's slot, size) of the bytes of a data shard."""
    each = payload_bytes(scheme.data, slot_bytes)
    first = FIRST + number * each
    return first, max(0, min(each, end - first))


def payloads(content: Bytes, scheme: Scheme, slot_bytes: int) -> list[Bytes]:
    """Return the payload of every shard of ``content``, whole columns, as it is stored.

    ``content`` is borrowed; it has to fit.
    """
    each = payload_bytes(scheme.data, slot_bytes)
    view = memoryview(content)
    parity = bytearray(scheme.parity * each)
    codec(scheme).encode_whole(content, parity, each)
    found: list[Bytes] = []
    for number in range(scheme.shards):
        size = stored_bytes(len(content), scheme.data, number, slot_bytes)
        if number < scheme.data:
            found.append(_padded(view[number * each : number * each + size], size))
        else:
            first = (number - scheme.data) * each
            found.append(memoryview(parity)[first : first + size])
    return found


def _padded(piece: memoryview, size: int) -> Bytes:
    return piece if len(piece) == size else bytes(piece).ljust(size, b"\0")


def make_shard(
    chunk: ChunkId, content: Bytes, scheme: Scheme, number: int, slot_bytes: int
) -> bytes:
    """Return one shard of ``content`` as it travels."""
    version = Version(FIRST + len(content), checksum(content))
    payload = payloads(content, scheme, slot_bytes)[number]
    return _wrap(chunk, scheme, number, version, payload)


def cut_shard(
    chunk: ChunkId, scheme: Scheme, number: int, version: Version, piece: Bytes, slot_bytes: int
) -> bytes:
    """Return a data shard of its own bytes alone; the checksum of all is taken on trust."""
    size = stored_bytes(version.end - FIRST, scheme.data, number, slot_bytes)
    return _wrap(chunk, scheme, number, version, _padded(memoryview(piece), size))


def digests(content: Bytes, scheme: Scheme, slot_bytes: int) -> list[int]:
    """Return the CRC-32C of the payload that each shard of ``content`` has to have."""
    return [checksum(payload) for payload in payloads(content, scheme, slot_bytes)]


def whole_content(
    shards: Mapping[int, Bytes], scheme: Scheme, version: Version, slot_bytes: int
) -> bytes:
    """Return the content that K shards give; ``shards``: number and payload, each verified.

    Raises: Corruption when it is not what they say of it.
    """
    each = payload_bytes(scheme.data, slot_bytes)
    full = {number: _padded(memoryview(one), each) for number, one in shards.items()}
    lost = [number for number in range(scheme.data) if number not in full]
    made: list[Bytes] = [bytearray(each) for _ in lost]
    if lost:
        numbers = sorted(full)[: scheme.data]
        codec(scheme).rebuild(numbers, [full[number] for number in numbers], lost, made)
    full.update(zip(lost, made, strict=True))
    content = b"".join(full[number] for number in range(scheme.data))
    content = content[: version.end - FIRST]
    if len(content) != version.end - FIRST or checksum(content) != version.crc:
        raise Corruption(
            f"shards {sorted(shards)} that are whole give content of {len(content)} bytes with "
            f"another checksum than they name: one of them was made of other content"
        )
    return content


def _wrap(chunk: ChunkId, scheme: Scheme, number: int, version: Version, payload: Bytes) -> bytes:
    return pack_shard(
        chunk, number, scheme.data, scheme.parity,
        content_end=version.end, content_crc=version.crc, payload=payload,
    )  # fmt: skip
