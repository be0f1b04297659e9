"""Metadata contexts: which ones exist and which ones a client's query means.

Decides names and ids only; who answers BLOCK_STATUS for an id is the gateway's table.
Source: NBD protocol, "Metadata querying".
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetaContext:
    """One metadata context: its name, ``namespace:leaf``, and the id that replies carry."""

    context_id: int
    name: str


BASE_ALLOCATION = MetaContext(1, "base:allocation")

REGISTRY: tuple[MetaContext, ...] = (BASE_ALLOCATION,)


def list_contexts(queries: Iterable[str]) -> list[MetaContext]:
    """Return what LIST_META_CONTEXT answers: no query means all, ``base:`` all of a namespace."""
    wanted = list(queries)
    if not wanted:
        return list(REGISTRY)
    return [
        context
        for context in REGISTRY
        if context.name in wanted or context.name.partition(":")[0] + ":" in wanted
    ]


def select_contexts(queries: Iterable[str]) -> list[MetaContext]:
    """Return what SET_META_CONTEXT selects: full names only, a wildcard selects nothing."""
    wanted = set(queries)
    return [context for context in REGISTRY if context.name in wanted]
