"""Telling an older copy of an etcd from the one that was written to.

Decides what a process that lives longer than an etcd's backups must remember.  An etcd that was
restored has, at first, a smaller revision; but it grows, and with the same configuration it has
the same cluster id.  So each holder of a token has a key of its own that nobody else writes, a
*mark*, and renews it now and then: a store that does not hold the holder's last mark has lost
what the holder wrote.

A token is kept durably before the next one is made.  Whoever dies between writing a mark and
keeping the token finds, as the mark's ``before``, the mark that it knows.

Implements docs/metadata.md, "An older copy".
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from torus.errors import Corruption, ForeignData, Unavailable
from torus.metadata.base import Delete, Entry, Expect, Put
from torus.metadata.keys import ORIGINS, mark_key
from torus.metadata.schema import Mark, Origins

_ATTEMPTS_MAX = 8
_HINT = (
    "put the newer etcd back if it still exists; if it is lost, docs/metadata.md, 'An older copy', "
    "says how to go on with this one"
)


class Marked(Protocol):
    """What is needed of a store here."""

    def get(self, key: str) -> Entry | None:
        """Return one entry."""

    def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        """Apply changes if the expectations hold."""

    def position(self) -> tuple[int, int]:
        """Return the id of the cluster that keeps the store, and its revision."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a holder remembers."""

    cluster: str  # etcd's own id, hexadecimal
    revision: int
    holder: str
    mark: str

    def to_text(self) -> str:
        """Return the one line that is kept."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> "Token":
        """Read it.  Raises: Corruption."""
        try:
            found = cls(**json.loads(text))
            if not isinstance(found.revision, int):
                raise TypeError("its revision is no number")
        except (ValueError, TypeError) as exc:
            raise Corruption(f"history token {text[:120]!r} cannot be read: {exc}") from exc
        return found


def make_token(store: Marked, text: str) -> str:
    """Write a new mark and return the token for it; ``text`` is the holder's last, or empty.

    Raises: Unavailable, Corruption.
    """
    old = Token.from_text(text) if text else None
    holder = old.holder if old else secrets.token_hex(8)
    mark = Mark(now=secrets.token_hex(8), before=old.mark if old else "")
    key = mark_key(holder)
    for _ in range(_ATTEMPTS_MAX):
        entry = store.get(key)
        expect = Expect(key, entry.revision if entry else 0)
        if store.commit([expect], [Put(key, mark.to_bytes())]) is not None:
            cluster, revision = store.position()
            return Token(f"{cluster:x}", revision, holder, mark.now).to_text()
    raise Unavailable(
        f"metadata key {key!r} is written by others: two processes hold one history token",
        hint="a copy of a data directory is in use beside the original: stop one of them",
    )


def check_token(store: Marked, text: str) -> None:
    """Refuse a store that lacks something that was there when the token was made.

    Raises: Corruption for an older copy, ForeignData for another etcd, Unavailable.
    """
    token = Token.from_text(text)
    cluster, revision = store.position()
    if f"{cluster:x}" != token.cluster:
        _check_origin(store, token, f"{cluster:x}")
    elif revision < token.revision:
        raise Corruption(
            f"etcd is an older copy: it is at revision {revision}, but was at "
            f"{token.revision} when this process's disk last saw it",
            hint=_HINT,
        )
    key = mark_key(token.holder)
    entry = store.get(key)
    mark = Mark.from_bytes(entry.value, key) if entry is not None else Mark("", "")
    if token.mark not in (mark.now, mark.before):
        raise Corruption(
            f"etcd is an older copy: metadata key {key!r} does not hold the mark {token.mark} "
            f"that was written there up to revision {token.revision}",
            hint=_HINT,
        )


def _check_origin(store: Marked, token: Token, cluster: str) -> None:
    """Accept another etcd only if it was filled from the token's, behind the token."""
    entry = store.get(ORIGINS)
    origins = Origins.from_bytes(entry.value, ORIGINS).places if entry is not None else ()
    for origin in origins:
        if origin.cluster == token.cluster:
            if origin.revision >= token.revision:
                return
            raise Corruption(
                f"etcd was filled from a backup that ends at revision {origin.revision}, but "
                f"this process's disk saw revision {token.revision}",
                hint=_HINT,
            )
    raise ForeignData(
        f"etcd's cluster is {cluster}, but this process's disk last saw cluster {token.cluster}",
        hint="check --meta; metadata is moved to another etcd by 'torus meta export' and 'import'",
    )
