"""One write transaction of the SQLite metadata store.

Decides how a revision is made: entries, history and leases change together, and the history
keeps to its bounds by whole revisions.  It does not decide when the transaction begins, ends
or is given up (`torus.metadata.sqlite`).

Implements docs/metadata.md, "The SQLite file".
"""

import sqlite3
from collections.abc import Sequence

from torus.clock import Clock
from torus.limits import METADATA_HISTORY_BYTES_MAX, METADATA_HISTORY_CHANGES_MAX
from torus.metadata import rules
from torus.metadata.base import Delete, Expect, Put
from torus.metadata.keys import MOVED
from torus.metadata.moved import refuse_moved
from torus.metadata.sqlite_file import read_state, row_crc, state_crc


class Change:
    """The changes of one write transaction, which the caller has begun and will end."""

    def __init__(self, connection: sqlite3.Connection, path: str, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._path = path
        self._old = read_state(connection, path)
        self._revision, self._trimmed, self._sequence, self._history_bytes, self._lease = self._old

    @property
    def changed(self) -> bool:
        """True when an entry was written or removed."""
        return self._revision != self._old[0]

    def refuse_moved(self) -> None:
        """Let nobody write to what lies elsewhere; opened before the move began or not.

        Raises: ConfigError, Busy.
        """
        row = self._connection.execute(
            "SELECT value FROM entries WHERE key = ?", (MOVED,)
        ).fetchone()
        refuse_moved(None if row is None else row[0], self._path)

    def holds(self, expectation: Expect) -> bool:
        """Tell whether the expected revision is the key's own; 0 means: absent."""
        row = self._connection.execute(
            "SELECT revision FROM entries WHERE key = ?", (expectation.key,)
        ).fetchone()
        return (0 if row is None else row[0]) == expectation.revision

    def apply(self, changes: Sequence[Put | Delete]) -> int:
        """Make one revision of ``changes``; return it, or the present one if none has effect.

        Raises: NotFound when a put names a lease that has ended.
        """
        revision = self._revision + 1
        for change in changes:
            if isinstance(change, Put):
                self._put(change, revision)
            elif self._delete(change.key):
                self._remember(change.key, None, revision)
        return self._revision

    def _put(self, put: Put, revision: int) -> None:
        if put.lease is not None and not self._lease_exists(put.lease):
            raise rules.lease_ended(put.lease, put.key)
        self._connection.execute(
            "INSERT INTO entries (key, value, revision, lease, crc) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value,"
            " revision = excluded.revision, lease = excluded.lease, crc = excluded.crc",
            (put.key, put.value, revision, put.lease, row_crc(put.key, put.value, revision)),
        )
        self._remember(put.key, put.value, revision)

    def _delete(self, key: str) -> bool:
        return self._connection.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount > 0

    def _remember(self, key: str, value: bytes | None, revision: int) -> None:
        self._revision = revision
        self._sequence += 1
        self._history_bytes += len(key) + len(value or b"")
        self._connection.execute(
            "INSERT INTO changes (sequence, revision, key, value, crc, end_bytes)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                self._sequence,
                revision,
                key,
                value,
                row_crc(key, value, revision),
                self._history_bytes,
            ),
        )

    def grant(self, ttl_ns: int) -> int:
        """Make a lease and return its id, which was never used before."""
        lease = self._lease
        self._lease += 1
        self._connection.execute(
            "INSERT INTO leases (id, ttl_ns, expires_ns) VALUES (?, ?, ?)",
            (lease, ttl_ns, self._clock.wall_ns() + ttl_ns),
        )
        return lease

    def renew(self, lease: int) -> bool:
        """Let a lease begin again; False when there is none."""
        cursor = self._connection.execute(
            "UPDATE leases SET expires_ns = ? + ttl_ns WHERE id = ?",
            (self._clock.wall_ns(), lease),
        )
        return cursor.rowcount > 0

    def end_due_leases(self) -> None:
        """End the leases whose time is over, as one revision.

        A lease that was renewed in the future has seen the wall clock go back; it gets its
        whole time from now, instead of the length of the jump.
        """
        now_ns = self._clock.wall_ns()
        due = self._connection.execute(
            "SELECT id FROM leases WHERE expires_ns <= ? ORDER BY id", (now_ns,)
        ).fetchall()
        self.end_leases([row[0] for row in due])
        self._connection.execute(
            "UPDATE leases SET expires_ns = ? + ttl_ns WHERE expires_ns - ttl_ns > ?",
            (now_ns, now_ns + rules.CLOCK_STEP_NS),
        )

    def end_leases(self, leases: Sequence[int]) -> None:
        """Remove the leases and all their keys, as one revision."""
        revision = self._revision + 1
        for lease in leases:
            self._connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
            keys = self._connection.execute(
                "SELECT key FROM entries WHERE lease = ? ORDER BY key", (lease,)
            ).fetchall()
            for (key,) in keys:
                self._delete(key)
                self._remember(key, None, revision)

    def finish(self) -> None:
        """Bring the history within its bounds and write the counters."""
        self._trim()
        row = (self._revision, self._trimmed, self._sequence, self._history_bytes, self._lease)
        if row != self._old:
            self._connection.execute(
                "UPDATE state SET revision = ?, trimmed = ?, sequence = ?, history_bytes = ?,"
                " next_lease = ?, crc = ?",
                (*row, state_crc(row)),
            )

    def _trim(self) -> None:
        oldest = self._connection.execute(
            "SELECT sequence, revision, end_bytes FROM changes ORDER BY sequence"
        )
        trimmed = self._trimmed
        for sequence, revision, end_bytes in oldest:
            if (
                sequence > self._sequence - METADATA_HISTORY_CHANGES_MAX
                and end_bytes > self._history_bytes - METADATA_HISTORY_BYTES_MAX
            ):
                break
            trimmed = revision
        oldest.close()
        if trimmed != self._trimmed:
            self._connection.execute("DELETE FROM changes WHERE revision <= ?", (trimmed,))
            self._trimmed = trimmed

    def _lease_exists(self, lease: int) -> bool:
        row = self._connection.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone()
        return row is not None
