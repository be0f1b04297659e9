"""The SQLite file of the embedded metadata store: making, recognising and opening it.

Decides the tables, the format version, which files are ours, and what each of SQLite's errors
means to torus.  It does not decide what a commit does (`torus.metadata.sqlite`).

A new file is made complete under another name and then linked into its place, so a file under
its own name is never half made, whoever dies or races.  The file is never opened by other
means than SQLite: closing any descriptor of it would drop SQLite's own POSIX locks.

Implements docs/metadata.md, "The SQLite file".
"""

import contextlib
import errno
import os
import sqlite3
import string
import zlib
from collections.abc import Iterator

from torus.errors import (
    ConfigError,
    Corruption,
    ForeignData,
    NotFound,
    PermissionDenied,
    PoolFull,
    TorusError,
    Unavailable,
    UnknownVersion,
)
from torus.limits import METADATA_BUSY_TIMEOUT_S

APPLICATION_ID = int.from_bytes(b"TORU", "big")
FORMAT_VERSION = 1
SQLITE_PAGE_BYTES_MIN = 512
JOURNAL_BYTES_MAX = 16 << 20  # what the write-ahead log's file is cut back to
_PLAIN_IN_URI = b"/._-" + (string.ascii_letters + string.digits).encode()
TABLES = (
    "CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL,"
    " trimmed INTEGER NOT NULL, sequence INTEGER NOT NULL, history_bytes INTEGER NOT NULL,"
    " next_lease INTEGER NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,"
    " lease INTEGER, crc INTEGER NOT NULL)",
    "CREATE INDEX entries_by_lease ON entries (lease) WHERE lease IS NOT NULL",
    "CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl_ns INTEGER NOT NULL,"
    " expires_ns INTEGER NOT NULL)",
    "CREATE TABLE changes (sequence INTEGER PRIMARY KEY, revision INTEGER NOT NULL,"
    " key TEXT NOT NULL, value BLOB, crc INTEGER NOT NULL, end_bytes INTEGER NOT NULL)",
    "CREATE INDEX changes_by_revision ON changes (revision)",
)
RECOVER_HINT = "rebuild it from the volumes' own logs: torus recover"


def open_database(path: str, *, create: bool) -> sqlite3.Connection:
    """Open the store's file at the absolute ``path``, making it first if it is missing.

    The connection may be used from any thread, by one at a time.

    Raises: NotFound when it is missing and ``create`` is False; Corruption, ForeignData,
        UnknownVersion, PermissionDenied, PoolFull, ConfigError, Unavailable.
    """
    if not _exists(path):
        _refuse_orphaned_log(path)
        if not create:
            raise NotFound(
                f"metadata store {path} does not exist",
                hint="check --meta; a node with a data directory but no store needs: torus recover",
            )
        _create(path)
    _check_regular(path)
    with translated(path):
        connection = _connect(path)
        try:
            _identify(connection, path)
            _configure(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _exists(path: str) -> bool:
    """Tell whether there is a file; a folder that may not be searched does not say "no".

    Raises: PermissionDenied.
    """
    try:
        os.stat(path)
    except PermissionError as exc:
        raise PermissionDenied(
            f"metadata store {path} cannot be reached: {exc.strerror}",
            hint="run as its owner, or name another --home or --meta",
        ) from exc
    except OSError:
        return False
    return True


def row_crc(key: str, value: bytes | None, revision: int) -> int:
    """Return the CRC-32 of an entry or a change; SQLite itself keeps no checksums."""
    kind = "deleted" if value is None else "value"
    return zlib.crc32(value or b"", zlib.crc32(f"{key}\0{revision}\0{kind}\0".encode()))


def state_crc(counters: tuple[int, ...]) -> int:
    """Return the CRC-32 of the counters, in the order of the table's columns."""
    return zlib.crc32(" ".join(str(counter) for counter in counters).encode())


def read_state(connection: sqlite3.Connection, path: str) -> tuple[int, int, int, int, int]:
    """Return revision, trimmed, sequence, history_bytes and next_lease.

    Raises: Corruption; a revision that went back would be given out twice.
    """
    row = connection.execute(
        "SELECT revision, trimmed, sequence, history_bytes, next_lease, crc FROM state"
    ).fetchone()
    if row is None or state_crc(row[:-1]) != row[-1]:
        raise damaged(path, "its counters are missing or do not match their checksum")
    return row[0], row[1], row[2], row[3], row[4]


def damaged(path: str, what: str) -> Corruption:
    """Return the error for damage inside the store at ``path``."""
    return Corruption(f"metadata store {path} is damaged: {what}", hint=RECOVER_HINT)


def meaning(exc: sqlite3.Error, path: str) -> TorusError:
    """Return the torus error that says what ``exc`` means for the store at ``path``."""
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(
            f"metadata store {path} was locked by another process for "
            f"{METADATA_BUSY_TIMEOUT_S:.0f} s",
            hint=f"find a stopped process that holds it: fuser -v {path}",
        )
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path)):
        return PoolFull(
            f"no space is left for metadata store {path}: nothing was changed",
            hint=f"free some space on its file system: df {os.path.dirname(path)}",
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return PermissionDenied(
            f"metadata store {path} cannot be written: {exc}",
            hint="check the owner and the mode of the file and of its directory",
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM):
        return Unavailable(
            f"metadata store {path} failed: {exc} ({getattr(exc, 'sqlite_errorname', '?')}); "
            "whether the last change was made is unknown",
            hint="look for disk errors in the kernel's log: dmesg",
        )
    return damaged(path, str(exc))


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn SQLite's errors about the file at ``path`` into torus's."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a bug in torus
    except sqlite3.Error as exc:
        raise meaning(exc, path) from exc


def _is_full(path: str) -> bool:
    """Tell whether the file system has no block left: SQLite then says no more than IOERR."""
    try:
        return os.statvfs(os.path.dirname(path)).f_bavail == 0
    except OSError:
        return False


def _create(path: str) -> None:
    """Make a new, empty store at ``path``, or none if another process was faster."""
    directory, name = os.path.split(path)
    new_path = os.path.join(directory, f".{name}.new-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.close(os.open(new_path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            with translated(path):
                _fill(new_path)
            with contextlib.suppress(FileExistsError):
                os.link(new_path, path)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new_path + suffix)
        _sync_directory(directory)
    except OSError as exc:
        raise _cannot_create(exc, path) from exc


def _fill(path: str) -> None:
    connection = _connect(path)
    try:
        _use_write_ahead_log(connection, path)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        for statement in TABLES:
            connection.execute(statement)
        counters = (0, 0, 0, 0, 1)
        connection.execute(
            "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, ?)", (*counters, state_crc(counters))
        )
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("COMMIT")
    finally:
        connection.close()  # moves the log into the file and syncs it


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_create(exc: OSError, path: str) -> TorusError:
    message = f"metadata store {path} cannot be made: {exc.strerror}"
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(
            message, hint="choose another place with --meta sqlite:PATH or TORUS_HOME"
        )
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return PoolFull(message, hint=f"free some space: df {os.path.dirname(path)}")
    return ConfigError(message, hint="give a path on a local file system: --meta sqlite:PATH")


def _refuse_orphaned_log(path: str) -> None:
    """Refuse to make a file beside another one's write-ahead log: it would be replayed."""
    if os.path.exists(path + "-wal") and not os.path.exists(path):
        raise Corruption(
            f"metadata store {path} is missing, but its log {path}-wal is there",
            hint=f"put the file back, or move the log away; then {RECOVER_HINT}",
        )


def _check_regular(path: str) -> None:
    try:
        found = os.stat(path)
    except OSError as exc:
        raise Unavailable(f"metadata store {path} cannot be reached: {exc.strerror}") from exc
    if os.path.isdir(path):
        raise ConfigError(
            f"metadata store {path} is a directory, not a file",
            hint=f"name a file in it: --meta sqlite:{os.path.join(path, 'meta.sqlite')}",
        )
    if found.st_size < SQLITE_PAGE_BYTES_MIN:  # SQLite would take it for a new one
        raise Corruption(
            f"metadata store {path} was truncated: it has {found.st_size} bytes",
            hint=RECOVER_HINT,
        )
    for needed in (path, os.path.dirname(path)):
        if not os.access(needed, os.R_OK | os.W_OK):
            raise PermissionDenied(
                f"metadata store {path} cannot be used: user {os.geteuid()} may not read and "
                f"write {needed}",
                hint="run as the user who owns it, or choose another one with --meta",
            )


def _connect(path: str) -> sqlite3.Connection:
    """Connect to a file that exists; SQLite's plain open would make a missing one."""
    quoted = "".join(
        chr(byte) if byte in _PLAIN_IN_URI else f"%{byte:02x}" for byte in os.fsencode(path)
    )
    return sqlite3.connect(
        f"file:{quoted}?mode=rw",
        uri=True,
        timeout=METADATA_BUSY_TIMEOUT_S,
        isolation_level=None,  # transactions begin and end where torus says so
        check_same_thread=False,
    )


def _identify(connection: sqlite3.Connection, path: str) -> None:
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != APPLICATION_ID:
        raise ForeignData(
            f"{path} is a SQLite file of another program (application id {application_id:#x}, "
            f"expected {APPLICATION_ID:#x})",
            hint="choose another file with --meta sqlite:PATH",
        )
    if version != FORMAT_VERSION:
        raise UnknownVersion(
            f"metadata store {path} has format {version}, this torus knows {FORMAT_VERSION}",
            hint="use the torus release that wrote it, or a newer one",
        )


def _configure(connection: sqlite3.Connection, path: str) -> None:
    _use_write_ahead_log(connection, path)
    connection.execute("PRAGMA synchronous = FULL")  # an fsync of the log for each commit
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES_MAX}")


def _use_write_ahead_log(connection: sqlite3.Connection, path: str) -> None:
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise ConfigError(
            f"metadata store {path} cannot have a write-ahead log (journal mode {mode!r}): "
            "its file system has no shared memory",
            hint="choose a local file system with --meta sqlite:PATH",
        )
