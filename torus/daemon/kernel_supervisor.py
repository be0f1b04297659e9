"""The parent of a kernel disk's gateway: starts it, starts it again when it dies, writes down why.

Decides which end of a gateway is the end of the attachment, how long the device is kept waiting,
and which device it is.  It imports nothing that is large and holds no data, so that there is
little to go wrong with it; the gateway is a fork that imports the rest.

Implements docs/attach.md, "How it survives".
"""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torus import errors, limits, log
from torus.clock import SystemClock
from torus.config import GatewayConfig
from torus.daemon.kernel_state import (
    AttachOrder,
    AttachPlace,
    AttachState,
    device_of_backend,
    reserve_index,
)
from torus.errors import Busy, TorusError
from torus.net import block_device
from torus.net.netlink_nbd import NbdFamily

events = log.get_logger("torus.attach.supervisor")

_STEADY_S = 30.0  # a gateway that lasted so long is no sign of trouble when it dies
_TRIES_MAX = 64  # of devices that somebody else took
_DETACHED, _AGAIN, _LOST, _RESTART, _LEFT, _REFUSED, _TAKEN = 0, 90, 91, 92, 93, 94, 95
_FINAL_CODES = ("fenced", "not-found")
_KINDS = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TorusError)
}

Announce = Callable[[AttachState], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that a supervisor works with."""

    order: AttachOrder
    config: GatewayConfig
    place: AttachPlace
    log_path: str  # empty: the log goes where standard error goes
    become_new: Callable[[], None]  # replaces this process by the program as it is on disk now


class Supervisor:
    """Runs one gateway after another."""

    def __init__(self, wanted: Wanted, announce: Announce) -> None:
        """``announce`` is called at every change of the state."""
        self._wanted = wanted
        self._announce = announce
        order = wanted.order
        self.state = AttachState(
            volume=order.volume, backend=order.backend, state="starting",
            read_only=order.read_only, connections=order.connections,
            dead_timeout_s=order.dead_timeout_s, supervisor_pid=os.getpid(),
            since_ns=SystemClock().wall_ns(), log=wanted.log_path, driver=order.driver,
        )  # fmt: skip
        self._hint: str | None = None
        self._child = 0
        self._stops = 0
        self._restart = False
        self._connected = False  # the device waits for a gateway, or has one
        self._lost_at: float | None = None
        self._woken, self._waker = socket.socketpair()
        self._reserved: int | None = None

    def run(self) -> int:
        """Supervise until the attachment is over; return the exit code.

        Raises: TorusError when it could not begin.
        """
        self._listen()
        index = self._choose()
        misses, tries = 0, 0
        while True:
            began = time.monotonic()
            ending = self._one_gateway(index)
            if ending == _TAKEN and self._wanted.order.index is None and tries < _TRIES_MAX:
                tries += 1
                index = self._free_index(after=index)
                continue
            if ending in (_DETACHED, _LEFT):
                return self._over("ended")
            if ending == _RESTART:
                self._become_new()
            final = ending in (_LOST, _REFUSED, _TAKEN) and self.state.code in _FINAL_CODES
            if not self._connected:
                raise self._failure()
            if ending == _LOST or final:
                self._disconnect(index)
                self._over("failed")
                return self._failure().exit_code
            if self._stops:
                return self._over("ended")  # the device waits for another attach
            misses = 0 if time.monotonic() - began > _STEADY_S else misses + 1
            code = self._wait_for_better(index, misses)
            if code is not None:
                return code

    def close(self) -> None:
        """Listen to signals no more, and let others choose the device."""
        signal.set_wakeup_fd(-1)
        self._woken.close()
        self._waker.close()
        if self._reserved is not None:
            os.close(self._reserved)
            self._reserved = None

    # --- one gateway --------------------------------------------------------------------

    def _one_gateway(self, index: int) -> int:
        """Run a gateway until it ends; return its exit code, 90 when a signal ended it."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._be_gateway(index, writing)  # never returns
        os.close(writing)
        self._child = child
        starts = self.state.gateway_starts + 1
        name = "reconnecting" if self._connected else "starting"
        self._set(state=name, gateway_pid=child, gateway_starts=starts)
        try:
            self._follow(reading)
        finally:
            os.close(reading)
        _, status = os.waitpid(child, 0)
        self._child = 0
        ended = os.waitstatus_to_exitcode(status)
        if self._lost_at is None:  # else it never served: the kernel has waited since before it
            self._lost_at = time.monotonic()
        events.info("gateway.ended", volume=self.state.volume, pid=child, code=ended)
        fields: dict[str, Any] = {"gateway_pid": 0}
        if ended < 0:
            fields |= {"problem": f"the gateway was killed: {_signal_name(-ended)}", "code": ""}
        elif ended not in (_DETACHED, *range(_AGAIN, _TAKEN + 1)):
            fields |= {"problem": f"the gateway crashed: exit code {ended}", "code": ""}
            ended = _AGAIN
        self._set(**fields)
        return _AGAIN if ended < 0 else ended

    def _be_gateway(self, index: int, writing: int) -> None:
        code = _AGAIN
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that goes is no reason
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

            def tell(fields: dict[str, Any]) -> None:
                with suppress(BrokenPipeError):  # the supervisor was killed; the disk goes on
                    os.write(writing, json.dumps(fields).encode() + b"\n")

            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            from torus.daemon.kernel_gateway import Mission, run_device

            wanted = self._wanted
            code = run_device(Mission(wanted.order, wanted.config, index, self._connected), tell)
        finally:
            unexpected = sys.exc_info()
            if unexpected[0] is not None:
                sys.excepthook(*unexpected)
            sys.stderr.flush()
            os._exit(code)

    def _follow(self, reading: int) -> None:
        """Take in what the gateway tells until it ends, and pass on what this process is told."""
        buffer = b""
        while True:
            woken = self._woken.fileno()
            ready, _, _ = select.select([reading, woken], [], [])
            if woken in ready:
                self._on_signals()
            if reading not in ready:
                continue
            received = os.read(reading, 65536)
            if not received:
                return
            *lines, buffer = (buffer + received).split(b"\n")
            for line in lines:
                self._on_told(json.loads(line))

    def _on_told(self, fields: dict[str, Any]) -> None:
        self._hint = fields.pop("hint", self._hint)
        if fields.get("state") == "attached":
            self._connected, self._lost_at = True, None
        self._set(**fields)

    # --- signals ------------------------------------------------------------------------

    def _listen(self) -> None:
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

    def _on_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in self._woken.recv(64):
                if number == signal.SIGHUP:
                    self._restart = True
                    self._set(state="restarting")
                    self._pass_on(signal.SIGUSR1)
                elif number in (signal.SIGTERM, signal.SIGINT):
                    self._stops += 1
                    self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        if self._child:
            with suppress(ProcessLookupError):
                os.kill(self._child, number)

    # --- what follows -------------------------------------------------------------------

    def _wait_for_better(self, index: int, misses: int) -> int | None:
        """Wait a little before the next gateway; an exit code when there is to be none, because
        the kernel waits no longer, or this process was told to end."""
        order = self._wanted.order
        since = self._lost_at if self._lost_at is not None else time.monotonic()
        if misses > 1 and time.monotonic() - since > order.dead_timeout_s:
            self._disconnect(index)
            self._over("failed")
            return self._failure().exit_code
        self._set(state="reconnecting")
        delay_s = min(0.1 * 2 ** (misses - 1), limits.ATTACH_BACKOFF_S_MAX) if misses > 1 else 0.0
        deadline = time.monotonic() + delay_s
        while (left_s := deadline - time.monotonic()) > 0 and not self._stops and not self._restart:
            if select.select([self._woken], [], [], left_s)[0]:
                self._on_signals()
        if self._restart:
            self._become_new()
        return self._over("ended") if self._stops else None

    def _become_new(self) -> None:
        """Run this program anew, as it is on disk now, in this process; never returns."""
        self._set(state="restarting")
        events.info("supervisor.restarting", volume=self.state.volume)
        signal.set_wakeup_fd(-1)
        sys.stderr.flush()
        self._wanted.become_new()

    def _disconnect(self, index: int) -> None:
        try:
            if self._wanted.order.driver == "netlink":
                with NbdFamily() as family:
                    family.disconnect(index)
        except TorusError as refused:
            events.error("device.not_disconnected", index=index, error=refused.message)

    def _over(self, state: str) -> int:
        self._set(state=state)
        if state == "ended":
            self._wanted.place.forget()
        events.info("attach.over", volume=self.state.volume, state=state)
        return 0

    def _failure(self) -> TorusError:
        kind = _KINDS.get(self.state.code, TorusError)
        problem = self.state.problem or "the gateway ended without a word"
        return kind(problem, hint=self._hint)

    def _set(self, **fields: Any) -> None:
        self.state = replace(self.state, **fields)
        self._wanted.place.write(self.state)
        self._announce(self.state)

    # --- the device ---------------------------------------------------------------------

    def _choose(self) -> int:
        """Return the device to connect: the one that waits for this volume, or a free one.

        Raises: Busy, NotFound.
        """
        order, folder = self._wanted.order, self._wanted.place.folder
        waiting = device_of_backend(order.backend)
        if waiting is not None and not order.takeover:  # else its gateway lives, and will lose it
            if order.index not in (None, waiting):
                raise Busy(
                    f"volume {order.volume!r} is /dev/nbd{waiting} already, which waits for its "
                    "gateway",
                    hint="leave --device away to serve it there",
                )
            self._reserved = reserve_index(folder, waiting)
            self._connected = True
            events.info("attach.found", volume=order.volume, device=f"/dev/nbd{waiting}")
            self._set(index=waiting, device=f"/dev/nbd{waiting}")
            return waiting
        if order.index is None:
            return self._free_index()
        if block_device.connector_of(order.index) is not None:
            raise _device_in_use(order.index)
        self._reserved = reserve_index(folder, order.index)
        if self._reserved is None:
            raise _device_in_use(order.index)
        self._set(index=order.index, device=f"/dev/nbd{order.index}")
        return order.index

    def _free_index(self, after: int = -1) -> int:
        """Return a device that nobody has, the first beyond the last if all are in use."""
        if self._reserved is not None:
            os.close(self._reserved)
            self._reserved = None
        connected = self._connected_devices()
        for index in range(after + 1, max(connected, default=-1) + 2 + _TRIES_MAX):
            if connected.get(index, False):
                continue
            self._reserved = reserve_index(self._wanted.place.folder, index)
            if self._reserved is not None:
                self._set(index=index, device=f"/dev/nbd{index}")
                return index
        raise Busy("every network block device is in use", hint="detach one: torus nbd list")

    def _connected_devices(self) -> dict[int, bool]:
        if self._wanted.order.driver == "ioctl":
            found = block_device.devices()
            return {one: block_device.connector_of(one) is not None for one in found}
        with NbdFamily() as family:
            return family.connected()


def supervise(wanted: Wanted, announce: Announce) -> int:
    """Supervise until the attachment is over; return the exit code.

    Raises: TorusError when it could not begin; nothing is left of it then.
    """
    supervisor = Supervisor(wanted, announce)
    try:
        return supervisor.run()
    except TorusError:
        wanted.place.forget()
        raise
    finally:
        supervisor.close()


def _device_in_use(index: int) -> Busy:
    pid = block_device.connector_of(index)
    by = f", connected by pid {pid}" if pid is not None else ""
    return Busy(
        f"/dev/nbd{index} is in use by somebody else{by}",
        hint="leave --device away to get a free one; 'torus nbd list' shows whose they are",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
