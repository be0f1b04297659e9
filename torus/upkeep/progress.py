"""What is known of a disk's upkeep: how much is to be done, how fast it goes.

Decides nothing.  Implements docs/upkeep.md, "What can be seen".
"""

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

_RATE_S = 10.0
_RATE_STEPS = 4096
_VOLUMES_MAX = 1000


@dataclass(slots=True)
class Progress:
    """Counters of one disk; bytes are those of whole slots unless they were pulled."""

    disk_id: str
    ring: int = 0  # version that the last look was made under
    state: str = "starting"  # "looking", "working", "settled", "waiting", "paused", "no ring"
    settled: bool = False
    lacking_bytes: dict[int, int] = field(default_factory=dict)  # to pull, by good copies left
    moving_bytes: int = 0  # to pull, with all copies elsewhere
    doubtful_bytes: int = 0  # here, to be compared with others
    surplus_bytes: int = 0  # here, to be given up
    encoding_bytes: int = 0  # whole copies here whose chunks are to lie in shards
    degraded_bytes: dict[int, int] = field(default_factory=dict)  # here, by owners that are up
    suspect_chunks: int = 0  # deleted, but a disk that was away has them
    damaged_chunks: int = 0  # nobody has them whole
    unknown_chunks: int = 0  # perhaps on disks that are away
    pulled_bytes: int = 0  # since the start
    pulled_chunks: int = 0
    dropped_chunks: int = 0
    built_shards: int = 0  # of the pulled ones
    unfinished: dict[int, int] = field(default_factory=dict)  # by volume: see `note_unfinished`
    rounds: int = 0
    errors: int = 0
    last_error: str = ""
    last_round_ns: int = 0  # wall clock, its end
    share: float = 1.0  # of the rate that clients leave
    moving_share: float = 0.0  # and of it for what merely moves; 0: nothing does

    @property
    def pending_bytes(self) -> int:
        """What is to be pulled."""
        return sum(self.lacking_bytes.values()) + self.moving_bytes

    def note_unfinished(self, volume: int, parts: int) -> None:
        """Note how many parts of a volume that has or had shards are to be made or given up here;
        of few volumes, as everybody may ask for it."""
        if parts and len(self.unfinished) < _VOLUMES_MAX:
            self.unfinished[volume] = parts

    def failed(self, error: str) -> None:
        """Note why something could not be done."""
        self.errors += 1
        self.last_error = error


class Rate:
    """Bytes per second over the last seconds."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int]] = deque(maxlen=_RATE_STEPS)

    def add(self, now_ns: int, count: int) -> None:
        """Note ``count`` bytes."""
        self._steps.append((now_ns, count))

    def per_second(self, now_ns: int) -> float:
        """Return the present rate."""
        while self._steps and now_ns - self._steps[0][0] > _RATE_S * 1e9:
            self._steps.popleft()
        if not self._steps:
            return 0.0
        seconds = max((now_ns - self._steps[0][0]) / 1e9, 1.0)
        return sum(count for _, count in self._steps) / seconds


def as_document(progress: Progress, rate: float) -> dict[str, Any]:
    """Return the JSON form of docs/protocol.md; the rate is in bytes per second."""
    document = asdict(progress)
    document["lacking_bytes"] = {
        str(copies): count for copies, count in sorted(progress.lacking_bytes.items())
    }
    document["degraded_bytes"] = {
        str(copies): count for copies, count in sorted(progress.degraded_bytes.items())
    }
    document["unfinished"] = {
        str(volume): parts for volume, parts in sorted(progress.unfinished.items())
    }
    document["pending_bytes"] = progress.pending_bytes
    document["rate_bytes"] = round(rate)
    document["seconds_left"] = round(progress.pending_bytes / rate, 1) if rate else None
    return document
