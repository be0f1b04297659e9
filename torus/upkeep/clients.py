"""What a node has heard of clients: whether they feel what moves, and how much moves.  Pure.

Owners of volumes tell the nodes that they use how their clients fare; disks that pull tell the
nodes that they pull from how fast they go, and learn from them what the owners said.  Decides how
long a word counts.  Implements docs/upkeep.md, "Clients that feel it".
"""

import json
from typing import Any, NamedTuple

from torus.clock import Clock
from torus.errors import RemoteProtocolError
from torus.limits import CLIENT_WORD_S


class Word(NamedTuple):
    """What one process says to another."""

    hurt: bool | None  # its clients are slower than they are used to; None: it has none
    share: float  # of its rate at which something moves; 0.0: nothing does


def clients_question(who: str, word: Word) -> bytes:
    """Return the question that says it, as ``who``; the answer is a word as well."""
    return json.dumps({"ask": "clients", "who": who, **word._asdict()}).encode()


def read_question(asked: dict[str, Any]) -> tuple[str, Word]:
    """Return who says what.  Raises: RemoteProtocolError."""
    who = asked.get("who")
    if not isinstance(who, str):
        raise RemoteProtocolError(f"word on clients is nobody's: {asked!r:.80}")
    return who, _word_of(asked)


def read_word(answer: bytes) -> Word:
    """Read an answer.  Raises: RemoteProtocolError."""
    try:
        return _word_of(json.loads(answer))
    except ValueError as exc:
        raise RemoteProtocolError(f"word on clients cannot be read: {answer[:80]!r}") from exc


def _word_of(document: object) -> Word:
    if isinstance(document, dict):
        hurt, share = document.get("hurt"), document.get("share")
        if (hurt is None or isinstance(hurt, bool)) and isinstance(share, int | float):
            return Word(hurt, float(share))
    raise RemoteProtocolError(f"word on clients cannot be read: {document!r:.80}")


class ClientsSaid:
    """What was said of clients within the last second or so."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, tuple[int, Word]] = {}  # by whom: until when it counts

    def hear(self, who: str, word: Word) -> None:
        """Note what somebody says; it replaces what the same one said before."""
        now_ns = self._clock.monotonic_ns()
        self._said = {name: one for name, one in self._said.items() if one[0] > now_ns}
        self._said[who] = (now_ns + int(CLIENT_WORD_S * 1e9), word)

    @property
    def word(self) -> Word:
        """Return the worst that was said: somebody is hurt, and the largest share."""
        now_ns = self._clock.monotonic_ns()
        words = [word for until_ns, word in self._said.values() if until_ns > now_ns]
        felt = [word.hurt for word in words if word.hurt is not None]
        share = max((word.share for word in words), default=0.0)
        return Word(any(felt) if felt else None, share)
