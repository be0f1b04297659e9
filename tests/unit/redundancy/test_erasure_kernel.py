"""The compiled erasure code makes zfec's bytes, with every instruction set that is here."""

import itertools
import random

import pytest
import zfec
from hypothesis import given
from hypothesis import strategies as st

from torus._fast.erasure import Code, kernel_name, kernels

SMALL = [(data, parity) for data in range(2, 7) for parity in range(1, 4)]


def _by_zfec(data: list[bytes], parity: int) -> list[bytes]:
    """Return all shards as zfec makes them."""
    count = len(data)
    numbers = list(range(count, count + parity))
    return [*data, *zfec.Encoder(count, count + parity).encode(data, numbers)]


@pytest.mark.parametrize(("data", "parity"), SMALL)
@pytest.mark.parametrize("kernel", kernels())
def test_every_loss_of_a_small_code_is_rebuilt_to_what_zfec_made(
    kernel: str, data: int, parity: int, rng: random.Random
) -> None:
    """Every K of the shards, in a random order, give each other shard and all of them."""
    size = 64 * rng.randrange(1, 4) + rng.randrange(64)
    code = Code(data, parity, kernel)
    shards = _by_zfec([rng.randbytes(size) for _ in range(data)], parity)
    made = [bytearray(size) for _ in range(parity)]

    code.encode(shards[:data], made)

    assert made == shards[data:]
    for numbers in itertools.combinations(range(data + parity), data):
        have = rng.sample(numbers, data)
        lost = [number for number in range(data + parity) if number not in have]
        for wanted in (lost, lost[::-1], *([number] for number in lost)):
            outputs = [bytearray(b"\xff" * size) for _ in wanted]
            code.rebuild(have, [shards[number] for number in have], wanted, outputs)

            assert outputs == [shards[number] for number in wanted], (have, wanted)


@pytest.mark.parametrize(("data", "parity"), SMALL)
def test_zfec_gives_back_the_data_from_the_kernel_s_parity(
    data: int, parity: int, rng: random.Random
) -> None:
    """The other way around: what the kernel wrote is read by zfec, whatever is lost."""
    content = [rng.randbytes(97) for _ in range(data)]
    made = [bytearray(97) for _ in range(parity)]
    Code(data, parity).encode(content, made)
    shards = [*content, *map(bytes, made)]
    decoder = zfec.Decoder(data, data + parity)

    for numbers in itertools.combinations(range(data + parity), data):
        assert decoder.decode([shards[number] for number in numbers], list(numbers)) == content


@st.composite
def _large(draw: st.DrawFn) -> tuple[int, int, int, random.Random, list[int]]:
    data, parity = draw(st.integers(2, 16)), draw(st.integers(1, 6))
    size = draw(st.one_of(st.integers(0, 300), st.sampled_from([4096, 4095, 5000])))
    order = draw(st.permutations(range(data + parity)))
    return data, parity, size, random.Random(draw(st.integers(0, 1 << 32))), list(order)


@pytest.mark.parametrize("kernel", kernels())
@given(case=_large())
def test_any_code_and_size_agrees_with_zfec(
    kernel: str, case: tuple[int, int, int, random.Random, list[int]]
) -> None:
    """Up to 16+6, odd sizes, unaligned buffers, losses of any shards."""
    data, parity, size, rng, order = case
    code = Code(data, parity, kernel)
    store = rng.randbytes(data * size + 1)
    start = rng.randrange(2)
    content = [memoryview(store)[start + i * size :][:size] for i in range(data)]
    shards = _by_zfec([bytes(piece) for piece in content], parity)
    made = [bytearray(size) for _ in range(parity)]

    code.encode(content, made)

    assert made == shards[data:]
    have, lost = order[:data], order[data:]
    wanted = lost[: rng.randrange(1, parity + 1)]
    outputs = [bytearray(size) for _ in wanted]
    code.rebuild(have, [shards[number] for number in have], wanted, outputs)
    assert outputs == [shards[number] for number in wanted]


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("shard_bytes", [1, 63, 64, 512])
@pytest.mark.parametrize(("data", "parity"), [(2, 1), (4, 2), (5, 6)])
def test_short_content_is_followed_by_zeroes(
    kernel: str, shard_bytes: int, data: int, parity: int, rng: random.Random
) -> None:
    """Each length around the borders of shards gives the parity of the padded content."""
    code = Code(data, parity, kernel)
    whole = data * shard_bytes
    borders = {i * shard_bytes + step for i in range(data + 1) for step in (-2, -1, 0, 1, 2)}
    for size in sorted(borders | {rng.randrange(whole + 1) for _ in range(20)}):
        if not 0 <= size <= whole:
            continue
        content = rng.randbytes(size)
        padded = content.ljust(whole, b"\0")
        pieces = [padded[i * shard_bytes : (i + 1) * shard_bytes] for i in range(data)]
        made = bytearray(b"\xff" * parity * shard_bytes)

        code.encode_whole(content, made, shard_bytes)

        assert made == b"".join(_by_zfec(pieces, parity)[data:]), size


@pytest.mark.parametrize("kernel", kernels())
def test_parity_grows_with_pieces_in_any_order(kernel: str, rng: random.Random) -> None:
    """Records arrive one by one; the sum of what they contribute is the parity."""
    data, parity, size = 4, 3, 1000
    content = [rng.randbytes(size) for _ in range(data)]
    cuts = [0, *sorted(rng.sample(range(1, size), 7)), size]
    pieces = [
        (shard, start, end) for shard in range(data) for start, end in itertools.pairwise(cuts)
    ]
    rng.shuffle(pieces)
    made = [bytearray(size) for _ in range(parity)]
    code = Code(data, parity, kernel)

    for shard, start, end in pieces:
        code.add(shard, content[shard][start:end], made, start)
    code.add(0, b"", made, size)

    assert made == _by_zfec(content, parity)[data:]


def test_long_shards_are_made_without_the_interpreter_s_lock(rng: random.Random) -> None:
    """Long enough that the lock is released; the bytes are the same."""
    content = [rng.randbytes(1 << 18) for _ in range(3)]
    made = [bytearray(1 << 18) for _ in range(2)]

    Code(3, 2).encode(content, made)

    assert made == _by_zfec(content, 2)[3:]


def test_the_matrix_is_the_one_that_zfec_has() -> None:
    """Parity of unit vectors is a row of the matrix."""
    for data, parity in [(2, 1), (3, 2), (4, 2), (8, 4), (10, 4), (16, 6)]:
        units = [bytes(i == j for i in range(data)) for j in range(data)]

        assert Code(data, parity).matrix()[data:] == _by_zfec(units, parity)[data:]


def test_the_fastest_kernel_is_taken_unless_another_is_named() -> None:
    assert kernels()[0] == "scalar"
    assert kernel_name() == kernels()[-1] == Code(2, 1).kernel
    assert [Code(2, 1, name).kernel for name in kernels()] == list(kernels())
    with pytest.raises(ValueError, match=r"kernel 'abacus' is not usable here: .*scalar"):
        Code(2, 1, "abacus")


@pytest.mark.parametrize(("data", "parity"), [(1, 1), (17, 1), (2, 0), (2, 7), (-1, 1), (2, -1)])
def test_a_code_out_of_range_is_refused(data: int, parity: int) -> None:
    with pytest.raises(ValueError, match="shards: expected"):
        Code(data, parity)
