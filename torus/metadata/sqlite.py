"""The metadata store in one SQLite file: the embedded default of a single machine.

Decides how the promises of `torus.metadata.base` are kept with SQLite: every commit is one
BEGIN IMMEDIATE transaction in a write-ahead log with an fsync, so many processes and threads
may use one file at once and a killed one leaves all or nothing.  The bytes of the file and
the meaning of SQLite's errors are decided in `torus.metadata.sqlite_file`.

Changes go into a bounded table too; a watch reads them from there, so none is lost or merged
between two looks.  It looks when this process commits, and polls `PRAGMA data_version` for
other processes' commits.

A store must not be used across a fork.

Implements docs/metadata.md, "The SQLite file".
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from torus.clock import Clock, SystemClock
from torus.errors import Unavailable
from torus.metadata import rules
from torus.metadata.base import Delete, Entry, Event, Expect, Listing, Put
from torus.metadata.sqlite_change import Change
from torus.metadata.sqlite_file import (
    damaged,
    meaning,
    open_database,
    read_state,
    row_crc,
    translated,
)

LOOKS_PER_NAME_CHECK = 8  # a waiting watch notices a replaced file after this many polls
_NEVER_NS = 1 << 63


class SqliteMetadata:
    """A `MetadataStore` in the SQLite file at ``path``; safe for many processes and threads."""

    def __init__(
        self,
        path: str,
        clock: Clock | None = None,
        *,
        create: bool = True,
        unfinished: bool = False,
    ) -> None:
        """Open the store, and make an empty one if there is none and ``create`` is set.

        With ``unfinished``, it may be written although its content is on its way elsewhere.

        Raises: see `torus.metadata.sqlite_file.open_database`.
        """
        self.path = os.path.abspath(path)
        self._clock = clock or SystemClock()
        self._unfinished = unfinished
        self._changed = threading.Condition()  # also guards the connection
        self._closed = False
        self._own_changes = 0
        self._next_expiry_ns = 0
        self._connection = open_database(self.path, create=create)
        self._identity = _identity(self.path)

    def get(self, key: str) -> Entry | None:
        """Return the entry of ``key``, or None when there is none."""
        rules.check_key(key)
        with self._reading() as connection:
            row = connection.execute(
                "SELECT key, value, revision, crc FROM entries WHERE key = ?", (key,)
            ).fetchone()
            return None if row is None else self._entry(row)

    def list(self, prefix: str) -> Listing:
        """Return all entries whose key begins with ``prefix``, in the order of their keys."""
        end = rules.check_prefix(prefix)
        with self._reading() as connection:
            revision, _ = self._position()
            rows = connection.execute(
                "SELECT key, value, revision, crc FROM entries"
                " WHERE key >= ? AND key < ? ORDER BY key",
                (prefix, end),
            )
            return Listing(revision, tuple(self._entry(row) for row in rows))

    def list_lasting(self) -> Listing:
        """Return all entries of the store that are not under a lease, for moving them."""
        with self._reading() as connection:
            revision, _ = self._position()
            rows = connection.execute(
                "SELECT key, value, revision, crc FROM entries WHERE lease IS NULL ORDER BY key"
            )
            return Listing(revision, tuple(self._entry(row) for row in rows))

    def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        """Apply all ``changes`` at once if every expectation holds; see `MetadataStore`.

        When it returns, the change is on disk (fsync).
        """
        rules.check_commit(expect, changes)
        with self._writing() as change:
            if not all(change.holds(expectation) for expectation in expect):
                return None
            return change.apply(changes)

    def watch(self, prefix: str, after_revision: int) -> "SqliteWatch":
        """Watch changes under ``prefix`` with a revision greater than ``after_revision``."""
        end = rules.check_prefix(prefix)
        with self._changed:
            self._check_usable()
            return SqliteWatch(self, prefix, end, after_revision)

    def grant(self, ttl_s: float) -> int:
        """Make a lease that ends ``ttl_s`` seconds after its last renewal; return its id."""
        ttl_ns = rules.lease_ttl_ns(ttl_s)
        with self._writing() as change:
            return change.grant(ttl_ns)

    def renew(self, lease: int) -> bool:
        """Renew a lease; False when it has ended already."""
        with self._writing() as change:
            return change.renew(lease)

    def revoke(self, lease: int) -> None:
        """End a lease now, with all its keys; idempotent."""
        with self._writing() as change:
            change.end_leases([lease])

    def verify(self) -> None:
        """Read everything and compare it with its checksums; slow, for `torus check`.

        Raises: Corruption naming the first damage.
        """
        with self._reading() as connection:
            for (finding,) in connection.execute("PRAGMA integrity_check(1)"):
                if finding != "ok":
                    raise damaged(self.path, finding)
            revision, _ = self._position()
            for row in connection.execute("SELECT key, value, revision, crc FROM entries"):
                if self._entry(row).revision > revision:
                    raise damaged(self.path, f"key {row[0]!r} is newer than the store")
            for row in connection.execute("SELECT key, value, revision, crc FROM changes"):
                self._check_row(row)

    def close(self) -> None:
        """Close the file; idempotent.  Watches that wait end with `ShuttingDown`."""
        with self._changed:
            if not self._closed:
                self._closed = True
                with translated(self.path):
                    self._connection.close()
                self._changed.notify_all()

    def _check_usable(self) -> None:
        """Refuse a closed store, and a file that is no longer the one under its name.

        A replaced or removed file still takes writes that nobody else would ever see.
        """
        if self._closed:
            raise rules.closed("the metadata store")
        if _identity(self.path) != self._identity:
            raise Unavailable(
                f"metadata store {self.path} was removed or replaced while it was in use",
                hint="put the file back, or stop every torus process and start again",
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Hold one snapshot of the store, in which no lease's time is over."""
        with self._changed, translated(self.path):
            self._check_usable()
            connection = self._connection
            connection.execute("BEGIN")
            try:
                if self._leases_are_due():
                    connection.rollback()
                    with self._writing():
                        pass  # it ends them
                    connection.execute("BEGIN")
                yield connection
            finally:
                connection.rollback()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Change]:
        """Hold the only write transaction; it is committed unless the block raises."""
        with self._changed, translated(self.path):
            self._check_usable()
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                change = Change(connection, self.path, self._clock)
                if not self._unfinished:
                    change.refuse_moved()
                change.end_due_leases()
                yield change
                change.finish()
                self._next_expiry_ns = 0  # looked up by the next watch's poll
                connection.execute("COMMIT")
            finally:
                connection.rollback()
            if change.changed:
                self._own_changes += 1
                self._changed.notify_all()

    def _leases_are_due(self) -> bool:
        first_ns, renewed_ns = self._connection.execute(
            "SELECT min(expires_ns), max(expires_ns - ttl_ns) FROM leases"
        ).fetchone()
        if first_ns is None:
            self._next_expiry_ns = _NEVER_NS
            return False
        self._next_expiry_ns = first_ns
        now_ns = self._clock.wall_ns()
        return bool(first_ns <= now_ns or renewed_ns > now_ns + rules.CLOCK_STEP_NS)

    def _position(self) -> tuple[int, int]:
        """Return the store's revision and the newest revision that the history lost."""
        return read_state(self._connection, self.path)[:2]

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        self._check_row(row)
        return Entry(row[0], row[1], row[2])

    def _check_row(self, row: tuple[Any, ...]) -> None:
        key, value, revision, crc = row
        if not isinstance(value, bytes | None) or row_crc(key, value, revision) != crc:
            raise damaged(self.path, f"key {key!r} does not match its checksum")


class SqliteWatch:
    """A `Watch` of a `SqliteMetadata`."""

    def __init__(self, store: SqliteMetadata, prefix: str, end: str, after_revision: int) -> None:
        self._store = store
        self._prefix = prefix
        self._end = end
        self._after = after_revision
        self._seen: tuple[int, int] | None = None
        self._looks = 0
        self._closed = False

    def next(self, timeout_s: float) -> Sequence[Event]:
        """Wait for changes and return them; an empty sequence when none came in time."""
        store = self._store
        with store._changed:
            while True:
                if self._closed:
                    raise rules.closed(f"the watch of {self._prefix!r}")
                events = self._take()
                if events or timeout_s <= 0:
                    return events
                timeout_s = rules.wait_for_change(store._changed, store._clock, timeout_s)

    def close(self) -> None:
        """Stop watching; idempotent."""
        with self._store._changed:
            self._closed = True
            self._store._changed.notify_all()

    def _take(self) -> Sequence[Event]:
        """Return the changes since the last call."""
        store = self._store
        seen = self._look()
        if seen is None:
            return ()
        with store._reading() as connection:
            revision, trimmed = store._position()
            rules.check_watch_position(self._prefix, self._after, trimmed, revision)
            rows = connection.execute(
                "SELECT key, value, revision, crc FROM changes"
                " WHERE revision > ? AND key >= ? AND key < ? ORDER BY sequence",
                (self._after, self._prefix, self._end),
            ).fetchall()
            for row in rows:
                store._check_row(row)
        self._after = revision
        self._seen = seen  # not before: what failed above is looked at again
        return [Event(key, value, at) for key, value, at, _ in rows]

    def _look(self) -> tuple[int, int] | None:
        """Return the store's present version if there may be something to take, else None.

        An idle process does this four times a second; it takes about 65 us with cold caches,
        and 40 more when the file's name is checked.
        """
        store = self._store
        self._looks += 1
        if store._closed or self._looks % LOOKS_PER_NAME_CHECK == 1:
            store._check_usable()
        try:
            version = store._connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as exc:
            raise meaning(exc, store.path) from exc
        due = store._next_expiry_ns <= store._clock.wall_ns()
        present = (version, store._own_changes)
        return present if due or present != self._seen else None


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells the file under ``path`` from any other, None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
