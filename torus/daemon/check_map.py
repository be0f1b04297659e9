"""Every block that a volume maps, read from its place and compared with the map's checksum.

Decides nothing about the log: only whether what a reader of the volume would be handed is what
was written.  Memory is bounded by the map's cache and one window of the volume.
"""

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.crc import block_checksums, checksum
from torus.daemon.findings import Findings
from torus.daemon.stopped import StoppedDisk
from torus.errors import Corruption, TorusError
from torus.ids import ChunkId
from torus.metadata.schema import RootRef
from torus.volume.family import Family
from torus.volume.leaves import LEAF_BLOCKS, UNIT
from torus.volume.spans import Spans

_WINDOW_BLOCKS = 32 * LEAF_BLOCKS  # 128 MiB of addresses
_READ_BYTES = limits.MIB
_GAP_BYTES = 32 * limits.KIB  # a gap that is cheaper to read than to skip
_LEAVES = 64

Run = tuple[int, int, int, bytes]  # offset in the chunk, blocks, first block, their CRCs


def missing_chunks(
    disk: StoppedDisk, blocks: BlockMap, spans: Spans, root: RootRef | None
) -> list[str]:
    """Return the names of the chunks that the map needs and the disk does not have."""
    needed = set(blocks.pinned_sequences())
    if root is not None:
        needed.add(root.sequence)
    for span in spans:
        assert span.last is not None, "recovery closes the open span"
        needed.update(s for s in range(span.first, span.last + 1) if blocks.live(s))
    missing = []
    for sequence in sorted(needed):
        try:
            chunk = spans.chunk(sequence)
        except Corruption:
            missing.append(f"chunk number {sequence}, of no span,")
            continue
        if chunk not in disk.chunks:
            missing.append(f"chunk {chunk}")
    return missing


class MapCheck:
    """One pass over one volume's map."""

    def __init__(
        self,
        disk: StoppedDisk,
        findings: Findings,
        name: str,
        blocks: BlockMap,
        family: Family,
        cache_bytes: int,
    ) -> None:
        self._disk = disk
        self._findings = findings
        self._name = name
        self._blocks = blocks
        self._family = family
        self._cache_bytes = cache_bytes
        self._units: dict[int, int] = {}  # of the volume's own chunks
        self._mapped = 0
        self.verified_bytes = 0
        self.bad_blocks = 0
        self._complete = True

    def run(self) -> None:
        """Check every mapped block; what is wrong becomes a finding."""
        blocks, at = self._blocks, 0
        while at < blocks.size_blocks:
            extents, _ = blocks.extents(at, blocks.size_blocks - at, 1)
            if extents and not extents[0][1]:
                at += extents[0][0]
                continue
            stop = min(at + _WINDOW_BLOCKS, blocks.size_blocks)
            for first, count in self._load(at, stop):
                self._check_range(first, count)
            at = stop
            blocks.evict(self._cache_bytes)
        self._check_counts()

    def _check_counts(self) -> None:
        """No chunk may hold more than the map's own count of live units says: it would be
        freed while it is needed."""
        if self._complete and self._mapped != self._blocks.mapped_blocks:
            self._findings.error(
                "bad-count",
                f"volume {self._name}",
                f"its map counts {self._blocks.mapped_blocks} blocks and holds {self._mapped}",
            )
        for sequence, units in self._units.items():
            live = self._blocks.live(sequence)
            if live is None or live < units:
                self._findings.error(
                    "bad-count",
                    f"volume {self._name} chunk number {sequence}",
                    f"{units} units of it are in use, the map counts {live}",
                )

    # --- map pages ----------------------------------------------------------------------

    def _load(self, at: int, stop: int) -> list[tuple[int, int]]:
        """Bring a range's leaves into memory; return the parts that could be had."""
        bad: set[int] = set()
        while True:
            missing = self._blocks.missing(at, stop - at, len(bad) + _LEAVES)
            wanted = [place for place in missing if place[0] not in bad]
            if not wanted:
                break
            for index, sequence, offset, size, crc, base in wanted:
                try:
                    page = self._page(self._family.chunk(sequence, base), offset * UNIT, size, crc)
                    self._blocks.load_leaf(index, page, sequence, offset, base)
                except TorusError as exc:
                    bad.add(index)
                    self._findings.error(
                        "bad-map-page",
                        f"volume {self._name} map page {index}",
                        f"{exc.message}; it maps bytes "
                        f"{index * LEAF_BLOCKS * limits.BLOCK_BYTES:#x} and on",
                    )
        if bad:
            self._complete = False
        return _without(at, stop, bad)

    def _page(self, chunk: ChunkId, offset: int, size: int, crc: int) -> bytes:
        address = self._disk.chunks.get(chunk)
        if address is None:
            raise Corruption(f"chunk {chunk}, which holds it, is not there")
        page = self._disk.read(address + offset, size)
        found = checksum(page)
        if found != crc:
            raise Corruption(
                f"{self._disk.where(address, offset)}: checksum {found:08x}, expected {crc:08x}"
            )
        return page

    # --- blocks -------------------------------------------------------------------------

    def _check_range(self, block: int, count: int) -> None:
        crcs = self._blocks.entries_crc(block, count)
        by_chunk: dict[tuple[int, int], list[Run]] = {}
        for first, length, sequence, offset, base in self._blocks.runs(block, count):
            start = (first - block) * 4
            run = (offset * UNIT, length, first, crcs[start : start + length * 4])
            by_chunk.setdefault((base, sequence), []).append(run)
            self._mapped += length
            if base == 0:
                self._units[sequence] = self._units.get(sequence, 0) + length * 8
        for base, sequence in sorted(by_chunk):
            self._check_chunk(base, sequence, sorted(by_chunk[base, sequence]))

    def _check_chunk(self, base: int, sequence: int, runs: list[Run]) -> None:
        """Check the runs of one chunk, which are in the order of their offsets."""
        try:
            chunk = self._family.chunk(sequence, base)
        except Corruption as exc:
            self._lose(f"chunk number {sequence}", exc.message, runs)
            return
        address = self._disk.chunks.get(chunk)
        if address is None:
            self._lose(f"chunk {chunk}", "it is not there", runs)
            return
        batch: list[Run] = []
        for run in runs:
            if batch and _too_far(batch, run):
                self._check_batch(chunk, address, batch)
                batch = []
            batch.append(run)
        self._check_batch(chunk, address, batch)

    def _lose(self, what: str, why: str, runs: list[Run]) -> None:
        lost = sum(run[1] for run in runs)
        self.bad_blocks += lost
        first = min(run[2] for run in runs) * limits.BLOCK_BYTES
        self._findings.error(
            "missing-chunk",
            f"volume {self._name} {what}",
            f"{why}; mapped blocks lie in it, the first at byte {first:#x} of the volume",
        )

    def _check_batch(self, chunk: ChunkId, address: int, batch: list[Run]) -> None:
        start = batch[0][0]
        size = _end(batch[-1]) - start
        if start + size > self._disk.geometry.slot_bytes:
            self._lose(f"chunk {chunk}", "the map names places beyond its end", batch)
            return
        try:
            data = memoryview(self._disk.read(address + start, size))
        except Corruption as exc:
            self.bad_blocks += sum(run[1] for run in batch)
            self._findings.error(
                "unreadable", self._disk.where(address, start), f"{exc.message} (chunk {chunk})"
            )
            return
        for offset, count, first, expected in batch:
            piece = data[offset - start : offset - start + count * limits.BLOCK_BYTES]
            found = block_checksums(piece)
            self.verified_bytes += len(piece)
            if found != expected:
                self._name_bad(chunk, address + offset, first, found, expected)

    def _name_bad(
        self, chunk: ChunkId, address: int, first: int, found: bytes, expected: bytes
    ) -> None:
        for number in range(len(found) // 4):
            one, other = (crcs[number * 4 : number * 4 + 4][::-1] for crcs in (found, expected))
            if one == other:
                continue
            self.bad_blocks += 1
            self._findings.error(
                "bad-block",
                self._disk.where(address, number * limits.BLOCK_BYTES),
                f"volume {self._name} byte {(first + number) * limits.BLOCK_BYTES:#x}, chunk "
                f"{chunk}: checksum {one.hex()}, expected {other.hex()}",
            )


def _end(run: Run) -> int:
    return run[0] + run[1] * limits.BLOCK_BYTES


def _too_far(batch: list[Run], run: Run) -> bool:
    return run[0] - _end(batch[-1]) > _GAP_BYTES or _end(run) - batch[0][0] > _READ_BYTES


def _without(at: int, stop: int, bad: set[int]) -> list[tuple[int, int]]:
    """Return the range at..stop as (block, count) pieces that leave out the ``bad`` leaves."""
    pieces = []
    for index in sorted(bad):
        edge = index * LEAF_BLOCKS
        if edge > at:
            pieces.append((at, edge - at))
        at = max(at, edge + LEAF_BLOCKS)
    if at < stop:
        pieces.append((at, stop - at))
    return pieces
