"""The disk seam: every byte of a data directory goes through a `Disk`.

`PosixDisk` is the only caller of the operating system's file functions on a data directory.
What an error means is decided in `torus.store.store`; here OSError passes through.

Write order, and when data is durable: docs/format.md, "Durability".
"""

import asyncio
import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torus import limits
from torus._fast.blockio import BlockIo, FileIo, fallocate, read_files
from torus.errors import Busy, PermissionDenied
from torus.format.segment import Geometry, segment_name
from torus.store.syncing import Syncs

Bytes = bytes | bytearray | memoryview
_FALLOC_KEEP_SIZE_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class Disk(Protocol):
    """One directory of segment files and a few small files.

    Addresses count slot bytes only (`Geometry.address`).  Every method may block and may
    raise OSError.
    """

    @property
    def io(self) -> BlockIo:
        """The same disk for compiled code."""

    @property
    def geometry(self) -> Geometry:
        """How addresses are cut up."""

    def names(self) -> list[str]:
        """Return the names of all files in the directory."""

    def read_file(self, name: str) -> bytes | None:
        """Return a small file's content; None when it does not exist."""

    def replace_file(self, name: str, data: bytes) -> None:
        """Replace a small file at once; durable on return."""

    def append_file(self, name: str, data: bytes) -> None:
        """Append to a small file; durable on return."""

    def make_segment(self, segment: int, header: bytes, slot_bytes: int) -> None:
        """Make a segment file, preallocated for ``slot_bytes`` of slots; durable on return."""

    def open_segment(self, segment: int) -> int:
        """Open a segment file for reading and writing; return its size in bytes."""

    def read_header(self, segment: int) -> bytes:
        """Return the segment's header bytes."""

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at ``address``; OSError(EIO) when there are fewer."""

    def read_many(self, reads: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each (address, size), as `read` does."""

    def write(self, address: int, data: Bytes) -> None:
        """Write all of ``data`` at ``address``; in the page cache on return."""

    def sync(self, segment: int) -> None:
        """Make everything written to ``segment`` durable (fdatasync)."""

    def sync_soon(self, segment: int) -> asyncio.Future[None] | None:
        """Begin `sync` on a thread of the disk's own; None when it has none."""

    def allocate(self, address: int, size: int) -> None:
        """Reserve file-system space for a range that was punched."""

    def punch(self, address: int, size: int) -> None:
        """Give a range's space back to the file system; it reads as zeroes."""

    def close(self) -> None:
        """Close all files; idempotent."""


class PosixDisk:
    """A data directory on a file system."""

    def __init__(self, path: Path, *, make: bool = True, read_only: bool = False) -> None:
        """Open the directory and lock it against a second process.

        Raises: Busy when another process has it, PermissionDenied, NotADirectoryError...
        """
        self.path = path
        self.geometry = Geometry()
        self._read_only = read_only
        self._files: dict[int, int] = {}
        self._append: dict[str, int] = {}
        self._syncs = Syncs()
        if make:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(self._directory)
            raise Busy(
                f"data directory {path} is in use by another process",
                hint="stop that torus node, or give this one a directory of its own",
            ) from exc
        if not read_only and not os.access(path, os.W_OK | os.X_OK):
            os.close(self._directory)
            raise PermissionDenied(
                f"data directory {path} is not writable", hint="check its owner and mode"
            )
        self.io: FileIo = FileIo(self.geometry.segment_bytes, limits.SEGMENT_HEADER_BYTES)

    def use_geometry(self, geometry: Geometry) -> None:
        """Cut addresses by ``geometry``; before any segment is opened."""
        assert not self._files
        self.geometry = geometry
        self.io = FileIo(geometry.segment_bytes, limits.SEGMENT_HEADER_BYTES)

    def names(self) -> list[str]:
        return sorted(os.listdir(self._directory))

    def read_file(self, name: str) -> bytes | None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def replace_file(self, name: str, data: bytes) -> None:
        temporary = name + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self._directory)
        try:
            _write_all(fd, data, None)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.fsync(self._directory)
        self._close_append(name)

    def append_file(self, name: str, data: bytes) -> None:
        fd = self._append.get(name)
        if fd is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=self._directory)
            self._append[name] = fd
            os.fsync(self._directory)
        _write_all(fd, data, None)
        os.fdatasync(fd)

    def make_segment(self, segment: int, header: bytes, slot_bytes: int) -> None:
        name = segment_name(segment)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(name + ".new", flags, 0o600, dir_fd=self._directory)
        try:
            os.posix_fallocate(fd, 0, limits.SEGMENT_HEADER_BYTES + slot_bytes)
            _write_all(fd, header, 0)
            os.fsync(fd)
            os.rename(name + ".new", name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except OSError:
            os.close(fd)
            self._unlink_quietly(name + ".new")
            raise
        self._set(segment, fd)

    def open_segment(self, segment: int) -> int:
        flags = (os.O_RDONLY if self._read_only else os.O_RDWR) | os.O_CLOEXEC
        fd = os.open(segment_name(segment), flags, dir_fd=self._directory)
        self._set(segment, fd)
        return os.fstat(fd).st_size

    def open_for_reading(self, segment: int) -> int:
        """Return a descriptor for another process, which may only read; the caller closes it.

        Raises: OSError.
        """
        return os.open(segment_name(segment), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)

    def read_header(self, segment: int) -> bytes:
        return os.pread(self._files[segment], limits.SEGMENT_HEADER_BYTES, 0)

    def read(self, address: int, size: int) -> bytes:
        return self.read_many([(address, size)])[0]

    def read_many(self, reads: Sequence[tuple[int, int]]) -> list[bytes]:
        return read_files([(*self._locate(address), size) for address, size in reads])

    def write(self, address: int, data: Bytes) -> None:
        fd, offset = self._locate(address)
        _write_all(fd, data, offset)

    def sync(self, segment: int) -> None:
        os.fdatasync(self._files[segment])

    def make_durable(self) -> None:
        """Make everything that anybody wrote to the open segments durable.  Raises: OSError."""
        for file in self._files.values():
            os.fdatasync(file)

    def sync_soon(self, segment: int) -> asyncio.Future[None]:
        return self._syncs.request(self._files[segment])

    def allocate(self, address: int, size: int) -> None:
        fd, offset = self._locate(address)
        os.posix_fallocate(fd, offset, size)

    def punch(self, address: int, size: int) -> None:
        fd, offset = self._locate(address)
        fallocate(fd, _FALLOC_KEEP_SIZE_PUNCH, offset, size)

    def close(self) -> None:
        self._syncs.close()
        for segment in list(self._files):
            self.io.set_file(segment, -1)
            os.close(self._files.pop(segment))
        for name in list(self._append):
            self._close_append(name)
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _locate(self, address: int) -> tuple[int, int]:
        segment, within = divmod(address, self.geometry.segment_bytes)
        return self._files[segment], limits.SEGMENT_HEADER_BYTES + within

    def _set(self, segment: int, fd: int) -> None:
        self._files[segment] = fd
        self.io.set_file(segment, fd)

    def _close_append(self, name: str) -> None:
        fd = self._append.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _unlink_quietly(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._directory)
        except FileNotFoundError:
            pass


def write_parts(disk: Disk, address: int, parts: Sequence[tuple[int, Bytes]]) -> None:
    """Write each (offset from ``address``, bytes) into the page cache.  Raises: OSError."""
    for offset, data in parts:
        disk.write(address + offset, data)


def _write_all(fd: int, data: Bytes, offset: int | None) -> None:
    view = memoryview(data)
    while view:
        wrote = os.write(fd, view) if offset is None else os.pwrite(fd, view, offset)
        if wrote == 0:
            raise OSError(errno.EIO, "write took nothing")
        if offset is not None:
            offset += wrote
        view = view[wrote:]
