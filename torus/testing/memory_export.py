"""An export in memory, and a directory of such exports.

For tests and for measuring the gateway alone; nothing that ships imports it.  Faults are planned
through its attributes: ``refuse_now`` sends everything through the waiting calls, ``failures``
holds an error per call name, ``gate`` holds every waiting call until it is set.
``states`` adds metadata contexts: for each name the flags, not 0, of blocks by number.
"""

import asyncio
from collections.abc import Sequence

from torus._fast.frame import RequestBatch
from torus._fast.reply import ReplyBuilder
from torus.errors import NotFound, TorusError
from torus.gateway.export import Context, Export
from torus.limits import BLOCK_BYTES
from torus.nbd.constants import NBD_STATE_HOLE, NBD_STATE_ZERO
from torus.nbd.contexts import BASE_ALLOCATION


class MemoryExport:
    """A block device over a bytearray that knows which 4 KiB blocks were written."""

    def __init__(
        self, name: str, size_bytes: int, *, read_only: bool = False, description: str = ""
    ) -> None:
        self.name = name
        self.read_only = read_only
        self.description = description
        self.size_bytes = size_bytes
        self.content = bytearray(size_bytes)
        self.written = bytearray(-(-size_bytes // BLOCK_BYTES))
        self.refuse_now = False
        self.failures: dict[str, TorusError] = {}
        self.states: dict[str, dict[int, int]] = {}
        self.gate: asyncio.Event | None = None
        self.calls: list[str] = []

    def resize(self, size_bytes: int) -> None:
        """Grow with zeroes, or shrink."""
        del self.content[size_bytes:]
        self.content.extend(bytes(size_bytes - len(self.content)))
        blocks = -(-size_bytes // BLOCK_BYTES)
        del self.written[blocks:]
        self.written.extend(bytes(blocks - len(self.written)))
        self.size_bytes = size_bytes

    def read_now(
        self, requests: RequestBatch, first: int, stop: int, replies: ReplyBuilder
    ) -> Sequence[int]:
        """Answer all READs, or none while ``refuse_now`` is set."""
        if self.refuse_now:
            return range(first, stop)
        self._fail("read_now")
        replies.reads_from(requests, first, stop, self.content)
        return ()

    def write_now(self, requests: RequestBatch, first: int, stop: int) -> int:
        """Take all WRITEs, or none while ``refuse_now`` is set."""
        if self.refuse_now:
            return first
        self._fail("write_now")
        requests.copy_writes(first, stop, self.content)
        for index in range(first, stop):
            _, _, _, offset, length, _ = requests.request(index)
            self._mark(offset, length, 1)
        return stop

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes."""
        await self._call("read")
        return bytes(self.content[offset : offset + length])

    async def read_sparse(self, offset: int, length: int) -> Sequence[tuple[int, bytes | None]]:
        """Return data where blocks were written, None elsewhere."""
        await self._call("read_sparse")
        parts: list[tuple[int, bytes | None]] = []
        for extent_bytes, flags in self._extents(offset, length):
            hole = flags & NBD_STATE_ZERO
            chunk = None if hole else bytes(self.content[offset : offset + extent_bytes])
            parts.append((extent_bytes, chunk))
            offset += extent_bytes
        return parts

    async def write(self, offset: int, payload: bytes, *, durable: bool) -> None:
        """Store the bytes."""
        await self._call("write-durable" if durable else "write")
        self.content[offset : offset + len(payload)] = payload
        self._mark(offset, len(payload), 1)

    def read_soon(self, offset: int, length: int) -> None:
        """Return None: a read is a coroutine here."""

    def write_soon(self, offset: int, payload: bytes) -> None:
        """Return None: a write is a coroutine here."""

    def flush_soon(self) -> asyncio.Future[None]:
        """Begin a flush."""
        return asyncio.ensure_future(self.flush())

    async def flush(self) -> None:
        """Do nothing: memory is as durable as it will ever be."""
        await self._call("flush")

    async def trim(self, offset: int, length: int, *, durable: bool) -> None:
        """Zero the range and forget its whole blocks."""
        await self._call("trim")
        self._zero(offset, length, keep=False)

    async def write_zeroes(
        self, offset: int, length: int, *, durable: bool, allocate: bool
    ) -> None:
        """Zero the range; keep it allocated if asked to."""
        await self._call("write_zeroes")
        self._zero(offset, length, keep=allocate)

    async def cache(self, offset: int, length: int) -> None:
        """Do nothing."""
        await self._call("cache")

    async def block_status(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return what was written and what was not."""
        await self._call("block_status")
        return self._extents(offset, length)[:limit]

    def states_of(self, name: str, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the extents of one of ``states``, a block each."""
        extents = []
        end = offset + length
        while offset < end:
            block = offset // BLOCK_BYTES
            step = min((block + 1) * BLOCK_BYTES, end) - offset
            extents.append((step, self.states[name].get(block, 0)))
            offset += step
        return extents

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.gate is not None:
            await self.gate.wait()
        self._fail(name)

    def _fail(self, name: str) -> None:
        failure = self.failures.get(name)
        if failure is not None:
            raise failure

    def _mark(self, offset: int, length: int, state: int) -> None:
        first, stop = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        self.written[first:stop] = bytes([state]) * (stop - first)

    def _zero(self, offset: int, length: int, *, keep: bool) -> None:
        self.content[offset : offset + length] = bytes(length)
        if keep:
            self._mark(offset, length, 1)
            return
        first, stop = -(-offset // BLOCK_BYTES), (offset + length) // BLOCK_BYTES
        if first < stop:
            self._mark(first * BLOCK_BYTES, (stop - first) * BLOCK_BYTES, 0)

    def _extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        extents: list[tuple[int, int]] = []
        end = offset + length
        while offset < end:
            block = offset // BLOCK_BYTES
            step = min((block + 1) * BLOCK_BYTES, end) - offset
            flags = 0 if self.written[block] else NBD_STATE_HOLE | NBD_STATE_ZERO
            if extents and extents[-1][1] == flags:
                extents[-1] = (extents[-1][0] + step, flags)
            else:
                extents.append((step, flags))
            offset += step
        return extents


class MemoryContext:
    """One metadata context of a memory export."""

    def __init__(self, export: MemoryExport, name: str) -> None:
        self.export = export
        self.name = name

    async def extents(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return what the export has for it."""
        if self.name == BASE_ALLOCATION:
            return await self.export.block_status(offset, length, limit)
        return self.export.states_of(self.name, offset, length)[:limit]


class MemoryExports:
    """A directory of memory exports that counts who has them open."""

    def __init__(self, *exports: MemoryExport) -> None:
        self.exports = {export.name: export for export in exports}
        self.open_counts = dict.fromkeys(self.exports, 0)
        self.open_contexts_count = 0
        self.contexts_failure: TorusError | None = None
        self.contexts_gate: asyncio.Event | None = None

    async def names(self) -> Sequence[str]:
        """Return the names in order."""
        return sorted(self.exports)

    async def default(self) -> str:
        """Return the only name.

        Raises: NotFound.
        """
        if len(self.exports) != 1:
            raise NotFound(f"there is no default among {len(self.exports)} exports")
        return next(iter(self.exports))

    async def contexts(self, name: str, queries: Sequence[str]) -> Sequence[str]:
        """Return base:allocation and the export's ``states``.

        Raises: NotFound.
        """
        if name not in self.exports:
            raise NotFound(f"export {name!r} does not exist")
        return [BASE_ALLOCATION, *self.exports[name].states]

    async def open_contexts(self, export: Export, names: Sequence[str]) -> Sequence[Context]:
        """Open contexts, or fail as ``contexts_failure`` says, once ``contexts_gate`` is open."""
        assert isinstance(export, MemoryExport)
        if self.contexts_gate is not None:
            await self.contexts_gate.wait()
        if self.contexts_failure is not None:
            raise self.contexts_failure
        self.open_contexts_count += len(names)
        return [MemoryContext(export, name) for name in names]

    async def close_contexts(self, contexts: Sequence[Context]) -> None:
        """Count contexts as closed."""
        self.open_contexts_count -= len(contexts)

    async def open(self, name: str) -> MemoryExport:
        """Return an export and count it as open.

        Raises: NotFound.
        """
        if name not in self.exports:
            raise NotFound(f"export {name!r} does not exist")
        self.open_counts[name] += 1
        return self.exports[name]

    async def close(self, export: object) -> None:
        """Count an export as closed once."""
        assert isinstance(export, MemoryExport)
        self.open_counts[export.name] -= 1
        assert self.open_counts[export.name] >= 0, f"{export.name} was closed too often"
