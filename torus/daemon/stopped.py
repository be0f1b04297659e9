"""The data directory of a node that is not running, opened to be read.

Decides which files and slots can be used and what is said of the others; takes the directory's
lock, so that no node can start meanwhile, and never writes.  `StoppedChunks` shows it to the
volume's recovery as a `Chunks` on which a fence leaves no mark.

Implements docs/format.md, "Disk identity", "Segment files", "Slots" and "Fences".  Shelves are
read in `torus.daemon.stopped_shelves`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from torus import limits
from torus.cluster.chunks import ChunkWriter, Place
from torus.cluster.one_disk import OneDisk
from torus.daemon.findings import Findings
from torus.daemon.stopped_shelves import StoppedShelves
from torus.errors import (
    Corruption,
    ForeignData,
    LocalProtocolError,
    NotFound,
    PermissionDenied,
    TorusError,
    UnknownVersion,
    UsageError,
)
from torus.format.identity import IDENTITY_FILE, DiskIdentity
from torus.format.segment import (
    UNUSED_SLOT,
    Geometry,
    SegmentHeader,
    SlotHeader,
    parse_segment_name,
    segment_name,
)
from torus.format.shard import shelf_data
from torus.ids import ChunkId, volume_of
from torus.store.damage import chunk_behind
from torus.store.disk import PosixDisk
from torus.store.fences import FENCE_BYTES, FENCES_FILE, parse_fences


class StoppedData(Protocol):
    """Chunks of stopped nodes at addresses: of one disk, or of many as if they were one."""

    path: Path  # for people
    findings: Findings
    chunks: dict[ChunkId, int]
    fences: dict[int, int]
    geometry: Geometry

    @property
    def cluster_id(self) -> str:
        """Return whose data this is."""

    def volumes(self) -> set[int]:
        """Return the volumes that anything here names."""

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of a slot.  Raises: Corruption."""

    def read_chunk(self, chunk: ChunkId) -> bytes:
        """Return all bytes of a chunk's slot, its header included.  Raises: Corruption."""

    def where(self, address: int, offset: int = 0) -> str:
        """Return the file and the byte in it, for people."""


class StoppedDisk:
    """One data directory: its identity, its segments, and where each chunk and shard lies."""

    def __init__(self, path: Path, findings: Findings) -> None:
        """Open it and read every header; what is wrong goes to ``findings``.

        Raises: Busy when a node runs on it, NotFound, UsageError, PermissionDenied; Corruption
            and UnknownVersion when the identity itself cannot be used.
        """
        self.path = path
        self.findings = findings
        self.segments = 0
        self.slots = 0
        self.slots_free = 0
        self.chunks: dict[ChunkId, int] = {}
        self._copies: dict[ChunkId, int] = {}
        self.bytes_read = 0
        self._disk = _open(path)
        try:
            self.identity = self._identify()
            self.geometry = self.identity.geometry
            self._disk.use_geometry(self.geometry)
            self._own = (
                bytes.fromhex(self.identity.disk_id),
                bytes.fromhex(self.identity.cluster_id),
            )
            self.fences = self._read_fences()
            self.shelves = StoppedShelves(
                self._disk.read, self._own[0], self.geometry, self.findings
            )
            self._read_segments()
        except BaseException:
            self._disk.close()
            raise

    def close(self) -> None:
        """Let the directory go; idempotent."""
        self._disk.close()

    @property
    def cluster_id(self) -> str:
        """Return the cluster that the disk belongs to."""
        return self.identity.cluster_id

    def volumes(self) -> set[int]:
        """Return the volumes that a fence, a chunk or a shard names."""
        chunks = {chunk.volume for chunk in self.chunks}
        return {*self.fences, *chunks, *(volume_of(shard) for shard in self.shelves.shards)}

    def make_durable(self) -> None:
        """Make what is in the page cache durable, as it is: a node that was killed did not.

        Raises: Corruption when the disk cannot.
        """
        try:
            self._disk.make_durable()
        except OSError as exc:
            raise Corruption(f"{self.path} cannot be made durable: {exc}") from exc

    def where(self, address: int, offset: int = 0) -> str:
        """Return the file and the byte in it, for people."""
        segment, within = divmod(address + offset, self.geometry.segment_bytes)
        return f"{segment_name(segment)} at byte {limits.SEGMENT_HEADER_BYTES + within}"

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of a slot.

        Raises: Corruption when the file is too short or the disk cannot read them.
        """
        try:
            data = self._disk.read(address, size)
        except (OSError, KeyError) as exc:
            raise Corruption(f"{self.where(address)} cannot be read: {exc}") from exc
        self.bytes_read += size
        return data

    def read_chunk(self, chunk: ChunkId) -> bytes:
        """Return all bytes of a chunk's slot, its header included.

        Raises: Corruption.
        """
        return self.read(self.chunks[chunk], self.geometry.slot_bytes)

    def _identify(self) -> DiskIdentity:
        data = self._disk.read_file(IDENTITY_FILE)
        if data is None:
            raise NotFound(
                f"{self.path} is no data directory: it has no {IDENTITY_FILE}",
                hint="name the directory that the node was started with: --data-dir",
            )
        return DiskIdentity.from_bytes(data, str(self.path / IDENTITY_FILE))

    def _read_fences(self) -> dict[int, int]:
        data = self._disk.read_file(FENCES_FILE) or b""
        try:
            epochs, torn = parse_fences(data)
        except Corruption as exc:
            self.findings.error("bad-fences", FENCES_FILE, exc.message)
            return {}
        # A torn append lacks its end; a last entry with a checksum that is wrong is damage.
        if torn and len(data) % FENCE_BYTES == 0 and any(data[-4:]):
            at = len(data) - FENCE_BYTES
            self.findings.error("bad-fences", FENCES_FILE, f"the entry at byte {at} is damaged")
        return epochs

    # --- segments -----------------------------------------------------------------------

    def _read_segments(self) -> None:
        numbers = []
        for name in self._disk.names():
            segment = parse_segment_name(name)
            if segment is not None:
                numbers.append(segment)
                self._read_segment(segment, name)
        for missing in sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers))[:64]:
            self.findings.error(
                "missing-segment",
                segment_name(missing),
                "the file is not there, later ones are",
            )

    def _read_segment(self, segment: int, name: str) -> None:
        self.segments += 1
        try:
            size = self._disk.open_segment(segment)
            header = SegmentHeader.unpack(self._disk.read_header(segment), name)
        except OSError as exc:
            self.findings.error("unreadable-segment", name, f"cannot be read: {exc}")
            return
        except UnknownVersion as exc:
            self.findings.error("unknown-version", name, exc.message)
            return
        except Corruption as exc:
            self.findings.error("bad-segment", name, exc.message)
            return
        if (header.disk_id, header.cluster_id) != self._own:
            self.findings.error(
                "foreign-segment",
                name,
                f"belongs to disk {header.disk_id.hex()} of cluster {header.cluster_id.hex()}; "
                f"this is disk {self.identity.disk_id}",
            )
            return
        found = (header.segment, header.slot_bytes)
        if found != (segment, self.geometry.slot_bytes) or not (
            0 < header.slot_count <= self.geometry.segment_slots
        ):
            self.findings.error(
                "foreign-segment",
                name,
                f"was written as segment {header.segment} with {header.slot_count} slots of "
                f"{header.slot_bytes} bytes",
            )
            return
        expected = limits.SEGMENT_HEADER_BYTES + header.slot_count * header.slot_bytes
        if size < expected:
            self.findings.error(
                "truncated-segment",
                name,
                f"has {size} bytes, its {header.slot_count} slots need {expected}",
            )
        self._read_slots(segment, name, header.slot_count)

    def _read_slots(self, segment: int, name: str, count: int) -> None:
        self.slots += count
        for number in range(count):
            address = self.geometry.address(segment, number)
            where = f"{name} slot {number}"
            try:
                data = self._disk.read(address, limits.SLOT_HEADER_BYTES)
                slot = SlotHeader.unpack(data, where)
                if slot is None:
                    lost = self._lost(data, address)
                    if lost is None:
                        self.slots_free += 1
                    else:
                        self._take(lost, 0, address, where)
                    continue
                slot.check_place(self._own[0], segment, number, where)
                self._take(slot.chunk, slot.copy, address, where)
            except OSError as exc:
                self.findings.error("unreadable-slot", where, f"cannot be read: {exc}")
            except ForeignData as exc:
                self.findings.error("foreign-slot", where, exc.message)
            except TorusError as exc:
                self.findings.error("bad-slot", where, exc.message)

    def _lost(self, header: bytes, address: int) -> ChunkId | None:
        """Return the chunk whose slot header is all zeroes: the store makes it anew, too."""
        if header != UNUSED_SLOT:
            return None
        return chunk_behind(lambda size: self._disk.read(address, size), self.geometry.slot_bytes)

    def _take(self, chunk: ChunkId, copy: int, address: int, where: str) -> None:
        """Enter a chunk, or the shards of a shelf; of two copies that lie here the later one is
        it, as for the store.

        Raises: OSError.
        """
        if shelf_data(chunk) is not None:
            self.shelves.add(chunk, address, where)
            return
        other = self.chunks.get(chunk)
        if other is None or copy != self._copies.get(chunk, 0):
            if other is None or copy > self._copies.get(chunk, 0):
                self.chunks[chunk] = address
                self._copies[chunk] = copy
            return
        self.findings.error(
            "duplicate-chunk", where, f"chunk {chunk} lies in {self.where(other)} too"
        )


class StoppedChunks(OneDisk):
    """The `Chunks` of a stopped disk: reads, and nothing else."""

    def __init__(self, disk: StoppedData) -> None:
        self._disk = disk
        self.slot_bytes = disk.geometry.slot_bytes
        self.io = None

    def place(self, chunk: ChunkId, known: Place | None = None) -> int | None:
        """Return None: nobody takes the compiled path here."""
        return None

    def sync_soon(self, chunks: Iterable[ChunkId]) -> None:
        return None

    async def read(self, reads: Sequence[tuple[ChunkId, int, int]]) -> list[bytes]:
        return [self._read(chunk, offset, size) for chunk, offset, size in reads]

    async def fence(self, volume: int, epoch: int) -> None:
        """Do nothing: the directory's lock keeps all writers out."""

    async def scan(self, chunk: ChunkId, epoch: int, offset: int) -> bytes | None:
        if chunk not in self._disk.chunks:
            return None
        return self._read(chunk, offset, self.slot_bytes - offset)

    async def list(self, volume: int) -> Sequence[ChunkId]:
        return [chunk for chunk in self._disk.chunks if chunk.volume == volume]

    def _read(self, chunk: ChunkId, offset: int, size: int) -> bytes:
        address = self._disk.chunks.get(chunk)
        if address is None:
            raise Corruption(f"chunk {chunk} is not in {self._disk.path}")
        return self._disk.read(address + offset, size)

    # --- what a stopped disk does not do ------------------------------------------------

    def open_now(self, chunk: ChunkId, *, from_reserve: bool) -> ChunkWriter | None:
        """Raises: LocalProtocolError."""
        _refuse()

    async def open(self, chunk: ChunkId, *, from_reserve: bool) -> ChunkWriter:
        """Raises: LocalProtocolError."""
        _refuse()

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        """Raises: LocalProtocolError."""
        _refuse()

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        """Raises: LocalProtocolError."""
        _refuse()

    def space(self) -> tuple[int, int] | None:
        """Return None: nothing is written here."""
        return None

    async def wait_for_space(self) -> None:
        """Raises: LocalProtocolError."""
        _refuse()


def _refuse() -> NoReturn:
    raise LocalProtocolError("a stopped node's data is only read")


def _open(path: Path) -> PosixDisk:
    try:
        return PosixDisk(path, make=False, read_only=True)
    except FileNotFoundError as exc:
        raise NotFound(
            f"data directory {path} does not exist",
            hint="name the directory that the node was started with: --data-dir",
        ) from exc
    except NotADirectoryError as exc:
        raise UsageError(f"data directory {path} is not a folder") from exc
    except PermissionError as exc:
        raise PermissionDenied(
            f"data directory {path} may not be read", hint="run as its owner"
        ) from exc
