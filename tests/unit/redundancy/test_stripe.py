"""Where the bytes of a chunk lie in its shards, and how much of each is stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torus.redundancy.scheme import parse
from torus.redundancy.stripe import Piece, Stripe, shard_bytes, stripe

MIB = 1 << 20


@pytest.mark.parametrize(
    ("content", "data", "expected"),
    [
        (4 * MIB, 4, MIB),
        (4 * MIB, 2, 2 * MIB),
        (4 * MIB, 3, 1_400_832),  # 1398101.3 bytes, rounded up to 342 blocks
        (4 * MIB, 10, 421_888),
        (4 * MIB, 16, MIB // 4),
        (4 * MIB - 512, 4, MIB),
        (4096, 16, 4096),
        (1, 2, 4096),
        (8193, 2, 8192),
    ],
)
def test_a_shard_is_its_part_in_whole_blocks(content: int, data: int, expected: int) -> None:
    assert shard_bytes(content, data) == expected


@given(
    data=st.integers(2, 16),
    parity=st.integers(1, 6),
    blocks=st.integers(1, 4),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_pieces_are_the_bytes_in_order_and_nothing_else(
    data: int, parity: int, blocks: int, part: tuple[float, float]
) -> None:
    cut = Stripe(data, parity, blocks * 4096)
    offset = int(part[0] * cut.content_bytes_max)
    size = int(part[1] * (cut.content_bytes_max - offset))
    position = offset
    for piece in cut.locate(offset, size):
        assert 0 <= piece.shard < data
        assert piece.size_bytes > 0
        assert piece.offset + piece.size_bytes <= cut.shard_bytes
        assert piece.shard * cut.shard_bytes + piece.offset == position
        position += piece.size_bytes

    assert position == offset + size


def test_a_small_read_touches_one_shard_and_one_over_a_border_two() -> None:
    cut = stripe(parse("erasure:4+2"), 4 * MIB)

    assert cut.locate(2 * MIB + 4096, 4096) == [Piece(2, 4096, 4096)]
    assert cut.locate(MIB - 512, 1024) == [Piece(0, MIB - 512, 512), Piece(1, 0, 512)]
    assert cut.locate(4 * MIB, 0) == []


def test_what_lies_outside_is_refused() -> None:
    cut = Stripe(4, 2, 4096)
    for offset, size in ((-1, 1), (0, 16385), (16384, 1), (5, -1)):
        with pytest.raises(ValueError, match="do not lie in a stripe of 4 shards of 4096"):
            cut.locate(offset, size)
    for shard in (-1, 6):
        with pytest.raises(ValueError, match="does not exist: expected 0 to 5"):
            cut.stored_bytes(shard, 1)
    with pytest.raises(ValueError, match="do not lie in a stripe"):
        cut.stored_bytes(0, 16385)


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        (0, [0, 0, 0, 0, 0, 0]),
        (1, [1, 0, 0, 0, 1, 1]),
        (4096, [4096, 0, 0, 0, 4096, 4096]),
        (4097, [4096, 1, 0, 0, 4096, 4096]),
        (12800, [4096, 4096, 4096, 512, 4096, 4096]),
        (16384, [4096] * 6),
    ],
)
def test_nobody_stores_the_zeroes_behind_short_content(content: int, stored: list[int]) -> None:
    cut = Stripe(4, 2, 4096)

    assert [cut.stored_bytes(shard, content) for shard in range(6)] == stored
