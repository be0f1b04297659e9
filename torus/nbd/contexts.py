"""Metadata contexts: their names, and which of those on offer a client's query means.

Decides names only: what an export offers and who answers BLOCK_STATUS is the gateway's business,
the numbers that replies carry are given out by the handshake.
Source: NBD protocol, "Metadata querying".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"  # how many images down the data lie; 0: nowhere
CHANGED_SINCE = "torus:changed-since:"  # followed by a snapshot's name

STATE_CHANGED = 1  # torus:changed-since:*; the same bit as qemu's dirty bitmaps have


@dataclass(frozen=True, slots=True)
class MetaContext:
    """One metadata context: its name, ``namespace:leaf``, and the id that replies carry."""

    context_id: int
    name: str


def list_contexts(offered: Sequence[str], queries: Iterable[str]) -> list[str]:
    """Return what LIST_META_CONTEXT answers of what an export offers.

    No query means all; one that ends in a colon means all that begin so.
    """
    wanted = set(queries)
    if not wanted:
        return list(offered)
    prefixes = tuple(query for query in wanted if query.endswith(":"))
    return [name for name in offered if name in wanted or name.startswith(prefixes)]


def select_contexts(offered: Sequence[str], queries: Iterable[str]) -> list[str]:
    """Return what SET_META_CONTEXT selects: full names only, a wildcard selects nothing."""
    wanted = set(queries)
    return [name for name in offered if name in wanted]
