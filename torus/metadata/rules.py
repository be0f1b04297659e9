"""What every metadata backend refuses, in the same words.

Decides which keys, prefixes, commits and lease times are legal.  It does not touch a store.
Uniform bounds keep a caller that works on the embedded store working on etcd.

Implements docs/metadata.md, "Bounds".
"""

import math
import threading
from collections.abc import Sequence

from torus.clock import Clock
from torus.errors import NotFound, ShuttingDown, Unavailable, UsageError
from torus.limits import (
    METADATA_COMMIT_BYTES_MAX,
    METADATA_COMMIT_CHANGES_MAX,
    METADATA_KEY_BYTES_MAX,
    METADATA_LEASE_TTL_S_MAX,
    METADATA_POLL_S,
    METADATA_VALUE_BYTES_MAX,
)
from torus.metadata.base import Delete, Expect, Put

CLOCK_STEP_NS = 1_000_000_000  # a lease renewed further in the future than this: clock went back


def check_key(key: str) -> int:
    """Return the size in bytes of a legal key.

    Raises: UsageError for an empty, overlong or unencodable key, or one with a NUL.
    """
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError as exc:
        raise UsageError(f"metadata key {key!r} is not UTF-8") from exc
    if not 0 < size_bytes <= METADATA_KEY_BYTES_MAX or "\0" in key:
        raise UsageError(
            f"metadata key {key[:80]!r} of {size_bytes} bytes is not legal: "
            f"1 to {METADATA_KEY_BYTES_MAX} bytes without NUL are"
        )
    return size_bytes


def check_prefix(prefix: str) -> str:
    """Return the first string behind all keys that begin with ``prefix``.

    Raises: UsageError when the prefix does not end in '/': 'volumes/1' would take in
        'volumes/10' too.
    """
    check_key(prefix)
    if not prefix.endswith("/"):
        raise UsageError(f"metadata prefix {prefix!r} does not end in '/'")
    return prefix[:-1] + chr(ord("/") + 1)


def check_commit(expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> None:
    """Accept a commit's arguments.

    Raises: UsageError when a bound is exceeded, a key appears in two changes, a value is no
        bytes or a revision is negative.
    """
    for kind, items in (("expectations", expect), ("changes", changes)):
        if len(items) > METADATA_COMMIT_CHANGES_MAX:
            raise UsageError(
                f"a metadata commit has {len(items)} {kind}, "
                f"more than {METADATA_COMMIT_CHANGES_MAX}"
            )
    for expectation in expect:
        check_key(expectation.key)
        if expectation.revision < 0:
            raise UsageError(f"expected revision {expectation.revision} is negative")
    size_bytes = 0
    keys: set[str] = set()
    for change in changes:
        size_bytes += check_key(change.key)
        if isinstance(change, Put):
            size_bytes += _check_value(change)
        if change.key in keys:
            raise UsageError(f"a metadata commit changes key {change.key!r} twice")
        keys.add(change.key)
    if size_bytes > METADATA_COMMIT_BYTES_MAX:
        raise UsageError(
            f"a metadata commit has {size_bytes} bytes, more than {METADATA_COMMIT_BYTES_MAX}"
        )


def _check_value(put: Put) -> int:
    if not isinstance(put.value, bytes):
        raise UsageError(f"value of {put.key!r} is {type(put.value).__name__}, not bytes")
    if len(put.value) > METADATA_VALUE_BYTES_MAX:
        raise UsageError(
            f"value of metadata key {put.key!r} has {len(put.value)} bytes, "
            f"more than {METADATA_VALUE_BYTES_MAX}"
        )
    return len(put.value)


def lease_ttl_ns(ttl_s: float) -> int:
    """Return a lease's time to live in nanoseconds.

    Raises: UsageError when it is not positive, not finite or longer than a day.
    """
    if not math.isfinite(ttl_s) or not 0 < ttl_s <= METADATA_LEASE_TTL_S_MAX:
        raise UsageError(
            f"a lease of {ttl_s} s is not legal: more than 0, "
            f"at most {METADATA_LEASE_TTL_S_MAX:.0f} s are"
        )
    return max(1, round(ttl_s * 1e9))


def check_watch_position(prefix: str, after_revision: int, trimmed: int, present: int) -> None:
    """Accept a watch that stands at ``after_revision``.

    ``trimmed`` is the newest revision that the history lost, ``present`` the store's own.

    Raises: Unavailable when changes after its position may be missing.
    """
    if after_revision < trimmed:
        raise Unavailable(
            f"changes under {prefix!r} after revision {after_revision} are no longer kept: "
            f"history begins after revision {trimmed}",
            hint="list the prefix again and watch from the listing's revision",
        )
    if after_revision > present:
        raise Unavailable(
            f"a watch of {prefix!r} stands at revision {after_revision}, but the store is at "
            f"{present}: it was replaced by an older one",
            hint="list the prefix again; if nobody restored the store, run: torus check",
        )


def wait_for_change(changed: threading.Condition, clock: Clock, remaining_s: float) -> float:
    """Wait until notified, at most `METADATA_POLL_S`; return what is left of ``remaining_s``.

    ``changed`` is held by the caller.  A test's clock that stands still ends the wait too.
    """
    step_s = min(remaining_s, METADATA_POLL_S)
    begin_ns = clock.monotonic_ns()
    notified = changed.wait(step_s)
    elapsed_s = (clock.monotonic_ns() - begin_ns) / 1e9
    return remaining_s - (elapsed_s if notified else max(elapsed_s, step_s))


def lease_ended(lease: int, key: str) -> NotFound:
    """Return the error for a put under a lease that is no more."""
    return NotFound(f"lease {lease} for metadata key {key!r} has ended; nothing was written")


def closed(what: str) -> ShuttingDown:
    """Return the error for using ``what`` after its `close`."""
    return ShuttingDown(f"{what} is closed")
