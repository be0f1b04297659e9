"""Whether what a map names can be read: every mapped block, from whichever copy has it.

Decides that a block is bad when everybody who must have it gave something else than the map's
checksum says, and unknown when somebody could not be asked.  What two maps share at the same
place is read once.

Implements docs/scrub.md, "Which blocks are lost".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torus import limits
from torus._fast.blockmap import BlockMap
from torus._fast.crc import block_checksums
from torus._fast.mapdiff import diff_leaf, differing_leaves
from torus.errors import Corruption, TorusError, Unavailable
from torus.ids import ChunkId
from torus.volume.changes import member_names
from torus.volume.leaves import LEAF_BLOCKS, UNIT
from torus.volume.view import View

BLOCK = limits.BLOCK_BYTES
_LEAVES = 256  # looked for at once
_PIECE_BLOCKS = 64  # read in one piece
_BATCH_BLOCKS = 256  # read at once
_UNKNOWN_MAX = 3  # chunks that are waited for in full; others are asked once

Read = tuple[ChunkId, int, int]


@dataclass(frozen=True, slots=True)
class Bad:
    """Blocks in a row that cannot be read."""

    block: int
    count: int
    chunk: str  # that they lie in; empty: of a map page
    problem: str
    known: bool = True  # False: a disk that may have them is silent


@dataclass(slots=True)
class Readable:
    """What was found of one map."""

    mapped_blocks: int = 0  # that were read here
    bad: list[Bad] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of blocks in one chunk."""

    block: int
    count: int
    read: Read
    crcs: bytes


class MapReader:
    """Reads all blocks of some maps of one volume, the newest first."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        """``progress`` is told the bytes that were read with each step."""
        self._progress = progress
        self._unknown: dict[ChunkId, str] = {}

    async def read(self, view: View, newer: View | None, known: Sequence[Bad]) -> Readable:
        """Read what ``view`` names and ``newer``, which was read before, does not.

        ``known``: what is bad in ``newer``; where both are the same that holds here, too.
        """
        found = Readable()
        size = view.blocks.size_blocks
        nothing = BlockMap(size, 0)
        before = nothing if newer is None else newer.blocks
        names = None if newer is None else member_names(newer.family, view.family)
        differing: dict[int, list[tuple[int, int]]] = {}
        first = 0
        while leaves := differing_leaves(before, view.blocks, first, _LEAVES, names):
            for leaf in leaves:
                if leaf * LEAF_BLOCKS < size:
                    differing[leaf] = await self._leaf(view, newer, leaf, names, found)
            first = leaves[-1] + 1
        for one in known:
            found.bad += _shared(one, differing, size)
        found.bad.sort(key=lambda one: one.block)
        return found

    async def _leaf(
        self, view: View, newer: View | None, leaf: int, names: bytes | None, found: Readable
    ) -> list[tuple[int, int]]:
        """Read what differs in one leaf; return those ranges, holes included."""
        start = leaf * LEAF_BLOCKS
        count = min(LEAF_BLOCKS, view.blocks.size_blocks - start)
        try:
            await view.load(start, count)
        except TorusError as exc:
            known = not isinstance(exc, Unavailable)
            found.bad.append(Bad(start, count, "", exc.message, known))
            return [(start, count)]
        before: BlockMap | None = None
        if newer is not None and start < newer.blocks.size_blocks:
            try:
                await newer.load(start, min(LEAF_BLOCKS, newer.blocks.size_blocks - start))
                before = newer.blocks
            except TorusError:
                before = None  # it was told with that map
        if before is None:
            before, names = BlockMap(view.blocks.size_blocks, 0), None
        pieces = diff_leaf(before, view.blocks, leaf, names)
        for block, length, mapped in pieces:
            if mapped:
                await self._range(view, block, length, found)
        for side in (view, newer):
            if side is not None:
                side.shrink_cache()
        return [(block, length) for block, length, _ in pieces]

    async def _range(self, view: View, block: int, count: int, found: Readable) -> None:
        blocks = view.blocks
        crcs = blocks.entries_crc(block, count)
        batch: list[_Piece] = []
        size = 0
        for first, length, sequence, offset, base in blocks.runs(block, count):
            try:
                chunk = view.chunk(sequence, base)
            except Corruption as exc:
                found.bad.append(Bad(first, length, f"number {sequence}", exc.message))
                continue
            for at in range(0, length, _PIECE_BLOCKS):
                some = min(_PIECE_BLOCKS, length - at)
                place = (offset + at * BLOCK // UNIT) * UNIT
                start = (first - block + at) * 4
                read = (chunk, place, some * BLOCK)
                batch.append(_Piece(first + at, some, read, crcs[start : start + some * 4]))
                size += some
                if size >= _BATCH_BLOCKS:
                    await self._batch(view, batch, found)
                    batch, size = [], 0
        if batch:
            await self._batch(view, batch, found)

    async def _batch(self, view: View, batch: Sequence[_Piece], found: Readable) -> None:
        found.mapped_blocks += sum(one.count for one in batch)
        self._progress(sum(one.count for one in batch) * BLOCK)
        if not any(one.read[0] in self._unknown for one in batch):
            try:
                wrong = await self._wrong(view, batch)
            except TorusError:
                wrong = list(batch)
        else:
            wrong = list(batch)
        for piece in wrong:
            await self._each(view, piece, found)

    async def _wrong(self, view: View, batch: Sequence[_Piece]) -> list[_Piece]:
        """Return the pieces that nobody has as a whole.  Raises: TorusError."""
        reads = [one.read for one in batch]
        data = await view.chunks.read_checked(
            reads, lambda number, piece: block_checksums(piece) == batch[number].crcs
        )
        return [
            one
            for one, piece in zip(batch, data, strict=True)
            if block_checksums(piece) != one.crcs
        ]

    async def _each(self, view: View, piece: _Piece, found: Readable) -> None:
        """Read a piece block by block: others may have what the first has not."""
        chunk, offset, _ = piece.read
        for number in range(piece.count):
            crcs = piece.crcs[number * 4 : number * 4 + 4]
            one = _Piece(piece.block + number, 1, (chunk, offset + number * BLOCK, BLOCK), crcs)
            problem, known = self._unknown.get(chunk, ""), False
            if not problem:
                try:
                    if not await self._wrong(view, [one]):
                        continue
                    problem, known = "its checksum is wrong in every copy", True
                except Unavailable as exc:
                    problem = self._unknown[chunk] = exc.message
                    if len(self._unknown) >= _UNKNOWN_MAX:
                        view.chunks.stop_waiting()
                except TorusError as exc:
                    problem, known = exc.message, True
            _append(found.bad, Bad(one.block, 1, str(chunk), problem, known))


def _append(bad: list[Bad], one: Bad) -> None:
    """Add a block, joined with the one before where nothing else differs."""
    last = bad[-1] if bad else None
    if last is not None and (last.chunk, last.problem, last.known) == (
        one.chunk, one.problem, one.known
    ) and last.block + last.count == one.block:  # fmt: skip
        bad[-1] = Bad(last.block, last.count + one.count, one.chunk, one.problem, one.known)
    else:
        bad.append(one)


def _shared(bad: Bad, differing: dict[int, list[tuple[int, int]]], size: int) -> list[Bad]:
    """Return the parts of what is bad in another map that lie at the same place in this one."""
    found: list[Bad] = []
    for block in range(bad.block, min(bad.block + bad.count, size)):
        ranges = differing.get(block // LEAF_BLOCKS, ())
        if not any(first <= block < first + count for first, count in ranges):
            _append(found, Bad(block, 1, bad.chunk, bad.problem, bad.known))
    return found
