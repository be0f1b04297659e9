"""The block map said again in plain Python: slow, obvious, and independent of the kernels.

`MapOracle` is a dict of blocks; `encode_*` write the pages of docs/format-map.md with struct.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

LEAF, DIRECTORY, USAGE, ROOT = range(4)
Entry = tuple[int, int, int, int]  # sequence, offset, base, crc
Ref = tuple[int, int, int, int]  # sequence, offset, size_bytes, crc: a page of the volume itself
StoredRef = tuple[int, int, int, int] | tuple[int, int, int, int, int]  # the last one is base
NO_REF: Ref = (0, 0, 0, 0)


def crc32c(data: bytes) -> int:
    """CRC-32C, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def units(size_bytes: int) -> int:
    """512-byte units that a page takes."""
    return -(-size_bytes // 512)


@dataclass(slots=True)
class MapOracle:
    """What a BlockMap must answer, with every answer worked out from scratch."""

    size_blocks: int
    entries: dict[int, Entry] = field(default_factory=dict)
    pages: dict[tuple[str, int], Ref] = field(default_factory=dict)  # leaves and directories
    chunks: set[int] = field(default_factory=set)
    eras: dict[int, int] = field(default_factory=dict)  # of dead chunks

    def copy(self) -> "MapOracle":
        """An independent copy: the state at one moment."""
        return MapOracle(
            self.size_blocks,
            dict(self.entries),
            dict(self.pages),
            set(self.chunks),
            dict(self.eras),
        )

    def map_run(self, block: int, crcs: list[int], sequence: int, offset: int) -> None:
        """Map a run of blocks."""
        for i, crc in enumerate(crcs):
            self.entries[block + i] = (sequence, offset + 8 * i, 0, crc)

    def clear(self, block: int, count: int) -> None:
        """Unmap a range."""
        gone = [at for at in self.entries if block <= at < block + count]
        for at in gone:
            del self.entries[at]

    def resize(self, size_blocks: int) -> None:
        """Forget what lies beyond the new end."""
        if size_blocks < self.size_blocks:
            self.clear(size_blocks, self.size_blocks - size_blocks)
        self.size_blocks = size_blocks

    def live(self) -> dict[int, int]:
        """Live units of every chunk."""
        found = Counter(dict.fromkeys(self.chunks, 0))
        for sequence, _, base, _ in self.entries.values():
            if base == 0:
                found[sequence] += 8
        for sequence, _, size_bytes, _ in self.pages.values():
            if sequence:
                found[sequence] += units(size_bytes)
        return dict(found)

    def _pieces(self, block: int, count: int) -> Iterator[tuple[int, Entry | None]]:
        for at in range(block, block + count):
            yield at, self.entries.get(at)

    def extents(self, block: int, count: int) -> list[tuple[int, bool]]:
        """All extents of a range, adjacent equal ones merged."""
        found: list[tuple[int, bool]] = []
        for _, entry in self._pieces(block, count):
            if found and found[-1][1] == (entry is not None):
                found[-1] = (found[-1][0] + 1, found[-1][1])
            else:
                found.append((1, entry is not None))
        return found

    def depths(self, block: int, count: int) -> list[tuple[int, int]]:
        """All extents of one depth: 0 unmapped, else the member that owns the chunk, plus 1."""
        found: list[tuple[int, int]] = []
        for _, entry in self._pieces(block, count):
            depth = 0 if entry is None else entry[2] + 1
            if found and found[-1][1] == depth:
                found[-1] = (found[-1][0] + 1, depth)
            else:
                found.append((1, depth))
        return found

    def runs(self, block: int, count: int) -> list[tuple[int, int, int, int, int]]:
        """Mapped runs that are whole both in address and in their chunk."""
        found: list[tuple[int, int, int, int, int]] = []
        for at, entry in self._pieces(block, count):
            if entry is None:
                continue
            sequence, offset, base, _ = entry
            if found:
                start, length, *place = found[-1]
                if (at, [sequence, offset - 8 * length, base]) == (start + length, place):
                    found[-1] = (start, length + 1, sequence, place[1], base)
                    continue
            found.append((at, 1, sequence, offset, base))
        return found


def _header(level: int, count: int, index: int) -> bytes:
    return struct.pack("<4sBBHII", b"TMAP", 1, level, count, index, 0)


def _sparse(level: int, index: int, slots: int, items: dict[int, bytes]) -> bytes:
    bitmap = sum(1 << slot for slot in items).to_bytes(slots // 8, "little")
    body = b"".join(items[slot] for slot in sorted(items))
    return _header(level, len(items), index) + bitmap + body


def encode_leaf(index: int, entries: dict[int, Entry]) -> bytes:
    """A leaf page of entries by their slot (0..1023)."""
    packed = {slot: struct.pack("<IHHI", *entry) for slot, entry in entries.items()}
    return _sparse(LEAF, index, 1024, packed)


def _packed_ref(ref: StoredRef) -> bytes:
    sequence, offset, size_bytes, crc, base = (*ref, 0)[:5]
    return struct.pack("<IHHII", sequence, offset, base, size_bytes, crc)


def encode_directory(index: int, refs: Mapping[int, StoredRef]) -> bytes:
    """A directory page of references by their slot (0..1023)."""
    return _sparse(DIRECTORY, index, 1024, {slot: _packed_ref(ref) for slot, ref in refs.items()})


def encode_usage(
    index: int, counts: dict[int, int], eras: Mapping[int, int] = MappingProxyType({})
) -> bytes:
    """A usage page of live units by slot (0..4095), and of the eras of the dead."""
    packed = {slot: struct.pack("<H", count) for slot, count in counts.items()}
    dead = [slot for slot in sorted(counts) if counts[slot] == 0]
    tail = b"".join(struct.pack("<I", eras.get(slot, 0)) for slot in dead)
    return _sparse(USAGE, index, 4096, packed) + tail


def encode_root(
    size_blocks: int,
    mapped_blocks: int,
    directories: Mapping[int, StoredRef],
    usage: Mapping[int, StoredRef],
) -> bytes:
    """The root page with its CRC."""
    page = _header(ROOT, 0, 0)
    page += struct.pack("<QQII", size_blocks, mapped_blocks, len(directories), len(usage))
    for refs in (directories, usage):
        for index, ref in sorted(refs.items()):
            page += struct.pack("<I", index) + _packed_ref(ref)
    return page + struct.pack("<I", crc32c(page))
