"""Shards on one disk: putting one there, and verifying one.

Decides what a valid shard is (a place header, a descriptor and a payload that fit each other),
when one that is there is kept or replaced, and in which order it is written: it is not there
before all of it is durable.  Where it lies is decided in `torus.store.shelves`.  Implements
docs/format.md, "Shards".
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from torus.errors import (
    AlreadyExists,
    Busy,
    Corruption,
    DiskFailed,
    LocalProtocolError,
    TorusError,
    UnknownVersion,
)
from torus.format.shard import (
    PAYLOAD_OFFSET,
    PLACE_BYTES,
    Descriptor,
    open_shard,
)
from torus.ids import ChunkId, split_part, volume_of
from torus.log import get_logger
from torus.store.appender import Slot
from torus.store.content import FIRST, Bytes, Examined, Presence
from torus.store.shelves import Cell

if TYPE_CHECKING:
    from torus.store.store import Store

log = get_logger("torus.store")
_ATTEMPTS_MAX = 8
Present = Callable[[ChunkId], Awaitable[Slot | None]]


class _Found(NamedTuple):
    """What reading a cell found."""

    descriptor: Descriptor | None  # of a shard that is whole
    placed: bool  # its header is the one that belongs there
    content: bytes  # descriptor and payload; b"" of a shard that is not whole
    problem: str


class Shards:
    """The shards of one store."""

    def __init__(self, store: "Store", present: Present) -> None:
        """``present`` finds a part that is here, in the trash as well."""
        self._store = store
        self._present = present

    async def _read(self, cell: Cell) -> _Found:
        """Read and verify all of a shard.

        Raises: Corruption when the disk cannot read it; UnknownVersion.
        """
        store = self._store
        disk, slot_bytes = store.disk, store.geometry.slot_bytes
        header = store.slot_header(cell)

        def read() -> _Found | UnknownVersion:
            head = disk.read(cell.address, PAYLOAD_OFFSET)
            placed = head[:PLACE_BYTES] == header
            try:
                described = Descriptor.unpack(head[PLACE_BYTES:], f"shard {cell.chunk}")
                size = min(described.payload_bytes, cell.room - PAYLOAD_OFFSET)
                content = head[PLACE_BYTES:] + disk.read(cell.address + PAYLOAD_OFFSET, size)
                return _Found(open_shard(content, cell.chunk, slot_bytes), placed, content, "")
            except UnknownVersion as exc:
                return exc
            except TorusError as exc:
                return _Found(None, placed, b"", exc.message)

        try:
            found = await store.in_pool(read)
        except OSError as exc:
            raise Corruption(f"shard {cell.chunk} cannot be read: {exc}") from exc
        if isinstance(found, UnknownVersion):
            raise found
        return found

    # --- verifying ----------------------------------------------------------------------

    async def examine(self, shard: ChunkId, *, afresh: bool) -> Examined:
        """Say whether a shard is here, and of which content of its chunk: see `Copies.examine`.

        ``end`` and ``crc`` are those of the whole chunk's records, ``records`` is K << 8 | M.  Of
        a shard that is damaged nothing is valid: it ends at `FIRST` and has no records.

        Raises: DiskFailed.
        """
        store = self._store
        for _ in range(_ATTEMPTS_MAX):
            store.check_disk()
            try:
                cell = store.find(shard)
                if cell is None:
                    return Examined(shard, Presence.ABSENT, 0, 0, 0)
                if cell.examined is not None and not afresh:
                    return cell.examined
                assert isinstance(cell, Cell)
                found = await self._read(cell)
            except (Corruption, UnknownVersion) as exc:
                log.error("store.shard.unreadable", shard=str(shard), reason=exc.message)
                break
            if store.slots.get(shard) is not cell:
                continue
            cell.examined = _examined(shard, found)
            return cell.examined
        return Examined(shard, Presence.UNKNOWN, 0, 0, 0)

    # --- putting one there --------------------------------------------------------------

    async def check(self, shard: ChunkId, epoch: int, end: int, content: Bytes) -> Descriptor:
        """Refuse what cannot be installed; return what describes the shard.

        Raises: Fenced, Corruption, DiskFailed, LocalProtocolError.
        """
        store = self._store
        store.check_disk()
        store.fences.check(volume_of(shard), epoch)
        split_part(shard)
        if epoch < shard.epoch:
            raise LocalProtocolError(f"epoch {epoch} cannot have shard {shard}")
        if len(content) != end - FIRST:
            raise LocalProtocolError(f"{len(content)} bytes for shard {shard} up to offset {end}")
        found = await store.in_pool(_verify, content, shard, store.geometry.slot_bytes)
        if isinstance(found, TorusError):
            raise found
        return found

    async def install(
        self, shard: ChunkId, epoch: int, content: Bytes, described: Descriptor
    ) -> None:
        """Have a shard, which `check` accepted; see `Copies.install`.

        A shard of the same bytes is kept; one that is damaged, or of other content of its chunk,
        is replaced.

        Raises: Fenced, PoolFull, DiskFailed, LocalProtocolError, Busy; UnknownVersion when one is
            here that a newer torus wrote; AlreadyExists when a whole
            shard of that number is here that was made for another K+M: the two would be told
            apart by nobody, and the other may be one of the last K of its kind.
        """
        store = self._store
        for _ in range(_ATTEMPTS_MAX):
            store.check_disk()
            store.fences.check(volume_of(shard), epoch)
            dropped = store.in_trash(shard)
            cell = await self._present(shard)
            if cell is None:
                await self._write_new(shard, epoch, content, described, None)
                return
            assert isinstance(cell, Cell)
            try:
                found = await self._read(cell)
            except Corruption as exc:
                found = _Found(None, placed=False, content=b"", problem=exc.message)
            if store.slots.get(shard) is not cell:
                continue
            if found.placed and found.content == content:
                await store.sync_segments({cell.segment})
                return
            if not dropped:
                _check_scheme(shard, found.descriptor, described)
            await self._write_new(shard, epoch, content, described, cell)
            return
        raise Busy(f"shard {shard} is being changed")

    async def _write_new(
        self, shard: ChunkId, epoch: int, content: Bytes, described: Descriptor, old: Cell | None
    ) -> None:
        """Write a shard into a cell of its own, and let it take the place of ``old``.

        Its header is written when the rest is durable, and the other's cell is freed when that
        is.  Before, the cell's header says that it is free.
        """
        store = self._store
        cell = await store.shelves.take(shard, described.data, 0 if old is None else old.copy + 1)
        try:
            await store.write_durably(cell, [(PLACE_BYTES, content)])
            self._check_still(shard, epoch, old)
            await store.write_durably(cell, [(0, store.slot_header(cell))])
            self._check_still(shard, epoch, old)
        except TorusError as exc:
            if not isinstance(exc, DiskFailed):
                await store.give_back(cell)
            raise
        store.slots.add(cell)
        if old is not None:
            log.warning("store.shard.replaced", shard=str(shard), copy=cell.copy)
            await store.give_back(old)

    def _check_still(self, shard: ChunkId, epoch: int, old: Cell | None) -> None:
        """Refuse to go on when another writer came, or another shard.  Raises: Fenced, Busy."""
        self._store.fences.check(volume_of(shard), epoch)
        if self._store.slots.get(shard) is not old:
            raise Busy(f"shard {shard} was changed while it was written")


def _verify(content: Bytes, shard: ChunkId, slot_bytes: int) -> Descriptor | TorusError:
    """Return what describes a shard, or what is wrong with it: pools pass on OSError alone."""
    try:
        return open_shard(content, shard, slot_bytes)
    except TorusError as exc:
        return exc


def _examined(shard: ChunkId, found: _Found) -> Examined:
    described = found.descriptor
    if described is None or not found.placed:
        problem = found.problem or "its header is damaged"
        log.error("store.shard.damaged", shard=str(shard), reason=problem)
        return Examined(shard, Presence.PRESENT, FIRST, 0, 0)
    return Examined(
        shard, Presence.PRESENT, described.content_end, described.data << 8 | described.parity,
        described.content_crc,
    )  # fmt: skip


def _check_scheme(shard: ChunkId, here: Descriptor | None, wanted: Descriptor) -> None:
    if here is not None and (here.data, here.parity) != (wanted.data, wanted.parity):
        raise AlreadyExists(
            f"shard {shard} is here for erasure:{here.data}+{here.parity}, and is not replaced by "
            f"one for erasure:{wanted.data}+{wanted.parity}",
            hint="a volume goes from one erasure code to another by way of whole copies",
        )
