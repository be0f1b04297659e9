"""What the gateway needs of a block device: the seam between NBD and the volume.

Decides nothing; says who owns which buffer and which call may wait.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from torus._fast.frame import RequestBatch
from torus._fast.reply import ReplyBuilder


class Export(Protocol):
    """One block device that clients may open.

    Calls raise subclasses of TorusError; the class's ``nbd_errno`` becomes the client's error.
    Fenced, from any call, ends the connection.  A coroutine is cancelled when its client is gone:
    then it either finishes in the background or leaves things as they were.
    """

    @property
    def name(self) -> str:
        """The name that clients ask for."""

    @property
    def size_bytes(self) -> int:
        """The present size, a multiple of 512; read before every batch, so a resize is seen."""

    @property
    def read_only(self) -> bool:
        """Whether writes are refused; fixed while the export is open."""

    @property
    def description(self) -> str:
        """One line for people, may be empty."""

    def read_now(
        self, requests: RequestBatch, first: int, stop: int, replies: ReplyBuilder
    ) -> Sequence[int]:
        """Answer the READs [first, stop) that need no waiting; return the indexes of the others.

        All are plain: accepted, whole 4 KiB blocks.  A compiled export writes through
        ``replies.reserve``, whose pointers stay valid during this call.
        """

    def write_now(self, requests: RequestBatch, first: int, stop: int) -> int:
        """Take WRITEs [first, stop) without waiting; return the first one that was not taken.

        Those taken are answered at once: they survive the death of this process, not yet a
        power cut.  Payloads are borrowed and have to be copied before the return.
        """

    async def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes."""

    async def read_sparse(self, offset: int, length: int) -> Sequence[tuple[int, bytes | None]]:
        """Return adjacent (length, bytes or None for zeroes) that cover the range."""

    async def write(self, offset: int, payload: bytes, *, durable: bool) -> None:
        """Write; with ``durable`` return only when it is on disk."""

    def read_soon(self, offset: int, length: int) -> asyncio.Future[bytes | None] | None:
        """Return the future of a read that waits for other processes but needs no coroutine; None,
        now or as its result, when it does: `read`.  The caller may cancel it.
        """

    def write_soon(self, offset: int, payload: bytes) -> asyncio.Future[None] | None:
        """Return the future of a `write` that needs no coroutine; None when it does.

        The caller may cancel it: the write goes on.
        """

    def flush_soon(self) -> asyncio.Future[None]:
        """Return a future that is done when every write answered so far, on any connection, is
        on disk; the caller may cancel it."""

    async def trim(self, offset: int, length: int, *, durable: bool) -> None:
        """Unmap what whole blocks there are; the range reads as zeroes afterwards."""

    async def write_zeroes(
        self, offset: int, length: int, *, durable: bool, allocate: bool
    ) -> None:
        """Make the range read as zeroes; with ``allocate`` later writes cannot lack space."""

    async def cache(self, offset: int, length: int) -> None:
        """Expect the range to be read soon."""


class Context(Protocol):
    """One metadata context of an export, open for one connection."""

    async def extents(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return at most ``limit`` (bytes, flags) extents from ``offset`` on, at least one.

        What they say is right at the moment of the answer.  They may end early, but never in
        front of ``offset + 1``.
        """


class Exports(Protocol):
    """The exports of one server, by name."""

    async def names(self) -> Sequence[str]:
        """Return the names that LIST shows."""

    async def default(self) -> str:
        """Return the name that the empty name means.

        Raises: NotFound when it could mean several exports, or none.
        """

    async def contexts(self, name: str, queries: Sequence[str]) -> Sequence[str]:
        """Return the names of the metadata contexts that an export has.

        Those that none of ``queries`` can mean may be left out; no query means all.

        Raises: NotFound, Unavailable.
        """

    async def open(self, name: str) -> Export:
        """Return the export, attached if it was not; every open needs its close.

        Raises: NotFound, Busy, Unavailable.
        """

    async def open_contexts(self, export: Export, names: Sequence[str]) -> Sequence[Context]:
        """Return the contexts of these names of an open export, all or none, in this order.

        Raises: NotFound when one went meanwhile, Busy, Unavailable.
        """

    async def close_contexts(self, contexts: Sequence[Context]) -> None:
        """Give contexts back, before their export; never fails."""

    async def close(self, export: Export) -> None:
        """Give one open back; the last one may detach."""
