"""The live move of a volume, on both sides: who has it hands it over, another one takes it.

Decides what is done while clients still go on (the large checkpoint), what they wait for (drain,
small checkpoint, release, attach), and who has the volume when something fails in between.
Safety rests on the epoch alone: a volume that was released is attached, one whose owner died is
recovered, and two that take it at once cannot both have it.

Implements docs/protocol.md, "Moving a volume".
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

from torus import limits
from torus.clock import Clock
from torus.daemon.owners import living_owner
from torus.daemon.tasks import Report
from torus.errors import Busy, Corruption, PoolFull, TorusError, Unavailable, UsageError
from torus.gateway.export import Export
from torus.log import get_logger
from torus.metadata.schema import Owner
from torus.node.control import ask
from torus.node.control_task import run_task
from torus.volume.attached import AttachedVolumes
from torus.volume.attachment import Attachment
from torus.volume.catalog_ask import describe
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.owner import same_process
from torus.volume.volume import Volume

log = get_logger("torus.move")

Answer = dict[str, Any]
Drain = Callable[[Export, float], Awaitable[int]]
"""Ends an export's connections, in at most so many seconds; returns how many there were."""

STEPS = 3  # of a take: asked, handed over, attached
_LOOKS_MAX = 500  # at an owner that begins or ends just now
_LOOK_AGAIN_S = 0.02
_MILLISECOND = 1_000_000


class Mover:
    """Gives volumes of this process to others, and takes theirs."""

    def __init__(
        self,
        volumes: AttachedVolumes,
        catalog: AsyncCatalog,
        clock: Clock,
        owner: Owner,
        drain: Drain,
        device: str = "",
    ) -> None:
        """``owner``: this process; ``device``: the kernel's disk that its volume is, if any."""
        self._volumes = volumes
        self._catalog = catalog
        self._clock = clock
        self._owner = owner
        self._drain = drain
        self._device = device
        self._leaving: dict[str, asyncio.Event] = {}  # volumes that are handed over just now

    # --- who has it ---------------------------------------------------------------------

    async def hand_over(self, name: str, report: Report) -> Answer:
        """Give a volume up for another process; nothing that was answered is lost.

        Raises: why it could not be given back in order; Busy when it is a disk of the kernel,
            whose file system could not follow it.
        """
        if self._device:
            raise Busy(
                f"volume {name!r} is {self._device} on {self._owner.host}",
                hint=f"detach it there: torus nbd detach {name}",
            )
        done = self._leaving[name] = asyncio.Event()
        try:
            return await self._hand_over(name, report)
        finally:
            del self._leaving[name]
            done.set()

    async def _hand_over(self, name: str, report: Report) -> Answer:
        began_ns = self._clock.monotonic_ns()
        async with self._volumes.using(name) as attachment:
            if attachment is None:
                return {"attached": False}
            await _prepare(attachment)
        report(1, 2)
        prepared_ns = self._clock.monotonic_ns()
        paused: list[int] = []
        clients = 0

        async def drain(export: Export) -> None:
            nonlocal clients
            paused.append(self._clock.monotonic_ns())
            clients += await self._drain(export, limits.MOVE_DRAIN_S)

        if not await self._volumes.hand_over(name, drain, limits.MOVE_HOLD_S):
            return {"attached": False}
        now_ns = self._clock.monotonic_ns()
        answer = {
            "attached": True,
            "clients": clients,
            "prepare_ms": (prepared_ns - began_ns) // _MILLISECOND,
            "release_ms": (now_ns - paused[0]) // _MILLISECOND,
            "paused_at_ns": paused[0],
        }
        log.info("volume.handed_over", volume=name, **answer)
        return answer

    async def show(self, name: str, offset: object, length: object) -> Answer:
        """Read a few bytes for a process where the volume stands by.

        Raises: UsageError, the volume's failure, Corruption, Unavailable.
        """
        async with self._volumes.using(name) as attachment:
            if attachment is None:
                return {"attached": False}
            if not isinstance(offset, int) or not isinstance(length, int):
                raise UsageError(f"{offset!r} and {length!r} are no place in a volume")
            size_bytes = attachment.volume.size_bytes
            if not 0 < length <= limits.STANDBY_LOOK_BYTES_MAX or not (
                0 <= offset <= size_bytes - length
            ):
                raise UsageError(f"{length} bytes at {offset} cannot be read of {size_bytes}")
            seen = await attachment.volume.read(offset, length)
        return {"attached": True, "data": base64.b64encode(seen).decode()}

    # --- who gets it --------------------------------------------------------------------

    async def take(self, name: str, report: Report, *, force: bool = False) -> Answer:
        """Become a volume's owner; who has it now is asked for it.

        ``force``: also from an owner that cannot be asked, or fails; it is fenced then.

        Raises: NotFound, Busy, Unavailable, Corruption, DiskFailed.
        """
        volume, answer = await self._take(name, report, force=force)
        await self._volumes.close(volume)
        return answer

    async def take_open(self, name: str) -> Volume:
        """Become a volume's owner and return it open, for an export that stood by.

        Raises: as `take`.
        """
        return (await self._take(name, lambda _done, _total: None, force=False))[0]

    async def look(self, name: str, offset: int, length: int) -> bytes | None:
        """Read a few bytes through a volume's owner; None when it cannot be asked."""
        try:
            owner = living_owner(await self._catalog.get(name))
            if owner is None or same_process(owner, self._owner):
                return None
            question = {"ask": "look", "volume": name, "offset": offset, "length": length}
            answer = await asyncio.to_thread(ask, owner.control, question)
            seen = base64.b64decode(str(answer.get("data", "")), validate=True)
        except (TorusError, ValueError) as exc:
            log.info("standby.not_seen", volume=name, error=str(exc))
            return None
        return seen if len(seen) == length else None

    async def _take(self, name: str, report: Report, *, force: bool) -> tuple[Volume, Answer]:
        began_ns = self._clock.monotonic_ns()
        report(0, STEPS)
        while name in self._leaving:  # for somebody who may be dead by now
            await self._leaving[name].wait()
        before, handed, forced = await self._get_free(name, force=force)
        try:
            report(1, STEPS)
            volume = await self._volumes.adopt(name, force=forced)
        except TorusError as exc:
            if before is None or not handed:
                raise
            outcome = await self._give_back(name, before)
            raise type(exc)(exc.message + outcome, hint=exc.hint) from exc
        now_ns = self._clock.monotonic_ns()
        answer: Answer = {
            "moved": before is None or not same_process(before, self._owner),
            "from": "" if before is None else describe(before),
            "forced": forced,
            "clients": handed.get("clients", 0),
            "prepare_ms": handed.get("prepare_ms", 0),
            "release_ms": handed.get("release_ms", 0),
            "pause_ms": (now_ns - handed.get("paused_at_ns", now_ns)) // _MILLISECOND,
            "total_ms": (now_ns - began_ns) // _MILLISECOND,
        }
        if answer["moved"]:
            log.info("volume.taken", volume=name, **answer)
        return volume, answer

    async def _get_free(self, name: str, *, force: bool) -> tuple[Owner | None, Answer, bool]:
        """Have the owner, if there is one, hand the volume over.

        Returns: who had it, its answer, and whether it has to be taken by force.
        Raises: NotFound, Busy, Unavailable.
        """
        failure: TorusError = Busy(f"volume {name!r} is changing hands", hint="try again")
        before: Owner | None = None
        for _ in range(_LOOKS_MAX):
            found = await self._catalog.get(name)
            try:
                owner = living_owner(found)
                if owner is None or same_process(owner, self._owner):
                    # Who died while it was asked has no more to say.
                    return before or owner, {}, False
                before = owner
                answer = await asyncio.to_thread(run_task, owner.control, "handover", name)
                if answer.get("attached"):
                    return owner, _checked(answer), False
            except TorusError as exc:
                if force:
                    log.warning("volume.taken_by_force", volume=name, error=str(exc))
                    return found.head.owner, {}, True
                if not _begins_or_ends(exc):
                    raise
                failure = exc
            await asyncio.sleep(_LOOK_AGAIN_S)
        raise failure

    async def _give_back(self, name: str, before: Owner) -> str:
        """Have who had the volume take it again, unless somebody else was quicker than this
        process; return what became of it, for people."""
        try:
            if living_owner(await self._catalog.get(name)) is not None:
                return ""
            await asyncio.to_thread(run_task, before.control, "take", name)
        except TorusError as exc:
            log.warning("volume.not_given_back", volume=name, error=str(exc))
            return f"; nobody has volume {name!r} now, nothing is lost"
        return f"; volume {name!r} is back at {describe(before)}"


async def _prepare(attachment: Attachment) -> None:
    """Do what takes long while clients go on: what they wait for afterwards is small.

    Raises: the volume's failure, Unavailable.
    """
    volume = attachment.volume
    volume.core.check()
    volume.collector.ask_stop()
    for _ in range(limits.MOVE_CHECKPOINTS_MAX):
        if not volume.core.dirty:
            break
        try:
            await volume.checkpointer.write()
        except PoolFull as exc:  # the log has everything: who attaches the volume replays it
            log.warning("volume.no_checkpoint", volume=volume.name, error=str(exc))
            break
        if volume.core.log_bytes < limits.MOVE_LOG_BYTES:
            break
    await volume.checkpointer.delete_due(at_once=True)
    await volume.collector.stop()


def _checked(answer: Answer) -> Answer:
    """Return an answer to a handover.  Raises: Corruption when it is none."""
    for key in ("clients", "prepare_ms", "release_ms", "paused_at_ns"):
        if not isinstance(answer.get(key), int):
            raise Corruption(f"the answer to a handover has no {key}: {answer}")
    return answer


def _begins_or_ends(error: TorusError) -> bool:
    """Tell whether an owner that failed so may be asked again, or is dead soon."""
    return type(error) is Unavailable
