"""What other processes of this machine may ask one that owns volumes, node or gateway.

Decides which questions there are and what each means for an attached volume.  How a question
travels is `torus.node.control_server`'s, how long operations are kept is
`torus.daemon.tasks`'s.

Implements docs/protocol.md, "Control" and "Tasks".
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any

from torus import limits
from torus.clock import Clock
from torus.daemon.collection import collect_attached, wanted_from
from torus.daemon.handover import Mover
from torus.daemon.reports import AttachedVolume
from torus.daemon.tasks import Report, Tasks, Work
from torus.errors import Busy, NotFound, UsageError
from torus.log import get_logger
from torus.metadata.schema import Snapshot
from torus.node.control_server import serve_control
from torus.volume.attached import AttachedVolumes
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.figures import space_figures

log = get_logger("torus.control")

Question = dict[str, Any]
Answer = dict[str, Any]
OnAttachment = Callable[[Attachment, Question, Report], Awaitable[Answer]]
"""Works on a volume that is attached here and stays so meanwhile."""

NOT_ATTACHED: Answer = {"attached": False}


class OwnerControl:
    """Answers for the volumes that this process has attached."""

    def __init__(
        self,
        volumes: AttachedVolumes,
        catalog: AsyncCatalog,
        clock: Clock,
        status: Callable[[], Answer],
        tasks: dict[str, OnAttachment] | None = None,
        mover: Mover | None = None,
    ) -> None:
        """``status`` makes the answer to that question; ``tasks`` adds to what can be started;
        without ``mover`` no volume moves."""
        self._volumes = volumes
        self._catalog = catalog
        self._clock = clock
        self._status = status
        self._tasks = Tasks(clock)
        self._mover = mover
        self._leaving: list[str] = []  # volumes that are being taken away
        self._works: dict[str, OnAttachment] = {
            "snapshot": self._snapshot,
            "reclaim": self._reclaim,
            "flatten": _flatten,
            "gc": self._gc,
            **(tasks or {}),
        }

    async def answer(self, question: Question) -> Answer:
        """Answer one question.

        Raises: NotFound for one that is not known, UsageError for one that lacks something,
            and what the operation raises.
        """
        kind = question.get("ask")
        if kind == "status":
            return self._status()
        if kind == "start":
            return await self._start(question)
        if kind == "task":
            return await self._tasks.state(_number(question), _seconds(question, "wait_s"))
        if kind == "cancel":
            self._tasks.cancel(_number(question))
            return await self._tasks.state(_number(question), _seconds(question, "wait_s"))
        if kind == "release":  # in one question, for those who do not wait for a slow disk
            wait_s = limits.CONTROL_WAIT_S_MAX
            state = await self._start({**question, "task": "release", "wait_s": wait_s})
            return dict(state.get("result") or state)
        if kind == "resume":
            self._volumes.resume(_volume(question))
            return {"resumed": True}
        if kind == "look" and self._mover is not None:
            place = question.get("offset"), question.get("length")
            return await self._mover.show(_volume(question), *place)
        raise NotFound(f"the owner of the volume does not know the question {kind!r}")

    async def serve(self, path: str, stack: AsyncExitStack) -> None:
        """Answer at the unix socket ``path``; ``stack`` ends that and then the tasks.

        Raises: Busy, PermissionDenied, UsageError.
        """
        stack.push_async_callback(self.stop)
        server = await serve_control(path, self.answer)
        stack.push_async_callback(server.close)

    async def stop(self) -> None:
        """End the tasks: no volume is worked on any more.  Idempotent."""
        await self._tasks.stop()

    # --- tasks --------------------------------------------------------------------------

    async def _start(self, question: Question) -> Answer:
        kind, volume = str(question.get("task")), _volume(question)
        wait_s = _seconds(question, "wait_s")
        if kind == "release":
            work = self._release_work(volume, question)
        elif kind in ("handover", "take") and self._mover is not None:
            work = self._move_work(self._mover, kind, volume, question)
        elif kind in self._works:
            work = self._work(self._works[kind], volume, question)
        else:
            raise NotFound(f"the owner of volume {volume!r} does not know the task {kind!r}")
        number = self._tasks.start(kind, volume, work, alone=kind not in ("snapshot", "release"))
        return await self._tasks.state(number, wait_s)

    def _work(self, on_attachment: OnAttachment, volume: str, question: Question) -> Work:
        async def work(report: Report) -> Answer:
            if volume in self._leaving:
                return NOT_ATTACHED
            attach = question.get("attach") is True
            opened = await self._volumes.open(volume) if attach else None
            try:
                async with self._volumes.using(volume) as attachment:
                    if attachment is None:
                        return NOT_ATTACHED
                    return {"attached": True, **await on_attachment(attachment, question, report)}
            finally:
                if opened is not None:
                    await self._volumes.close(opened)

        return work

    def _release_work(self, volume: str, question: Question) -> Work:
        force = question.get("force") is True
        hold_s = min(_seconds(question, "hold_s"), limits.RELEASE_HOLD_S_MAX)
        reason = str(question.get("reason") or "another process asked for it")

        async def work(_report: Report) -> Answer:
            if not force:
                return {"released": await self._volumes.release(volume)}
            why = Busy(f"volume {volume!r} was taken away from its clients: {reason}")
            async with self._leave(volume):
                return {"released": await self._volumes.take_away(volume, why, hold_s)}

        return work

    def _move_work(self, mover: Mover, kind: str, volume: str, question: Question) -> Work:
        force = question.get("force") is True

        async def work(report: Report) -> Answer:
            if kind == "take":
                return await mover.take(volume, report, force=force)
            async with self._leave(volume):
                return await mover.hand_over(volume, report)

        return work

    @asynccontextmanager
    async def _leave(self, volume: str) -> AsyncIterator[None]:
        """End what works on a volume, and let nothing begin meanwhile."""
        self._leaving.append(volume)
        try:
            await self._tasks.end_all_of(volume, but=asyncio.current_task())
            yield
        finally:
            self._leaving.remove(volume)

    async def _snapshot(
        self, attachment: Attachment, question: Question, _report: Report
    ) -> Answer:
        name = str(question.get("name"))
        uid = str(question.get("uid") or "")
        await self._catalog.check_new_snapshot(attachment.volume.name, name)
        made = await attachment.snapshot(name, self._clock.wall_ns(), uid)
        return {"snapshot": snapshot_document(made)}

    async def _reclaim(
        self, attachment: Attachment, _question: Question, _report: Report
    ) -> Answer:
        return {"chunks": await attachment.reclaim()}

    async def _gc(self, attachment: Attachment, question: Question, report: Report) -> Answer:
        wanted = wanted_from(question)
        return {"outcome": asdict(await collect_attached(attachment, wanted, report))}


async def _flatten(attachment: Attachment, _question: Question, report: Report) -> Answer:
    return {"copied_bytes": await attachment.flatten(report)}


def attached_now(volumes: AttachedVolumes) -> tuple[AttachedVolume, ...]:
    """Return what a status says of attached volumes."""
    return tuple(_attached(attachment, users) for attachment, users in volumes.attachments())


def _attached(attachment: Attachment, users: int) -> AttachedVolume:
    volume = attachment.volume
    figures = space_figures(volume.core)
    return AttachedVolume(
        volume.name,
        volume.core.spec.volume,
        volume.size_bytes,
        figures.logical_bytes,
        attachment.epoch,
        users,
        figures,
        figures.write_amplification,
        figures.collector_amplification,
    )


def snapshot_document(snapshot: Snapshot) -> Answer:
    """Return a snapshot as it travels in an answer: the metadata's own JSON."""
    document: Answer = json.loads(snapshot.to_bytes())
    return document


def snapshot_from(document: object) -> Snapshot:
    """Return the snapshot of an answer.

    Raises: Corruption when it is none.
    """
    return Snapshot.from_bytes(json.dumps(document).encode(), "answer")


def _volume(question: Question) -> str:
    volume = question.get("volume")
    if not isinstance(volume, str) or not volume:
        raise UsageError(f"the question {question.get('ask')!r} names no volume")
    return volume


def _number(question: Question) -> int:
    number = question.get("id")
    if not isinstance(number, int):
        raise UsageError(f"the question {question.get('ask')!r} names no task")
    return number


def _seconds(question: Question, key: str) -> float:
    seconds = question.get(key, 0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
        raise UsageError(f"the question's {key} is no time: {seconds!r}")
    return float(seconds)
