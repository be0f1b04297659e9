"""When a volume whose chunks become shards is quiet enough for a checkpoint of its own.

Decides that it is one that was written to, a few chunks at least, and then not for a while: its
full chunks stay in whole copies until a checkpoint settles them (docs/upkeep.md, "Shards"), and
nobody but the clock would ask for one.  A volume that is written all the time has checkpoints
anyway, and one that is written in bursts has one of these between two by the clock: each is a
write to the metadata store.
"""

import asyncio
from collections.abc import Callable

from torus import limits
from torus.metadata.schema import VolumeSpec
from torus.redundancy.scheme import parse
from torus.volume.core import Core


class Quiet:
    """Watches the log of one attached volume; `stop` it."""

    def __init__(
        self,
        core: Core,
        wake: Callable[[], None],
        quiet_s: float = limits.CHECKPOINT_QUIET_S,
        least_bytes: int = limits.CHECKPOINT_QUIET_BYTES,
        rest_s: float = limits.CHECKPOINT_INTERVAL_S,
    ) -> None:
        """``wake`` is called when a checkpoint is due: ``quiet_s`` after the last append of
        ``least_bytes`` of log or more, and ``rest_s`` after the one before."""
        self._core = core
        self._wake = wake
        self._quiet_s = quiet_s
        self._least_bytes = least_bytes
        self._rest_s = rest_s
        self._not_before_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._seen_bytes = 0  # of the log, when the timer was set
        self._stopped = False
        self.follow(core.spec)

    def follow(self, spec: VolumeSpec) -> None:
        """Learn whether full chunks become shards."""
        self._encodes = parse(spec.redundancy).erasure

    def consider(self) -> None:
        """See to it that the log is looked at again, if there is enough of it; cheap."""
        core = self._core
        if self._timer is not None or self._stopped or not self._encodes:
            return
        if core.log_bytes >= self._least_bytes:
            self._seen_bytes = core.journal.appended_bytes
            loop = asyncio.get_running_loop()
            due_s = max(loop.time() + self._quiet_s, self._not_before_s)
            self._timer = loop.call_at(due_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._core.journal.appended_bytes != self._seen_bytes:  # by a checkpoint, maybe
            self.consider()
        else:
            self._not_before_s = asyncio.get_running_loop().time() + self._rest_s
            self._wake()

    def stop(self) -> None:
        """Watch no more; idempotent."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
