"""The metadata store for an event loop: the same methods as coroutines.

Decides which thread the blocking calls run on: one for all operations of an embedded store, in
the order in which they were asked for; several for a store behind a network, so that one that
waits for it does not keep back a lease's renewal; and one for each open watch.  Commits that have
a key in common keep their order in any case, also behind one whose caller was cancelled.  It
decides nothing about their meaning.

A cancelled caller stops waiting, but an operation that has begun happens all the same; its
outcome is then as unknown as after `Unavailable`.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

from torus.errors import ForeignData, ShuttingDown, TorusError
from torus.limits import METADATA_CLOSE_S
from torus.metadata.base import (
    Delete,
    Entry,
    Event,
    Expect,
    Listing,
    MetadataStore,
    Put,
    Watch,
)
from torus.metadata.rules import closed

_T = TypeVar("_T")
_LATEST_MAX = 1024  # keys whose last commit is remembered, before those that have ended go
_LOOK_S = 5.0  # a watch's thread comes back this often when nothing changes


class AsyncMetadata:
    """A `MetadataStore` whose methods are coroutines; it owns the store and closes it."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        threads = getattr(store, "threads_max", 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="metadata")
        self._remote = threads > 1
        self._running: set[asyncio.Future[Any]] = set()
        self._latest: dict[str, Future[Any]] = {}  # by key: the commit that was asked for last
        self._watches: set[AsyncWatch] = set()
        self._closed = False

    async def get(self, key: str) -> Entry | None:
        """Return the entry of ``key``, or None when there is none."""
        return await self._run(lambda: self._store.get(key))

    async def list(self, prefix: str) -> Listing:
        """Return all entries whose key begins with ``prefix``, which must end in '/'."""
        return await self._run(lambda: self._store.list(prefix))

    async def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        """Apply all ``changes`` at once if every expectation holds; see `MetadataStore`."""
        return await self._run(
            lambda: self._store.commit(expect, changes),
            [one.key for one in expect] + [one.key for one in changes],
        )

    async def watch(self, prefix: str, after_revision: int) -> "AsyncWatch":
        """Watch changes under ``prefix`` with a revision greater than ``after_revision``."""
        watch = await self._run(lambda: self._store.watch(prefix, after_revision))
        if self._closed:
            watch.close()
            raise closed("the metadata store")
        opened = AsyncWatch(watch, self._watches.discard)
        self._watches.add(opened)
        return opened

    async def grant(self, ttl_s: float) -> int:
        """Make a lease that ends ``ttl_s`` seconds after its last renewal; return its id."""
        return await self._run(lambda: self._store.grant(ttl_s))

    async def renew(self, lease: int) -> bool:
        """Renew a lease; False when it has ended already."""
        return await self._run(lambda: self._store.renew(lease))

    async def revoke(self, lease: int) -> None:
        """End a lease now, with all its keys; idempotent."""
        await self._run(lambda: self._store.revoke(lease))

    async def history_token(self, token: str = "") -> str:
        """Return what tells an older copy of the store, to be kept durably; '' if none is needed.

        ``token`` is the one that was kept so far.  See `torus.metadata.history`.
        """
        make = getattr(self._store, "history_token", None)
        return "" if make is None else str(await self._run(lambda: make(token)))

    async def check_not_older(self, token: str) -> None:
        """Refuse a store that has lost what was in it when ``token`` was made.

        Raises: Corruption for an older copy, ForeignData for another store.
        """
        check = getattr(self._store, "check_not_older", None)
        if token and check is None:
            raise ForeignData(
                "the metadata of this disk's cluster is on etcd, but this store is not",
                hint="give the cluster's --meta etcd://...",
            )
        if token and check is not None:
            await self._run(lambda: check(token))

    async def close(self) -> None:
        """End every watch, let the operations before this one finish, close the store.

        A store behind a network gets `METADATA_CLOSE_S` for them; then they end with
        `ShuttingDown`.  Idempotent.
        """
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        try:
            if self._remote:
                if self._running:
                    await asyncio.wait(tuple(self._running), timeout=METADATA_CLOSE_S)
                # before the watches: what they wait for may be the network, too
                await loop.run_in_executor(None, self._store.close)
            for watch in tuple(self._watches):
                await watch.close()
            await loop.run_in_executor(self._threads, self._store.close)
        finally:
            self._threads.shutdown()  # idle by now: it ends at once

    async def _run(self, operation: Callable[[], _T], keys: Sequence[str] = ()) -> _T:
        """Carry out ``operation`` in a thread, behind earlier ones that have one of ``keys``."""
        if self._closed:
            raise closed("the metadata store")
        if self._remote and keys:
            before = {self._latest[key] for key in keys if key in self._latest}
            future = self._threads.submit(_behind, before, operation)
            self._latest.update(dict.fromkeys(keys, future))
            if len(self._latest) > _LATEST_MAX:
                self._latest = {key: one for key, one in self._latest.items() if not one.done()}
        else:
            future = self._threads.submit(operation)
        running = asyncio.wrap_future(future)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await running


def _behind(before: set[Future[Any]], operation: Callable[[], _T]) -> _T:
    """Carry out ``operation`` when those ``before`` it have ended, however they did.

    They were given to the same threads earlier, so each has a thread or has ended: some goes on.
    """
    wait(before)
    return operation()


class AsyncWatch:
    """The changes under a prefix as an asynchronous iterator of non-empty batches.

    One task at a time may iterate.  The iteration ends when the watch or its store is closed;
    it raises `Unavailable` when changes may have been missed.  A cancelled wait loses nothing:
    the next one gets its changes.
    """

    def __init__(self, watch: Watch, on_close: Callable[["AsyncWatch"], None]) -> None:
        self._watch = watch
        self._on_close = on_close
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metadata-watch")
        self._looking: asyncio.Future[Sequence[Event]] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Sequence[Event]:
        """Wait for the next changes; never empty."""
        while not self._closed:
            if self._looking is None:
                loop = asyncio.get_running_loop()
                self._looking = loop.run_in_executor(self._thread, self._watch.next, _LOOK_S)
            looking = self._looking
            await asyncio.wait([looking])  # unlike an await of itself, leaves it running
            self._looking = None
            try:
                events = looking.result()
            except ShuttingDown:
                break
            if events:
                return events
        raise StopAsyncIteration

    async def close(self) -> None:
        """Stop watching and end a waiting iteration; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._on_close(self)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._watch.close)  # waits for a running look
        looking, self._looking = self._looking, None
        if looking is not None:
            await asyncio.wait([looking])
            _take_unseen(looking)
        self._thread.shutdown()  # idle by now: it ends at once

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()


def _take_unseen(looking: asyncio.Future[Sequence[Event]]) -> None:
    """Take the outcome of a look that nobody may wait for any more."""
    error = looking.exception()
    if error is not None and not isinstance(error, TorusError):
        raise error
