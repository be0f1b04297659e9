"""The gateway process of one disk of the kernel: brings the volume up, serves it, lets it go.

Decides what a signal means: SIGTERM waits until nobody uses the device and takes it away, a
second one leaves it to wait for another process, SIGUSR1 does so at once.  Which process comes
then is the supervisor's (`torus.daemon.kernel_supervisor`).

Implements docs/attach.md, "How it survives".
"""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torus import limits, log
from torus.config import GatewayConfig
from torus.daemon.gateway import RunningGateway
from torus.daemon.kernel_device import Driver, Ending, IoctlDriver, KernelDevice, NetlinkDriver
from torus.daemon.kernel_state import AttachOrder, block_bytes_for
from torus.errors import Busy, Fenced, NotFound, TorusError
from torus.net import block_device
from torus.redundancy.codec import choose_engine

events = log.get_logger("torus.attach")

Tell = Callable[[dict[str, Any]], None]
"""Sends the supervisor a few fields of the state."""

_PR_SET_IO_FLUSHER = 57
_OOM_NEVER = "-1000"
_LOOK_AT_USES_S = 0.5
_SAY_AGAIN = 20  # looks


@dataclass(frozen=True, slots=True)
class Mission:
    """What one gateway process has to do."""

    order: AttachOrder
    config: GatewayConfig
    index: int
    again: bool  # the device is connected and waits


def run_device(mission: Mission, tell: Tell) -> Ending:
    """Serve the device until it is over; returns why."""
    import uvloop

    log.configure(mission.config.common.log_level, mission.config.common.log_format)
    sys.setswitchinterval(limits.THREAD_SWITCH_S)
    _protect()
    try:
        choose_engine(mission.config.common.erasure)
        return uvloop.run(_serve(mission, tell))
    except TorusError as failure:
        tell({"problem": failure.message, "code": failure.code, "hint": failure.hint})
        events.error("attach.failed", volume=mission.order.volume, error=failure.message)
        return _ending_of(failure)


async def _serve(mission: Mission, tell: Tell) -> Ending:
    order, device_path = mission.order, f"/dev/nbd{mission.index}"
    signals = _Signals()
    async with AsyncExitStack() as stack:
        gateway = RunningGateway(
            mission.config, device=device_path, takeover=order.takeover and not mission.again
        )
        await gateway.start(stack)
        export = await gateway.volumes.open(order.volume)
        block_bytes = block_bytes_for(export.size_bytes, order.block_bytes)
        device = KernelDevice(
            gateway.nbd, export, order.volume, mission.index, _driver(mission),
            connections=order.connections, block_bytes=block_bytes,
            dead_timeout_s=order.dead_timeout_s, backend=order.backend,
            on_resized=lambda size_bytes: tell({"size_bytes": size_bytes}),
        )  # fmt: skip
        stack.push_async_callback(gateway.volumes.close, export)
        stack.push_async_callback(device.close)
        try:
            await device.connect(again=mission.again)
        except Busy as taken:
            raise _Taken(taken.message, hint=taken.hint) from taken
        tell(
            {
                "state": "attached", "device": device_path, "index": mission.index,
                "size_bytes": device.size_bytes, "block_bytes": block_bytes,
                "read_only": export.read_only, "problem": "", "code": "",
            }
        )  # fmt: skip
        events.info("attach.ready", volume=order.volume, device=device_path, again=mission.again)
        return await _until_over(device, signals, order, tell)


async def _until_over(
    device: KernelDevice, signals: "_Signals", order: AttachOrder, tell: Tell
) -> Ending:
    """Wait for the end of the device, or for a signal; do what that asks for."""
    stopping = asyncio.ensure_future(signals.stop.wait())
    restarting = asyncio.ensure_future(signals.restart.wait())
    waits: set[asyncio.Future[Any]] = {device.ended, stopping, restarting}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not device.ended.done() and restarting.done():
            await device.leave(briefly=True)
            return Ending.RESTART
        if not device.ended.done():
            tell({"state": "stopping"})
            if not await _unused(device, signals, order.volume, tell):
                await device.leave()
                return Ending.LEFT
            await asyncio.to_thread(_take_away, device.index)
            await device.disconnect()
            return Ending.DETACHED
        ending, why = device.ended.result()
        if why is not None:
            events.error(
                "attach.ended", volume=order.volume, device=device.path, ending=ending.name,
                error=why.message,
            )  # fmt: skip
            tell({"problem": why.message, "code": why.code})
        if ending is Ending.LOST:
            await device.disconnect()  # who uses it gets errors now, rather than none for an hour
        return ending
    finally:
        stopping.cancel()
        restarting.cancel()


async def _unused(device: KernelDevice, signals: "_Signals", volume: str, tell: Tell) -> bool:
    """Wait until nobody uses the device; False when somebody insisted meanwhile."""
    looks = 0
    while not device.ended.done():
        uses = await asyncio.to_thread(block_device.uses_of, device.index)
        if not uses:
            return True
        if looks % _SAY_AGAIN == 0:
            tell({"problem": f"waits to be unused: {'; '.join(uses)}"})
            events.warning("attach.in_use", volume=volume, device=device.path, uses=uses)
        looks += 1
        if await signals.insisted(_LOOK_AT_USES_S):
            return False
    return True


def _take_away(index: int) -> None:
    """Write what the page cache still holds of a device that is to go."""
    try:
        descriptor = block_device.claim(index)
    except OSError as refused:
        events.warning("attach.not_flushed", device=f"/dev/nbd{index}", error=str(refused))
        return
    try:
        block_device.flush(descriptor)
    except OSError as failure:
        events.error("attach.not_flushed", device=f"/dev/nbd{index}", error=str(failure))
    finally:
        os.close(descriptor)


class _Signals:
    """What the process was told by signals."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.stop, self.restart, self._insist = asyncio.Event(), asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGUSR1, self.restart.set)

    async def insisted(self, seconds: float) -> bool:
        """Wait for a second request to stop; tell whether it came."""
        try:
            await asyncio.wait_for(self._insist.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _on_stop(self) -> None:
        (self._insist if self.stop.is_set() else self.stop).set()


class _Taken(Busy):
    """The device, not the volume, is in use."""


def _ending_of(failure: TorusError) -> Ending:
    if isinstance(failure, _Taken):
        return Ending.TAKEN
    if isinstance(failure, Fenced | NotFound):
        return Ending.REFUSED
    return Ending.AGAIN if failure.retryable else Ending.REFUSED


def _driver(mission: Mission) -> Driver:
    if mission.order.driver == "ioctl":
        return IoctlDriver(mission.index)
    return NetlinkDriver(mission.index, mission.order.backend)


def _protect() -> None:
    """Keep the kernel from waiting for this process's disk when this process needs memory, and
    from killing it to get some.  Without the privilege it goes on as it is."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        events.info("attach.no_io_flusher", error=os.strerror(ctypes.get_errno()))
    try:
        Path("/proc/self/oom_score_adj").write_text(_OOM_NEVER, encoding="ascii")
    except OSError as refused:
        events.info("attach.may_be_killed_for_memory", error=str(refused))
