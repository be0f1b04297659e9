"""Shards of a chunk's content, and back."""

import random
from itertools import combinations

import pytest

from torus._fast.crc import checksum
from torus.errors import Corruption
from torus.format.shard import DESCRIPTOR_BYTES, content_max, open_shard
from torus.ids import ChunkId, shard_id
from torus.redundancy.scheme import Scheme, erasure
from torus.store.content import FIRST
from torus.upkeep.shard_content import (
    Version,
    cut_shard,
    data_range,
    digests,
    fits,
    make_shard,
    shard_content_bytes,
    whole_content,
)

SLOT = 64 * 1024
CHUNK = ChunkId(3, 1, 0, 7)


def _shards(content: bytes, scheme: Scheme) -> dict[int, bytes]:
    return {
        number: make_shard(CHUNK, content, scheme, number, SLOT) for number in range(scheme.shards)
    }


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 20000, -1])
@pytest.mark.parametrize("scheme", [erasure(2, 1), erasure(4, 2), erasure(3, 3)])
def test_any_data_shards_give_the_content(scheme: Scheme, size: int) -> None:
    """Whatever the length, and whichever are lost; each shard verifies by itself."""
    full = content_max(scheme.data, SLOT)
    content = random.Random(size).randbytes(full if size < 0 else size)
    version = Version(FIRST + len(content), checksum(content))
    shards = _shards(content, scheme)
    for number, one in shards.items():
        found = open_shard(one, shard_id(CHUNK, number), SLOT)
        assert (found.content_end, found.content_crc) == version
        assert len(one) == shard_content_bytes(version.end, scheme, number, SLOT)
        assert checksum(one[DESCRIPTOR_BYTES:]) == digests(content, scheme, SLOT)[number]
    for left in combinations(range(scheme.shards), scheme.data):
        some = {number: shards[number][DESCRIPTOR_BYTES:] for number in left}
        assert whole_content(some, scheme, version, SLOT) == content


def test_data_shard_of_its_own_bytes_is_the_same() -> None:
    """A piece of a whole copy is enough to make it."""
    scheme = erasure(4, 2)
    content = random.Random(5).randbytes(20000)
    version = Version(FIRST + len(content), checksum(content))
    slot = bytes(FIRST) + content
    for number in range(scheme.data):
        first, size = data_range(version.end, scheme, number, SLOT)
        piece = slot[first : first + size]
        made = cut_shard(CHUNK, scheme, number, version, piece, SLOT)
        assert made == make_shard(CHUNK, content, scheme, number, SLOT)


def test_shard_of_other_content_is_found_out() -> None:
    """A shard that fits its own table but not the others' content."""
    scheme = erasure(4, 2)
    content = random.Random(6).randbytes(20000)
    version = Version(FIRST + len(content), checksum(content))
    shards = _shards(content, scheme)
    other = bytearray(content)
    other[100] ^= 1
    shards[0] = make_shard(CHUNK, bytes(other), scheme, 0, SLOT)
    some = {number: shards[number][DESCRIPTOR_BYTES:] for number in (0, 1, 3, 5)}
    with pytest.raises(Corruption, match="other content"):
        whole_content(some, scheme, version, SLOT)


def test_fits_up_to_the_last_byte() -> None:
    """What is longer stays in copies."""
    scheme = erasure(4, 2)
    most = content_max(4, SLOT)
    assert fits(FIRST + most, scheme, SLOT)
    assert not fits(FIRST + most + 1, scheme, SLOT)
