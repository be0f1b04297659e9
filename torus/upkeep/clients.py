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
    """What was said of clients within the last second or so.

    A thousand owners may say the same twice a second: what follows of it is kept until somebody
    says something else, or may have gone.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, tuple[int, Word]] = {}  # by whom: until when it counts
        self._worst = Word(None, 0.0)
        self._until_ns: int | None = None  # that counts; None: it has to be found anew

    def hear(self, who: str, word: Word) -> None:
        """Note what somebody says; it replaces what the same one said before."""
        before = self._said.get(who)
        until_ns = self._clock.monotonic_ns() + int(CLIENT_WORD_S * 1e9)
        self._said[who] = (until_ns, word)
        if before is None or before[1] != word:
            self._until_ns = None

    @property
    def word(self) -> Word:
        """Return the worst that was said: somebody is hurt, and the largest share."""
        now_ns = self._clock.monotonic_ns()
        if self._until_ns is None or now_ns >= self._until_ns:
            self._said = {who: one for who, one in self._said.items() if one[0] > now_ns}
            words = [word for _, word in self._said.values()]
            felt = [word.hurt for word in words if word.hurt is not None]
            share = max((word.share for word in words), default=0.0)
            self._worst = Word(any(felt) if felt else None, share)
            ends = [until_ns for until_ns, _ in self._said.values()]
            self._until_ns = min(ends, default=now_ns + int(CLIENT_WORD_S * 1e9))
        return self._worst
