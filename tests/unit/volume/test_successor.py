"""Who has a volume that was lost: asked for until the metadata store answers."""

import asyncio
import dataclasses

import pytest

from torus import limits
from torus.errors import Unavailable
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.testing.clock import ManualClock
from torus.testing.world import OWNER
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.successor import successor


class AwayAtFirst(AsyncCatalog):
    """A catalog whose store cannot be reached for some questions."""

    away = 2

    async def get_by_id(self, volume: int):  # type: ignore[no-untyped-def]
        """Answer, once the store is back."""
        if self.away:
            self.away -= 1
            raise Unavailable("the store is away")
        return await super().get_by_id(volume)


def ask(*, closing: bool = False) -> str:
    """Return what is said of a volume that somebody else took meanwhile."""

    async def scenario() -> str:
        metadata = AsyncMetadata(MemoryMetadata())
        catalog = AwayAtFirst(metadata, ManualClock())
        await catalog.init_cluster()
        made = await catalog.create("vm", 1 << 20)
        await catalog.acquire(made.volume, dataclasses.replace(OWNER, pid=77))
        try:
            return await successor(catalog, made.volume, lambda: closing)
        finally:
            await metadata.close()

    return asyncio.run(scenario())


def test_the_owner_is_named_when_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may refuse the old owner before the store can be reached again."""
    monkeypatch.setattr(limits, "WATCH_RETRY_S", 0.0)
    assert "pid 77" in ask()


def test_a_process_that_stops_does_not_wait() -> None:
    """It says what it knows: nothing."""
    assert ask(closing=True) == "unknown: the store is away"


def test_what_is_gone_is_not_asked_for_again() -> None:
    """A volume that was deleted has no owner any more."""

    async def scenario() -> str:
        metadata = AsyncMetadata(MemoryMetadata())
        catalog = AsyncCatalog(metadata, ManualClock())
        await catalog.init_cluster()
        try:
            return await successor(catalog, 5, lambda: False)
        finally:
            await metadata.close()

    said = asyncio.run(scenario())
    assert said.startswith("unknown: ")
    assert "does not exist" in said
