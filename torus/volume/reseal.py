"""Closing the span where the log is, and beginning another: after a loss, or for a better one.

The order is the rule: the survivors have everything durably (`Log.secure`), then one
compare-and-swap closes the span there and opens the next, which leaves out the disks that failed,
then what waits is answered.  Nothing is written again and no map entry changes.  A refused
compare-and-swap means that the volume was taken over: then nothing is answered any more.

Implements docs/replication.md, "A copy fails".
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from torus.errors import TorusError, Unavailable
from torus.log import get_logger
from torus.metadata.schema import Head
from torus.volume.core import Core
from torus.volume.holder import Holder
from torus.volume.spans import Spans

log = get_logger("torus.reseal")

_TAG_MAX = 0xFFFF


class Resealer:
    """The spans of one attached volume's epoch."""

    def __init__(self, core: Core, holder: Holder, head_payload: Callable[[], bytes]) -> None:
        """``head_payload`` makes the payload of a span's first record."""
        self._core = core
        self._holder = holder
        self._head_payload = head_payload
        self._tag = 0
        self.seals = 0  # spans closed because of a loss
        self.rolls = 0  # for a better one
        self._stopping = False
        self._waiting: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        if core.chunks.replicated:
            core.journal.seal = self.seal
            self._task = asyncio.ensure_future(self._run())
            self._task.add_done_callback(self._ended)

    async def seal(self) -> None:
        """Get over the loss of a disk; called in the log's turn, before anything is answered.

        Raises: Fenced; Unavailable when the volume is closed meanwhile.
        """
        if await self._core.journal.secure():
            await self._next_span()
            self.seals += 1

    async def roll(self) -> None:
        """Go on in a new span, in which nothing is left out that is there.

        Raises: Fenced, Unavailable.
        """
        async with self._core.journal.turn:
            await self._core.journal.secure()
            await self._next_span()
            self.rolls += 1

    async def _next_span(self) -> None:
        core, journal = self._core, self._core.journal
        if self._tag == _TAG_MAX:
            raise Unavailable(
                f"volume {core.name!r}: its epoch has had {_TAG_MAX + 1} spans",
                hint="it goes on in another epoch: connect again",
            )
        last, end = journal.closing
        first = journal.first_sequence if last is None else last + 1
        place, missing = core.chunks.new_span(), core.chunks.missing
        tag = self._tag + 1

        def make(head: Head) -> Head:
            spans = Spans(core.spec.volume, head.spans).close(last, end)
            if last is not None:
                spans = spans.short(missing.difference(place[1]))
            spans = spans.open(core.epoch, first, tag, place)
            return replace(head, spans=spans.to_tuple())

        head = await self._holder.swap(make)
        self._tag = tag
        core.spans = Spans(core.spec.volume, head.spans)
        core.places.pop(first, None)  # of a chunk that got no record
        core.chunks.begin_span()
        journal.begin_span(tag, self._head_payload)
        log.info(
            "volume.span.begun",
            volume=core.name,
            epoch=core.epoch,
            tag=tag,
            first=first,
            ring=place[0],
            left_out=list(place[1]),
        )

    async def _run(self) -> None:
        while self._core.failure is None and not self._stopping:
            self._waiting = asyncio.ensure_future(self._core.chunks.better_span())
            await asyncio.wait([self._waiting])
            if self._waiting.cancelled() or self._core.failure is not None:
                return
            self._waiting.result()
            try:
                await self.roll()
            except TorusError as exc:
                self._core.fail(exc)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._core.fail(TorusError(f"the watch over the spans ended: {error!r}"))

    async def stop(self) -> None:
        """End the watch for a better span, after one that is being begun; idempotent."""
        self._stopping = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])
