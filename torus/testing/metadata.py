"""A metadata store in memory for simulations: coroutines that never wait, and snapshots.

Same promises as `torus.metadata.memory`, without threads: a simulation must be the same each
time.  A commit is durable at once, so it is one event of the disk's history.
"""

from collections.abc import Sequence

from torus.metadata.base import Delete, Entry, Expect, Listing, Put
from torus.testing.simdisk import Event

Snapshot = tuple[int, dict[str, Entry]]


class SimMetadata:
    """What `torus.volume.catalog_async.AsyncCatalog` needs of a metadata store."""

    def __init__(
        self, snapshot: Snapshot | None = None, history: list[Event] | None = None
    ) -> None:
        self._revision, entries = snapshot or (0, {})
        self._entries = dict(entries)
        self._history: list[Event] = [] if history is None else history

    def snapshot(self) -> Snapshot:
        """Return all that is stored."""
        return self._revision, dict(self._entries)

    async def get(self, key: str) -> Entry | None:
        """Return the entry of ``key``."""
        return self._entries.get(key)

    async def list(self, prefix: str) -> Listing:
        """Return all entries under ``prefix``."""
        found = (entry for key, entry in sorted(self._entries.items()) if key.startswith(prefix))
        return Listing(self._revision, tuple(found))

    async def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        """Apply all ``changes`` if every expectation holds."""
        for expectation in expect:
            entry = self._entries.get(expectation.key)
            if (entry.revision if entry else 0) != expectation.revision:
                return None
        self._revision += 1
        for change in changes:
            if isinstance(change, Put):
                self._entries[change.key] = Entry(change.key, change.value, self._revision)
            else:
                self._entries.pop(change.key, None)
        self._history.append(Event("meta", self.snapshot()))
        return self._revision
