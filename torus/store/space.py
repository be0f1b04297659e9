"""Free and used slots of a disk: who may take one, and how many are kept back.  Pure."""

from collections import deque
from dataclasses import dataclass

from torus import limits
from torus.errors import PoolFull


@dataclass(frozen=True, slots=True)
class Usage:
    """Slots of a disk by what they are; ``limit`` is what the operator allowed.

    While ordinary writes have not touched the reserve, ``limit`` is the sum of ``used``,
    ``trash``, ``free``, ``reserve`` and ``quarantined``.
    """

    limit: int
    used: int
    trash: int  # deleted, but not given out again yet: free when it is needed
    reserve: int
    quarantined: int
    slot_bytes: int

    @property
    def free(self) -> int:
        """Slots that ordinary writes may still take without emptying the trash."""
        return max(0, self.limit - self.reserve - self.used - self.trash - self.quarantined)

    @property
    def available(self) -> int:
        """Slots that ordinary writes may still take."""
        return max(0, self.limit - self.reserve - self.used - self.quarantined)


class Space:
    """The slots of one disk, as addresses.

    ``limit`` slots may be in use at once; the last ``reserve`` of them only for checkpoints,
    trims and collection, so that a full disk can free space again.
    """

    def __init__(self, limit: int, slot_bytes: int) -> None:
        self.limit = limit
        self.slot_bytes = slot_bytes
        self._ready_kept = limits.SPARE_SLOTS_MIN // 2
        self.reserve = max(limits.RESERVE_SLOTS_MIN, limit * limits.RESERVE_PERCENT // 100)
        self._trash_below = max(limits.RESERVE_SLOTS_MIN, limit * limits.TRASH_FREE_PERCENT // 100)
        self._trash_max = min(limits.TRASH_SLOTS_MAX, max(limits.SPARE_SLOTS_MIN, limit // 10))
        self._free: deque[int] = deque()
        self._warm: deque[tuple[int, int]] = deque()  # (freed at, address), oldest first
        self._cooling = 0
        self._used = 0
        self._trash = 0
        self._quarantined = 0

    def add_free(self, address: int) -> None:
        """Make a slot available: a new one, or one whose chunk is gone."""
        self._free.append(address)

    def add_used(self) -> None:
        """Count a slot that was found in use."""
        self._used += 1

    def remove_used(self) -> None:
        """Do not count a slot as used that turned out to be damaged."""
        self._used -= 1

    def quarantine(self) -> None:
        """Count a slot that cannot be told free or used; it is never taken."""
        self._quarantined += 1

    def release(self, address: int) -> None:
        """Give back a used slot that is to be treated as new."""
        self._used -= 1
        self._free.append(address)

    def discard(self) -> None:
        """Count a used slot as trash."""
        self._used -= 1
        self._trash += 1

    def restore(self) -> None:
        """Count a slot of the trash as used again."""
        self._trash -= 1
        self._used += 1

    def release_warm(self, address: int, now_ns: int) -> None:
        """Give back a slot of the trash as it is: its blocks are allocated, written and cached."""
        self._trash -= 1
        self._warm.append((now_ns, address))

    def cool(self, before_ns: int) -> list[int]:
        """Take out the warm slots that were freed before a moment; `add_cooled` returns them."""
        cooled = []
        while self._warm and self._warm[0][0] <= before_ns:
            cooled.append(self._warm.popleft()[1])
        self._cooling += len(cooled)
        return cooled

    def add_cooled(self, address: int) -> None:
        """Make a slot that `cool` took out available as a new one."""
        self._cooling -= 1
        self._free.append(address)

    def take(self, *, from_reserve: bool) -> tuple[int, bool] | None:
        """Take a slot, as (address, warm); None when more must be preallocated first.

        Some of the reserve is always there in files: a file system may be full long before
        the limit is reached.  The slot freed last comes first: the page cache still knows it.

        Raises: PoolFull when the limit, or what ordinary writes may use of it, is reached; there
            may be room all the same once the trash is emptied.
        """
        bound = self.limit - (0 if from_reserve else self.reserve) - self._quarantined
        if self._used + self._trash >= bound:
            raise PoolFull(
                f"the pool is full: {self._used} of {self.limit} slots of "
                f"{self.slot_bytes >> 20} MiB are in use, {self.reserve} are kept for collection",
                hint="delete or trim volumes, or start the node with a larger --size",
            )
        if not from_reserve and self.ready <= self._ready_kept and self.known < self.limit:
            return None
        if self._warm:
            self._used += 1
            return self._warm.pop()[1], True
        if not self._free:
            return None
        self._used += 1
        return self._free.popleft(), False

    @property
    def ready(self) -> int:
        """Slots that are preallocated and free."""
        return len(self._free) + len(self._warm) + self._cooling

    @property
    def warm(self) -> int:
        """Slots that are free and not yet given back to the file system."""
        return len(self._warm)

    @property
    def trash_wanted(self) -> int:
        """Slots of the trash that are to be freed now: so that writes find some without waiting,
        and those of a fast stream of writes are still warm when they come round."""
        return max(0, self._trash_below - self.usage.free, self._trash - self._trash_max)

    @property
    def known(self) -> int:
        """Slots that exist in segment files."""
        return self.ready + self._used + self._trash + self._quarantined

    @property
    def usage(self) -> Usage:
        """Return the counts."""
        return Usage(
            self.limit, self._used, self._trash, self.reserve, self._quarantined, self.slot_bytes
        )
