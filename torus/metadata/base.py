"""The metadata store's interface: get, compare-and-swap, list, watch, lease.

Decides what a backend must promise; `tests/contract/test_metadata.py` holds every backend to
it.  Safety never rests on a read or on a lease, only on the result of `commit`.  The methods
block; an event loop calls them through `torus.metadata.loop.AsyncMetadata`.

Implements docs/metadata.md, "The interface".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One key with its value and the store's revision at which it was last written."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All entries under a prefix as they were at one revision of the store."""

    revision: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a key; ``value`` is None when the key was deleted or its lease ran out."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write ``value`` under ``key``; with ``lease``, until that lease ends."""

    key: str
    value: bytes
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove ``key``; removing a key that is not there is no error."""

    key: str


@dataclass(frozen=True, slots=True)
class Expect:
    """Require ``key`` to have been last written at ``revision``; 0 means: absent."""

    key: str
    revision: int


class Watch(Protocol):
    """The changes under a prefix, in order, none left out."""

    def next(self, timeout_s: float) -> Sequence[Event]:
        """Wait for changes and return them; an empty sequence when none came in time.

        All changes of one revision come together, never split over two calls.

        Raises: Unavailable when changes may have been missed: list and watch anew;
            ShuttingDown when the watch or its store is closed, also while waiting.
        """

    def close(self) -> None:
        """Stop watching; idempotent."""


class MetadataStore(Protocol):
    """A linearisable key-value store with one revision counter.

    Every method raises `Unavailable` when the store cannot be reached (the outcome is then
    unknown), `Corruption` when its content is damaged and `ShuttingDown` after `close`.
    What the bounds and rules of `torus.metadata.rules` forbid is a `UsageError`.  Methods may
    be called from any thread.
    """

    def get(self, key: str) -> Entry | None:
        """Return the entry of ``key``, or None when there is none."""

    def list(self, prefix: str) -> Listing:
        """Return all entries whose key begins with ``prefix``, which must end in '/'."""

    def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        """Apply all ``changes`` at once if every expectation holds.

        Returns: the revision of the change, or None when an expectation did not hold.
        Changes that change nothing (none at all, or deletions of absent keys) return the
        present revision and make no event.

        Raises: NotFound when a put names a lease that has ended; nothing is applied then.
        """

    def watch(self, prefix: str, after_revision: int) -> Watch:
        """Watch changes under ``prefix`` with a revision greater than ``after_revision``."""

    def grant(self, ttl_s: float) -> int:
        """Make a lease that ends ``ttl_s`` seconds after its last renewal; return its id."""

    def renew(self, lease: int) -> bool:
        """Renew a lease; False when it has ended already."""

    def revoke(self, lease: int) -> None:
        """End a lease now, with all its keys; idempotent."""

    def close(self) -> None:
        """Free what the store holds; idempotent."""
