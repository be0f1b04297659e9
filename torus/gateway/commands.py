"""One request that has to wait: what it asks of the export, and how it is answered.

Decides which call of the export serves which command and flag, and that a request waits for what
is away and may come back: a disk with errors is worse than one that is late.  Replies are appended
in one go when everything is known, so an error never follows half an answer.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torus import limits
from torus._fast.reply import ReplyBuilder
from torus.errors import LocalProtocolError, Unavailable
from torus.gateway.export import Context, Export
from torus.log import get_logger
from torus.nbd import constants as nbd
from torus.nbd.contexts import MetaContext

log = get_logger(__name__)

EXTENTS_MAX = 1024  # 8 or 16 KiB of reply; the client asks on from where the answer ends


class WaitingRequest(NamedTuple):
    """A request that was accepted; ``payload`` is what a WRITE carries."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    began_ns: int
    payload: bytes = b""

    @property
    def held_bytes(self) -> int:
        """Memory that the request holds: the payload of a WRITE, the coming reply of a READ."""
        return self.length if self.command <= nbd.NBD_CMD_WRITE else 0

    @property
    def durable(self) -> bool:
        """Whether the reply promises that the data are on disk."""
        return bool(self.flags & nbd.NBD_CMD_FLAG_FUA)


class CommandServer:
    """Serves the waiting requests of one connection."""

    def __init__(
        self,
        export: Export,
        replies: ReplyBuilder,
        selected: Sequence[MetaContext],
        contexts: Sequence[Context],
        *,
        structured: bool,
    ) -> None:
        """``contexts``: those ``selected``, open, in the same order."""
        self._export = export
        self._replies = replies
        self._contexts = tuple(zip(selected, contexts, strict=True))
        self._structured = structured

    async def serve(self, request: WaitingRequest) -> None:
        """Do what is asked and append the reply, however long what it takes is away.

        Raises: the export's errors; nothing has been appended then.
        """
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                await self._try(request)
                return
            except Unavailable as away:
                if loop.time() - began_s < limits.NBD_AWAY_S:
                    raise  # told at once: it is not waited for
                log.warning(
                    "nbd.request.waits", export=self._export.name,
                    command=nbd.COMMAND_NAMES[request.command], offset=request.offset,
                    length=request.length, error=away.message,
                )  # fmt: skip

    async def _try(self, request: WaitingRequest) -> None:
        export = self._export
        match request.command:
            case nbd.NBD_CMD_READ:
                await self._read(request)
                return
            case nbd.NBD_CMD_BLOCK_STATUS:
                await self._block_status(request)
                return
            case nbd.NBD_CMD_WRITE:
                await export.write(request.offset, request.payload, durable=request.durable)
            case nbd.NBD_CMD_TRIM:
                await export.trim(request.offset, request.length, durable=request.durable)
            case nbd.NBD_CMD_WRITE_ZEROES:
                await export.write_zeroes(
                    request.offset,
                    request.length,
                    durable=request.durable,
                    allocate=bool(request.flags & nbd.NBD_CMD_FLAG_NO_HOLE),
                )
            case nbd.NBD_CMD_CACHE:
                await export.cache(request.offset, request.length)
            case _:
                raise LocalProtocolError(f"command {request.command} was accepted by mistake")
        self._replies.done(request.cookie)

    async def _read(self, request: WaitingRequest) -> None:
        if not self._structured or request.flags & nbd.NBD_CMD_FLAG_DF:
            payload = await self._export.read(request.offset, request.length)
            _check_covers(request, len(payload))
            self._replies.data(request.cookie, request.offset, payload)
            return
        parts = await self._export.read_sparse(request.offset, request.length)
        _check_covers(request, sum(length for length, _ in parts))
        offset = request.offset
        end = request.offset + request.length
        for length, payload_or_hole in parts:
            final = offset + length == end
            if payload_or_hole is None:
                self._replies.zeroes(request.cookie, offset, length, final)
            else:
                self._replies.data(request.cookie, offset, payload_or_hole, final)
            offset += length

    async def _block_status(self, request: WaitingRequest) -> None:
        limit = 1 if request.flags & nbd.NBD_CMD_FLAG_REQ_ONE else EXTENTS_MAX
        answers = []
        for selected, context in self._contexts:
            found = await context.extents(request.offset, request.length, limit)
            extents = merge_extents(found, request.length)[:limit]
            if not extents:
                raise LocalProtocolError(
                    f"the export has no extent of {selected.name} at {request.offset}"
                )
            answers.append((selected.context_id, extents))
        for index, (context_id, extents) in enumerate(answers):
            self._replies.block_status(
                request.cookie, request.offset, context_id, extents, index == len(answers) - 1
            )


def merge_extents(extents: Iterable[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Return extents clipped to ``length`` bytes, adjacent ones with equal flags merged."""
    merged: list[tuple[int, int]] = []
    left = length
    for extent_bytes, flags in extents:
        clipped = min(extent_bytes, left)
        if clipped <= 0:
            continue
        left -= clipped
        if merged and merged[-1][1] == flags:
            merged[-1] = (merged[-1][0] + clipped, flags)
        else:
            merged.append((clipped, flags))
    return merged


def _check_covers(request: WaitingRequest, found: int) -> None:
    if found != request.length:
        raise LocalProtocolError(
            f"the export answered {found} bytes to a read of {request.length} at {request.offset}"
        )
