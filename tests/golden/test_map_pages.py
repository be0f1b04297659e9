"""Frozen bytes of map pages, version 1.  Never regenerated: a new format gets new ones."""

from torus._fast import mappages
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum

LEAF = bytes.fromhex(
    "544d4150 01 00 0100 00000000 00000000"  # TMAP, version 1, leaf, 1 entry, index 0
    + "000000 04" + "00" * 124  # slot 26
    + "07000000 1000 0000 efbeadde"  # chunk 7, unit 16, base 0, CRC deadbeef
)  # fmt: skip
DIRECTORY = bytes.fromhex(
    "544d4150 01 01 0100 00000000 00000000"
    + "01" + "00" * 127  # slot 0
    + "07000000 1800 9c000000 57474231"  # chunk 7, unit 24, 156 bytes, CRC
)  # fmt: skip
USAGE = bytes.fromhex(
    "544d4150 01 02 0100 00000000 00000000"
    + "80" + "00" * 511  # sequence 7
    + "0a00"  # a block (8 units), a leaf (1) and a directory (1)
)  # fmt: skip
ROOT = bytes.fromhex(
    "544d4150 01 03 0000 00000000 00000000"
    "e803000000000000 0100000000000000"  # 1000 blocks, 1 mapped
    "01000000 01000000"  # 1 directory, 1 usage page
    "00000000 07000000 2000 9e000000 8c8e156c"
    "00000000 07000000 2800 12020000 788703bf"
    "79bea79b"
)


def test_map_writes_the_frozen_bytes() -> None:
    """One block of CRC deadbeef in chunk 7, and its four pages."""
    found = BlockMap(1000, 1 << 20)
    found.open_sequence(7)
    found.set(26, bytes.fromhex("efbeadde"), 7, 16)
    found.begin_checkpoint()

    leaf = found.encode_leaf(0)
    found.leaf_written(0, 7, 24, len(leaf), checksum(leaf))
    directory = found.encode_directory(0)
    found.directory_written(0, 7, 32, len(directory), checksum(directory))
    usage = found.encode_usage(0)
    found.usage_written(0, 7, 40, len(usage), checksum(usage))
    root = found.encode_root()

    assert (leaf, directory, usage, root) == (LEAF, DIRECTORY, USAGE, ROOT)


def test_frozen_bytes_are_read() -> None:
    """Pages of version 1 stay readable."""
    leaf, directory, usage = (7, 24, 156, 0x31424757), (7, 32, 158, 0x6C158E8C), 10

    assert mappages.read_leaf(LEAF, 0) == [(26, 7, 16, 0, 0xDEADBEEF)]
    assert mappages.read_directory(DIRECTORY, 0) == [(0, *leaf)]
    assert mappages.read_usage(USAGE, 0) == [(7, usage)]
    assert mappages.read_root(ROOT) == (
        1000,
        1,
        [(0, *directory)],
        [(0, 7, 40, 530, 0xBF038778)],
    )
