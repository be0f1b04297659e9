"""One key of the metadata store that stays as long as this process lives and is well.

Decides how a lease is renewed, what happens when it was lost, and when somebody else's key is
waited for.  Nothing rests on holding it: it is for telling who is there, and for choosing one
among many to do what every one of them could do.
"""

import asyncio
from collections.abc import Callable

from torus.clock import Clock
from torus.errors import NotFound, TorusError, Unavailable
from torus.log import get_logger
from torus.metadata.base import Entry, Expect, Put
from torus.metadata.loop import AsyncMetadata

log = get_logger("torus.lease")

_RENEWALS = 3  # within one time to live
_RETRY_S = 1.0


class LeasedKey:
    """A key that this process keeps alive from `claim` to `close`."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        clock: Clock,
        key: str,
        value: Callable[[], bytes],
        *,
        ttl_s: float,
        is_mine: Callable[[bytes], bool],
        wait_s: float = 0.0,
    ) -> None:
        """``value`` makes what is stored, asked again at each renewal.  ``is_mine`` says of what
        somebody stored whether it may be replaced at once: this process made it, or one that is
        known to be dead.  ``wait_s``: how often one that somebody else has is looked at."""
        self._metadata = metadata
        self._clock = clock
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._is_mine = is_mine
        self._wait_s = wait_s
        self._lease: int | None = None
        self._stored: bytes | None = None
        self._revision = 0
        self._task: asyncio.Task[None] | None = None
        self.on_held: Callable[[bool], None] = lambda _held: None
        """Called when the key becomes this process's and when it is lost."""
        self.on_away: Callable[[bool], None] = lambda _away: None
        """Called at each try to reach the store: could it be reached."""

    @property
    def held(self) -> bool:
        """Say whether the key was this process's when it was last looked at."""
        return self._stored is not None

    @property
    def revision(self) -> int:
        """Return the revision at which the key was last written by this process."""
        return self._revision

    async def claim(self, patience_s: float) -> Entry | None:
        """Take the key; somebody else's is waited for so long, and returned if it stays.

        Raises: Unavailable.
        """
        deadline_ns = self._clock.monotonic_ns() + int(patience_s * 1e9)
        while True:
            other = await self._try()
            if self.held:
                return None
            if other is not None and self._clock.monotonic_ns() >= deadline_ns:
                return other
            await asyncio.sleep(min(_RETRY_S, self._ttl_s / _RENEWALS))

    def start(self) -> None:
        """Keep the key alive, or take it whenever nobody has it, from now on."""
        self._task = asyncio.ensure_future(self._run())

    async def refresh(self) -> None:
        """Store a changed value now rather than at the next renewal.  Raises: Unavailable."""
        if self.held and self._value() != self._stored:
            await self._store()

    async def close(self) -> None:
        """Let go of the key; idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        lease, self._lease = self._lease, None
        self._lost()
        if lease is not None:
            try:
                await self._metadata.revoke(lease)
            except TorusError as exc:
                log.warning("lease.not_revoked", key=self._key, error=str(exc))

    # --- keeping ------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            wait_s = self._ttl_s / _RENEWALS
            try:
                await self._keep()
                self.on_away(False)
            except Unavailable as exc:
                log.warning("lease.not_renewed", key=self._key, error=str(exc))
                self.on_away(True)
                wait_s = min(_RETRY_S, wait_s)
            except TorusError as exc:
                log.error("lease.failed", key=self._key, error=str(exc))
            # who only waits for another's end asks less often: there may be a thousand of them
            await asyncio.sleep(wait_s if self.held else max(wait_s, self._wait_s))

    async def _keep(self) -> None:
        """Renew, store what changed, or take the key."""
        if self._lease is not None and not await self._metadata.renew(self._lease):
            if self.held:
                log.warning("lease.lost", key=self._key, ttl_s=self._ttl_s)
            self._lease = None
            self._lost()
        if not self.held:
            await self._try()
        elif self._value() != self._stored:
            await self._store()

    async def _try(self) -> Entry | None:
        """Take the key if nobody else has it; return who has."""
        entry = await self._metadata.get(self._key)
        if entry is not None and not self._is_mine(entry.value):
            return entry
        await self._put(0 if entry is None else entry.revision)
        return None if self.held else await self._metadata.get(self._key)

    async def _store(self) -> None:
        await self._put(self._revision)

    async def _put(self, revision: int) -> bool:
        if self._lease is None:
            self._lease = await self._metadata.grant(self._ttl_s)
        value = self._value()
        try:
            done = await self._metadata.commit(
                (Expect(self._key, revision),), (Put(self._key, value, self._lease),)
            )
        except NotFound:  # the lease ended meanwhile
            self._lease, done = None, None
        if done is None:  # or somebody removed or replaced the key
            self._lost()
            return False
        was_held = self.held
        self._stored, self._revision = value, done
        if not was_held:
            self.on_held(True)
        return True

    def _lost(self) -> None:
        if self._stored is not None:
            self._stored = None
            self.on_held(False)
