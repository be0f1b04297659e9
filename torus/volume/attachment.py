"""One volume that this process owns: what may be done with it beside reading and writing.

Decides how a size that the operator set is applied.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection
from dataclasses import replace

from torus import limits
from torus.errors import DiskFailed, Fenced
from torus.log import get_logger
from torus.metadata.schema import Snapshot
from torus.volume.flatten import flatten
from torus.volume.holder import Holder
from torus.volume.volume import Volume

log = get_logger("torus.attach")


class Attachment:
    """A volume that this process owns, until `detach` or until it is fenced."""

    def __init__(self, volume: Volume, holder: Holder) -> None:
        self.volume = volume
        self.holder = holder
        self._resizing = asyncio.Lock()

    @property
    def epoch(self) -> int:
        """The epoch under which this process writes."""
        return self.volume.core.epoch

    async def follow_size(self) -> None:
        """Use the size that is in the metadata now.

        Where it was smaller in between, what was cut off is unmapped first, and the cut is
        forgotten before clients can write there again: it must not be done twice.

        Raises: Fenced, the volume's failure, Corruption, Unavailable.
        """
        async with self._resizing:
            spec = await self.holder.size()
            self.volume.core.chunks.follow(spec)
            self.volume.checkpointer.quiet.follow(spec)
            while spec.cut_bytes:
                cut_bytes = spec.cut_bytes
                if cut_bytes < self.volume.size_bytes:
                    await self.resize(cut_bytes)
                spec = await self.holder.settle_cut(cut_bytes)
            await self.resize(spec.size_bytes)

    async def resize(self, size_bytes: int) -> None:
        """Use a size; a shrink unmaps what is cut off.

        Raises: the volume's failure, Corruption, Unavailable.
        """
        core = self.volume.core
        old = core.spec.size_bytes
        if size_bytes == old:
            return
        if size_bytes < old:
            edge = -(-size_bytes // limits.BLOCK_BYTES) * limits.BLOCK_BYTES
            core.spec = replace(core.spec, size_bytes=size_bytes)
            if size_bytes < min(edge, old):
                await self.volume.trim(size_bytes, min(edge, old) - size_bytes, durable=False)
            if edge < old:
                await self.volume.trim(edge, old - edge, durable=False)
            # A later growth is durable at once: what was cut off must not come back then.
            await self.volume.flush()
        else:
            blocks = -(-size_bytes // limits.BLOCK_BYTES)
            if blocks > core.blocks.size_blocks:
                core.blocks.resize(blocks)
            core.spec = replace(core.spec, size_bytes=size_bytes)
        log.info("volume.resized", volume=core.spec.name, old=old, new=size_bytes)

    async def snapshot(self, name: str, now_ns: int, uid: str = "") -> Snapshot:
        """Make a snapshot of this moment; clients go on meanwhile.

        ``uid`` names the content, where it is known elsewhere already.

        Raises: AlreadyExists, PoolFull, the volume's failure, Unavailable.
        """
        core = self.volume.core
        core.check()
        wanted = Snapshot(core.spec.volume, 0, name, uid or secrets.token_hex(16), now_ns, 0, None)
        try:
            return await self.volume.checkpointer.snapshot(wanted)
        except (Fenced, DiskFailed) as exc:
            core.fail(exc)
            raise

    def snapshots_gone(self, numbers: Collection[int]) -> None:
        """Learn that snapshots were deleted.  Nothing else can be news to their volume's
        writer, which alone makes them."""
        core = self.volume.core
        core.pins = core.pins.without(numbers)
        self.volume.checkpointer.reclaimer.snapshots_gone()

    async def reclaim(self) -> int:
        """Learn which snapshots were deleted and free what only they needed; return how many
        chunks went.

        Raises: the volume's failure, PoolFull, Unavailable.
        """
        core, checkpointer = self.volume.core, self.volume.checkpointer
        core.check()
        known = core.pins.numbers
        # Asked after `known` was taken: what is missing was deleted, not just not yet made.
        gone = known - await self.holder.snapshot_numbers()
        if gone:
            self.snapshots_gone(gone)
            log.info("snapshots.gone", volume=core.name, snapshots=len(gone))
        await checkpointer.reclaim()
        return await checkpointer.delete_due(at_once=True)

    async def flatten(
        self, progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> int:
        """Copy what a clone inherits and let its base go; return how many bytes were copied.

        Raises: see `torus.volume.flatten.flatten`.
        """
        self.volume.core.check()
        return await flatten(self.volume, self.holder, progress)

    async def detach(self) -> None:
        """Make everything durable, checkpoint, and give the volume back; idempotent.

        A volume that was lost is only taken apart.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        await self.holder.detach(self.volume)
