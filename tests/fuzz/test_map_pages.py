"""Garbage given to the map's page readers: Corruption or UnknownVersion, nothing else."""

import os
import random
from collections.abc import Callable

import pytest

from tests.contract import oracles_blockmap as oracle
from torus._fast import mappages
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum
from torus.errors import Corruption, UnknownVersion

INPUTS = int(os.environ.get("TORUS_FUZZ_INPUTS", "100000"))
SEED = 20_240_907
INDEX = 3
Ref = tuple[int, int, int, int, int, int]

pytestmark = pytest.mark.fuzz


def encode_root(found: tuple[int, int, list[Ref], list[Ref]]) -> bytes:
    """The root page again, from what was read."""
    size_blocks, mapped_blocks, directories, usage = found
    refs = [{ref[0]: ref[1:] for ref in level} for level in (directories, usage)]
    return oracle.encode_root(size_blocks, mapped_blocks, *refs)


READERS: dict[str, tuple[Callable[[bytes], object], Callable[..., bytes]]] = {
    "leaf": (
        lambda page: mappages.read_leaf(page, INDEX),
        lambda found: oracle.encode_leaf(INDEX, {item[0]: item[1:] for item in found}),
    ),
    "directory": (
        lambda page: mappages.read_directory(page, INDEX),
        lambda found: oracle.encode_directory(INDEX, {item[0]: item[1:] for item in found}),
    ),
    "usage": (
        lambda page: mappages.read_usage(page, INDEX),
        lambda found: oracle.encode_usage(
            INDEX,
            {slot: units for slot, units, _ in found},
            {slot: era for slot, _, era in found},
        ),
    ),
    "root": (mappages.read_root, encode_root),
}


def samples(level: str, rng: random.Random) -> list[bytes]:
    """Sound pages of a level: one item, a few, and full."""
    pages = []
    for count in (1, 3, 40, 1024):
        slots = sorted(rng.sample(range(1024), count))
        refs = {
            slot: (
                rng.randrange(1, 1 << 32),
                rng.randrange(8000),
                rng.randrange(1, 9000),
                slot,
                slot % 3,
            )
            for slot in slots
        }
        if level == "leaf":
            entries = {slot: (ref[0], ref[1], slot % 3, ref[2]) for slot, ref in refs.items()}
            pages.append(oracle.encode_leaf(INDEX, entries))
        elif level == "directory":
            pages.append(oracle.encode_directory(INDEX, refs))
        elif level == "usage":
            counts = {slot: slot // 2 * 8 if slot % 4 else 0 for slot in slots}
            pages.append(oracle.encode_usage(INDEX, counts, {slot: slot << 20 for slot in slots}))
        elif count < 1024:  # the oracle's checksum is slow
            own = {slot: ref[:4] for slot, ref in refs.items()}
            pages.append(oracle.encode_root(1 << 34, 12345, refs, own))
    return pages


def mutate(page: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to four of the ways in which a page goes wrong."""
    changed = bytearray(page)
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(7)
        at = rng.randrange(len(changed) or 1)
        if kind == 0 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and changed:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            changed += rng.randbytes(rng.choice((1, 2, 12, 14, 500)))
        elif kind == 4:
            changed[at : at + 20] = rng.randbytes(rng.randrange(20))
        elif kind == 5:
            other = rng.choice(others)
            changed[at:] = other[at:]
        elif len(changed) >= 16:
            field = rng.choice((4, 5, 6, 7, 8, 12, 16, 24, 32, 36))
            changed[field : field + 2] = rng.randbytes(2)
    return bytes(changed)


@pytest.mark.parametrize("level", READERS)
def test_mutated_page_is_refused_or_means_what_it_says(level: str) -> None:
    """An accepted page encodes to the same bytes again; all others are refused politely."""
    rng = random.Random(f"{SEED} {level}")
    read, encode = READERS[level]
    sound = samples(level, rng)
    accepted = {"sound": 0, "refused": 0}
    for page in sound:
        assert encode(read(page)) == page
    small = [page for page in sound if len(page) < 3000] * 6 + sound

    for number in range(INPUTS // len(READERS)):
        page = mutate(rng.choice(small), sound, rng)
        if level == "root" and len(page) > 4 and number % 2:  # past the checksum
            page = page[:-4] + root_crc(page[:-4])
        try:
            found = read(page)
        except (Corruption, UnknownVersion):
            accepted["refused"] += 1
        else:
            accepted["sound"] += 1
            if number % 16 == 0 or len(page) < 600:
                assert encode(found) == page, (SEED, level, number)

    print(f"seed {SEED} {level}: {accepted}")
    assert accepted["refused"] > INPUTS // len(READERS) // 4


def root_crc(content: bytes) -> bytes:
    """The root's last four bytes."""
    return checksum(content).to_bytes(4, "little")


@pytest.mark.parametrize("length", [0, 1, 15, 16, 39, 43, 44, 143, 200])
def test_short_garbage_is_refused(length: int) -> None:
    """Nothing is read beyond the end, whatever the length."""
    rng = random.Random(SEED + length)
    for content in (bytes(length), b"\xff" * length, rng.randbytes(length)):
        for read, _ in READERS.values():
            with pytest.raises(Corruption):
                read(content)
        with pytest.raises(Corruption):
            BlockMap.from_root(content, 1 << 20)


def test_unknown_version_is_named() -> None:
    """A page of a later format is not called corrupt."""
    for level in READERS:
        page = bytearray(samples(level, random.Random(SEED))[0])
        page[4] = 2
        with pytest.raises(UnknownVersion, match="has version 2, expected 1") as caught:
            READERS[level][0](bytes(page))
        assert caught.value.hint
