"""Frozen bytes of map pages, version 1.  Never regenerated: a new format gets new ones."""

from tests.contract import oracles_blockmap as oracle
from torus._fast import mappages
from torus._fast.blockmap import BlockMap
from torus._fast.crc import checksum

LEAF = bytes.fromhex(
    "544d4150 01 00 0100 00000000 00000000"  # TMAP, version 1, leaf, 1 entry, index 0
    + "000000 04" + "00" * 124  # slot 26
    + "07000000 1000 0000 efbeadde"  # chunk 7, unit 16, base 0, CRC deadbeef
)  # fmt: skip
DIRECTORY = bytes.fromhex(
    "544d4150 01 01 0200 00000000 00000000"
    + "03" + "00" * 127  # slots 0 and 1
    + "07000000 1800 0000 9c000000 57474231"  # chunk 7, unit 24, own, 156 bytes, CRC
    + "06000000 4000 0300 9c000000 78563412"  # chunk 6, unit 64, of member 3, 156 bytes, CRC
)  # fmt: skip
USAGE = bytes.fromhex(
    "544d4150 01 02 0300 00000000 00000000"
    + "8006" + "00" * 510  # sequences 7, 9 and 10
    + "0a00 0000 0000"  # a block (8 units), a leaf (1) and a directory (1); two are dead
    + "05000000 00000000"  # the eras of the dead
)  # fmt: skip
ROOT = bytes.fromhex(
    "544d4150 01 03 0000 00000000 00000000"
    "d007000000000000 0200000000000000"  # 2000 blocks, 2 mapped
    "01000000 01000000"  # 1 directory, 1 usage page
    "00000000 07000000 2000 0000 b0000000 73df32ed"
    "00000000 07000000 2800 0000 1e020000 df266476"
    "6ff438bc"
)


def clone() -> BlockMap:
    """A map whose only leaf, 1, is that of an origin three members away."""
    directory = oracle.encode_directory(0, {1: (6, 64, 156, 0x12345678)})
    place = (6, 8, len(directory), checksum(directory))
    opened = BlockMap.from_root(oracle.encode_root(2000, 1, {0: place}, {}), 1 << 20, 3)
    opened.load_directory(0, directory)
    return opened


def test_map_writes_the_frozen_bytes() -> None:
    """One block of CRC deadbeef in chunk 7, one of an origin, two dead chunks, and the pages."""
    found = clone()
    for sequence in (7, 9, 10):
        found.open_sequence(sequence)
    found.set(26, bytes.fromhex("efbeadde"), 7, 16)
    found.set_era(9, 5)
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
    own, inherited = (7, 24, 156, 0x31424757, 0), (6, 64, 156, 0x12345678, 3)

    assert mappages.read_leaf(LEAF, 0) == [(26, 7, 16, 0, 0xDEADBEEF)]
    assert mappages.read_directory(DIRECTORY, 0) == [(0, *own), (1, *inherited)]
    assert mappages.read_usage(USAGE, 0) == [(7, 10, 0), (9, 0, 5), (10, 0, 0)]
    assert mappages.read_root(ROOT) == (
        2000,
        2,
        [(0, 7, 32, 176, 0xED32DF73, 0)],
        [(0, 7, 40, 542, 0x766426DF, 0)],
    )
