"""A disk in memory that records everything done to it, for cutting its power later.

`SimDisk` is a `torus.store.disk.Disk`.  Each operation goes into a history; `PowerLoss` walks a
history and makes, for any moment, an image that the disk might be left with: what was synced
is there, each unsynced operation is there, missing or torn: writes at 512-byte sectors, holes
at the file system's blocks.

It decides nothing about right and wrong: tests do.
"""

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torus import limits
from torus._fast.blockio import BlockIo, PythonIo
from torus.format.segment import FREED_SLOT, Geometry, segment_name
from torus.store.disk import Bytes

SECTOR = limits.SECTOR_BYTES
_FILE_BLOCK = 4 * limits.KIB  # of the file system: it punches whole ones
_POISON = b"\xdb"
SMALL = Geometry(64 * limits.KIB, 16)


class Event(NamedTuple):
    """One thing that happened, in the order in which things happened.

    kind     a                  b
    write    disk address       bytes (unsynced)
    punch    disk address       size (unsynced)
    sync     segment            events before this number became durable
    make     segment            (header, bytes of slots), durable
    replace  file name          bytes, durable
    append   file name          bytes, durable
    meta     metadata snapshot  None, durable
    mark     whatever a test    wants to remember
    """

    kind: str
    a: object
    b: object = None


@dataclass(slots=True)
class DiskImage:
    """What lies on a disk."""

    headers: dict[int, bytes] = field(default_factory=dict)
    segments: dict[int, bytearray] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def copy(self) -> "DiskImage":
        """Return a copy that shares nothing that changes."""
        segments = {number: bytearray(data) for number, data in self.segments.items()}
        return DiskImage(dict(self.headers), segments, dict(self.files))


class SimDisk:
    """A `Disk` in memory.  ``cold(address)`` True makes a fast read miss the page cache."""

    def __init__(
        self,
        geometry: Geometry = SMALL,
        image: DiskImage | None = None,
        history: list[Event] | None = None,
        cold: Callable[[int], bool] = lambda _address: False,
    ) -> None:
        self.geometry = geometry
        self.image = image or DiskImage()
        self.history: list[Event] = [] if history is None else history
        self.sync_before: int | None = None  # what a running sync covers; None: everything
        self.poison = False  # a slot loses its content with its chunk: whoever reads it shows
        self._cold = cold
        self._opened: set[int] = set()
        self.io: BlockIo = PythonIo(self)

    def _record(self, kind: str, a: object, b: object = None) -> None:
        self.history.append(Event(kind, a, b))

    # --- small files --------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted([*self.image.files, *map(segment_name, self.image.segments)])

    def read_file(self, name: str) -> bytes | None:
        return self.image.files.get(name)

    def replace_file(self, name: str, data: bytes) -> None:
        self._record("replace", name, bytes(data))
        self.image.files[name] = bytes(data)

    def append_file(self, name: str, data: bytes) -> None:
        self._record("append", name, bytes(data))
        self.image.files[name] = self.image.files.get(name, b"") + data

    # --- segments -----------------------------------------------------------------------

    def make_segment(self, segment: int, header: bytes, slot_bytes: int) -> None:
        self._record("make", segment, (bytes(header), slot_bytes))
        self.image.headers[segment] = bytes(header)
        self.image.segments[segment] = bytearray(slot_bytes)
        self._opened.add(segment)

    def open_segment(self, segment: int) -> int:
        self._opened.add(segment)
        return len(self.image.headers[segment]) + len(self.image.segments[segment])

    def read_header(self, segment: int) -> bytes:
        return self.image.headers[segment]

    def read(self, address: int, size: int) -> bytes:
        data, offset = self._locate(address)
        if offset + size > len(data):
            raise OSError(errno.EIO, f"{size} bytes at {address:#x} reach beyond the segment")
        return bytes(data[offset : offset + size])

    def read_many(self, reads: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.read(address, size) for address, size in reads]

    def read_now(self, address: int, size: int) -> bytes | None:
        """Return the bytes if they are in the page cache."""
        return None if self._cold(address) else self.read(address, size)

    def write(self, address: int, data: Bytes) -> None:
        target, offset = self._locate(address)
        if offset + len(data) > len(target):
            raise OSError(errno.EFBIG, f"{len(data)} bytes at {address:#x} leave the segment")
        self._record("write", address, bytes(data))
        target[offset : offset + len(data)] = data
        whole = address % self.geometry.slot_bytes == 0  # not a cell of a shelf
        if self.poison and whole and data == FREED_SLOT:
            self._spoil(address + len(data))

    def _spoil(self, address: int) -> None:
        """Overwrite what lies from ``address`` to the end of its slot."""
        target, offset = self._locate(address)
        size = -offset % self.geometry.slot_bytes
        self._record("write", address, _POISON * size)
        target[offset : offset + size] = _POISON * size

    def sync(self, segment: int) -> None:
        if segment not in self._opened:
            raise OSError(errno.EBADF, f"segment {segment} is not open")
        before = len(self.history) if self.sync_before is None else self.sync_before
        self._record("sync", segment, before)

    def sync_soon(self, segment: int) -> None:
        return None

    def allocate(self, address: int, size: int) -> None:
        self._locate(address)

    def punch(self, address: int, size: int) -> None:
        target, offset = self._locate(address)
        self._record("punch", address, size)
        target[offset : offset + size] = bytes(size)

    def close(self) -> None:
        self._opened.clear()

    def _locate(self, address: int) -> tuple[bytearray, int]:
        segment, offset = divmod(address, self.geometry.segment_bytes)
        if segment not in self._opened:
            raise OSError(errno.EBADF, f"address {address:#x} lies in no open segment")
        return self.image.segments[segment], offset


class PowerLoss:
    """Walks a history and makes the images that a crash at each moment may leave."""

    def __init__(self, geometry: Geometry, start: DiskImage | None = None) -> None:
        self._geometry = geometry
        self._durable = start or DiskImage()
        self._pending: list[tuple[int, Event]] = []
        self._count = 0

    def step(self, event: Event) -> None:
        """Let the next event of the history happen."""
        durable = self._durable
        if event.kind in ("write", "punch"):
            self._pending.append((self._count, event))
        elif event.kind == "sync":
            self._settle(event)
        elif event.kind == "make":
            assert isinstance(event.a, int)
            assert isinstance(event.b, tuple)
            durable.headers[event.a] = event.b[0]
            durable.segments[event.a] = bytearray(event.b[1])
        elif event.kind in ("replace", "append"):
            assert isinstance(event.a, str)
            assert isinstance(event.b, bytes)
            old = durable.files.get(event.a, b"") if event.kind == "append" else b""
            durable.files[event.a] = old + event.b
        self._count += 1

    def continued(self) -> "PowerLoss":
        """Return the same disk for a history of its own, which begins now: that of a process
        which comes after one that was killed, and whose page cache it inherits."""
        copy = PowerLoss(self._geometry, self._durable.copy())
        copy._pending = [(-1, event) for _, event in self._pending]
        return copy

    def certain(self) -> DiskImage:
        """Return the image after a power loss that took all it could."""
        return self._durable.copy()

    @property
    def durable(self) -> DiskImage:
        """Return the same as `certain`, not a copy: who changes it changes the disk."""
        return self._durable

    @property
    def unsynced(self) -> int:
        """Operations that a power loss may undo."""
        return len(self._pending)

    def killed(self, current: Event | None = None, rng: random.Random | None = None) -> DiskImage:
        """Return the image after the process dies: nothing that was done is lost.

        ``current`` is the operation under way, of which any part may be done.
        """
        image = self._durable.copy()
        for _, event in self._pending:
            self._apply(image, event)
        if current is not None and rng is not None:
            self._begin(image, current, rng)
        return image

    def cut(self, rng: random.Random, current: Event | None = None) -> DiskImage:
        """Return one image after a power loss: some unsynced operations survive, some torn."""
        image = self._durable.copy()
        survive = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        tear = rng.choice((0.0, 0.0, 0.3, 1.0))
        for _, event in self._pending:
            if rng.random() >= survive:
                continue
            if rng.random() < tear:
                self._tear(image, event, rng)
            else:
                self._apply(image, event)
        if current is not None:
            self._begin(image, current, rng)
        return image

    def _settle(self, sync: Event) -> None:
        assert isinstance(sync.a, int)
        assert isinstance(sync.b, int)
        left = []
        for number, event in self._pending:
            assert isinstance(event.a, int)
            if number < sync.b and self._geometry.segment_of(event.a) == sync.a:
                self._apply(self._durable, event)
            else:
                left.append((number, event))
        self._pending = left

    def _apply(self, image: DiskImage, event: Event) -> None:
        assert isinstance(event.a, int)
        segment, offset = divmod(event.a, self._geometry.segment_bytes)
        data = event.b if isinstance(event.b, bytes) else bytes(event.b)  # type: ignore[call-overload]
        image.segments[segment][offset : offset + len(data)] = data

    def _tear(self, image: DiskImage, event: Event, rng: random.Random) -> None:
        assert isinstance(event.a, int)
        segment, offset = divmod(event.a, self._geometry.segment_bytes)
        data = event.b if isinstance(event.b, bytes) else bytes(event.b)  # type: ignore[call-overload]
        target = image.segments[segment]
        step = _FILE_BLOCK if event.kind == "punch" else SECTOR
        sectors = len(data) // step
        if rng.random() < 0.5:  # the device wrote in order and stopped
            chosen = range(rng.randint(0, sectors))
        else:
            keep = rng.random()
            chosen = [number for number in range(sectors) if rng.random() < keep]  # type: ignore[assignment]
        for number in chosen:
            at = number * step
            target[offset + at : offset + at + step] = data[at : at + step]

    def _begin(self, image: DiskImage, current: Event, rng: random.Random) -> None:
        """Do a part of the operation that the crash interrupts."""
        if current.kind in ("write", "punch"):
            self._tear(image, current, rng)
        elif current.kind == "append":
            assert isinstance(current.a, str)
            assert isinstance(current.b, bytes)
            part = current.b[: rng.randint(0, len(current.b))]
            image.files[current.a] = image.files.get(current.a, b"") + part
