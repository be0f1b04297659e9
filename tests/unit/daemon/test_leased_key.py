"""A key that stays while its process is well."""

import asyncio
from collections.abc import Awaitable, Callable

from torus.daemon.leased_key import LeasedKey
from torus.errors import Unavailable
from torus.metadata.base import Delete, Put
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.testing.clock import ManualClock

WAIT_S = 20.0
KEY = "nodes/n1"


class Awayable(MemoryMetadata):
    """A store in memory that can go away."""

    away = False

    def renew(self, lease: int) -> bool:
        if self.away:
            raise Unavailable("the store is away")
        return super().renew(lease)


class Fixture:
    """A store on a clock that stands, and keys whose events can be waited for."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = Awayable(self.clock)
        self.metadata = AsyncMetadata(self.store)
        self.told: list[str] = []
        self._looked = 0
        self._changed = asyncio.Event()

    def key(self, name: str, *, ttl_s: float = 0.03) -> LeasedKey:
        made = LeasedKey(
            self.metadata, self.clock, KEY, name.encode, ttl_s=ttl_s,
            is_mine=lambda value: value == name.encode(),
        )  # fmt: skip
        made.on_held = lambda held: self.tell(f"{name} {'held' if held else 'lost'}")
        made.on_away = lambda away: self.tell("away" if away else "there")
        return made

    def tell(self, what: str) -> None:
        if not self.told or self.told[-1] != what:
            self.told.append(what)
        self._changed.set()

    async def until(self, what: str) -> None:
        """Wait until this was told behind what was waited for last."""
        while what not in self.told[self._looked :]:
            self._changed.clear()
            await self._changed.wait()
        self._looked = self.told.index(what, self._looked) + 1


def run(test: Callable[[Fixture], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            fixture = Fixture()
            try:
                await test(fixture)
            finally:
                await fixture.metadata.close()

    asyncio.run(bounded())


def test_one_of_two_gets_it_and_the_other_when_it_is_let_go() -> None:
    async def test(fixture: Fixture) -> None:
        first, second = fixture.key("first"), fixture.key("second")
        assert await first.claim(0) is None
        other = await second.claim(0)
        assert other is not None
        assert other.value == b"first"
        assert (first.held, second.held) == (True, False)

        second.start()
        await first.close()
        await fixture.until("second held")
        await second.close()

        assert await fixture.metadata.get(KEY) is None

    run(test)


def test_lease_that_ran_out_is_noticed_and_the_key_taken_again() -> None:
    """As after a SIGSTOP: the key is gone, or somebody else's by then."""

    async def test(fixture: Fixture) -> None:
        key = fixture.key("first")
        await key.claim(0)
        fixture.clock.advance(10**9)
        assert await fixture.metadata.get(KEY) is None
        key.start()
        await fixture.until("there")
        assert fixture.told == ["first held", "first lost", "first held", "there"]

        await key.close()

        late = fixture.key("late")
        await late.claim(0)
        fixture.clock.advance(10**9)
        thief = fixture.key("second", ttl_s=3600)
        assert await thief.claim(0) is None
        late.start()
        await fixture.until("late lost")
        await fixture.until("there")
        assert (late.held, thief.held) == (False, True)
        await late.close()
        entry = await fixture.metadata.get(KEY)
        assert entry is not None
        assert entry.value == b"second"

    run(test)


def test_store_that_is_away_is_told_and_the_key_kept() -> None:
    async def test(fixture: Fixture) -> None:
        key = fixture.key("first")
        await key.claim(0)
        key.start()
        await fixture.until("there")
        fixture.store.away = True
        await fixture.until("away")
        fixture.store.away = False
        await fixture.until("there")

        assert fixture.told == ["first held", "there", "away", "there"]
        await key.close()

    run(test)


def test_changed_value_is_stored_and_a_removed_key_made_again() -> None:
    async def test(fixture: Fixture) -> None:
        values = [b"one"]
        key = LeasedKey(
            fixture.metadata, fixture.clock, KEY, lambda: values[-1], ttl_s=0.03,
            is_mine=lambda value: value in values,
        )  # fmt: skip
        key.on_held = lambda held: fixture.tell(str(held))
        await key.claim(0)
        values.append(b"two")
        await key.refresh()
        entry = await fixture.metadata.get(KEY)
        assert entry is not None
        assert (entry.value, entry.revision) == (b"two", key.revision)

        await fixture.metadata.commit((), (Delete(KEY),))
        values.append(b"three")
        key.start()
        await fixture.until("False")
        await fixture.until("True")
        entry = await fixture.metadata.get(KEY)
        assert entry is not None
        assert entry.value == b"three"
        await key.close()

    run(test)


def test_key_that_a_dead_process_left_is_replaced_at_once() -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.metadata.commit((), (Put(KEY, b"mine"),))
        key = fixture.key("mine")
        assert await key.claim(0) is None
        assert key.held

    run(test)
