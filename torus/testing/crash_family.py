"""The crash checks for volumes with snapshots and clones.

Beside what `torus.testing.crash` checks: every snapshot that the metadata names reads as it was
when it was made, before and after volumes are attached, written, collected and crash again;
and when all snapshots and clones are deleted, nothing is left but what the volumes need.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torus.metadata.schema import Snapshot
from torus.testing.crash import Examiner, check_space, find_orphans
from torus.testing.operations import (
    all_snapshots,
    delete_snapshot,
    delete_volume,
    read_snapshot,
)
from torus.testing.world import World
from torus.volume.attachment import Attachment
from torus.volume.catalog_ask import DELETING


@dataclass(slots=True)
class FamilyExaminer(Examiner):
    """``kept``: what each snapshot held when it was made, by its uid."""

    kept: dict[str, bytes] = field(default_factory=dict)

    async def opened(self, world: World) -> None:
        """Read the snapshots; end what a crash interrupted."""
        await check_snapshots(world, self.kept)
        for volume in reversed(await world.catalog.list()):
            if volume.spec.state == DELETING:
                await delete_volume(world, volume.spec.name)

    async def attached(self, world: World) -> None:
        """Read the snapshots beside their volumes' writers."""
        await check_snapshots(world, self.kept)

    async def went_on(self, world: World) -> None:
        """Collect what is attached still; nothing is lost by that."""
        for attachment in list(world.attachments):
            volume = attachment.volume
            if volume.core.failure is not None or self.rng.random() < 0.3:
                continue
            before = await volume.read(0, volume.size_bytes)
            collector = volume.collector
            if self.rng.random() < 0.5:
                done = await collector.defragment()
            else:
                done = await collector.collect(target=0.95)
            assert not done.rotten, done.rotten
            assert await volume.read(0, volume.size_bytes) == before
            volume.core.blocks.verify()
        await check_snapshots(world, self.kept)

    async def reopened(self, world: World) -> None:
        """Read the snapshots again, then take everything down."""
        await check_snapshots(world, self.kept)
        await take_down(world)


async def check_snapshots(world: World, kept: Mapping[str, bytes]) -> None:
    """Every snapshot holds what it held when it was made: ``kept``, by uid."""
    going = {
        volume.spec.volume for volume in await world.catalog.list() if volume.spec.state == DELETING
    }
    for snapshot in await all_snapshots(world):
        if snapshot.volume in going:  # its chunks are freed before its snapshots' keys go
            continue
        wanted = kept[snapshot.uid]
        assert snapshot.size_bytes == len(wanted)
        found = await read_snapshot(world, snapshot)
        assert found == wanted, f"snapshot {_name(snapshot)} is not what it was"


def _name(snapshot: Snapshot) -> str:
    return f"{snapshot.name!r}, number {snapshot.number} of volume {snapshot.volume}"


async def take_down(world: World) -> None:
    """Delete all clones and snapshots of a world; look that their space came back."""
    attachments = {one.volume.core.spec.volume: one for one in world.attachments}
    for volume in sorted(await world.catalog.list(), key=lambda one: -one.spec.volume):
        number, name = volume.spec.volume, volume.spec.name
        if volume.head.base is None and name.startswith("v"):
            continue
        attachment = attachments.pop(number, None)
        if attachment is not None:
            await attachment.detach()
            world.attachments.remove(attachment)
        await delete_volume(world, name)
    for snapshot in await all_snapshots(world):
        owner = attachments.get(snapshot.volume)
        name = (await world.catalog.get_by_id(snapshot.volume)).spec.name
        await delete_snapshot(world, name, snapshot.name, owner)
    for attachment in attachments.values():
        await _check_leaks(attachment)
    world.store.expire_trash()
    orphans = await find_orphans(world)
    check_space(world, orphans)


async def _check_leaks(attachment: Attachment) -> None:
    """Two checkpoints; then every older chunk has something live in it or is named."""
    volume = attachment.volume
    core, checkpointer = volume.core, volume.checkpointer
    before = core.journal.position.sequence
    for _ in range(2):
        await checkpointer.write()
    await checkpointer.delete_due(at_once=True)
    root = checkpointer.head.root
    assert root is not None
    named = {*core.blocks.pinned_sequences(), root.sequence}
    dead = {
        sequence
        for span in core.spans
        for sequence in core.blocks.dead(
            span.first, min(before - 1, before if span.last is None else span.last)
        )
    }
    assert dead <= named, f"volume {volume.name!r}: chunks {sorted(dead - named)} are kept for none"
