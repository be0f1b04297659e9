"""What a takeover asks of the disks: where does a chunk of another writer's log end?

Decides whose answer is enough, which of several copies is right, and makes the choice durable.
The rule behind it: a record was answered only when every disk of its span's placement had it.
So one disk that was a member all the time has everything that was answered, and the longest
valid copy of those that answer is a right one.

Implements docs/replication.md, "Takeover".
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torus import limits
from torus.cluster.answers import ask_all
from torus.cluster.placement import Placement
from torus.cluster.shard_making import remake_content
from torus.errors import Corruption, TorusError, Unavailable
from torus.format.assembled import assemble
from torus.format.logend import headers_beyond
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.content import Presence, walk

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool
    from torus.cluster.sharded_reads import ShardReads

log = get_logger("torus.takeover")

FIRST = limits.SLOT_HEADER_BYTES
_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 0.5
_SETTLED_AT_ONCE = 4
_SHARDS = "shards"  # in place of a disk


class _Answer(NamedTuple):
    """What one disk has of a chunk."""

    boot_id: int
    end: int  # of its valid records; FIRST for none
    data: bytes  # from the first record on; empty: the chunk is not there
    certain: bool = True  # that it is not there: False where a slot does not tell what it held


class _Scanned(NamedTuple):
    """What was chosen of a chunk, and which disks have just that, under which boot id."""

    source: str
    end: int
    alike: dict[str, tuple[int, int]]  # disk: (boot id, end of what agrees with the choice)
    assembled: bytes = b""  # where no copy is whole: what was put together of several


class Takeover:
    """Fences and reads the chunks of a log, and settles what was found."""

    def __init__(self, pool: "DiskPool", placement: Placement) -> None:
        self._pool = pool
        self._placement = placement
        self._scanned: dict[ChunkId, _Scanned] = {}
        self._doubtful: set[ChunkId] = set()
        self.unreachable: dict[str, TorusError] = {}  # disks that did not answer in time
        self.stopping = False
        self.shards: ShardReads | None = None  # reads chunks of closed spans that lie in shards

    # --- fence and read -----------------------------------------------------------------

    async def scan(self, chunk: ChunkId, epoch: int, offset: int) -> bytes | None:
        """Fence every disk of a chunk and read from them in the same step; return the bytes from
        ``offset`` to the slot's end of the copy with the longest valid records.

        Where that copy is damaged, each record comes from a copy in which it is whole.

        A chunk of an open span takes one answer; of a closed one, the disks that answer must have
        it, as any of them may have a short copy.  One that its span places on no disk at all was
        never opened: that takes at least one.

        Returns: None when the chunk was never there: a positive answer.
        Raises: Fenced; Unavailable when nobody can tell for a while.
        """
        give_up_s = asyncio.get_running_loop().time() + limits.REPLICA_READ_S
        pause_s = _PAUSE_FIRST_S
        while True:
            answers, silent = await self._ask(chunk, epoch)
            if not answers and not silent and self._placement.is_open(chunk):
                log.info("takeover.span.without_disks", chunk=str(chunk))
                return None
            best = max(answers, key=lambda disk: answers[disk].end, default=None)
            if best is not None and answers[best].data:
                return self._choose(chunk, best, answers)[offset - FIRST :]
            if best is not None and self._is_enough(chunk, answers, silent):
                return None
            await self._pause(pause_s, give_up_s, chunk, silent)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _is_enough(
        self, chunk: ChunkId, answers: Mapping[str, _Answer], silent: Mapping[str, TorusError]
    ) -> bool:
        """Tell whether "not there" is certain, when that is all that was answered.

        When nobody is left who could tell better, a disk with a damaged slot is believed too.
        """
        certain = any(answer.certain for answer in answers.values())
        return not silent or (certain and self._placement.is_open(chunk))

    def is_certain(self, chunk: ChunkId) -> bool:
        """Tell whether every disk that should have a scanned chunk has answered."""
        return chunk not in self._doubtful

    async def _ask(
        self, chunk: ChunkId, epoch: int
    ) -> tuple[dict[str, _Answer], dict[str, TorusError]]:
        is_open = self._placement.is_open(chunk)
        await self._placement.fetch(chunk)
        disks = self._placement.written_to(chunk) if is_open else self._placement.owners(chunk)
        answers, silent = await self._ask_disks(chunk, epoch, disks, is_open=is_open)
        if not is_open and not _leave_no_doubt(chunk, disks, answers):
            # Another disk may have it whole: where a ring had it that nobody remembers, or where
            # it has not been given up yet.
            places = {*self._pool.view.disks(), *self._pool.local}.difference(disks)
            others = [disk for disk in sorted(places) if self._pool.is_up(disk)]
            more, _ = await self._ask_disks(chunk, epoch, others, is_open=False)
            answers.update(more)
        if self.shards is not None and not is_open and self._placement.sharded:
            # Who had it whole may have given it up for shards, and what is left may be short.
            there = {disk for disk, answer in answers.items() if answer.data}
            if not self._placement.covers(chunk, there):
                await self._from_shards(self.shards, chunk, answers, silent)
        self._doubtful.discard(chunk)
        if silent:
            self._doubtful.add(chunk)
        return answers, silent

    async def _from_shards(
        self,
        shards: "ShardReads",
        chunk: ChunkId,
        answers: dict[str, _Answer],
        silent: dict[str, TorusError],
    ) -> None:
        """Have a chunk of a closed span that lies in shards answered by all of them together."""
        content, unknown = await remake_content(shards, chunk)
        if content is not None:
            rest = self._pool.slot_bytes - FIRST - len(content)
            answers[_SHARDS] = _Answer(0, FIRST + len(content), content + bytes(rest))
            return
        for disk in unknown.difference(silent):
            silent[disk] = Unavailable(f"disk {disk} cannot be asked for shards")

    async def _ask_disks(
        self, chunk: ChunkId, epoch: int, disks: Sequence[str], *, is_open: bool
    ) -> tuple[dict[str, _Answer], dict[str, TorusError]]:
        found = await ask_all(
            {disk: self._scan_on(disk, chunk, epoch) for disk in disks},
            limits.REPLICA_SCAN_S,
            enough=1 if is_open else 0,
            grace_s=limits.REPLICA_GRACE_S,
        )
        answers: dict[str, _Answer] = {}
        silent: dict[str, TorusError] = {}
        for disk, answer in found.items():
            if isinstance(answer, TorusError):
                silent[disk] = self.unreachable[disk] = answer
                log.info("takeover.disk.silent", disk=disk, chunk=str(chunk), reason=str(answer))
            else:
                answers[disk] = answer
        return answers, silent

    async def _scan_on(self, disk_id: str, chunk: ChunkId, epoch: int) -> _Answer:
        disk = await self._pool.get(disk_id)
        data = await disk.scan(chunk, epoch, FIRST)
        if data is None:
            [found] = await disk.examine([chunk])
            return _Answer(disk.boot_id, FIRST, b"", found.state is Presence.ABSENT)
        return _Answer(disk.boot_id, walk(data, chunk).end, data)

    def _choose(self, chunk: ChunkId, best: str, answers: Mapping[str, _Answer]) -> bytes:
        """Note what is right of a chunk; return its bytes from the first record on."""
        chosen = answers[best]
        there = [chosen, *(one for one in answers.values() if one.data and one is not chosen)]
        end, content, assembled = chosen.end, chosen.data, b""
        if len(there) > 1 and any(_goes_on(chunk, one) for one in there):
            found = assemble(chunk, [one.data for one in there])
            if FIRST + len(found) > end:
                end, assembled = FIRST + len(found), found
                content = found + chosen.data[len(found) :]
                log.warning("takeover.copies.assembled", chunk=str(chunk), disks=sorted(answers))
        alike = {}
        for disk, answer in answers.items():
            size = answer.end - FIRST
            if answer.data[:size] == content[:size]:
                alike[disk] = answer.boot_id, answer.end
        self._scanned[chunk] = _Scanned(best, end, alike, assembled)
        return content

    async def _pause(
        self, pause_s: float, give_up_s: float, chunk: ChunkId, silent: Mapping[str, TorusError]
    ) -> None:
        if self.stopping or asyncio.get_running_loop().time() + pause_s >= give_up_s:
            reasons = "; ".join(self._why(disk, error) for disk, error in silent.items())
            raise Unavailable(
                f"where the log ends cannot be told: chunk {chunk} is on disks "
                f"{sorted(silent)}, and none of them answers: {reasons}",
                hint="start their nodes: see torus node list",
            )
        await asyncio.sleep(pause_s)

    def _why(self, disk_id: str, error: TorusError) -> str:
        """Say why a disk is silent; one that was removed answers nobody again."""
        place = self._pool.view.disks().get(disk_id)
        if disk_id in self._pool.local or (place is not None and place.state != "removed"):
            return str(error)
        return f"disk {disk_id} is not part of the cluster any more, and may have flushed data"

    # --- settling -----------------------------------------------------------------------

    async def settle(self, ends: Mapping[ChunkId, int], epoch: int) -> None:
        """Make scanned chunks of an open span durable up to these offsets on every disk of their
        placement that can be reached.

        Raises: Fenced; Unavailable when not one disk has a chunk durably.
        """
        wanted = {chunk: end for chunk, end in ends.items() if self._placement.is_open(chunk)}
        durable: dict[ChunkId, int] = dict.fromkeys(wanted, 0)
        lagging = await self._sync_alike(wanted, durable)
        gate = asyncio.Semaphore(_SETTLED_AT_ONCE)

        async def install(chunk: ChunkId, disks: Sequence[str]) -> None:
            async with gate:
                durable[chunk] += await self._install(chunk, wanted[chunk], disks, epoch)

        await asyncio.gather(*[install(chunk, disks) for chunk, disks in lagging.items()])
        for chunk, copies in durable.items():
            if not copies:
                raise Unavailable(
                    f"the end of the log in chunk {chunk} could not be made durable on any disk",
                    hint="start the nodes that have it: see torus node list",
                )
        self._scanned.clear()

    async def _sync_alike(
        self, ends: Mapping[ChunkId, int], durable: dict[ChunkId, int]
    ) -> dict[ChunkId, list[str]]:
        """Sync the copies that are as they should be; return the disks of the others."""
        by_disk: dict[str, list[ChunkId]] = {}
        lagging: dict[ChunkId, list[str]] = {}
        for chunk, end in ends.items():
            scanned = self._scanned[chunk]
            # Recovery went on behind a record that is damaged, but was durable once: no copy can
            # be made of that, but the one that was read stays.
            rotten = scanned.source if end > scanned.end else None
            for disk in self._placement.written_to(chunk):
                if disk == rotten or scanned.alike.get(disk, (0, 0))[1] >= end:
                    by_disk.setdefault(disk, []).append(chunk)
                else:
                    lagging.setdefault(chunk, []).append(disk)
        found = await ask_all(
            {disk: self._sync(disk, chunks) for disk, chunks in by_disk.items()},
            limits.REPLICA_SYNC_S,
        )
        for disk, answer in found.items():
            for chunk in by_disk[disk]:
                if isinstance(answer, TorusError):
                    lagging.setdefault(chunk, []).append(disk)
                else:
                    durable[chunk] += 1
        return lagging

    async def _sync(self, disk_id: str, chunks: Sequence[ChunkId]) -> None:
        disk = await self._pool.get(disk_id)
        await disk.sync(chunks)
        for chunk in chunks:
            if self._scanned[chunk].alike[disk_id][0] != disk.boot_id:
                raise Corruption(f"disk {disk_id} was opened anew since chunk {chunk} was read")

    async def _install(self, chunk: ChunkId, end: int, disks: Sequence[str], epoch: int) -> int:
        """Write a copy to each disk; return how many have it."""
        source, assembled = self._scanned[chunk].source, self._scanned[chunk].assembled
        content = assembled[: end - FIRST]
        try:
            if len(content) < end - FIRST:
                disk = await self._pool.get(source)
                [content] = await disk.read([(chunk, FIRST, end - FIRST)])
        except TorusError as exc:
            log.warning("takeover.source_lost", chunk=str(chunk), disk=source, error=str(exc))
            self.unreachable.update(dict.fromkeys(disks, exc))  # they do not have it all
            return 0
        found = await ask_all(
            {disk: self._install_on(disk, chunk, end, content, epoch) for disk in disks},
            limits.REPLICA_SYNC_S,
        )
        for disk_id, answer in found.items():
            if isinstance(answer, TorusError):
                self.unreachable[disk_id] = answer
                log.info("takeover.copy.missing", disk=disk_id, chunk=str(chunk), error=str(answer))
        return sum(1 for answer in found.values() if not isinstance(answer, TorusError))

    async def _install_on(
        self, disk_id: str, chunk: ChunkId, end: int, content: bytes, epoch: int
    ) -> None:
        disk = await self._pool.get(disk_id)
        await disk.install(chunk, epoch, end, content)


def _leave_no_doubt(chunk: ChunkId, disks: Sequence[str], answers: Mapping[str, _Answer]) -> bool:
    """Tell whether all disks have the same of a chunk, and nothing damaged behind it."""
    there = [answers[disk] for disk in disks if disk in answers and answers[disk].data]
    alike = len(there) == len(disks) and len({answer.end for answer in there}) == 1
    return alike and not any(_goes_on(chunk, answer) for answer in there)


def _goes_on(chunk: ChunkId, answer: _Answer) -> bool:
    """Tell whether records of a chunk stand behind the valid ones of a copy."""
    return any(headers_beyond(answer.data, answer.end - FIRST, chunk, FIRST))
