"""Workloads on simulated volumes, recorded so that their machine can crash at any moment."""

import asyncio
import struct
from collections.abc import Awaitable

from torus import limits
from torus._fast.frame import RequestBatch
from torus.testing.history import VolumeHistory
from torus.testing.world import World
from torus.volume.attachment import Attachment

_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_SIZES = (512, 1024, 4096, 4096, 4096, 8192, 12288, 20480, 65536, 100 * 1024)


def request_stream(writes: list[tuple[int, bytes]]) -> bytes:
    """Return NBD WRITE requests, as a client sends them."""
    return b"".join(
        _REQUEST.pack(_REQUEST_MAGIC, 0, 1, cookie, offset, len(data)) + data
        for cookie, (offset, data) in enumerate(writes)
    )


class Recorder:
    """One attached volume under a recorded workload.

    Marks in the world's history: ("issued" | "answered" | "flushed", name, operations).
    """

    def __init__(self, world: World, name: str, capacity: int, start: bytes = b"") -> None:
        """``start``: what a clone holds at the beginning."""
        self.world = world
        self.name = name
        self.history = VolumeHistory(capacity, start)
        self.rng = world.rng
        self._attachment: Attachment | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushed = 0

    @property
    def attachment(self) -> Attachment:
        """The attachment, when attached."""
        assert self._attachment is not None
        return self._attachment

    @property
    def attached(self) -> bool:
        """True while the volume is attached."""
        return self._attachment is not None

    @property
    def size(self) -> int:
        """The volume's present size."""
        return self.attachment.volume.size_bytes

    async def attach(self) -> None:
        """Attach the volume."""
        self._attachment = await self.world.attach(self.name)

    # --- single operations --------------------------------------------------------------

    def _issue(self, offset: int, data: bytes) -> int:
        number = self.history.issue(offset, data)
        self.world.mark(("issued", self.name, number))
        return number

    def _answer(self, number: int) -> None:
        self.history.answered(self.attachment.volume.core.journal.lsn)
        self.world.mark(("answered", self.name, number))

    def _flush_done(self, number: int) -> None:
        self._flushed = max(self._flushed, number)
        self.world.mark(("flushed", self.name, self._flushed))

    async def write(self, offset: int, data: bytes, *, durable: bool = False) -> None:
        """Write, wait for the answer."""
        number = self._issue(offset, data)
        await self.attachment.volume.write(offset, data, durable=durable)
        self._answer(number)
        if durable:
            self._flush_done(number)

    async def write_batch(self, writes: list[tuple[int, bytes]]) -> None:
        """Write whole blocks the way a busy connection does: at once, without waiting."""
        volume = self.attachment.volume
        batch = RequestBatch(limits.NBD_REQUEST_BYTES_MAX, size_bytes=self.size)
        for offset, data in writes:
            self._issue(offset, data)
        stream, done = request_stream(writes), 0
        while done < len(writes):
            fed = batch.feed(stream)
            stream = stream[fed:]
            count = batch.received(fed)
            assert fed or count, "the requests do not end"
            taken = volume.write_now(batch, 0, count)
            left = writes[done + taken : done + count]
            await asyncio.gather(
                *(volume.write(offset, data, durable=False) for offset, data in left)
            )
            done += count
        self._answer(len(self.history))

    async def zero(self, offset: int, length: int, *, trim: bool, allocate: bool = False) -> None:
        """Trim or write zeroes."""
        number = self._issue(offset, bytes(length))
        volume = self.attachment.volume
        if trim:
            await volume.trim(offset, length, durable=False)
        else:
            await volume.write_zeroes(offset, length, durable=False, allocate=allocate)
        self._answer(number)

    async def flush(self) -> None:
        """Flush what was answered before."""
        number = self.history.answers
        if self.rng.random() < 0.5:
            await self.attachment.volume.flush()
        else:
            await self.attachment.volume.flush_soon()
        self._flush_done(number)

    def flushed(self, number: int | None = None) -> None:
        """Note that somebody flushed what is answered, or the first ``number`` operations."""
        self._flush_done(self.history.answers if number is None else number)

    async def checkpoint(self) -> None:
        """Write a checkpoint; like a flush, it makes what came before durable."""
        number = self.history.answers
        await self.attachment.volume.checkpointer.write()
        self._flush_done(number)

    async def resize(self, size: int) -> None:
        """Grow or shrink; a shrink is durable when it is done."""
        old = self.size
        if size < old:
            number = self._issue(size, bytes(old - size))
            await self.world.resize(self.attachment, size)
            self._answer(number)
            self._flush_done(number)
        else:
            await self.world.resize(self.attachment, size)

    async def detach(self) -> None:
        """Detach cleanly; nothing when it is detached."""
        if self._attachment is None:
            return
        await self.settle()
        leaving, self._attachment = self._attachment, None
        self.world.attachments.remove(leaving)  # whether it can be given back or not
        await leaving.detach()
        self._flush_done(len(self.history))

    async def reattach(self) -> None:
        """Detach cleanly and attach again."""
        await self.detach()
        await self.attach()

    async def replace(self, content: bytes, work: Awaitable[None]) -> None:
        """Do what makes the detached volume become ``content`` as a whole, or not at all."""
        number = self.history.replace(content)
        self.world.mark(("issued", self.name, number))
        await work
        self.history.answered(0)
        self.world.mark(("answered", self.name, number))
        self._flush_done(number)

    async def read(self, offset: int, length: int) -> None:
        """Read, and compare."""
        found = await self.attachment.volume.read(offset, length)
        assert found == self.history.content[offset : offset + length], (offset, length)

    async def amend(self) -> None:
        """After a refusal: a refused operation may be there, in part, or not at all."""
        volume = self.attachment.volume
        content = await volume.read(0, self.size)
        number = self.history.amend(content)
        self.world.mark(("issued", self.name, number))
        self._answer(number)
        await self.flush()

    # --- in the background --------------------------------------------------------------

    def start(self, work: Awaitable[None]) -> None:
        """Let something run beside the operations that follow."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)

    async def settle(self) -> None:
        """Wait for everything in the background."""
        tasks, self._tasks = self._tasks, set()
        await asyncio.gather(*tasks)

    async def abandon(self) -> None:
        """End what is in the background, however it ends."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- chance -------------------------------------------------------------------------

    def extent(self, *, aligned: bool) -> tuple[int, int]:
        """Return a random (offset, length) within the volume."""
        unit = limits.BLOCK_BYTES if aligned else limits.SECTOR_BYTES
        length = self.rng.choice(_SIZES) // unit * unit or unit
        length = min(length, self.size // unit * unit)
        last = (self.size - length) // unit
        place = (
            self.rng.randint(0, last) if self.rng.random() < 0.7 else self.rng.randint(0, last // 8)
        )
        return place * unit, length

    async def random_step(self) -> None:
        """Do one random operation."""
        rng = self.rng
        kind = rng.choices(
            ("write", "unaligned", "batch", "durable", "trim", "zero", "allocate", "flush",
             "later", "checkpoint", "behind", "resize", "reattach", "read"),
            (20, 12, 14, 4, 7, 4, 3, 8, 6, 4, 3, 2, 2, 6),
        )[0]  # fmt: skip
        await getattr(self, f"_do_{kind}")()
        for _ in range(rng.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)

    async def _do_write(self) -> None:
        offset, length = self.extent(aligned=True)
        await self.write(offset, self.rng.randbytes(length))

    async def _do_unaligned(self) -> None:
        offset, length = self.extent(aligned=False)
        await self.write(offset, self.rng.randbytes(length))

    async def _do_batch(self) -> None:
        if self.size < limits.BLOCK_BYTES:
            return
        extents = [self.extent(aligned=True) for _ in range(self.rng.randint(1, 5))]
        await self.write_batch([(at, self.rng.randbytes(size)) for at, size in extents])

    async def _do_durable(self) -> None:
        offset, length = self.extent(aligned=self.rng.random() < 0.5)
        await self.write(offset, self.rng.randbytes(length), durable=True)

    async def _do_trim(self) -> None:
        offset, length = self.extent(aligned=self.rng.random() < 0.5)
        if self.rng.random() < 0.2:
            offset, length = 0, self.size
        await self.zero(offset, length, trim=True)

    async def _do_zero(self) -> None:
        offset, length = self.extent(aligned=self.rng.random() < 0.5)
        await self.zero(offset, length, trim=False)

    async def _do_allocate(self) -> None:
        offset, length = self.extent(aligned=self.rng.random() < 0.5)
        await self.zero(offset, length, trim=False, allocate=True)

    async def _do_flush(self) -> None:
        await self.flush()

    async def _do_later(self) -> None:
        self.start(self.flush())

    async def _do_checkpoint(self) -> None:
        await self.checkpoint()

    async def _do_behind(self) -> None:
        self.start(self.checkpoint())

    async def _do_resize(self) -> None:
        await self.settle()
        capacity = len(self.history.content)
        await self.resize(self.rng.randint(1, capacity // 512) * 512 // 4096 * 4096 or 8192)

    async def _do_reattach(self) -> None:
        await self.reattach()

    async def _do_read(self) -> None:
        offset, length = self.extent(aligned=False)
        await self.read(offset, length)
