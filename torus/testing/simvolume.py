"""Writers of one simulated volume, and what is right of what they were told.

Each writer is a process.  When a new one has the volume, what it reads must be a prefix of what
its predecessor asked for, with every flush that was answered in it, and every write that was
answered unless a machine lost power.  The predecessor may live: nothing that the new one does
not have may be answered to it any more.
"""

import asyncio
import random
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from torus import limits
from torus.errors import Corruption, TorusError
from torus.testing.history import VolumeHistory
from torus.testing.simloop import SimProcess
from torus.volume.attachment import Attachment
from torus.volume.volume import Volume

SECTOR = limits.SECTOR_BYTES
BLOCK = limits.BLOCK_BYTES
_REST_S = 0.6  # what is dead may go then
_LENGTHS = (BLOCK, BLOCK, BLOCK, 2 * BLOCK, 5 * BLOCK, 12 * BLOCK)


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(eq=False, slots=True)
class Branch:
    """What one writer was asked, from what it found."""

    writer: str
    epoch: int
    history: VolumeHistory
    flushed: int = 0
    losses: int = 0  # of power in the whole cluster, before the newest flush began
    cut: int | None = None  # operations that its successor has


@dataclass(eq=False, slots=True)
class Moment:
    """A snapshot: the state after ``least`` to ``most`` operations of a writer."""

    history: VolumeHistory
    least: int
    most: int | None = None  # None: nobody was told that it is there
    deleting: bool = False  # somebody tried to

    def allows(self, content: bytes) -> bool:
        """Say whether the snapshot may hold that."""
        most = len(self.history) if self.most is None else self.most
        return self.history.find(content, self.least, most, 0) is not None


class VolumeCheck:
    """One volume's truth."""

    def __init__(
        self, name: str, size_bytes: int, losses: Callable[[], int], trace: Callable[[str], None]
    ) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.branch = Branch("nobody", 0, VolumeHistory(size_bytes))
        self.trace = trace
        self.violations: list[str] = []
        self._losses = losses
        self.epoch: Callable[[], int] = lambda: 0  # in the metadata now
        self.expects: Callable[[Corruption], bool] = lambda _error: False
        self.takeovers = 0
        self.answers = 0
        self.flushes = 0
        self.snapshots: dict[str, Moment] = {}
        self.origin: Moment | None = None  # of a clone: what it began as

    def wrong(self, what: str) -> None:
        """Note a violation."""
        self.violations.append(f"volume {self.name}: {what}")
        self.trace(f"VIOLATION {self.violations[-1]}")

    def took_over(self, writer: str, epoch: int, content: bytes, lsn: int) -> Branch:
        """Compare what a new writer found with what its predecessor was told."""
        old = self.branch
        if epoch < old.epoch:  # it was taken from it before it could look
            return Branch(writer, epoch, VolumeHistory(self.size_bytes, content), cut=0)
        self.takeovers += 1
        if self.origin is not None and old.epoch == 0:
            if not self.origin.allows(content):
                self.wrong(f"{writer} found a clone that is not what its snapshot was")
            old = Branch("its origin", 0, VolumeHistory(self.size_bytes, content))
        safe = old.losses == self._losses()  # else what was not flushed may be gone
        least = old.history.answers if safe else old.flushed
        found = old.history.find(content, least, len(old.history), lsn)
        if found is None:
            found = old.history.find(content, 0, len(old.history), lsn)
            self.wrong(
                f"{writer} found the state after {found} operations of {old.writer}, of which "
                f"{old.history.answers} were answered, {old.flushed} flushed, {least} must be "
                f"there and {len(old.history)} were issued (lsn {lsn}){self._nearest(content)}"
            )
        old.cut = found
        self.branch = Branch(writer, epoch, VolumeHistory(self.size_bytes, content))
        self.branch.losses = self._losses()
        self.trace(f"{self.name}: {writer} took over from {old.writer} at {found}, lsn {lsn}")
        return self.branch

    def _nearest(self, content: bytes) -> str:
        """Say which prefix comes nearest to ``content``, and where that is different."""
        history = self.branch.history
        blocks = range(0, len(content), BLOCK)
        best, count, wrong = len(blocks) + 1, 0, [0]
        for number in range(len(history), -1, -1):
            image = history.image(number)
            different = [at for at in blocks if content[at : at + BLOCK] != image[at : at + BLOCK]]
            if len(different) < best:
                best, count, wrong = len(different), number, different
        found = [self._origin(at, content[at : at + BLOCK]) for at in wrong[:6]]
        return f"; nearest is {count}, different in {best} blocks: {', '.join(found)}"

    def _origin(self, at: int, data: bytes) -> str:
        history = self.branch.history
        fits = [n for n in range(len(history) + 1) if history.image(n)[at : at + BLOCK] == data]
        return f"at {at} it is as after {fits[0]} to {fits[-1]}" if fits else f"at {at} it is new"

    def answered(self, branch: Branch, lsn: int) -> None:
        """Everything issued so far was answered to the writer."""
        self.answers += 1
        branch.history.answered(lsn)
        if branch.losses == self._losses():  # else it may be gone, as may be what was told in time
            self._late(branch, branch.history.answers, "a write")

    def flush_asked(self, branch: Branch) -> tuple[int, int]:
        """Return what `flush_answered` is to be told when the flush that begins now is done."""
        return branch.history.answers, self._losses()

    def flush_answered(self, branch: Branch, asked: tuple[int, int]) -> None:
        """What was answered before a flush is durable, the writer was told."""
        number, losses = asked
        self.flushes += 1
        branch.flushed = max(branch.flushed, number)
        branch.losses = max(branch.losses, losses)
        self._late(branch, number, "a flush")

    def _late(self, branch: Branch, number: int, what: str) -> None:
        cut, history = branch.cut, branch.history
        if cut is not None and number > cut and history.image(number) != history.image(cut):
            self.wrong(
                f"{what} up to operation {number} was answered to {branch.writer} after "
                f"{self.branch.writer} had taken over at {branch.cut}"
            )


class Writer:
    """One process that attaches a volume and uses it until it fails or is killed."""

    def __init__(
        self,
        process: SimProcess,
        check: VolumeCheck,
        attach: Callable[[], Awaitable[Attachment]],
        rng: random.Random,
    ) -> None:
        self.process = process
        self.check = check
        self.rng = rng
        self.attachment: Attachment | None = None
        self.branch: Branch | None = None
        self.ended = False
        self.failure: str = ""
        self.rounds = 0
        self.idle_s = 0.05
        self.resting = False  # it is to write no more
        self.rested = False  # everything is checkpointed
        self._attach = attach
        self._flushing: set[asyncio.Task[None]] = set()
        self._snapshots = 0

    @property
    def name(self) -> str:
        """Return the process's name."""
        return self.process.name

    @property
    def serving(self) -> bool:
        """True while it answers."""
        return self.branch is not None and not self.ended and self.process.alive

    async def main(self) -> None:
        """Attach, compare, write until the volume fails."""
        try:
            await self._begin()
            while not self.resting:
                await self._round()
            await self._rest()
        except TorusError as exc:
            self.failure = f"{type(exc).__name__}: {exc}"
            self.check.trace(f"{self.check.name}: {self.name} ended: {self.failure}")
            superseded = self.attachment and self.attachment.epoch < self.check.epoch()
            if isinstance(exc, Corruption) and not (superseded or self.check.expects(exc)):
                self.check.wrong(f"{self.name} was told of corruption: {exc}")
        except Exception as exc:  # whatever it is, no writer should see it
            if not self.process.alive:
                raise
            self.check.wrong(f"{self.name} failed: {exc!r} {_where(exc)}")
        finally:
            self.ended = True

    async def _begin(self) -> None:
        self.check.trace(f"{self.check.name}: {self.name} attaches")
        attachment = self.attachment = await self._attach()
        volume = attachment.volume
        content = await volume.read(0, volume.size_bytes)
        lsn = volume.core.journal.lsn
        self.branch = self.check.took_over(self.name, attachment.epoch, content, lsn)
        volume.core.blocks.verify()

    async def _rest(self) -> None:
        """Make everything durable, let what is dead go, and stay."""
        assert self.attachment is not None
        await self._settle()
        await self._do_flush()
        for _ in range(3):
            await self._do_checkpoint()
            await asyncio.sleep(_REST_S)
            await self.attachment.reclaim()
        self.rested = True
        await asyncio.Event().wait()

    # --- operations ---------------------------------------------------------------------

    async def _round(self) -> None:
        rng = self.rng
        await asyncio.sleep(rng.expovariate(1 / self.idle_s))
        kind = rng.choices(
            ("writes", "unaligned", "zero", "flush", "later", "read", "durable", "checkpoint",
             "snapshot", "commits"),
            (40, 6, 6, 14, 8, 8, 4, 1.5, 1, 4),
        )[0]  # fmt: skip
        self.rounds += 1
        await getattr(self, f"_do_{kind}")()

    def _extent(self, unit: int) -> tuple[int, int]:
        size = self.check.size_bytes
        length = self.rng.choice(_LENGTHS)
        if unit == SECTOR:
            length = self.rng.randrange(1, 24) * SECTOR
        place = self.rng.randrange((size - length) // unit + 1) * unit
        return place, length

    def _issue(self, offset: int, data: bytes) -> None:
        assert self.branch is not None
        self.branch.history.issue(offset, data)

    def _answered(self) -> None:
        assert self.branch is not None
        assert self.attachment is not None
        self.check.answered(self.branch, self.attachment.volume.core.journal.lsn)

    async def _do_writes(self) -> None:
        assert self.attachment is not None
        volume = self.attachment.volume
        calls = []
        for _ in range(self.rng.choice((1, 1, 2, 4))):
            offset, length = self._extent(BLOCK)
            data = self.rng.randbytes(length)
            self._issue(offset, data)
            calls.append(_write(volume, offset, data))
        found = await asyncio.gather(*calls, return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        self._answered()

    async def _do_unaligned(self) -> None:
        assert self.attachment is not None
        offset, length = self._extent(SECTOR)
        data = self.rng.randbytes(length)
        self._issue(offset, data)
        await self.attachment.volume.write(offset, data, durable=False)
        self._answered()

    async def _do_durable(self) -> None:
        assert self.attachment is not None
        assert self.branch is not None
        offset, length = self._extent(BLOCK)
        data = self.rng.randbytes(length)
        self._issue(offset, data)
        asked = len(self.branch.history), self.check.flush_asked(self.branch)[1]
        await self.attachment.volume.write(offset, data, durable=True)
        self._answered()
        self.check.flush_answered(self.branch, asked)

    async def _do_zero(self) -> None:
        assert self.attachment is not None
        offset, length = self._extent(BLOCK)
        self._issue(offset, bytes(length))
        if self.rng.random() < 0.5:
            await self.attachment.volume.trim(offset, length, durable=False)
        else:
            await self.attachment.volume.write_zeroes(offset, length, durable=False, allocate=False)
        self._answered()

    async def _do_flush(self) -> None:
        assert self.attachment is not None
        assert self.branch is not None
        asked = self.check.flush_asked(self.branch)
        await self.attachment.volume.flush_soon()
        self.check.flush_answered(self.branch, asked)

    async def _do_commits(self) -> None:
        """Write and flush by turns, until the sync is expected and goes along with the record."""
        assert self.attachment is not None
        for _ in range(self.rng.randrange(3, 7)):
            offset, length = self._extent(BLOCK)
            data = self.rng.randbytes(length)
            self._issue(offset, data)
            await _write(self.attachment.volume, offset, data)
            self._answered()
            await asyncio.sleep(self.rng.choice((0, 0, 0.002, 0.05)))
            await self._do_flush()

    async def _do_later(self) -> None:
        """Flush while other operations go on."""
        await self._settle()
        task = asyncio.ensure_future(self._do_flush())
        self._flushing.add(task)

    async def _settle(self) -> None:
        tasks, self._flushing = self._flushing, set()
        for task in tasks:
            await task

    async def _do_checkpoint(self) -> None:
        assert self.attachment is not None
        assert self.branch is not None
        asked = self.check.flush_asked(self.branch)
        await self.attachment.volume.checkpointer.write()
        self.check.flush_answered(self.branch, asked)

    async def _do_snapshot(self) -> None:
        assert self.attachment is not None
        assert self.branch is not None
        self._snapshots += 1
        name = f"{self.name.replace('.', '-')}-{self._snapshots}"
        asked = self.check.flush_asked(self.branch)
        moment = self.check.snapshots[name] = Moment(self.branch.history, asked[0])
        await self.attachment.snapshot(name, 0)
        moment.most = len(self.branch.history)
        self.check.flush_answered(self.branch, asked)

    async def _do_read(self) -> None:
        assert self.attachment is not None
        assert self.branch is not None
        offset, length = self._extent(self.rng.choice((SECTOR, BLOCK)))
        found = await _read(self.attachment.volume, offset, length)
        wanted = self.branch.history.content[offset : offset + length]
        if found != wanted:
            at = next(i for i in range(length) if found[i] != wanted[i])
            self.check.wrong(
                f"{self.name} read {length} bytes at {offset} that were never written so: the "
                f"first wrong one at {offset + at}"
            )


async def _write(volume: Volume, offset: int, data: bytes) -> None:
    """Write as the gateway does: the short way where there is one."""
    sent = volume.write_soon(offset, data)
    if sent is None:
        await volume.write(offset, data, durable=False)
    else:
        await sent


async def _read(volume: Volume, offset: int, length: int) -> bytes:
    """Read as the gateway does."""
    sent = volume.read_soon(offset, length)
    found = None if sent is None else await sent
    return await volume.read(offset, length) if found is None else found


def _where(error: Exception) -> str:
    found = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(found))
