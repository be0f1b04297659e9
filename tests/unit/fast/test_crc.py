"""CRC-32C: the published check value, an independent library, and the two paths of our own."""

import random
import struct

import google_crc32c
import pytest

from torus._fast.crc import HARDWARE, block_checksums, checksum, checksum_portable

SIZES = [*range(70), 255, 256, 257, 511, 513, 1023, 3 * 256 + 5, 4095, 4096, 4097, 24576, 65551]


def test_check_value() -> None:
    """The check value of the CRC catalogue, and the test vectors of RFC 3720, B.4."""
    vectors = {
        b"123456789": 0xE3069283,
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
        bytes(range(31, -1, -1)): 0x113FDB5C,
        b"": 0,
    }

    assert {data: checksum(data) for data in vectors} == vectors
    assert {data: checksum_portable(data) for data in vectors} == vectors


@pytest.mark.parametrize("function", [checksum, checksum_portable])
def test_every_size_and_alignment_agrees_with_another_library(
    function: object, rng: random.Random
) -> None:
    """Odd heads and tails around the words and lanes of the fast path."""
    data = rng.randbytes(SIZES[-1] + 16)
    for size in SIZES:
        for start in (0, 1, 3, 7, 8, 13):
            piece = data[start : start + size]
            view = memoryview(data)[start : start + size]  # truly unaligned, no copy

            assert function(view) == google_crc32c.value(piece), (start, size)  # type: ignore[operator]


@pytest.mark.parametrize("function", [checksum, checksum_portable])
def test_a_checksum_is_continued(function: object, rng: random.Random) -> None:
    """Cut anywhere, the parts give the whole."""
    data = rng.randbytes(9001)
    whole = google_crc32c.value(data)
    for cut in [0, 1, 7, 8, 4095, 4096, 9000, 9001, *(rng.randrange(9001) for _ in range(50))]:
        first = function(data[:cut])  # type: ignore[operator]

        assert function(data[cut:], first) == whole, cut  # type: ignore[operator]


def test_both_paths_continue_each_other(rng: random.Random) -> None:
    """A checksum may begin on one machine and go on on another."""
    for _ in range(100):
        data, crc = rng.randbytes(rng.randrange(2000)), rng.getrandbits(32)

        assert checksum(data, crc) == checksum_portable(data, crc)


def test_the_hardware_path_is_what_the_processor_says() -> None:
    """Otherwise the comparison above compares tables with themselves."""
    with open("/proc/cpuinfo", encoding="ascii") as file:
        flags = file.read()

    assert ("sse4_2" in flags or "crc32" in flags) == HARDWARE


@pytest.mark.parametrize(("block", "count"), [(4096, 0), (4096, 1), (4096, 37), (1, 9), (513, 4)])
def test_block_checksums(block: int, count: int, rng: random.Random) -> None:
    """One little endian number for each block."""
    data = rng.randbytes(block * count)
    expected = [google_crc32c.value(data[n * block : (n + 1) * block]) for n in range(count)]

    assert block_checksums(data, block) == struct.pack(f"<{count}I", *expected)
    assert block_checksums(memoryview(bytearray(data)), block) == block_checksums(data, block)


@pytest.mark.parametrize(("size", "block"), [(4097, 4096), (1, 4096), (10, 0), (10, -5), (5, 10)])
def test_parts_of_blocks_are_refused(size: int, block: int) -> None:
    """Nothing is left out in silence."""
    with pytest.raises(ValueError, match="whole blocks"):
        block_checksums(bytes(size), block)


def test_what_is_no_buffer_is_refused() -> None:
    """And so is one that is not contiguous."""
    for wrong in ("text", None, memoryview(bytes(64))[::2]):
        for function in (checksum, checksum_portable, block_checksums):
            with pytest.raises((TypeError, BufferError)):
                function(wrong)  # type: ignore[arg-type]
