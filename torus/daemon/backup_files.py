"""Files that backup streams are written to and read from.

Decides what a file is called while it is incomplete, when it counts as durable, and what of a
partial one can be kept.
"""

import fcntl
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torus import limits
from torus.daemon.backup import add_hint
from torus.errors import (
    AlreadyExists,
    Busy,
    Corruption,
    Interrupted,
    NotFound,
    PermissionDenied,
    TorusError,
)
from torus.format.diffstream import Decoder, Encoder, Frame, StreamHeader, Trailer, items

PARTIAL = ".partial"
_BUFFER_BYTES = limits.BACKUP_FRAME_BYTES_MAX
_BATCH_FRAMES = 256
_LOOK_S = 0.2  # how long a reader of a pipe may not notice that it is to stop


class Target:
    """Where an export goes: a file under another name until it is whole, or a pipe."""

    def __init__(self, file: BinaryIO, encoder: Encoder, partial: Path | None, ended: bool) -> None:
        self._file = file
        self._partial = partial
        self.encoder = encoder
        self.ended = ended  # a partial file was found to be whole
        self.resumed_at = encoder.reached
        self.written_bytes = 0

    def write(self, pieces: Sequence[bytes]) -> None:
        """Write all of it.  Raises: OSError."""
        view = memoryview(b"".join(pieces))
        self.written_bytes += len(view)
        while view:
            view = view[self._file.write(view) :]

    def finish(self) -> None:
        """Make it durable and give it its name.  Raises: OSError."""
        if self._partial is None:
            return
        os.fsync(self._file.fileno())
        self._partial.rename(self._partial.with_name(self._partial.name.removesuffix(PARTIAL)))
        _sync_folder(self._partial.parent)


@contextmanager
def open_target(
    target: str, header: StreamHeader, *, resume: bool, overwrite: bool
) -> Iterator[Target]:
    """Open ``target`` ("-": standard output) with the stream's beginning in it.

    Raises: AlreadyExists, Corruption or NotFound for a partial file that cannot be gone on with,
        PermissionDenied, TorusError.
    """
    with _errors(target):
        if target == "-" or _is_special(Path(target)):
            if resume:
                raise NotFound(f"{_where(target)} keeps nothing that could be resumed")
            with _open_special(target) as file:
                fresh = Encoder(header)
                made = Target(file, fresh, None, ended=False)
                made.write([fresh.begin()])
                yield made
            return
        path = Path(target)
        if path.exists() and not overwrite:
            raise AlreadyExists(f"file {path} exists", hint="--overwrite replaces it")
        if not path.parent.is_dir():
            raise NotFound(f"folder {path.parent} does not exist")
        partial = path.with_name(path.name + PARTIAL)
        with _open_partial(partial, resume=resume) as file:
            made = _begin(file, header, partial, resume=resume)
            with _kept(partial), _errors(target):
                yield made


@contextmanager
def _kept(partial: Path) -> Iterator[None]:
    """Say how to go on when an export fails that had begun.

    Raises: Interrupted for KeyboardInterrupt.
    """
    try:
        yield
    except (TorusError, KeyboardInterrupt) as exc:
        failure = exc if isinstance(exc, TorusError) else Interrupted("interrupted")
        add_hint(failure, f"{partial} is kept: --resume goes on with it")
        raise failure from exc


def _begin(file: BinaryIO, header: StreamHeader, partial: Path, *, resume: bool) -> Target:
    if not resume:
        fresh = Encoder(header)
        made = Target(file, fresh, partial, ended=False)
        made.write([fresh.begin()])
        return made
    decoder = _scan(file, partial)
    if decoder.header != header:
        raise Corruption(
            f"{partial} was begun for other snapshots than these, or they were made anew",
            hint="export without --resume: that begins from the start",
        )
    os.ftruncate(file.fileno(), decoder.position)
    file.seek(decoder.position)
    return Target(file, Encoder.after(decoder), partial, ended=decoder.wanted == 0)


def _scan(file: BinaryIO, partial: Path) -> Decoder:
    """Read a partial file as far as it is whole."""
    decoder = Decoder(str(partial))
    with os.fdopen(os.dup(file.fileno()), "rb", buffering=_BUFFER_BYTES) as reader:
        try:
            for _ in items(decoder, reader.read):
                pass
        except Corruption as exc:
            if decoder.header is None:
                exc.hint = "export without --resume: that begins from the start"
                raise
    return decoder


def _open_partial(partial: Path, *, resume: bool) -> BinaryIO:
    if resume and not partial.exists():
        raise NotFound(
            f"file {partial} does not exist: there is nothing to resume",
            hint="export without --resume",
        )
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    file = os.fdopen(fd, "r+b", buffering=0)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        file.close()
        raise Busy(
            f"file {partial} is being written by another export", hint="wait for its end"
        ) from exc
    if not resume:
        file.truncate(0)
    return file


# --- sources ----------------------------------------------------------------------------


class Source:
    """A stream that is being imported, behind its header."""

    def __init__(self, where: str, read: Callable[[int], bytes]) -> None:
        """Raises: Corruption, UnknownVersion, OSError."""
        self._items = items(Decoder(where), read)
        header = next(self._items)
        assert isinstance(header, StreamHeader), "a stream begins with its header"
        self.header = header

    def batch(self) -> list[Frame | Trailer]:
        """Return the next frames, about a mebibyte; the trailer is the last of all.

        Raises: Corruption, Interrupted, OSError.
        """
        found: list[Frame | Trailer] = []
        size = 0
        for item in self._items:
            assert not isinstance(item, StreamHeader)
            found.append(item)
            if isinstance(item, Frame) and item.data is not None:
                size += item.length
            if size >= _BUFFER_BYTES or len(found) == _BATCH_FRAMES:
                break
        return found


class _Pipe:
    """Reads what comes through a pipe until it is told to stop, which may be at any moment."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.stopped = False

    def read(self, size: int) -> bytes:
        parts, left = [], size
        while left:
            if self.stopped:
                raise Interrupted("interrupted")
            if not select.select([self._file], [], [], _LOOK_S)[0]:
                continue
            part = os.read(self._file.fileno(), left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


@contextmanager
def open_source(source: str) -> Iterator[tuple[Source, Callable[[], None]]]:
    """Open ``source`` ("-": standard input); a regular file is verified first, all of it.

    Gives the stream and what ends a `Source.batch` that waits in another thread.

    Raises: Corruption, UnknownVersion, NotFound, PermissionDenied, TorusError.
    """
    where = _where(source)
    with _errors(source), _open_source(source) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            with os.fdopen(os.dup(file.fileno()), "rb", buffering=_BUFFER_BYTES) as buffered:
                start = buffered.tell()
                for _ in items(Decoder(where), buffered.read):
                    pass
                buffered.seek(start)
                yield Source(where, buffered.read), lambda: None
            return
        pipe = _Pipe(file)

        def stop() -> None:
            pipe.stopped = True

        yield Source(where, pipe.read), stop


def _open_source(source: str) -> BinaryIO:
    if source == "-":
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    return Path(source).open("rb", buffering=0)


# --- both -------------------------------------------------------------------------------


def _where(name: str) -> str:
    return "the stream on the standard input or output" if name == "-" else f"file {name}"


def _is_special(path: Path) -> bool:
    """Say whether a file is there that is no regular one: a pipe, a device."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _open_special(target: str) -> BinaryIO:
    if target == "-":
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    return os.fdopen(os.open(target, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=0)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Name the file in what the operating system refuses; a closed pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except FileNotFoundError as exc:
        raise NotFound(f"file {exc.filename or name} does not exist") from exc
    except PermissionError as exc:
        raise PermissionDenied(f"file {name} may not be opened: {exc.strerror}") from exc
    except OSError as exc:
        raise TorusError(f"file {name}: {exc.strerror or exc}") from exc
