"""Volumes that are offered before they are attached: for the destination of a live migration.

Decides what such an export answers from the metadata alone (name, size, flags, flushes), which
request makes this process the volume's owner (the first that writes or asks for the status of
blocks, and a read unless it is one of the first few small ones: a qemu that waits for a migration
looks for a partition table), and that requests wait for that together.  How the volume gets here
is the caller's `take`, how a look reaches its present owner the caller's `look`.

Implements docs/nbd.md, "Standby".
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from torus import limits
from torus._fast.frame import RequestBatch
from torus._fast.reply import ReplyBuilder
from torus.errors import ShuttingDown
from torus.log import get_logger
from torus.volume.volume import Volume

log = get_logger("torus.standby")

Take = Callable[[str], Awaitable[Volume]]
"""Makes this process a volume's owner; returns it open, to be given back once.

Raises: NotFound, Busy, Unavailable, Corruption, DiskFailed, ShuttingDown.
"""
Look = Callable[[str, int, int], Awaitable[bytes | None]]
"""Reads (name, offset, length) of a volume through its owner; None when that cannot be done."""
GiveBack = Callable[[Volume], Awaitable[None]]


class StandbyVolume:
    """What the NBD gateway calls an export, for a volume that another process may still own."""

    def __init__(
        self,
        name: str,
        size_bytes: int,
        take: Take,
        look: Look,
        give_back: GiveBack,
        *,
        read_only: bool,
    ) -> None:
        self.name = name
        self.read_only = read_only
        self.description = ""
        self.users = 0
        self.volume: Volume | None = None  # once it was taken
        self._size_bytes = size_bytes
        self._take = take
        self._look = look
        self._looks = 0
        self._give_back = give_back
        self._taking: asyncio.Task[Volume] | None = None

    @property
    def size_bytes(self) -> int:
        """The present size; before the volume is attached that of the last client's arrival."""
        return self._size_bytes if self.volume is None else self.volume.size_bytes

    @size_bytes.setter
    def size_bytes(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    async def taken(self) -> Volume:
        """Return the volume, attached; all callers wait for one attempt.

        Raises: what `Take` raises; the next call tries again.
        """
        if self.volume is not None:
            return self.volume
        if self._taking is None:
            self._taking = asyncio.ensure_future(self._attach())
            self._taking.add_done_callback(self._on_taken)
        return await asyncio.shield(self._taking)

    async def stop(self) -> None:
        """End an attempt under way; idempotent."""
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait([self._taking])

    async def _attach(self) -> Volume:
        log.info("standby.takes", volume=self.name)
        volume = await self._take(self.name)
        if not self.users:  # they left meanwhile; nobody will open this again
            await self._give_back(volume)
        return volume

    def _on_taken(self, attempt: asyncio.Task[Volume]) -> None:
        self._taking = None
        if attempt.cancelled():
            return
        error = attempt.exception()
        if error is not None:  # who waits for it is told as well
            log.error("standby.failed", volume=self.name, error=str(error))
            return
        self.volume = volume = attempt.result()
        # From here on the fast path is the volume's own.
        self.read_now = volume.read_now  # type: ignore[method-assign]
        self.write_now = volume.write_now  # type: ignore[method-assign]

    # --- the fast path ------------------------------------------------------------------

    def read_now(
        self, requests: RequestBatch, first: int, stop: int, replies: ReplyBuilder
    ) -> Sequence[int]:
        """Answer nothing: every READ waits for the volume."""
        return range(first, stop)

    def write_now(self, requests: RequestBatch, first: int, stop: int) -> int:
        """Take nothing."""
        return first

    # --- the slow path ------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes."""
        seen = await self._seen(offset, length)
        return await (await self.taken()).read(offset, length) if seen is None else seen

    async def read_sparse(self, offset: int, length: int) -> Sequence[tuple[int, bytes | None]]:
        """Return the range as adjacent pieces of (bytes, data or None for zeroes)."""
        seen = await self._seen(offset, length)
        if seen is not None:
            return [(length, seen)]
        return await (await self.taken()).read_sparse(offset, length)

    async def _seen(self, offset: int, length: int) -> bytes | None:
        """Return what the owner reads there, if this is no reason yet to take the volume."""
        if (
            self.volume is not None
            or self._looks >= limits.STANDBY_LOOKS_MAX
            or length > limits.STANDBY_LOOK_BYTES_MAX
        ):
            return None
        self._looks += 1
        return await self._look(self.name, offset, length)

    async def write(self, offset: int, payload: bytes, *, durable: bool) -> None:
        """Write; with ``durable`` on disk on return."""
        await (await self.taken()).write(offset, payload, durable=durable)

    def read_soon(self, offset: int, length: int) -> None:
        """Return None: a read is a coroutine here."""

    def write_soon(self, offset: int, payload: bytes) -> None:
        """Return None: a write is a coroutine here."""

    def flush_soon(self) -> asyncio.Future[None]:
        """Return the future of a flush; before the volume is here no write was answered."""
        if self.volume is not None:
            return self.volume.flush_soon()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def trim(self, offset: int, length: int, *, durable: bool) -> None:
        """Unmap a range; it reads as zeroes afterwards."""
        await (await self.taken()).trim(offset, length, durable=durable)

    async def write_zeroes(
        self, offset: int, length: int, *, durable: bool, allocate: bool
    ) -> None:
        """Make a range read as zeroes; with ``allocate`` by writing them."""
        volume = await self.taken()
        await volume.write_zeroes(offset, length, durable=durable, allocate=allocate)

    async def cache(self, offset: int, length: int) -> None:
        """Read a range into the page cache, if the volume is here: it is only a hint."""
        if self.volume is not None:
            await self.volume.cache(offset, length)

    async def block_status(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return (bytes, base:allocation flags) extents."""
        return await (await self.taken()).block_status(offset, length, limit)


class Standbys:
    """The volumes of one process that stand by, by name."""

    def __init__(self, names: Iterable[str], give_back: GiveBack, *, read_only: bool) -> None:
        """``give_back`` closes what `take` opened; `take` and `look` are set before any client."""
        self._give_back = give_back
        self._waiting: dict[str, StandbyVolume | None] = dict.fromkeys(names)
        self._all: list[StandbyVolume] = []  # also those taken, while clients have them open
        self._read_only = read_only
        self.take: Take = _cannot_take
        self.look: Look = _cannot_look

    def __contains__(self, name: str) -> bool:
        """Tell whether this volume still waits for its first request."""
        return name in self._waiting

    def open(self, name: str, size_bytes: int) -> StandbyVolume:
        """Return the export of a volume that stands by; every open needs its `close`."""
        standby = self._waiting[name]
        if standby is None:
            standby = StandbyVolume(
                name, size_bytes, self.take, self.look, self._give_back, read_only=self._read_only
            )
            self._waiting[name] = standby
            self._all.append(standby)
        standby.size_bytes = size_bytes
        standby.users += 1
        return standby

    def close(self, standby: StandbyVolume) -> Volume | None:
        """Give one open back; return the volume when that is to be given back with it."""
        standby.users -= 1
        if standby.users or standby.volume is None or standby not in self._all:
            return None
        self._all.remove(standby)
        return standby.volume

    def attached(self, name: str) -> None:
        """Learn that this process owns the volume: it stands by no more, whoever gets it then.

        Otherwise clients that come back would take it from where it was moved to.
        """
        self._waiting.pop(name, None)

    def over(self, volume: Volume) -> list[StandbyVolume]:
        """Return the exports through which clients have ``volume`` open."""
        return [standby for standby in self._all if standby.volume is volume]

    async def stop(self) -> None:
        """End attempts under way; idempotent."""
        for standby in self._all:
            await standby.stop()


async def _cannot_take(name: str) -> Volume:
    raise ShuttingDown(f"this process cannot take volume {name!r}")


async def _cannot_look(_name: str, _offset: int, _length: int) -> bytes | None:
    return None
