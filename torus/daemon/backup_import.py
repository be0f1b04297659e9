"""`torus volume import-diff`: a backup stream applied to a volume.

Decides what a stream is put on: only on exactly what it was made from, so that a chain of them
gives the same bytes everywhere.  The snapshot is made last, under the uid that it has where the
stream was made.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from torus import limits
from torus.config import CommonConfig
from torus.daemon.backup import BackupReport, add_hint, all_of, in_thread
from torus.daemon.backup_files import Source, open_source
from torus.daemon.command import run_command
from torus.daemon.reach import Reach, attached, reach, volume_options
from torus.daemon.reports import Progress
from torus.daemon.snapshot_work import opened, restore
from torus.errors import AlreadyExists, Busy, NotFound, TorusError, UsageError
from torus.format.diffstream import Frame, Trailer
from torus.metadata.schema import Snapshot
from torus.volume.attachment import Attachment
from torus.volume.changes import changes
from torus.volume.snapshot_map import SnapshotMap
from torus.volume.volume import Volume


def import_diff(
    config: CommonConfig, source: str, name: str, progress: Progress, *, rollback: bool
) -> BackupReport:
    """Apply a stream to a volume, then make the snapshot that it leads to.

    A full stream makes the volume.  With ``rollback`` a volume that was changed since the
    stream's base is rolled back to it first.

    Raises: NotFound, AlreadyExists, UsageError, Busy, Corruption, UnknownVersion, PoolFull,
        Unavailable, Interrupted, TorusError.
    """
    began = time.monotonic()
    with open_source(source) as (stream, stop):
        work = _Import(config, stream, stop, name, progress)
        try:
            report = run_command(config, work.run(rollback=rollback))
        except TorusError as exc:
            add_hint(exc, work.remedy())
            raise
        return BackupReport(
            report.header, report.frames, report.data_bytes, report.zero_bytes,
            time.monotonic() - began, present=report.present, made=report.made,
        )  # fmt: skip


class _Changed(UsageError):
    """The volume is not what the stream was made from."""


class _Import:
    """One stream on its way into one volume."""

    def __init__(
        self,
        config: CommonConfig,
        stream: Source,
        stop: Callable[[], None],
        name: str,
        progress: Progress,
    ) -> None:
        self._config = config
        self._stream = stream
        self._stop = stop
        self._name = name
        self._progress = progress
        self._header = stream.header
        self._made = False
        self._begun = False

    async def run(self, *, rollback: bool) -> BackupReport:
        """Carry it out."""
        try:
            return await self._put_on()
        except _Changed:
            if not rollback or self._header.base is None:
                raise
        async with reach(self._config) as reached:
            base = await self._base(reached)
        assert base is not None
        await restore(self._config, self._name, base.name)
        return await self._put_on()

    def remedy(self) -> str:
        """Say what became of the target when the import failed."""
        name, base = self._name, self._header.base
        if not self._begun:
            return f"volume {name!r} was made and is empty" if self._made else ""
        if base is None:
            return (
                f"volume {name!r} is incomplete and has no snapshot of it: 'torus volume delete "
                f"{name}', then import again"
            )
        return (
            f"volume {name!r} is between {base.name!r} and {self._header.to.name!r}: "
            "import again with --rollback"
        )

    async def _put_on(self) -> BackupReport:
        header, options = self._header, volume_options(self._config)
        async with AsyncExitStack() as stack:
            reached = await stack.enter_async_context(reach(self._config))
            if await self._is_present(reached):
                return BackupReport(header, 0, 0, 0, 0.0, present=True)
            base = await self._base(reached)
            attachment = await stack.enter_async_context(
                attached(reached, self._name, "import", options)
            )
            before = None
            if base is not None:
                before = await stack.enter_async_context(
                    opened(reached, self._name, base.name, "import", options.map_cache_bytes // 2)
                )
            await self._refuse_changed(attachment.volume, before)
            await self._resize(reached, attachment)
            trailer = await self._apply(attachment.volume)
            await attachment.volume.flush()
            await attachment.snapshot(header.to.name, header.created_ns, header.to.uid)
            return BackupReport(
                header, trailer.frames, trailer.data_bytes, trailer.zero_bytes, 0.0,
                made=self._made,
            )  # fmt: skip

    async def _is_present(self, reached: Reach) -> bool:
        """Say whether the stream was imported before.

        Raises: AlreadyExists when something else has the snapshot's name, UsageError, Busy.
        """
        to = self._header.to
        try:
            known = await reached.catalog.snapshots(self._name)
        except NotFound:
            return False
        for one in known:
            if one.uid == to.uid:
                if one.state != "ready":
                    raise Busy(f"snapshot {self._name}@{one.name} is being deleted")
                return True
            if one.name == to.name:
                raise AlreadyExists(
                    f"volume {self._name!r} has another snapshot {to.name!r} (uid {one.uid}; the "
                    f"stream's is {to.uid})",
                    hint=f"delete it first: torus volume snapshot delete {self._name}@{to.name}",
                )
        await reached.catalog.check_new_snapshot(self._name, to.name)
        return False

    async def _base(self, reached: Reach) -> Snapshot | None:
        """Return the target's snapshot that the stream was made from; makes a new volume.

        Raises: NotFound.
        """
        header, name = self._header, self._name
        try:
            known = await reached.catalog.snapshots(name)
        except NotFound:
            if header.base is not None:
                raise NotFound(
                    f"volume {name!r} does not exist, and the stream begins at snapshot "
                    f"{header.base.name!r}",
                    hint="import the streams before this one first, beginning with a full one",
                ) from None
            await reached.catalog.create(name, header.size_bytes)
            self._made = True
            return None
        if header.base is None:
            return None
        for one in known:
            if one.uid == header.base.uid and one.state == "ready":
                return one
        has = ", ".join(one.name for one in known[-5:]) or "none"
        raise NotFound(
            f"volume {name!r} has no snapshot with the uid {header.base.uid} "
            f"({header.base.name!r} of {header.volume!r}), which the stream was made from; it has: "
            f"{has}",
            hint="import the streams between first; a full stream goes into a new volume",
        )

    async def _refuse_changed(self, volume: Volume, base: SnapshotMap | None) -> None:
        """Raise _Changed unless the volume is exactly the base, or empty where there is none."""
        name = self._name
        if base is None:
            if volume.core.blocks.mapped_blocks or len(volume.core.pins):
                raise UsageError(
                    f"volume {name!r} holds data or snapshots, and the stream is a full one",
                    hint=f"import it under another name, or 'torus volume delete {name}' first",
                )
            return
        changed = volume.size_bytes != base.snapshot.size_bytes
        if not changed:
            async for _ in changes(base, volume.core, volume.size_bytes):
                changed = True
                break
        if changed:
            raise _Changed(
                f"volume {name!r} was changed since snapshot {base.snapshot.name!r}, which the "
                "stream was made from, or an import of it was interrupted",
                hint="--rollback drops those changes",
            )

    async def _resize(self, reached: Reach, attachment: Attachment) -> None:
        size_bytes = self._header.size_bytes
        if attachment.volume.size_bytes != size_bytes:
            self._begun = True
            await reached.catalog.resize(self._name, size_bytes, shrink=True)
            await attachment.follow_size()

    async def _apply(self, volume: Volume) -> Trailer:
        """Write every frame; ranges do not overlap, so several batches are under way at once."""
        running: set[asyncio.Future[None]] = set()
        reading = asyncio.ensure_future(in_thread(self._stream.batch))
        try:
            while True:
                batch = await reading
                self._begun = True
                trailer = batch[-1]
                frames = [item for item in batch if isinstance(item, Frame)]
                running.add(asyncio.ensure_future(_put_in(volume, frames)))
                if isinstance(trailer, Trailer):
                    break
                reading = asyncio.ensure_future(in_thread(self._stream.batch))
                self._progress(frames[-1].offset + frames[-1].length, self._header.size_bytes)
                if len(running) >= limits.COPY_IN_FLIGHT:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.gather(*done)
            await asyncio.gather(*running)
            self._progress(self._header.size_bytes, self._header.size_bytes)
            return trailer
        finally:
            self._stop()
            for task in running:
                task.cancel()
            await asyncio.gather(reading, *running, return_exceptions=True)


async def _put_in(volume: Volume, frames: list[Frame]) -> None:
    await all_of([_put_frame(volume, frame) for frame in frames])


async def _put_frame(volume: Volume, frame: Frame) -> None:
    if frame.data is None:
        await volume.write_zeroes(frame.offset, frame.length, durable=False, allocate=False)
    else:
        await volume.write(frame.offset, frame.data, durable=False)
