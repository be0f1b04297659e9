"""Threads for calls that block: fdatasync, reads that miss the page cache, preallocation."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")
Arguments = Any


class Pool(Protocol):
    """Where blocking calls run."""

    def submit(self, call: Callable[..., Result], *arguments: Arguments) -> asyncio.Future[Result]:
        """Start ``call``; the future resolves on the running event loop."""

    def close(self) -> None:
        """Wait for running calls and stop; idempotent."""


class ThreadPool:
    """A bounded pool of threads; bound to no loop until used."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def submit(self, call: Callable[..., Result], *arguments: Arguments) -> asyncio.Future[Result]:
        return asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)

    def close(self) -> None:
        self._executor.shutdown(wait=True)
