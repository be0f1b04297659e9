"""Readers of map pages for inspection; the codecs themselves serve other kernels."""

_Ref = tuple[int, int, int, int, int, int]  # index, sequence, offset (512 B), size, crc, base

LEVEL_NAMES: tuple[str, ...]

def read_leaf(page: bytes, index: int) -> list[tuple[int, int, int, int, int]]:
    """Present entries as (slot, sequence, offset, base, crc).

    Raises: Corruption, UnknownVersion.
    """

def read_directory(page: bytes, index: int) -> list[_Ref]:
    """References to stored leaves, by their slot in the directory.

    Raises: Corruption, UnknownVersion.
    """

def read_usage(page: bytes, index: int) -> list[tuple[int, int, int]]:
    """(slot, live units of 512 bytes, era) of the chunks that exist; era 0: not assigned.

    Raises: Corruption, UnknownVersion.
    """

def read_root(page: bytes) -> tuple[int, int, list[_Ref], list[_Ref]]:
    """size_blocks, mapped_blocks, directory references, usage page references.

    Raises: Corruption, UnknownVersion.
    """
