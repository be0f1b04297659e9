"""Metadata in virtual time: slow, away, or silent about what it did.

One `MemoryMetadata` for the whole cluster; each process has a `SimMetadataClient`, which answers
like `torus.metadata.loop.AsyncMetadata`.  An answer that does not come is `Unavailable`, whether
the commit happened or not.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from torus.errors import Unavailable
from torus.metadata.base import Delete, Entry, Expect, Listing, Put
from torus.metadata.memory import MemoryMetadata
from torus.testing.simloop import SimClock, SimLoop

Result = TypeVar("Result")
_TIMEOUT_S = 2.0


class SimMetadataServer:
    """What all clients share: the content, and how it can be reached."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.content = MemoryMetadata(SimClock(loop))
        self.away_until_s = 0.0
        self.cut: set[str] = set()  # machines that cannot reach it
        self.delay_s = 0.002
        self.silent = 0.0  # chance that an answer is lost
        self.commits = 0

    def heal(self) -> None:
        """Be there for everybody."""
        self.away_until_s, self.silent = 0.0, 0.0
        self.cut.clear()

    def is_away(self, machine: str) -> bool:
        """Say whether a machine cannot reach it now."""
        return self.loop.time() < self.away_until_s or machine in self.cut


class SimMetadataClient:
    """The metadata store as one process has it."""

    def __init__(self, server: SimMetadataServer, machine: str) -> None:
        self._server = server
        self._machine = machine

    async def get(self, key: str) -> Entry | None:
        """Return the entry of ``key``, or None."""
        return await self._ask(lambda: self._server.content.get(key))

    async def list(self, prefix: str) -> Listing:
        """Return all entries under ``prefix``."""
        return await self._ask(lambda: self._server.content.list(prefix))

    async def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        """Apply all ``changes`` at once if every expectation holds."""
        self._server.commits += 1
        return await self._ask(lambda: self._server.content.commit(expect, changes))

    async def _ask(self, operation: Callable[[], Result]) -> Result:
        await self._pass()
        result = operation()
        if self._server.rng.random() < self._server.silent:
            await asyncio.sleep(_TIMEOUT_S)
            raise Unavailable("the metadata store did not answer")
        await self._pass()
        return result

    async def _pass(self) -> None:
        """Wait until a message is through.  Raises: Unavailable."""
        server = self._server
        await asyncio.sleep(server.rng.expovariate(1 / server.delay_s))
        if server.is_away(self._machine):
            await asyncio.sleep(_TIMEOUT_S)
            raise Unavailable("the metadata store is away")
