"""Every block that a map names, read from its place and compared with the map's checksum.

Decides nothing about the log: only whether what a reader would be handed is what was written.
What another map that was verified before names too, at the same place, is not read again.
Memory is bounded by the maps' caches and one window of the map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.crc import block_checksums, checksum
from torus._fast.mapdiff import diff_leaf, differing_leaves
from torus.daemon.findings import Findings
from torus.daemon.stopped import StoppedData
from torus.errors import Corruption, TorusError
from torus.ids import ChunkId
from torus.metadata.schema import RootRef
from torus.volume.changes import member_names
from torus.volume.family import Family
from torus.volume.leaves import LEAF_BLOCKS, UNIT
from torus.volume.spans import Spans

_LEAVES = 32  # looked at together: 128 MiB of addresses
_READ_BYTES = limits.MIB
_GAP_BYTES = 32 * limits.KIB  # a gap that is cheaper to read than to skip
_ALL = (1 << LEAF_BLOCKS) - 1

Run = tuple[int, int, int, bytes]  # offset in the chunk, blocks, first block, their CRCs


def missing_chunks(
    disk: StoppedData, blocks: BlockMap, spans: Spans, root: RootRef | None
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


@dataclass(slots=True)
class Verified:
    """A map whose blocks were compared, but for those in ``bad_leaves``."""

    blocks: BlockMap
    family: Family
    bad_leaves: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose map it is, for people: "volume 'a'"; ``advice`` says what to do about damage.

    ``own`` is False where a place on the disk can be that of several maps: findings then name
    the subject beside the place.
    """

    name: str
    advice: str = ""
    own: bool = True

    def at(self, place: str) -> str:
        """Return where a finding is."""
        return place if self.own else f"{place}, {self.name}"

    def __str__(self) -> str:
        return self.name


class MapCheck:
    """One pass over one map."""

    def __init__(
        self,
        disk: StoppedData,
        findings: Findings,
        subject: Subject,
        blocks: BlockMap,
        family: Family,
        cache_bytes: int,
        known: Sequence[Verified] = (),
        *,
        whole: bool = True,
    ) -> None:
        """``known``: maps that were verified.  ``whole``: look into leaves that they share too,
        to compare the map's counts with what it holds."""
        self._disk = disk
        self._findings = findings
        self._subject = subject
        self._cache_bytes = cache_bytes
        self._known = list(known)
        self._whole = whole
        self.verified = Verified(blocks, family)
        self._units: dict[int, int] = {}  # of the volume's own chunks
        self._mapped = 0
        self._compared = 0
        self._complete = True
        self.bad_blocks = 0
        self.missing = 0  # findings that say that a chunk is gone
        self.needed: set[ChunkId] = set()  # chunks with pages or blocks that were read here

    @property
    def verified_bytes(self) -> int:
        """Block bytes that match the map's checksums, those of shared places included."""
        if not self._complete:
            return self._compared
        return (self.verified.blocks.mapped_blocks - self.bad_blocks) * limits.BLOCK_BYTES

    def run(self) -> None:
        """Check every mapped block; what is wrong becomes a finding."""
        blocks = self.verified.blocks
        for leaves in self._windows():
            differing = [self._differing(one, leaves[0], leaves[-1]) for one in self._known]
            ranges: list[tuple[int, int]] = []
            for leaf in self._load(leaves):
                if self._whole:
                    self._count(leaf)
                ranges += self._unverified(leaf, differing)
            self._check_ranges(ranges)
            for one in (self.verified, *self._known):
                if one.blocks.resident_bytes > self._cache_bytes:
                    one.blocks.evict(self._cache_bytes)
        self._check_counts()
        if blocks.resident_bytes > self._cache_bytes:
            blocks.evict(self._cache_bytes)

    # --- what to look into --------------------------------------------------------------

    def _windows(self) -> Iterator[list[int]]:
        """Yield the leaves to look into, some at a time, ascending."""
        blocks = self.verified.blocks
        known = [] if self._whole else self._known
        end, first = -(-blocks.size_blocks // LEAF_BLOCKS), 0
        nothing = BlockMap(blocks.size_blocks, 0)
        while first < end:
            stored = differing_leaves(nothing, blocks, first, _LEAVES)
            if not stored:
                return
            leaves = set(stored)
            for one in known:
                leaves &= self._differing(one, stored[0], stored[-1])
            if leaves:
                yield sorted(leaves)
            first = stored[-1] + 1

    def _differing(self, known: Verified, first: int, last: int) -> set[int]:
        """Return the leaves of first..last that ``known`` does not vouch for as a whole."""
        names = member_names(known.family, self.verified.family)
        limit = last - first + 1
        found = differing_leaves(known.blocks, self.verified.blocks, first, limit, names)
        return {leaf for leaf in (*found, *known.bad_leaves) if first <= leaf <= last}

    def _unverified(self, leaf: int, differing: list[set[int]]) -> list[tuple[int, int]]:
        """Return the (block, count) of a leaf that no known map vouches for."""
        left = _ALL
        for known, leaves in zip(self._known, differing, strict=True):
            if leaf not in leaves:
                left = 0
            elif leaf not in known.bad_leaves and self._bring(known, leaf):
                names = member_names(known.family, self.verified.family)
                pieces = diff_leaf(known.blocks, self.verified.blocks, leaf, names)
                left &= _bits((block, count) for block, count, data in pieces if data)
        start = leaf * LEAF_BLOCKS
        left &= (1 << min(LEAF_BLOCKS, self.verified.blocks.size_blocks - start)) - 1
        return [(start + first, count) for first, count in _runs(left)]

    def _bring(self, known: Verified, leaf: int) -> bool:
        """Bring a leaf of a known map into memory; False when it is damaged."""
        start = leaf * LEAF_BLOCKS
        count = min(LEAF_BLOCKS, known.blocks.size_blocks - start)
        missing = known.blocks.missing(start, count) if count > 0 else []
        for index, sequence, offset, size, crc, base in missing:
            try:
                page = self._page(known.family.chunk(sequence, base), offset * UNIT, size, crc)
                known.blocks.load_leaf(index, page, sequence, offset, base)
            except TorusError:
                known.bad_leaves.add(leaf)  # found where that map was verified
                return False
        return True

    # --- counts -------------------------------------------------------------------------

    def _count(self, leaf: int) -> None:
        blocks, start = self.verified.blocks, leaf * LEAF_BLOCKS
        count = min(LEAF_BLOCKS, blocks.size_blocks - start)
        for _, length, sequence, _, base in blocks.runs(start, count):
            self._mapped += length
            if base == 0:
                self._units[sequence] = self._units.get(sequence, 0) + length * 8

    def _check_counts(self) -> None:
        """No chunk may hold more than the map's own count of live units says: it would be
        freed while it is needed."""
        blocks = self.verified.blocks
        if self._whole and self._complete and self._mapped != blocks.mapped_blocks:
            self._findings.error(
                "bad-count",
                f"{self._subject}",
                f"its map counts {blocks.mapped_blocks} blocks and holds {self._mapped}",
            )
        for sequence, units in self._units.items():
            live = blocks.live(sequence)
            if live is None or live < units:
                self._findings.error(
                    "bad-count",
                    f"{self._subject} chunk number {sequence}",
                    f"{units} units of it are in use, the map counts {live}",
                )

    # --- map pages ----------------------------------------------------------------------

    def _load(self, leaves: list[int]) -> list[int]:
        """Bring leaves into memory; return those that could be had."""
        blocks, family = self.verified.blocks, self.verified.family
        good = []
        for leaf in leaves:
            start, whole = leaf * LEAF_BLOCKS, True
            count = min(LEAF_BLOCKS, blocks.size_blocks - start)
            for index, sequence, offset, size, crc, base in blocks.missing(start, count):
                try:
                    chunk = family.chunk(sequence, base)
                    self.needed.add(chunk)
                    self.missing += chunk not in self._disk.chunks
                    page = self._page(chunk, offset * UNIT, size, crc)
                    blocks.load_leaf(index, page, sequence, offset, base)
                except TorusError as exc:
                    self._lose_leaf(leaf, exc.message)
                    whole = False
            if whole:
                good.append(leaf)
        return good

    def _lose_leaf(self, leaf: int, message: str) -> None:
        self._complete = False
        self.verified.bad_leaves.add(leaf)
        size = LEAF_BLOCKS * limits.BLOCK_BYTES
        self._findings.error(
            "bad-map-page",
            f"{self._subject} map page {leaf}",
            f"{message}; it maps bytes {_spoken(leaf * size, size)}{self._subject.advice}",
        )

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

    def _check_ranges(self, ranges: list[tuple[int, int]]) -> None:
        blocks = self.verified.blocks
        by_chunk: dict[tuple[int, int], list[Run]] = {}
        for block, count in ranges:
            crcs = blocks.entries_crc(block, count)
            for first, length, sequence, offset, base in blocks.runs(block, count):
                start = (first - block) * 4
                run = (offset * UNIT, length, first, crcs[start : start + length * 4])
                by_chunk.setdefault((base, sequence), []).append(run)
        for base, sequence in sorted(by_chunk):
            self._check_chunk(base, sequence, sorted(by_chunk[base, sequence]))

    def _check_chunk(self, base: int, sequence: int, runs: list[Run]) -> None:
        """Check the runs of one chunk, which are in the order of their offsets."""
        try:
            chunk = self.verified.family.chunk(sequence, base)
        except Corruption as exc:
            self._lose(f"chunk number {sequence}", exc.message, runs)
            return
        self.needed.add(chunk)
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

    def _note_bad(self, block: int, count: int) -> None:
        self.bad_blocks += count
        last = (block + count - 1) // LEAF_BLOCKS
        self.verified.bad_leaves.update(range(block // LEAF_BLOCKS, last + 1))

    def _lose(self, what: str, why: str, runs: list[Run]) -> None:
        self.missing += 1
        for _, count, block, _ in runs:
            self._note_bad(block, count)
        first = min(runs, key=lambda run: run[2])
        self._findings.error(
            "missing-chunk",
            f"{self._subject} {what}",
            f"{why}; {sum(run[1] for run in runs)} mapped blocks lie in it, the first at bytes "
            f"{_range(first[2], first[1])} of the volume{self._subject.advice}",
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
            for _, count, block, _ in batch:
                self._note_bad(block, count)
            place = self._subject.at(self._disk.where(address, start))
            self._findings.error(
                "unreadable", place, f"{exc.message} (chunk {chunk}){self._subject.advice}"
            )
            return
        for offset, count, first, expected in batch:
            piece = data[offset - start : offset - start + count * limits.BLOCK_BYTES]
            found = block_checksums(piece)
            self._compared += len(piece)
            if found != expected:
                self._name_bad(chunk, address + offset, first, found, expected)

    def _name_bad(
        self, chunk: ChunkId, address: int, first: int, found: bytes, expected: bytes
    ) -> None:
        """Report the blocks of one run that do not match, neighbours together."""
        numbers = range(len(found) // 4)
        wrong = [n for n in numbers if found[n * 4 : n * 4 + 4] != expected[n * 4 : n * 4 + 4]]
        for number, count in _runs(_bits((n, 1) for n in wrong)):
            one, other = (crcs[number * 4 : number * 4 + 4][::-1] for crcs in (found, expected))
            self._note_bad(first + number, count)
            self._findings.error(
                "bad-block",
                self._subject.at(self._disk.where(address, number * limits.BLOCK_BYTES)),
                f"{self._subject} byte {_range(first + number, count)}, chunk {chunk}: checksum "
                f"{one.hex()}, expected {other.hex()}{self._subject.advice}",
            )


def _end(run: Run) -> int:
    return run[0] + run[1] * limits.BLOCK_BYTES


def _too_far(batch: list[Run], run: Run) -> bool:
    return run[0] - _end(batch[-1]) > _GAP_BYTES or _end(run) - batch[0][0] > _READ_BYTES


def _range(block: int, count: int) -> str:
    return _spoken(block * limits.BLOCK_BYTES, count * limits.BLOCK_BYTES)


def _spoken(start: int, size: int) -> str:
    return f"{start:#x} to {start + size - 1:#x}"


def _bits(pieces: Iterator[tuple[int, int]]) -> int:
    """Return a number with the bits of the pieces (first, count), of blocks within a leaf."""
    bits = 0
    for first, count in pieces:
        bits |= ((1 << count) - 1) << first % LEAF_BLOCKS
    return bits


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the runs of ones in a number."""
    at = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        yield at + zeros, ones
        bits >>= ones
        at += zeros + ones
