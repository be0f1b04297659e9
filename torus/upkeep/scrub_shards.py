"""A look at one shard: its cell's header, the header of its shelf, and every byte of it.

Decides what is wrong with it and how that came about, and puts lost headers back: which shard lies
where is known while the node runs.  Implements docs/scrub.md, "A look at a slot".
"""

from dataclasses import dataclass

from torus import limits
from torus.errors import Corruption, TorusError
from torus.format.segment import FREED_SLOT, UNUSED_SLOT
from torus.format.shard import (
    COLUMN_BYTES,
    DESCRIPTOR_BYTES,
    PAYLOAD_OFFSET,
    PLACE_BYTES,
    CellHeader,
    Descriptor,
    open_shard,
)  # fmt: skip
from torus.ids import ChunkId
from torus.store.scrubbing import restore
from torus.store.shelves import Cell
from torus.store.store import Store
from torus.upkeep.scrub_judge import Damage, Kind

_SECTOR = limits.SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class ShardLook:
    """What a look at a shard found."""

    restored: tuple[Damage, ...] = ()  # headers that were written again
    damage: Damage | None = None  # of the shard itself


async def look_at_shard(store: Store, part: ChunkId, *, deep: bool) -> ShardLook | None:
    """Read a shard again, all of it or its headers.

    Returns: None when it is not here.
    Raises: Corruption when it may lie in a damaged slot; DiskFailed, PoolFull.
    """
    cell = store.find(part)
    if not isinstance(cell, Cell):
        return None
    shelf = cell.shelf.slot
    size = cell.room if deep else 2 * _SECTOR
    try:
        head, data = await store.read([(shelf.address, _SECTOR), (cell.address, size)])
    except Corruption as exc:
        cell.examined = None
        return ShardLook(damage=Damage(Kind.MISSING, 0, exc.message))
    if store.slots.get(part) is not cell:
        return None
    damage = None
    if deep:
        slot_bytes = store.geometry.slot_bytes
        damage = await store.in_pool(judge_shard, data[PLACE_BYTES:], part, slot_bytes)
    if damage is not None:
        cell.examined = None  # who asks for it is told the truth
        return ShardLook(damage=damage)
    restored = []
    for slot, found, what in ((shelf, head, "shelf"), (cell, data[:PLACE_BYTES], "cell")):
        expected = store.slot_header(slot)
        wrong = None if found == expected else judge_place(found, expected, what)
        if wrong is not None and store.slots.get(part) is cell:
            await restore(store, slot, expected)
            restored.append(wrong)
    return ShardLook(tuple(restored))


def judge_place(found: bytes, expected: bytes, what: str) -> Damage:
    """Say how a header came to differ from what must stand there."""
    if found == UNUSED_SLOT:
        return Damage(Kind.TORN, 0, f"the {what}'s header is zeroes")
    if found == FREED_SLOT:
        return Damage(Kind.STALE, 0, f"the {what}'s header says that it is free")
    try:
        here, due = CellHeader.unpack(found, what), CellHeader.unpack(expected, what)
    except TorusError:
        return Damage(Kind.ROTTEN, 0, f"the {what}'s header is damaged")
    assert here is not None, "a free one was told above"
    assert due is not None
    if (here.disk_id, here.segment, here.slot, here.cell) != (
        due.disk_id, due.segment, due.slot, due.cell,
    ):  # fmt: skip
        place = f"segment {here.segment} slot {here.slot} cell {here.cell}"
        return Damage(Kind.MISPLACED, 0, f"it was written as {place} of {here.disk_id.hex()}")
    return Damage(Kind.STALE, 0, f"shard {here.shard} copy {here.copy} lies here")


def judge_shard(content: bytes, part: ChunkId, slot_bytes: int) -> Damage | None:
    """Judge a shard's bytes, from its descriptor on; None: they are whole."""
    try:
        found = Descriptor.unpack(content, f"shard {part}")
    except TorusError as exc:
        blank = not any(content[:_SECTOR])
        return Damage(Kind.TORN if blank else Kind.ROTTEN, PLACE_BYTES, exc.message)
    if found.shard != part:
        what = f"the bytes of shard {found.shard} lie there"
        return Damage(Kind.MISPLACED, PLACE_BYTES, what)
    whole = content[: DESCRIPTOR_BYTES + found.payload_bytes]
    column = None
    if len(whole) == DESCRIPTOR_BYTES + found.payload_bytes:
        column = found.bad_column(memoryview(whole)[DESCRIPTOR_BYTES:])
    if column is not None:
        start = DESCRIPTOR_BYTES + column * COLUMN_BYTES
        blank = not any(content[start + COLUMN_BYTES - _SECTOR : start + COLUMN_BYTES])
        what = f"its column {column} of {found.columns} is damaged"
        offset = PAYLOAD_OFFSET + column * COLUMN_BYTES
        return Damage(Kind.TORN if blank else Kind.ROTTEN, offset, what)
    try:
        open_shard(whole, part, slot_bytes)
    except TorusError as exc:
        return Damage(Kind.ROTTEN, PLACE_BYTES, exc.message)
    return None
