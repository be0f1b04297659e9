"""What reading takes: a map, the chunks that it names, and where they lie.

Decides how a map leaf is brought back from the log and when leaves are dropped from memory.
An attached volume (`torus.volume.core`) and a snapshot are views.
"""

from torus._fast.blockmap import BlockMap
from torus._fast.datapath import Datapath
from torus.cluster.chunks import Chunks, Place
from torus.ids import ChunkId
from torus.volume.family import Family
from torus.volume.leaves import learn_family, load_leaves

_BASE_SHIFT = 32  # a place is known by its chunk's sequence number and, above it, the member


class View:
    """One map with the means to read what it names.  Used from one event loop."""

    def __init__(
        self, name: str, blocks: BlockMap, family: Family, chunks: Chunks, cache_bytes: int
    ) -> None:
        self.name = name
        self.blocks = blocks
        self.family = family
        self.chunks = chunks
        learn_family(chunks, family)
        self.cache_bytes = cache_bytes
        self.places: dict[int, Place] = {}
        self.path = None if chunks.io is None else Datapath(blocks, chunks.io, self.places)
        self._mismatches = 0  # of the compiled path, so far

    def check_reads(self) -> None:
        """Refuse reads that cannot be right any more.

        Raises: the error that says why.
        """

    def chunk(self, sequence: int, base: int = 0) -> ChunkId:
        """Return the chunk that a map entry means.

        Raises: Corruption.
        """
        return self.family.chunk(sequence, base)

    def note_place(self, sequence: int, base: int = 0) -> None:
        """Tell the compiled path where a chunk lies, when that is in this process."""
        if self.path is None:
            return
        if self.path.mismatches != self._mismatches:  # a chunk is not where it was any more
            self._mismatches = self.path.mismatches
            self.places.clear()
        key = base << _BASE_SHIFT | sequence
        place = self.places.get(key)
        if place is None or (isinstance(place, tuple) and None in place):
            place = self.chunks.place(self.chunk(sequence, base), place)
            if place is not None:
                self.places[key] = place

    async def load(self, block: int, count: int) -> None:
        """Bring the leaves of a range into memory.

        Raises: Corruption, Unavailable.
        """
        await load_leaves(self.blocks, self.family, self.chunks, block, count)

    def shrink_cache(self) -> None:
        """Drop clean leaves beyond the cache's size, where nothing under way needs them."""
        self.drop_leaves()

    def drop_leaves(self) -> None:
        """Drop clean leaves beyond the cache's size."""
        if self.blocks.resident_bytes > self.cache_bytes:
            self.blocks.evict(self.cache_bytes)
