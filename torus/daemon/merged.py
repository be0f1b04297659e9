"""The stopped disks of a whole cluster as one: every chunk, whichever disks have it.

Decides which copy of a chunk is read: the longest one whose records are whole; where those are
damaged in different places each record from a copy that has it whole; where no copy reaches as
far, what its shards give.  Nothing is written.

Implements docs/format.md, "Rebuilding the metadata of a cluster".
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

from torus.daemon.check_shards import read_shard
from torus.daemon.findings import Findings
from torus.daemon.stopped import StoppedDisk
from torus.daemon.stopped_shelves import Place
from torus.errors import Corruption, ForeignData, TorusError, UsageError
from torus.format.assembled import FIRST, assemble
from torus.format.logend import headers_beyond
from torus.format.shard import Descriptor, payload_bytes
from torus.ids import ChunkId, whole_id
from torus.redundancy.codec import codec
from torus.redundancy.scheme import erasure
from torus.store.content import walk

_KEPT_CHUNKS = 16  # of those that were put together: 64 MiB

_Shard = tuple[StoppedDisk, ChunkId, Place]


class MergedDisks:
    """The disks of a cluster; what a `StoppedDisk` is of one, as far as a recovery reads it.

    Addresses are those of an imagined disk on which every chunk has one slot.
    """

    def __init__(self, disks: Sequence[StoppedDisk], findings: Findings) -> None:
        """Take disks that are open; whoever opened them closes them.

        Raises: ForeignData when they are not of one cluster, UsageError for a disk that is there
            twice.
        """
        _check_alike(disks)
        self.disks = tuple(disks)
        self.findings = findings
        self.path = Path(", ".join(str(disk.path) for disk in disks))
        self.cluster_id = disks[0].cluster_id
        self.geometry = disks[0].geometry
        self.fences: dict[int, int] = {}
        self._holders: dict[ChunkId, list[StoppedDisk]] = {}
        self._shards: dict[ChunkId, list[_Shard]] = {}
        for disk in disks:
            for volume, epoch in disk.fences.items():
                self.fences[volume] = max(epoch, self.fences.get(volume, 0))
            for chunk in disk.chunks:
                self._holders.setdefault(chunk, []).append(disk)
            for shard, place in disk.shelves.shards.items():
                self._shards.setdefault(whole_id(shard), []).append((disk, shard, place))
        self._order = sorted(self._holders.keys() | self._shards.keys())
        slot = self.geometry.slot_bytes
        self.chunks = {chunk: number * slot for number, chunk in enumerate(self._order)}
        self._chosen: dict[ChunkId, StoppedDisk | None] = {}  # None: it is put together
        self._kept: OrderedDict[ChunkId, bytes] = OrderedDict()

    def volumes(self) -> set[int]:
        """Return the volumes that any disk has heard of."""
        return {*self.fences, *(chunk.volume for chunk in self._order)}

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of a chunk.

        Raises: Corruption when no disk can give them.
        """
        number, offset = divmod(address, self.geometry.slot_bytes)
        chunk = self._order[number]
        disk = self._choose(chunk)
        if disk is not None:
            return disk.read(disk.chunks[chunk] + offset, size)
        kept = self._kept.get(chunk)
        if kept is None:  # it had to make room
            del self._chosen[chunk]
            return self.read(address, size)
        return kept[offset : offset + size]

    def read_chunk(self, chunk: ChunkId) -> bytes:
        """Return all bytes of a chunk's slot.

        Raises: Corruption.
        """
        return self.read(self.chunks[chunk], self.geometry.slot_bytes)

    def where(self, address: int, offset: int = 0) -> str:
        """Return the disk, the file and the byte in it, for people."""
        number, within = divmod(address + offset, self.geometry.slot_bytes)
        chunk = self._order[number]
        disk = self._chosen.get(chunk)
        if disk is None:
            return f"chunk {chunk} at byte {within}, of {len(self._shards.get(chunk, ()))} shards"
        return f"{disk.path}, {disk.where(disk.chunks[chunk], within)}"

    # --- which copy ---------------------------------------------------------------------

    def _choose(self, chunk: ChunkId) -> StoppedDisk | None:
        """Return the disk whose copy is right; None: it is among those that were put together.

        Raises: Corruption.
        """
        if chunk in self._chosen:
            return self._chosen[chunk]
        holders, shards = self._holders.get(chunk, []), self._shards.get(chunk)
        if len(holders) == 1 and not shards:
            self._chosen[chunk] = holders[0]
            return holders[0]
        copies = self._copies(chunk, holders)
        ends = {disk: walk(data, chunk).end for disk, data in copies.items()}
        best = max(ends, key=lambda disk: ends[disk]) if ends else None
        end = FIRST if best is None else ends[best]
        content = self._put_together(chunk, list(copies.values()), end)
        if shards and content is None:
            content = self._from_shards(chunk, shards, end)
        if content is None and best is None:
            raise Corruption(f"chunk {chunk} cannot be read: too few of its shards are there")
        if content is not None:
            rest = b"" if best is None else copies[best][len(content) :]
            self._keep(chunk, content + rest)
            best = None
        self._chosen[chunk] = best
        return best

    def _copies(self, chunk: ChunkId, holders: Iterable[StoppedDisk]) -> dict[StoppedDisk, bytes]:
        """Return the bytes of each copy that can be read, from the first record on."""
        found = {}
        for disk in holders:
            try:
                found[disk] = disk.read_chunk(chunk)[FIRST:]
            except Corruption as exc:
                self.findings.warning("unreadable", f"{disk.path}", exc.message)
        return found

    def _put_together(self, chunk: ChunkId, copies: list[bytes], end: int) -> bytes | None:
        """Return more records than the longest copy has, of copies that are damaged; or None."""
        if len(copies) < 2:
            return None
        if not any(any(headers_beyond(data, end - FIRST, chunk, FIRST)) for data in copies):
            return None
        found = assemble(chunk, copies)
        return found if FIRST + len(found) > end else None

    def _keep(self, chunk: ChunkId, content: bytes) -> None:
        slot = bytes(FIRST) + content
        self._kept[chunk] = slot + bytes(self.geometry.slot_bytes - len(slot))
        if len(self._kept) > _KEPT_CHUNKS:
            self._kept.popitem(last=False)

    # --- shards -------------------------------------------------------------------------

    def _from_shards(self, chunk: ChunkId, shards: Iterable[_Shard], end: int) -> bytes | None:
        """Return all records of a chunk, if its shards reach further than ``end``."""
        alike: dict[tuple[int, int, int, int], dict[int, bytes]] = {}
        for disk, shard, place in shards:
            try:
                described, payload = read_shard(disk, shard, place)
            except TorusError as exc:
                self.findings.warning("bad-shard", disk.where(place.address), exc.message)
                continue
            alike.setdefault(_content_of(described), {})[described.number] = payload
        for key in sorted(alike, key=lambda one: -one[2]):  # the furthest first
            data, parity, content_end, crc = key
            if content_end <= end or len(alike[key]) < data:
                continue
            content = self._join(alike[key], data, parity)[: content_end - FIRST]
            found = walk(content, chunk)
            if (found.end, found.crc) == (content_end, crc):
                return content
            self.findings.error("bad-shard", f"chunk {chunk}", "its shards do not fit together")
        return None

    def _join(self, payloads: dict[int, bytes], data: int, parity: int) -> bytes:
        size = payload_bytes(data, self.geometry.slot_bytes)
        numbers = sorted(payloads)[:data]
        present = [payloads[number].ljust(size, b"\0") for number in numbers]
        wanted = [number for number in range(data) if number not in numbers]
        outputs = [bytearray(size) for _ in wanted]
        if wanted:
            codec(erasure(data, parity)).rebuild(numbers, present, wanted, outputs)
        whole: dict[int, bytes | bytearray] = dict(zip(numbers, present, strict=True))
        whole.update(zip(wanted, outputs, strict=True))
        return b"".join(whole[number] for number in range(data))


def _content_of(described: Descriptor) -> tuple[int, int, int, int]:
    return described.data, described.parity, described.content_end, described.content_crc


def _check_alike(disks: Sequence[StoppedDisk]) -> None:
    seen: dict[str, StoppedDisk] = {}
    first = disks[0]
    for disk in disks:
        if disk.cluster_id != first.cluster_id:
            raise ForeignData(
                f"{disk.path} belongs to cluster {disk.cluster_id}, {first.path} to cluster "
                f"{first.cluster_id}",
                hint="name the data directories of one cluster",
            )
        if disk.geometry.slot_bytes != first.geometry.slot_bytes:
            raise ForeignData(
                f"{disk.path} has slots of {disk.geometry.slot_bytes} bytes, {first.path} of "
                f"{first.geometry.slot_bytes}"
            )
        other = seen.setdefault(disk.identity.disk_id, disk)
        if other is not disk:
            raise UsageError(
                f"{disk.path} and {other.path} are the same disk {disk.identity.disk_id}",
                hint="name every data directory once, and no copies",
            )
