"""`torus volume export-diff`: what a snapshot changed since another, as a stream.

Decides in which pieces it is read and written, and that both snapshots stay while they are
read.  The stream's bytes are `torus.format.diffstream`'s, its files `torus.daemon.backup_files`'.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack

from torus import limits
from torus._fast.datapath import first_wrong
from torus.config import CommonConfig
from torus.daemon.backup import BackupReport, in_thread
from torus.daemon.backup_files import Target, open_target
from torus.daemon.command import run_command
from torus.daemon.reach import reach, volume_options
from torus.daemon.reports import Progress
from torus.daemon.snapshot_work import opened
from torus.errors import Busy, Corruption, UsageError
from torus.format.diffstream import SnapshotName, StreamHeader
from torus.volume.catalog import Catalog
from torus.volume.changes import Change, changes
from torus.volume.leaves import UNIT
from torus.volume.reads import Reads
from torus.volume.snapshot_map import SnapshotMap
from torus.volume.view import View

_FRAME_BYTES = limits.BACKUP_FRAME_BYTES_MAX
_BATCH_PIECES = 256
_BLOCK = limits.BLOCK_BYTES
_Piece = tuple[int, int, bytes | None]  # offset, length, data


def export_diff(
    catalog: Catalog,
    config: CommonConfig,
    source: tuple[str, str, str | None],
    target: str,
    progress: Progress,
    *,
    resume: bool,
    overwrite: bool,
) -> BackupReport:
    """Write what a snapshot changed since another (None: all of it) to ``target``.

    ``source`` is a volume's name, its snapshot's, and the older one's.

    Raises: NotFound, AlreadyExists, UsageError, Busy, Corruption, Unavailable, Interrupted,
        PermissionDenied, TorusError.
    """
    began = time.monotonic()
    header = _header(catalog, *source)
    with open_target(target, header, resume=resume, overwrite=overwrite) as out:
        if not out.ended:
            run_command(config, _export(config, source, header, out, progress))
        out.finish()
        totals = out.encoder.totals
        return BackupReport(
            header, totals.frames, totals.data_bytes, totals.zero_bytes,
            time.monotonic() - began, out.resumed_at,
        )  # fmt: skip


def _header(catalog: Catalog, name: str, snap: str, base_snap: str | None) -> StreamHeader:
    to = catalog.get_snapshot(name, snap).snapshot
    base = None
    if base_snap is not None:
        older = catalog.get_snapshot(name, base_snap).snapshot
        if older.uid == to.uid:
            raise UsageError(f"{name}@{snap} cannot be exported as a difference from itself")
        base = SnapshotName(older.name, older.uid)
    return StreamHeader(
        name, catalog.get_cluster().cluster_id, to.size_bytes, to.created_ns, base,
        SnapshotName(to.name, to.uid),
    )  # fmt: skip


async def _export(
    config: CommonConfig,
    source: tuple[str, str, str | None],
    header: StreamHeader,
    out: Target,
    progress: Progress,
) -> None:
    name, snap, base_snap = source
    cache_bytes = volume_options(config).map_cache_bytes // 2
    async with AsyncExitStack() as stack:
        reached = await stack.enter_async_context(reach(config))
        view = await stack.enter_async_context(opened(reached, name, snap, "backup", cache_bytes))
        _refuse_another(view, header.to)
        base = None
        if base_snap is not None and header.base is not None:
            base = await stack.enter_async_context(
                opened(reached, name, base_snap, "backup", cache_bytes)
            )
            _refuse_another(base, header.base)
        found = changes(base, view, header.size_bytes, out.encoder.reached)
        await _write_out(found, view, out, progress, header.size_bytes)


def _refuse_another(view: SnapshotMap, expected: SnapshotName) -> None:
    if view.snapshot.uid != expected.uid:
        raise Busy(f"snapshot {view.name!r} was deleted and made anew meanwhile")


async def _write_out(
    found: AsyncIterator[Change], view: View, out: Target, progress: Progress, size_bytes: int
) -> None:
    """Read some batches of ranges ahead of the one that is written."""
    ahead: deque[asyncio.Future[list[_Piece]]] = deque()
    try:
        async for batch in _batches(found):
            ahead.append(asyncio.ensure_future(_read(view, batch)))
            if len(ahead) > limits.COPY_IN_FLIGHT:
                await _put_out(await ahead[0], out)
                ahead.popleft()
                progress(out.encoder.reached, size_bytes)
        while ahead:
            await _put_out(await ahead[0], out)
            ahead.popleft()
        await in_thread(out.write, [out.encoder.end()])
        progress(size_bytes, size_bytes)
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def _batches(found: AsyncIterator[Change]) -> AsyncIterator[list[Change]]:
    """Cut ranges into frames; yield about a mebibyte of data, or many small frames, at once."""
    batch: list[Change] = []
    size = 0
    async for change in found:
        end = change.offset + change.length
        step = _FRAME_BYTES if change.mapped else change.length
        for offset in range(change.offset, end, step):
            piece = Change(offset, min(step, end - offset), change.mapped)
            batch.append(piece)
            size += piece.length if change.mapped else 0
            if size >= _FRAME_BYTES or len(batch) == _BATCH_PIECES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


async def _read(view: View, batch: list[Change]) -> list[_Piece]:
    """Read all ranges of a batch with one request: small ones are what most backups are made of.

    Raises: Corruption, Unavailable.
    """
    places: list[tuple[Change, Sequence[tuple[int, ...]], bytes]] = []
    reads = []
    for change in batch:
        if not change.mapped:
            continue
        block = change.offset // _BLOCK
        count = -(-(change.offset + change.length) // _BLOCK) - block
        await view.load(block, count)
        runs = view.blocks.runs(block, count)  # at once: nobody may drop the leaf meanwhile
        places.append((change, runs, view.blocks.entries_crc(block, count)))
        for _, blocks, sequence, offset, base in runs:
            reads.append((view.chunk(sequence, base), offset * UNIT, blocks * _BLOCK))
    try:
        found = iter(await view.chunks.read(reads))
    except Corruption:
        found = iter(())
    data = {place[0]: await _checked(view, *place, found) for place in places}
    return [(one.offset, one.length, data.get(one)) for one in batch]


async def _checked(
    view: View, change: Change, runs: Sequence[tuple[int, ...]], crcs: bytes, found: Iterator[bytes]
) -> bytes:
    """Put a range together; one that is not right is read again by who says what is wrong."""
    first = change.offset // _BLOCK
    blocks = bytearray(len(crcs) // 4 * _BLOCK)
    whole = True
    for run in runs:
        start, piece = (run[0] - first) * _BLOCK, next(found, b"")
        blocks[start : start + len(piece)] = piece
        whole = whole and len(piece) == run[1] * _BLOCK
    if not whole or any(first_wrong(blocks, run[0] - first, crcs, run[1]) >= 0 for run in runs):
        return await Reads(view).read(change.offset, change.length)
    start = change.offset - first * _BLOCK
    return bytes(memoryview(blocks)[start : start + change.length])


async def _put_out(pieces: list[_Piece], out: Target) -> None:
    parts: list[bytes] = []
    for offset, length, data in pieces:
        parts += [out.encoder.frame(offset, length, data), data or b""]
    await in_thread(out.write, parts)
