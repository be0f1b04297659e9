"""fdatasync for an event loop: futures over the compiled thread.

One thread, so syncs of one disk run one after the other: a disk's flushes do not run faster
side by side, and each covers more.
"""

import asyncio
import os

from torus._fast.syncer import SyncThread
from torus.errors import LocalProtocolError


class Syncs:
    """The fdatasync calls of one disk; bound to the event loop that first uses it."""

    def __init__(self) -> None:
        self._thread: SyncThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._next = 0

    def request(self, fd: int) -> asyncio.Future[None]:
        """Start an fdatasync of ``fd``; the future gets OSError when it fails."""
        thread = self._thread or self._start()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise LocalProtocolError("a disk's syncs belong to one event loop")
        self._next += 1
        future: asyncio.Future[None] = loop.create_future()
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
        for token, error, _ in self._thread.collect():
            future = self._waiting.pop(token)
            if future.done():
                continue
            if error:
                future.set_exception(OSError(error, os.strerror(error)))
            else:
                future.set_result(None)
