"""A disk and a metadata store that fail when told to: at the n-th call, or from then on."""

import errno
from collections.abc import Sequence

from torus._fast.blockio import BlockIo, PythonIo
from torus.errors import Unavailable
from torus.metadata.base import Delete, Entry, Expect, Listing, Put
from torus.store.disk import Bytes
from torus.testing.metadata import SimMetadata
from torus.testing.simdisk import Event, SimDisk

KINDS = ("write", "sync", "make_segment", "append_file", "allocate", "punch", "read")


class FaultyDisk(SimDisk):
    """A `SimDisk` whose ``at``-th call (from 1) of ``kind`` raises OSError(``error``).

    ``count`` calls fail, then the disk works again: torus must not be fooled by that.
    ``part`` is the share of a write's bytes that arrive before it fails; a failed sync makes
    nothing durable.
    """

    kind = ""
    at = 0
    count = 1
    error = errno.EIO
    part = 0.0
    calls = 0
    failures = 0

    @classmethod
    def over(cls, disk: SimDisk) -> "FaultyDisk":
        """Return a faulty disk with the content of ``disk``."""
        faulty = cls(disk.geometry, disk.image, disk.history)
        faulty.io = _io(faulty)
        return faulty

    def fail(
        self, kind: str, at: int, error: int = errno.EIO, *, count: int = 1, part: float = 0.0
    ) -> None:
        """Plan a failure; counting begins now."""
        assert kind in KINDS
        self.kind, self.at, self.error, self.count, self.part = kind, at, error, count, part
        self.calls = 0

    def _due(self, kind: str) -> bool:
        if kind != self.kind:
            return False
        self.calls += 1
        due = self.at <= self.calls < self.at + self.count
        self.failures += due
        return due

    def _check(self, kind: str) -> None:
        if self._due(kind):
            raise OSError(self.error, f"planned failure of {kind} number {self.calls}")

    def write(self, address: int, data: Bytes) -> None:
        if self._due("write"):
            arrived = int(len(data) * self.part) // 512 * 512
            if arrived:
                super().write(address, bytes(data)[:arrived])
            raise OSError(self.error, f"planned failure of write number {self.calls}")
        super().write(address, data)

    def sync(self, segment: int) -> None:
        self._check("sync")
        super().sync(segment)

    def make_segment(self, segment: int, header: bytes, slot_bytes: int) -> None:
        self._check("make_segment")
        super().make_segment(segment, header, slot_bytes)

    def append_file(self, name: str, data: bytes) -> None:
        if self._due("append_file"):
            arrived = bytes(data)[: int(len(data) * self.part)]
            if arrived:
                super().append_file(name, arrived)
            raise OSError(self.error, f"planned failure of append_file number {self.calls}")
        super().append_file(name, data)

    def allocate(self, address: int, size: int) -> None:
        self._check("allocate")
        super().allocate(address, size)

    def punch(self, address: int, size: int) -> None:
        self._check("punch")
        super().punch(address, size)

    def read(self, address: int, size: int) -> bytes:
        self._check("read")
        return super().read(address, size)


def _io(disk: SimDisk) -> BlockIo:
    return PythonIo(disk)


class FaultyMetadata(SimMetadata):
    """A metadata store that is away at its ``at``-th call (from 1), for ``count`` calls.

    ``late``: what was asked for happens all the same, only the answer is lost.
    """

    at = 0
    count = 1
    late = False
    calls = 0
    failures = 0

    @classmethod
    def over(cls, metadata: SimMetadata, history: list[Event]) -> "FaultyMetadata":
        """Return a faulty store with the content of ``metadata``."""
        return cls(metadata.snapshot(), history)

    def fail(self, at: int, *, count: int = 1, late: bool = False) -> None:
        """Plan a failure; counting begins now.  ``at`` 0: none."""
        self.at, self.count, self.late, self.calls = at, count, late, 0

    def _due(self) -> bool:
        self.calls += 1
        due = self.at > 0 and self.at <= self.calls < self.at + self.count
        self.failures += due
        return due

    def _away(self) -> Unavailable:
        return Unavailable(f"planned failure of metadata call number {self.calls}")

    async def get(self, key: str) -> Entry | None:
        if self._due():
            raise self._away()
        return await super().get(key)

    async def list(self, prefix: str) -> Listing:
        if self._due():
            raise self._away()
        return await super().list(prefix)

    async def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        due = self._due()
        if due and not self.late:
            raise self._away()
        done = await super().commit(expect, changes)
        if due:
            raise self._away()
        return done
