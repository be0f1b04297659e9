"""Import, export, copy: a volume's bytes from and to files, pipes, devices and other volumes.

Decides how the two are kept sparse and how the copy is verified: the checksum of every piece
is noted while it is read from the source, then compared with what the target gives back.
"""

import asyncio
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from torus import limits
from torus._fast.crc import block_checksums, checksum
from torus.daemon.reports import CopyReport, Progress
from torus.errors import Corruption, PermissionDenied, TorusError, UsageError
from torus.volume.volume import Volume

_PIECE = limits.COPY_PIECE_BYTES
_ZERO = bytes(_PIECE)
_ZERO_BLOCK_CRC = block_checksums(bytes(limits.BLOCK_BYTES))


class Source(Protocol):
    """What can be copied from: an attached volume or a snapshot."""

    @property
    def name(self) -> str:
        """The name, for people."""

    @property
    def size_bytes(self) -> int:
        """The size, a multiple of 512."""

    async def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes."""

    async def block_status(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return (bytes, base:allocation flags) extents."""


class _Tally:
    """Counts and checksums of one copy."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._progress = progress
        self._total = total
        self.began = time.monotonic()
        self.done = 0
        self.copied = 0
        self.checksums: dict[int, tuple[int, int]] = {}  # offset: size, CRC-32C

    def note(self, offset: int, data: bytes | None, size: int) -> None:
        """Count a piece; ``data`` is None for a hole."""
        self.done += size
        if data is not None:
            self.copied += size
            self.checksums[offset] = size, checksum(data)
        self._progress(self.done, self._total)

    def report(self, volume: Source, *, verified: bool) -> CopyReport:
        """Return the result."""
        return CopyReport(
            volume.name, volume.size_bytes, self.copied, volume.size_bytes - self.copied,
            verified, time.monotonic() - self.began,
        )  # fmt: skip


# --- import -----------------------------------------------------------------------------


async def import_into(volume: Volume, source: str, progress: Progress) -> CopyReport:
    """Write ``source`` ("-": standard input) over the volume; what it lacks becomes zeroes.

    Raises: UsageError when it is larger than the volume, Corruption when reading it back
        gives something else, and what the volume's writes raise.
    """
    loop = asyncio.get_running_loop()
    with _open_source(source) as file:
        total = _size_of(file)
        tally = _Tally(progress, total)
        if total is not None and total > volume.size_bytes:
            raise _too_large(volume, f"{total} bytes")
        pieces = _pieces(file, total)
        running: set[asyncio.Task[None]] = set()
        end = 0
        try:
            while True:
                piece = await loop.run_in_executor(None, next, pieces, None)
                if piece is None:
                    break
                offset, data, size = piece
                end = offset + size
                if end > volume.size_bytes:
                    raise _too_large(volume, "more bytes")
                running.add(asyncio.ensure_future(_put(volume, tally, offset, data, size)))
                if len(running) >= limits.COPY_IN_FLIGHT:
                    running = await _some_done(running)
            while running:
                running = await _some_done(running)
        except OSError as exc:
            raise _file_error(source, exc) from exc
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    rest = volume.size_bytes - end
    if rest:
        await volume.write_zeroes(end, rest, durable=False, allocate=False)
    await volume.flush()
    await _verify_volume(volume, tally)
    return tally.report(volume, verified=True)


async def _some_done(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left


async def _put(volume: Volume, tally: _Tally, offset: int, data: bytes | None, size: int) -> None:
    if data is None:
        await volume.write_zeroes(offset, size, durable=False, allocate=False)
    else:
        await volume.write(offset, data, durable=False)
    tally.note(offset, data, size)


async def _verify_volume(volume: Volume, tally: _Tally) -> None:
    for offset, (size, expected) in sorted(tally.checksums.items()):
        found = checksum(await volume.read(offset, size))
        if found != expected:
            raise Corruption(
                f"volume {volume.name!r} differs from its source at byte {offset} "
                f"(checksum {expected:08x} expected, {found:08x} found)"
            )


def _open_source(source: str) -> BinaryIO:
    if source == "-":
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=_PIECE)
    try:
        return Path(source).open("rb")
    except OSError as exc:
        raise _file_error(source, exc) from exc


def _size_of(file: BinaryIO) -> int | None:
    if not file.seekable():
        return None
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _pieces(file: BinaryIO, total: int | None) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (offset, data or None for zeroes, bytes), in order, sector aligned."""
    offset = 0
    for start, end in _data_ranges(file, total):
        while offset < start:
            size = min(limits.GIB, start - offset)
            yield offset, None, size
            offset += size
        if total is not None:
            file.seek(start)
        while end is None or offset < end:
            data = file.read(_PIECE if end is None else min(_PIECE, end - offset))
            if not data:
                break
            size = len(data)
            data += bytes(-size % limits.SECTOR_BYTES)
            yield from _without_zeroes(offset, data)
            offset += len(data)


def _data_ranges(file: BinaryIO, total: int | None) -> Iterator[tuple[int, int | None]]:
    """Yield where a file has data, whole pieces; everything when it cannot tell."""
    if total is None or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        yield 0, None
        return
    at, reached = 0, 0
    while at < total:
        try:
            start = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise  # what cannot be read must not become zeroes
            break  # no data behind here
        at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        start = max(start // _PIECE * _PIECE, reached)
        reached = min(-(-at // _PIECE) * _PIECE, total)
        if start < reached:
            yield start, reached
    if reached < total:
        whole = total // limits.SECTOR_BYTES * limits.SECTOR_BYTES
        yield max(whole, reached), total


def _without_zeroes(offset: int, data: bytes) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield ``data`` in runs, those of zero blocks as None: they will cost no space."""
    whole = len(data) // limits.BLOCK_BYTES * limits.BLOCK_BYTES
    crcs = block_checksums(memoryview(data)[:whole], limits.BLOCK_BYTES)
    if _ZERO_BLOCK_CRC not in crcs:
        yield offset, data, len(data)
        return
    start = 0
    while start < len(data):
        zero, end = _is_zero(data, start), start + limits.BLOCK_BYTES
        while end < len(data) and _is_zero(data, end) == zero:
            end += limits.BLOCK_BYTES
        end = min(end, len(data))
        yield offset + start, (None if zero else data[start:end]), end - start
        start = end


def _is_zero(data: bytes, start: int) -> bool:
    return not data[start : start + limits.BLOCK_BYTES].strip(b"\0")


# --- copy -------------------------------------------------------------------------------


async def copy_volume(source: Source, volume: Volume, progress: Progress) -> CopyReport:
    """Write what ``source`` holds into a volume of its size where nothing was written yet.

    Raises: Corruption when a block of the source is damaged or reading back gives something
        else, and what the volume's writes raise.
    """
    size_bytes = source.size_bytes
    tally = _Tally(progress, size_bytes)
    running: set[asyncio.Task[None]] = set()
    at = 0
    try:
        while at < size_bytes:
            reach = min(limits.GIB, size_bytes - at)
            for length, hole in await source.block_status(at, reach, 4096):
                if hole:
                    tally.note(at, None, length)
                for offset in range(at, at if hole else at + length, _PIECE):
                    size = min(_PIECE, at + length - offset)
                    running.add(asyncio.ensure_future(_move(source, volume, tally, offset, size)))
                    if len(running) >= limits.COPY_IN_FLIGHT:
                        running = await _some_done(running)
                at += length
        while running:
            running = await _some_done(running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    await volume.flush()
    await _verify_volume(volume, tally)
    return tally.report(volume, verified=True)


async def _move(source: Source, volume: Volume, tally: _Tally, offset: int, size: int) -> None:
    for start, data, length in _without_zeroes(offset, await source.read(offset, size)):
        if data is not None:
            await volume.write(start, data, durable=False)
        tally.note(start, data, length)


# --- export -----------------------------------------------------------------------------


async def export_from(volume: Source, target: str, progress: Progress) -> CopyReport:
    """Write the volume to ``target`` ("-": standard output), sparse where it can be.

    Raises: Corruption for a damaged block or a file that reads back differently,
        PermissionDenied, TorusError for a full file system.
    """
    tally = _Tally(progress, volume.size_bytes)
    if target == "-":
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as pipe:
            await _copy_out(volume, pipe, tally, sparse=False)
        return tally.report(volume, verified=False)
    try:
        with _open_target(target) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            if regular:
                file.truncate(0)
                file.truncate(volume.size_bytes)
            await _copy_out(volume, file, tally, sparse=regular)
            _sync(file)
            if regular:
                await asyncio.get_running_loop().run_in_executor(None, _verify_file, file, tally)
    except OSError as exc:
        raise _file_error(target, exc) from exc
    return tally.report(volume, verified=regular)


def _open_target(target: str) -> BinaryIO:
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    return os.fdopen(fd, "r+b", buffering=0)


async def _copy_out(volume: Source, file: BinaryIO, tally: _Tally, *, sparse: bool) -> None:
    loop = asyncio.get_running_loop()
    for offset in range(0, volume.size_bytes, _PIECE):
        size = min(_PIECE, volume.size_bytes - offset)
        extents = await volume.block_status(offset, size, 2)
        if len(extents) == 1 and extents[0][1]:
            if not sparse:
                await loop.run_in_executor(None, _write, file, None, _ZERO[:size])
            tally.note(offset, None, size)
            continue
        data = await volume.read(offset, size)
        await loop.run_in_executor(None, _write, file, offset if sparse else None, data)
        tally.note(offset, data, size)


def _sync(file: BinaryIO) -> None:
    try:
        os.fsync(file.fileno())
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # pipes and terminals have nothing to sync
            raise


def _write(file: BinaryIO, offset: int | None, data: bytes) -> None:
    view = memoryview(data)
    while view:
        if offset is None:
            wrote = file.write(view)
        else:
            wrote = os.pwrite(file.fileno(), view, offset)
            offset += wrote
        view = view[wrote:]


def _verify_file(file: BinaryIO, tally: _Tally) -> None:
    for offset, (size, expected) in sorted(tally.checksums.items()):
        data = os.pread(file.fileno(), size, offset)
        if checksum(data) != expected:
            raise Corruption(f"the exported file differs from the volume at byte {offset}")


def _too_large(volume: Volume, what: str) -> UsageError:
    return UsageError(
        f"the source has {what}, volume {volume.name!r} has room for {volume.size_bytes}",
        hint="resize the volume first",
    )


def _file_error(name: str, exc: OSError) -> TorusError:
    if isinstance(exc, PermissionError):
        return PermissionDenied(f"file {name} may not be opened: {exc.strerror}")
    return TorusError(f"file {name}: {exc.strerror or exc}")
