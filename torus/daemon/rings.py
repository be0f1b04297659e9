"""Versions of the ring in the metadata store: read, publish, forget; what operators say of it.

Decides how a version becomes current: one compare-and-swap writes it and the head that names it.
A version is kept while the head, or a span of any volume, names it.  Does not decide who is in
a ring (`torus.daemon.coordinator`) nor which slots move (`torus.ring.builder`).

Implements docs/ring.md, "Versions in the metadata store".
"""

import base64
import binascii
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torus.errors import Busy, Corruption, NotFound
from torus.limits import CATALOG_ATTEMPTS_MAX
from torus.metadata.base import Expect, MetadataStore, Put
from torus.metadata.keys import RING_HEAD, RING_VERSIONS, ring_key
from torus.metadata.schema import RingHead, RingVersion
from torus.ring.builder import next_ring
from torus.ring.codec import pack, unpack
from torus.ring.table import Ring

FIRST_VERSION = 1  # what version 0 in a span means: written before there was a ring
BY_OPERATOR = "by an operator"  # how a freeze begins that only an operator ends


@dataclass(frozen=True, slots=True)
class StoredRing:
    """A version as it is stored: the ring, when it was made and why."""

    ring: Ring
    created_ns: int
    reason: str


def ring_head(metadata: MetadataStore) -> tuple[RingHead, int]:
    """Return the head of the ring and the revision of its key.

    Raises: NotFound without a ring, Corruption, Unavailable.
    """
    entry = metadata.get(RING_HEAD)
    if entry is None:
        raise NotFound(
            "there is no ring: no node of this cluster was started yet",
            hint="start nodes: torus node --meta etcd://HOST:2379",
        )
    return RingHead.from_bytes(entry.value, entry.key), entry.revision


def current_ring(metadata: MetadataStore) -> Ring:
    """Return the ring that holds now.

    Raises: NotFound without a ring, Corruption, Unavailable.
    """
    return ring_at(metadata, ring_head(metadata)[0].version)


def ring_at(metadata: MetadataStore, version: int) -> Ring:
    """Return a version of the ring; 0 is the first.

    Raises: NotFound for one that is not kept, Corruption, Unavailable.
    """
    return stored_ring(metadata, version).ring


def stored_ring(metadata: MetadataStore, version: int) -> StoredRing:
    """Return a version with its story.  Raises: as `ring_at`."""
    key = ring_key(version or FIRST_VERSION)
    entry = metadata.get(key)
    if entry is None:
        raise NotFound(
            f"ring version {version} is not kept", hint="see which are: torus ring history"
        )
    return _from_stored(entry.value, key)


def history(metadata: MetadataStore) -> list[StoredRing]:
    """Return all versions that are kept, oldest first.  Raises: Corruption, Unavailable."""
    entries = metadata.list(RING_VERSIONS).entries
    ordered = sorted(entries, key=lambda entry: entry.key)
    return [_from_stored(entry.value, entry.key) for entry in ordered]


def publish(
    metadata: MetadataStore, ring: Ring, reason: str, expect_head_revision: int, created_ns: int
) -> int | None:
    """Store a version and let the head name it; returns the new revision.

    ``expect_head_revision`` is that of the head which ``ring`` was made from, 0: there is none.
    Returns None when the head was changed by somebody else, or the version exists: nothing is
    stored then.

    Raises: Unavailable (the outcome is unknown), UsageError (larger than a value may be).
    """
    head = RingHead(ring.version)
    if expect_head_revision:
        present, revision = ring_head(metadata)
        if revision != expect_head_revision:
            return None
        head = replace(present, version=ring.version)
    table = base64.b64encode(pack(ring)).decode()
    value = RingVersion(ring.version, created_ns, reason, table)
    return metadata.commit(
        (Expect(RING_HEAD, expect_head_revision), Expect(ring_key(ring.version), 0)),
        (Put(ring_key(ring.version), value.to_bytes()), Put(RING_HEAD, head.to_bytes())),
    )


def set_hashing(metadata: MetadataStore, hashing: str, created_ns: int) -> Ring:
    """Publish the next version with another hashing; the coordinator makes those behind it.

    Raises: NotFound without a ring, UsageError for an unknown hashing, Busy, Unavailable.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        head, revision = ring_head(metadata)
        ring = ring_at(metadata, head.version)
        if ring.hashing == hashing:
            return ring
        following = next_ring(ring, ring.members, hashing)
        reason = f"hashing {hashing}, by an operator"
        if publish(metadata, following, reason, revision, created_ns) is not None:
            return following
    raise _contended()


def change_head(metadata: MetadataStore, change: Callable[[RingHead], RingHead]) -> RingHead:
    """Change what the head says, by compare-and-swap; return it.

    Raises: NotFound without a ring, Busy, Unavailable.
    """
    for _ in range(CATALOG_ATTEMPTS_MAX):
        head, revision = ring_head(metadata)
        wanted = change(head)
        if wanted == head:
            return head
        changed = (Put(RING_HEAD, wanted.to_bytes()),)
        if metadata.commit((Expect(RING_HEAD, revision),), changed) is not None:
            return wanted
    raise _contended()


def is_frozen_by_operator(head: RingHead | None) -> bool:
    """Say whether an operator forbade that the ring is changed by itself."""
    return head is not None and head.frozen.startswith(BY_OPERATOR)


def unused_versions(
    kept: Iterable[int], current: int, named: Iterable[int], newest: int
) -> list[int]:
    """Return which versions nobody needs: not the current one, and named by no span.

    Those from ``newest`` on stay too.
    """
    needed = {version or FIRST_VERSION for version in named} | {current}
    return sorted(v for v in set(kept) - needed if v < min(current, newest))


def _from_stored(value: bytes, key: str) -> StoredRing:
    stored = RingVersion.from_bytes(value, key)
    try:
        ring = unpack(base64.b64decode(stored.table, validate=True))
    except binascii.Error as exc:
        raise Corruption(f"metadata key {key!r} holds no ring: {exc}") from exc
    if ring.version != stored.version:
        raise Corruption(
            f"metadata key {key!r} holds version {ring.version} of the ring, not {stored.version}"
        )
    return StoredRing(ring, stored.created_ns, stored.reason)


def _contended() -> Busy:
    return Busy("the ring was changed by others again and again", hint="try again")
