"""What the metadata says of all volumes' logs, read once for all disks of a node.

Decides which volumes upkeep leaves alone: those that are being deleted, and those whose
metadata cannot be read.
"""

import asyncio

from torus.clock import Clock
from torus.errors import TorusError
from torus.log import get_logger
from torus.metadata.base import Entry
from torus.metadata.keys import VOLUMES
from torus.metadata.loop import AsyncMetadata
from torus.redundancy.scheme import parse
from torus.upkeep.plan import Log
from torus.volume.catalog_ask import READY, Volume, read_volume
from torus.volume.spans import Spans

log = get_logger("torus.upkeep")


class Heads:
    """The logs of all volumes, as of a moment ago at most."""

    def __init__(self, metadata: AsyncMetadata, clock: Clock, max_age_s: float = 1.0) -> None:
        """``max_age_s``: disks of a node that ask so soon after one another share one answer."""
        self._metadata = metadata
        self._clock = clock
        self._max_age_ns = int(max_age_s * 1e9)
        self._lock = asyncio.Lock()
        self._read_ns: int | None = None
        self._logs: tuple[Log, ...] = ()

    async def read(self) -> tuple[Log, ...]:
        """Return every volume's log.

        Raises: Unavailable.
        """
        async with self._lock:
            now_ns = self._clock.monotonic_ns()
            if self._read_ns is None or now_ns - self._read_ns > self._max_age_ns:
                listing = await self._metadata.list(VOLUMES)
                self._logs, self._read_ns = read_logs(listing.entries), now_ns
            return self._logs


def read_logs(entries: tuple[Entry, ...]) -> tuple[Log, ...]:
    """Return the logs of the volumes that upkeep may touch."""
    by_volume: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        by_volume.setdefault(entry.key.rpartition("/")[0], {})[entry.key] = entry
    logs = []
    for prefix, found in by_volume.items():
        try:
            volume = read_volume(found)
            known = log_of(volume)
            Spans(volume.spec.volume, volume.head.spans)  # in order, or not to be trusted
        except TorusError as exc:
            log.warning("upkeep.volume.unreadable", volume=prefix, reason=str(exc))
            continue
        if volume.spec.state == READY:
            logs.append(known)
    return tuple(logs)


def log_of(volume: Volume) -> Log:
    """Return what the metadata says of a volume's log.  Raises: UsageError."""
    spec, head = volume.spec, volume.head
    scheme = parse(spec.redundancy)
    former = tuple(map(parse, spec.former))
    replay = 0 if head.root is None else head.root.replay_sequence
    return Log(spec.volume, head.epoch, scheme.copies, head.spans, scheme, former, replay)
