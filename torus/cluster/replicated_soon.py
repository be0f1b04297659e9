"""The short ways to copies: what nearly always comes out right, without a task for each disk.

Reads of the same turn of the event loop are sent together, one READ for each disk; a sync is sent
to all disks at once.  Decides which reads go together, and which outcome of a sync is final.
Everything else (another copy, hedging, repair, healing, patience) is the long ways':
`torus.cluster.replicated_reads` and `replicated_writes` do again what did not come out here.

Implements docs/replication.md, "Reading" and "Flushing".
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torus import limits
from torus.cluster.answers import ready, seen
from torus.cluster.replicated_ahead import SyncsAhead
from torus.cluster.replicated_chunk import OpenChunk
from torus.cluster.shard_places import Placed, parts_of
from torus.errors import DiskFailed, Fenced, PoolFull, TimedOut, TorusError
from torus.ids import ChunkId
from torus.log import get_logger

if TYPE_CHECKING:
    from torus.cluster.pool import DiskPool
    from torus.cluster.replicated_reads import CopyReads

log = get_logger("torus.replicas")

Read = tuple[ChunkId, int, int]
Check = Callable[[bytes], bool]

FINAL = (PoolFull, DiskFailed)  # healing does not help

_TOGETHER_BYTES = limits.MIB  # a node answers so much without a thread
_BEST_S = 0.25  # how long the best disk of a chunk is believed to be that
_HEDGE_BYTES_S = 100e6  # more time for larger reads


class _Gathered:
    """Reads of one disk, and who waits for each."""

    __slots__ = ("cut", "disk_id", "due_s", "late", "reads", "sent_s", "size", "waits")

    def __init__(self, disk_id: str) -> None:
        self.disk_id = disk_id
        self.cut = False  # some are of shards
        self.late = False  # they are made again
        self.reads: list[Read] = []
        self.waits: list[tuple[asyncio.Future[bytes | None], Check]] = []
        self.size = 0
        self.sent_s = self.due_s = 0.0

    def give_up(self) -> None:
        """Have every read made again."""
        for future, _ in self.waits:
            if not future.done():
                future.set_result(None)

    def take(self, pieces: list[bytes]) -> None:
        """Hand out what came, where it is right."""
        if len(pieces) != len(self.waits):
            self.give_up()
            return
        for (future, check), piece, read in zip(self.waits, pieces, self.reads, strict=True):
            if not future.done():
                future.set_result(piece if len(piece) == read[2] and check(piece) else None)


def _any(_piece: bytes) -> bool:
    return True


class _Joined:
    """A piece whose parts come from several disks."""

    __slots__ = ("_check", "_left", "_parts", "future")

    def __init__(self, count: int, check: Check) -> None:
        self.future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._check = check
        self._parts: list[bytes | None] = [None] * count
        self._left = count

    def wait_for(self, number: int, part: asyncio.Future[bytes | None]) -> None:
        """Learn of one part."""
        part.add_done_callback(partial(self._take, number))

    def _take(self, number: int, part: asyncio.Future[bytes | None]) -> None:
        self._parts[number] = None if part.cancelled() else part.result()
        self._left -= 1
        if self._left or self.future.done():
            return
        pieces = [piece for piece in self._parts if piece is not None]
        data = b"".join(pieces)
        right = len(pieces) == len(self._parts) and self._check(data)
        self.future.set_result(data if right else None)


class GatheredReads:
    """The short way to the copies of one volume; `stop` it."""

    def __init__(self, pool: "DiskPool", reads: "CopyReads") -> None:
        self._pool = pool
        self._reads = reads
        self._best: dict[ChunkId, str | None] = {}
        self._cut: dict[ChunkId, Placed | None] = {}  # of chunks that lie in shards
        self._best_until_s = 0.0
        self._next: dict[str, _Gathered] = {}
        self._sent: dict[asyncio.Future[list[bytes]], _Gathered] = {}
        self._timer: asyncio.TimerHandle | None = None

    def read(self, read: Read, check: Check) -> asyncio.Future[bytes | None] | None:
        """Return the future of a piece that passes the check; None, now or as its result, when
        the long way is due."""
        if read[2] > _TOGETHER_BYTES:
            return None
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._best_until_s:
            self._best.clear()
            self._cut.clear()
            self._best_until_s = now_s + _BEST_S
        if self._reads.shards.places.expected(read[0]):
            return self._read_cut(read, check)
        disk_id = self._best_of(read[0])
        if disk_id is None or disk_id in self._pool.local:
            return None
        return self._add(disk_id, read, check)

    def _read_cut(self, read: Read, check: Check) -> asyncio.Future[bytes | None] | None:
        """Read a piece from the shards that hold it."""
        chunk = read[0]
        if chunk not in self._cut:
            self._cut[chunk] = self._reads.shards.placed(chunk)
        placed = self._cut[chunk]
        parts = parts_of(read, placed)
        near = self._reads.shards.near
        if parts is None and placed is not None and near is not None:
            data = near.read(read, placed, check)
            if data is not None:
                self._reads.shards.degraded += 1
                return ready(data)
        if parts is None or any(disk_id in self._pool.local for disk_id, _ in parts):
            return None
        if len(parts) == 1:
            [(disk_id, part)] = parts
            return self._add(disk_id, part, check, cut=True)
        joined = _Joined(len(parts), check)
        for number, (disk_id, part) in enumerate(parts):
            joined.wait_for(number, self._add(disk_id, part, _any, cut=True))
        return joined.future

    def _add(
        self, disk_id: str, read: Read, check: Check, *, cut: bool = False
    ) -> asyncio.Future[bytes | None]:
        loop = asyncio.get_running_loop()
        gathered = self._next.get(disk_id)
        if gathered is not None and (
            gathered.size + read[2] > _TOGETHER_BYTES
            or len(gathered.reads) >= limits.PEER_READS_MAX
        ):
            self._send(self._next.pop(disk_id))
            gathered = None
        if gathered is None:
            if not self._next:
                loop.call_soon(self._send_all)
            gathered = self._next[disk_id] = _Gathered(disk_id)
        future: asyncio.Future[bytes | None] = loop.create_future()
        gathered.reads.append(read)
        gathered.waits.append((future, check))
        gathered.size += read[2]
        gathered.cut |= cut
        return future

    def _best_of(self, chunk: ChunkId) -> str | None:
        if self._reads.is_open(chunk):
            return self._reads.best(chunk)
        if chunk not in self._best:
            self._best[chunk] = self._reads.best(chunk)
        return self._best[chunk]

    def _send_all(self) -> None:
        waiting, self._next = self._next, {}
        for gathered in waiting.values():
            self._send(gathered)

    def _send(self, gathered: _Gathered) -> None:
        disk = self._pool.connected(gathered.disk_id)
        sent = None if disk is None else disk.read_many_soon(gathered.reads, gathered.size)
        if sent is None:
            gathered.give_up()
            return
        loop = asyncio.get_running_loop()
        gathered.sent_s = loop.time()
        if gathered.cut:
            wait_s = self._reads.shards.wait_s(gathered.size)
        else:
            wait_s = self._reads.hedge_s + gathered.size / _HEDGE_BYTES_S
        gathered.due_s = gathered.sent_s + wait_s
        self._sent[sent] = gathered
        sent.add_done_callback(self._on_answer)
        if self._timer is None:
            self._timer = loop.call_at(gathered.due_s, self._on_timer)

    def _on_answer(self, sent: asyncio.Future[list[bytes]]) -> None:
        gathered = self._sent.pop(sent, None)
        error = None if sent.cancelled() else sent.exception()
        if gathered is None:  # it was stopped
            return
        if gathered.late:
            if not sent.cancelled() and error is None:  # it counts for what is usual
                self._reads.sample(asyncio.get_running_loop().time() - gathered.sent_s)
            return
        if sent.cancelled() or error is not None:
            if not isinstance(error, TorusError | None):
                log.error("replicas.read.ended", disk=gathered.disk_id, exception=error)
            self._best.clear()
            self._cut.clear()
            gathered.give_up()
            return
        self._reads.sample(asyncio.get_running_loop().time() - gathered.sent_s)
        gathered.take(sent.result())

    def _on_timer(self) -> None:
        """Have late reads made again by the way that asks another disk, too."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        waiting = [gathered for gathered in self._sent.values() if not gathered.late]
        for gathered in waiting:
            if gathered.due_s <= now_s:
                gathered.late = True
                if not gathered.cut:  # of shards the long way decides who is late
                    self._reads.late(gathered.disk_id)
                self._best.clear()
                self._cut.clear()
                gathered.give_up()
        due_s = min((one.due_s for one in waiting if not one.late), default=None)
        if due_s is not None:
            self._timer = loop.call_at(due_s, self._on_timer)

    def stop(self) -> None:
        """Have everything that waits made again, the long way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = [*self._next.values(), *self._sent.values()]
        self._next.clear()
        self._sent.clear()
        for gathered in waiting:
            gathered.give_up()


async def sync_soon(
    pool: "DiskPool", jobs: Mapping[str, Sequence[OpenChunk]], ahead: SyncsAhead | None
) -> tuple[set[str], dict[str, TorusError]]:
    """Sync disks that answer soon and as they should; return them, and those that are lost: to
    ask them again would hear what is not so.  A disk that was asked ``ahead`` is not asked twice.

    Raises: Fenced.
    """
    sent: dict[asyncio.Future[Any], tuple[str, set[int]]] = {}
    for disk_id, some in jobs.items():
        copies = [(opened, opened.copies[disk_id]) for opened in some]
        if not all(opened.is_whole(copy) for opened, copy in copies):
            continue
        boot_ids = {copy.writer.boot_id for _, copy in copies if copy.writer is not None}
        sent_ahead = None if ahead is None else ahead.answer(disk_id, some)
        answer = sent_ahead or _send_sync(pool, disk_id, [opened.chunk for opened in some])
        if answer is not None:
            answer.add_done_callback(seen)
            sent[answer] = disk_id, boot_ids
    if not sent:
        return set(), {}
    done, _ = await asyncio.wait(sent, timeout=limits.REPLICA_SILENCE_S / 2)
    durable: set[str] = set()
    failed: dict[str, TorusError] = {}
    for answer in done:
        disk_id, boot_ids = sent[answer]
        try:
            found = answer.result()
        except Fenced:
            raise
        except (TimedOut, *FINAL) as exc:
            failed[disk_id] = exc
        except (TorusError, asyncio.CancelledError):
            continue
        else:
            near = pool.near(disk_id)
            if boot_ids == {found if near is None else near.boot_id}:
                durable.add(disk_id)
    return durable, failed


def _send_sync(
    pool: "DiskPool", disk_id: str, chunks: Sequence[ChunkId]
) -> asyncio.Future[Any] | None:
    near = pool.near(disk_id)
    try:
        if near is not None:
            return near.sync_soon(chunks)
        far = pool.connected(disk_id)
        return None if far is None else far.sync_many_soon(chunks)
    except Fenced:
        raise
    except TorusError:
        return None  # it is told when it is asked again
