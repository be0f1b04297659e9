"""A snapshot opened for reading: its map, and the logs that the map names."""

from torus import limits
from torus._fast.blockmap import BlockMap
from torus.cluster.chunks import Chunks
from torus.metadata.schema import Snapshot
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.family import Family
from torus.volume.leaves import learn_family
from torus.volume.maproot import load_map, read_root
from torus.volume.origin import Origin, find_origin
from torus.volume.spans import Spans
from torus.volume.view import View


class SnapshotMap(View):
    """A snapshot that does not change and does not go while somebody is registered as its
    reader; who opens it sees to that."""

    def __init__(
        self, name: str, snapshot: Snapshot, blocks: BlockMap, family: Family, chunks: Chunks,
        cache_bytes: int,
    ) -> None:  # fmt: skip
        super().__init__(name, blocks, family, chunks, cache_bytes)
        self.snapshot = snapshot

    async def fit(self) -> None:
        """Give the map the snapshot's size, which may have changed without a checkpoint of its
        own: what lies beyond is not part of it.

        Raises: Corruption, Unavailable.
        """
        blocks, size = self.blocks, -(-self.snapshot.size_bytes // limits.BLOCK_BYTES)
        if size < blocks.size_blocks:
            await self.load(size, blocks.size_blocks - size)
        if size != blocks.size_blocks:
            blocks.resize(size)


async def open_snapshot(
    catalog: AsyncCatalog,
    chunks: Chunks,
    snapshot: Snapshot,
    cache_bytes: int,
    *,
    fit: bool = True,
) -> SnapshotMap:
    """Open a snapshot's map; only its upper pages are read.

    ``fit`` False leaves the map as the root says it; see `SnapshotMap.fit`.

    Raises: NotFound, Corruption, Unavailable, UnknownVersion.
    """
    volume = await catalog.get_by_id(snapshot.volume)
    name = f"{volume.spec.name}@{snapshot.name}"
    origin = await find_origin(catalog, snapshot.base)
    spans = Spans(snapshot.volume, volume.head.spans)
    return await read_map(name, snapshot, spans, origin, chunks, cache_bytes, fit=fit)


async def read_map(
    name: str,
    snapshot: Snapshot,
    spans: Spans,
    origin: Origin,
    chunks: Chunks,
    cache_bytes: int,
    *,
    fit: bool = True,
) -> SnapshotMap:
    """Open a snapshot's map, knowing its volume's log and that of its ``origin``.

    Raises: Corruption, Unavailable, UnknownVersion.
    """
    family = Family(spans, origin.ancestors)
    learn_family(chunks, family)
    place, member = snapshot.root, 0
    if place is None:
        place, member = origin.root, origin.member
    size_blocks = -(-snapshot.size_bytes // limits.BLOCK_BYTES)
    if place is None:
        blocks = BlockMap(size_blocks, cache_bytes)
    else:
        root = await read_root(chunks, family, place, member, name)
        blocks = await load_map(chunks, family, root, member, cache_bytes)
    view = SnapshotMap(name, snapshot, blocks, family, chunks, cache_bytes)
    if fit:
        await view.fit()
    return view
