"""Telling nodes how clients fare, and asking them: what moves gives way to clients anywhere.

Decides who tells whom: an owner of volumes the nodes that it is connected with, a disk that pulls
the nodes that it pulls from.  Implements docs/upkeep.md, "Clients that feel it".
"""

import asyncio
import uuid
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torus import limits
from torus._fast.stats import Histogram
from torus.clock import Clock
from torus.cluster.answers import ask_all
from torus.cluster.pool import DiskPool
from torus.daemon.background import Background
from torus.daemon.client_times import Window
from torus.daemon.client_usual import Feeling
from torus.errors import TorusError
from torus.upkeep.clients import Word, clients_question, read_word
from torus.upkeep.node import NodeUpkeep

_LOOKS = 3  # in a window
_TIMEOUT_S = 1.0


@runtime_checkable
class _Asked(Protocol):
    async def report(self, question: bytes) -> bytes: ...


class _Voice(Background):
    """Says something to the nodes of a pool now and then, and hears what they answer."""

    def __init__(self, pool: DiskPool, clock: Clock) -> None:
        super().__init__()
        self._who = uuid.uuid4().hex
        self._pool = pool
        self._clock = clock

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(limits.CLIENT_LOOK_S)
            word = self.word()
            if word is not None:
                self.hear(await self._say(word))

    @abstractmethod
    def word(self) -> Word | None:
        """Return what there is to say."""

    @abstractmethod
    def hear(self, words: Sequence[Word]) -> None:
        """Learn what the nodes answered."""

    async def _say(self, word: Word) -> list[Word]:
        peers = self._pool.one_for_each_node()
        question = clients_question(self._who, word)
        found = await ask_all(
            {disk: _ask(peer, question) for disk, peer in peers.items()
             if isinstance(peer, _Asked)},
            _TIMEOUT_S,
        )  # fmt: skip
        return [one for one in found.values() if not isinstance(one, TorusError)]


async def _ask(peer: _Asked, question: bytes) -> Word:
    return read_word(await peer.report(question))


class OwnersVoice(_Voice):
    """An owner of volumes: how its clients fare."""

    def __init__(
        self,
        histograms: Callable[[], Sequence[Histogram]],
        pool: DiskPool,
        clock: Clock,
        node: NodeUpkeep | None = None,
    ) -> None:
        """``histograms``: one for each kind of request; ``node``: that of this process."""
        super().__init__(pool, clock)
        self._histograms = histograms
        self._node = node
        self._windows = [Window(_LOOKS) for _ in histograms()]
        self._feeling = Feeling(len(self._windows))
        self._share = 0.0  # at which something moved on the nodes that answered last

    def word(self) -> Word | None:
        """Return whether clients feel what moves; None: there are hardly any."""
        for window, histogram in zip(self._windows, self._histograms(), strict=True):
            window.look([histogram])
        p99s_ns = [window.p99_ns() for window in self._windows]
        hurt = self._feeling.look(self._clock.monotonic_ns(), p99s_ns, self._share)
        return None if hurt is None else Word(hurt, 0.0)

    def hear(self, words: Sequence[Word]) -> None:
        """Learn how fast something moves on the nodes that clients' data lie on."""
        self._share = max((word.share for word in words), default=0.0)

    async def _say(self, word: Word) -> list[Word]:
        words = await super()._say(word)
        return words if self._node is None else [*words, self._node.hear(self._who, word)]


class PullersVoice(_Voice):
    """The disks of a node: how fast they pull."""

    def __init__(self, node: NodeUpkeep, pool: DiskPool, clock: Clock) -> None:
        super().__init__(pool, clock)
        self._node = node

    def word(self) -> Word | None:
        """Return at which share of its rate the fastest disk pulls; None: none does."""
        share = self._node.moving_share()
        return Word(None, share) if share else None

    def hear(self, words: Sequence[Word]) -> None:
        """Learn how the clients of those fare that are pulled from."""
        for number, word in enumerate(words):
            self._node.far_clients.hear(str(number), word._replace(share=0.0))
