"""fdatasync for an event loop: at once on a disk that is done sooner than a thread would be
woken, else as futures over the compiled thread.

One at a time: a disk's flushes do not run faster side by side, and each covers more.
"""

import asyncio
import os
from collections.abc import Callable

from torus import limits
from torus._fast.syncer import SyncThread, sync_now
from torus.errors import LocalProtocolError

_SLOW_TO_TRUST = 4  # each quick sync takes 1/16 off the difference


class UsualTime:
    """How long a sync of one disk usually takes: rises with the first slow one, and comes down
    over dozens of quick ones, for a slow one holds up everything that the event loop does."""

    __slots__ = ("ns",)

    def __init__(self) -> None:
        self.ns = 4 * limits.SYNC_AT_ONCE_NS  # not known yet

    def add(self, elapsed_ns: int) -> None:
        """Learn of one more sync."""
        if elapsed_ns > self.ns:
            self.ns = elapsed_ns
        else:
            self.ns -= (self.ns - elapsed_ns) >> _SLOW_TO_TRUST

    @property
    def is_short(self) -> bool:
        """Tell whether the loop does better to wait for the disk than for a thread."""
        return self.ns <= limits.SYNC_AT_ONCE_NS


class Syncs:
    """The fdatasync calls of one disk; bound to the event loop that first uses it."""

    def __init__(self, at_once: Callable[[int], tuple[int, int]] = sync_now) -> None:
        """``at_once(fd)`` makes one and returns its errno, or 0, and the nanoseconds it took."""
        self._at_once = at_once
        self.usual = UsualTime()
        self._thread: SyncThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._next = 0

    def request(self, fd: int) -> asyncio.Future[None]:
        """Start an fdatasync of ``fd``; the future gets OSError when it fails.  It is done already
        where the disk is quick and none is under way."""
        thread = self._thread or self._start()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise LocalProtocolError("a disk's syncs belong to one event loop")
        future: asyncio.Future[None] = loop.create_future()
        if self.usual.is_short and not self._waiting:
            self._end(future, *self._at_once(fd))
            return future
        self._next += 1
        if not thread.submit(fd, self._next):
            raise LocalProtocolError("more syncs are outstanding than segment files can be open")
        self._waiting[self._next] = future
        return future

    def close(self) -> None:
        """Wait for the running sync and end the thread; idempotent."""
        if self._thread is None:
            return
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.remove_reader(self._thread.answer_fd)
        self._thread.close()
        self._thread = None
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    def _start(self) -> SyncThread:
        self._loop = asyncio.get_running_loop()
        self._thread = SyncThread()
        self._thread.start()
        self._loop.add_reader(self._thread.answer_fd, self._on_answer)
        return self._thread

    def _on_answer(self) -> None:
        assert self._thread is not None
        for token, error, elapsed_ns in self._thread.collect():
            self._end(self._waiting.pop(token), error, elapsed_ns)

    def _end(self, future: asyncio.Future[None], error: int, elapsed_ns: int) -> None:
        self.usual.add(elapsed_ns)
        if future.done():
            return
        if error:
            future.set_exception(OSError(error, os.strerror(error)))
        else:
            future.set_result(None)
