"""The metadata store in this process's memory: for tests, and the simplest true backend.

Decides nothing that `torus.metadata.base` does not promise.  Nothing survives the process.
"""

import threading
from collections import deque
from collections.abc import Sequence

from torus.clock import Clock, SystemClock
from torus.limits import METADATA_HISTORY_BYTES_MAX, METADATA_HISTORY_CHANGES_MAX
from torus.metadata import rules
from torus.metadata.base import Delete, Entry, Event, Expect, Listing, Put


class MemoryMetadata:
    """A `MetadataStore` in memory."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._closed = False
        self._entries: dict[str, Entry] = {}
        self._key_leases: dict[str, int] = {}
        self._leases: dict[int, tuple[int, int]] = {}  # id: (expires, time to live), ns
        self._next_lease = 1
        self._revision = 0
        self._history: deque[Event] = deque()
        self._history_bytes = 0
        self._trimmed = 0

    def get(self, key: str) -> Entry | None:
        """Return the entry of ``key``, or None when there is none."""
        rules.check_key(key)
        with self._changed:
            self._settle()
            return self._entries.get(key)

    def list(self, prefix: str) -> Listing:
        """Return all entries whose key begins with ``prefix``, in the order of their keys."""
        rules.check_prefix(prefix)
        with self._changed:
            self._settle()
            found = (entry for key, entry in self._entries.items() if key.startswith(prefix))
            return Listing(self._revision, tuple(sorted(found, key=lambda entry: entry.key)))

    def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        """Apply all ``changes`` at once if every expectation holds; see `MetadataStore`."""
        rules.check_commit(expect, changes)
        with self._changed:
            self._settle()
            for expectation in expect:
                entry = self._entries.get(expectation.key)
                if (entry.revision if entry else 0) != expectation.revision:
                    return None
            for change in changes:
                if isinstance(change, Put) and change.lease is not None:
                    if change.lease not in self._leases:
                        raise rules.lease_ended(change.lease, change.key)
            return self._apply(changes)

    def watch(self, prefix: str, after_revision: int) -> "MemoryWatch":
        """Watch changes under ``prefix`` with a revision greater than ``after_revision``."""
        rules.check_prefix(prefix)
        with self._changed:
            self._settle()
            return MemoryWatch(self, prefix, after_revision)

    def grant(self, ttl_s: float) -> int:
        """Make a lease that ends ``ttl_s`` seconds after its last renewal; return its id."""
        ttl_ns = rules.lease_ttl_ns(ttl_s)
        with self._changed:
            self._settle()
            lease = self._next_lease
            self._next_lease += 1
            self._leases[lease] = (self._clock.wall_ns() + ttl_ns, ttl_ns)
            return lease

    def renew(self, lease: int) -> bool:
        """Renew a lease; False when it has ended already."""
        with self._changed:
            self._settle()
            if lease not in self._leases:
                return False
            ttl_ns = self._leases[lease][1]
            self._leases[lease] = (self._clock.wall_ns() + ttl_ns, ttl_ns)
            return True

    def revoke(self, lease: int) -> None:
        """End a lease now, with all its keys; idempotent."""
        with self._changed:
            self._settle()
            self._end_leases([lease])

    def close(self) -> None:
        """Forget everything; idempotent."""
        with self._changed:
            self._closed = True
            self._entries.clear()
            self._history.clear()
            self._changed.notify_all()

    def _settle(self) -> None:
        """Refuse a closed store, and let leases end whose time is over."""
        if self._closed:
            raise rules.closed("the metadata store")
        now_ns = self._clock.wall_ns()
        ended = []
        for lease, (expires_ns, ttl_ns) in self._leases.items():
            if expires_ns <= now_ns:
                ended.append(lease)
            elif expires_ns - ttl_ns > now_ns + rules.CLOCK_STEP_NS:
                self._leases[lease] = (now_ns + ttl_ns, ttl_ns)
        if ended:
            self._end_leases(ended)

    def _end_leases(self, leases: Sequence[int]) -> None:
        for lease in leases:
            self._leases.pop(lease, None)
        keys = sorted(key for key, lease in self._key_leases.items() if lease in leases)
        self._apply([Delete(key) for key in keys])

    def _apply(self, changes: Sequence[Put | Delete]) -> int:
        effective = [c for c in changes if isinstance(c, Put) or c.key in self._entries]
        if not effective:
            return self._revision
        self._revision += 1
        for change in effective:
            self._key_leases.pop(change.key, None)
            if isinstance(change, Put):
                self._entries[change.key] = Entry(change.key, change.value, self._revision)
                if change.lease is not None:
                    self._key_leases[change.key] = change.lease
                self._remember(Event(change.key, change.value, self._revision))
            else:
                del self._entries[change.key]
                self._remember(Event(change.key, None, self._revision))
        self._trim()
        self._changed.notify_all()
        return self._revision

    def _remember(self, event: Event) -> None:
        self._history.append(event)
        self._history_bytes += _event_bytes(event)

    def _trim(self) -> None:
        """Drop the oldest changes until the history is within its bounds.

        A revision that loses one change counts as lost: a watch gets all of it or an error.
        """
        history = self._history
        while history and (
            len(history) > METADATA_HISTORY_CHANGES_MAX
            or self._history_bytes > METADATA_HISTORY_BYTES_MAX
        ):
            event = history.popleft()
            self._history_bytes -= _event_bytes(event)
            self._trimmed = event.revision


class MemoryWatch:
    """A `Watch` of a `MemoryMetadata`."""

    def __init__(self, store: MemoryMetadata, prefix: str, after_revision: int) -> None:
        self._store = store
        self._prefix = prefix
        self._after = after_revision
        self._closed = False

    def next(self, timeout_s: float) -> Sequence[Event]:
        """Wait for changes and return them; an empty sequence when none came in time."""
        store = self._store
        with store._changed:
            while True:
                if self._closed:
                    raise rules.closed(f"the watch of {self._prefix!r}")
                store._settle()
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
        store = self._store
        rules.check_watch_position(self._prefix, self._after, store._trimmed, store._revision)
        events = [
            event
            for event in store._history
            if event.revision > self._after and event.key.startswith(self._prefix)
        ]
        self._after = store._revision
        return events


def _event_bytes(event: Event) -> int:
    return len(event.key) + len(event.value or b"")
