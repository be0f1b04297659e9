"""A volume against a dictionary of blocks, under any sequence of operations and crashes.

TORUS_MODEL_STEPS sets how many steps are made in all.
"""

import asyncio
import os
import random
import struct
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from torus import limits
from torus._fast.frame import RequestBatch
from torus._fast.reply import ReplyBuilder
from torus.errors import Fenced
from torus.format.segment import Geometry
from torus.testing.crash import check_space
from torus.testing.simdisk import PowerLoss
from torus.testing.workload import request_stream
from torus.testing.world import World
from torus.volume.attachment import Attachment

STEPS = int(os.environ.get("TORUS_MODEL_STEPS", "6000"))
STEPS_EACH = 50
BLOCK = limits.BLOCK_BYTES
CAPACITY = 40 * limits.MIB  # ten leaves
GEOMETRY = Geometry(256 * limits.KIB, 16)
ZERO = bytes(BLOCK)
_READ = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class Blocks:
    """The content of a volume: blocks that are not all zeroes."""

    def __init__(self, blocks: dict[int, bytes] | None = None) -> None:
        self.blocks = dict(blocks or {})

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite a range."""
        at, end = offset, offset + len(data)
        while at < end:
            block, start = divmod(at, BLOCK)
            size = min(BLOCK - start, end - at)
            piece = data[at - offset : at - offset + size]
            if size < BLOCK:
                old = self.blocks.get(block, ZERO)
                piece = old[:start] + piece + old[start + size :]
            self.blocks[block] = piece
            if piece == ZERO:
                del self.blocks[block]
            at += size

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeroes."""
        first, last = -(-offset // BLOCK), (offset + length) // BLOCK
        if first > last:
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(first * BLOCK - offset))
        self.write(last * BLOCK, bytes(offset + length - last * BLOCK))
        for block in [block for block in self.blocks if first <= block < last]:
            del self.blocks[block]

    def read(self, offset: int, length: int) -> bytes:
        """Return a range."""
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        whole = b"".join(self.blocks.get(block, ZERO) for block in range(first, last))
        return whole[offset - first * BLOCK : offset - first * BLOCK + length]


class VolumeMachine(RuleBasedStateMachine):
    """One volume; ``content`` is what it must hold, ``durable`` what a flush promised."""

    name = "v"
    capacity = CAPACITY
    slots = 800

    @initialize(
        seed=st.integers(0, 1 << 32),
        punch=st.booleans(),
        cache_bytes=st.sampled_from((16 << 10, 64 << 10, 16 << 20)),
        size=st.sampled_from((CAPACITY, CAPACITY // 2, 5 * BLOCK, 6 << 20)),
    )
    def begin(self, seed: int, punch: bool, cache_bytes: int, size: int) -> None:
        """Make a machine with one attached volume."""
        self.rng = random.Random(seed)
        self.loop = asyncio.new_event_loop()
        self.options = {
            "punch": punch, "cache_bytes": cache_bytes, "geometry": GEOMETRY, "slots": self.slots,
        }  # fmt: skip
        self.world = World(self.rng, **self.options)
        self.world.disk.poison = True
        self.world.store.open()
        self.size = size = min(size, self.capacity)
        self.content = Blocks()
        self.durable = Blocks()
        self.since: list[tuple[int, bytes | int]] = []  # operations since ``durable``
        self.run(self.world.catalog.init_cluster())
        self.run(self.world.catalog.create(self.name, size))
        self.attachment: Attachment = self.run(self.world.attach(self.name))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(work)

    def each(self) -> Iterator[None]:
        """Go through the volumes: each is this one in its turn."""
        yield

    # --- the model ----------------------------------------------------------------------

    def apply(self, offset: int, what: bytes | int) -> None:
        """Note a write (bytes) or a zeroing (a length)."""
        self.since.append((offset, what))
        _apply(self.content, offset, what)

    def settle(self) -> None:
        """Note that everything is durable."""
        self.durable = Blocks(self.content.blocks)
        self.since.clear()

    def extent(self, place: int, size: int, unit: int) -> tuple[int, int]:
        """Return an (offset, length) within the volume from two numbers."""
        size = max(unit, min(size // unit * unit, self.size // unit * unit))
        hot = (0, limits.LEAF_ENTRIES * BLOCK, self.size - size, self.size // 2)
        near = hot[place % 4] + (place // 4 % 64 - 32) * unit
        offset = near if place % 3 else place * 7919
        return min(max(offset, 0) // unit * unit, (self.size - size) // unit * unit), size

    # --- rules --------------------------------------------------------------------------

    places = st.integers(0, 1 << 20)
    sizes = st.sampled_from((512, 1024, 4096, 4096, 8192, 9 * 512, 65536, 300 * 1024))

    @rule(place=places, size=sizes, unit=st.sampled_from((512, 4096)), durable=st.booleans())
    def write(self, place: int, size: int, unit: int, durable: bool) -> None:
        """Write; sometimes with FUA."""
        offset, size = self.extent(place, size, unit)
        data = self.rng.randbytes(size)
        durable = durable and place % 4 == 0
        self.run(self.attachment.volume.write(offset, data, durable=durable))
        self.apply(offset, data)
        if durable:
            self.settle()

    @rule(place=places, leaves=st.integers(1, 9))
    def write_many_leaves(self, place: int, leaves: int) -> None:
        """Write one block in each of some leaves, at once: more leaves than the cache holds."""
        step = limits.LEAF_ENTRIES * BLOCK
        writes = []
        for leaf in range(leaves):
            offset = leaf * step + place % limits.LEAF_ENTRIES * BLOCK
            if offset + BLOCK <= self.size:
                writes.append((offset, self.rng.randbytes(BLOCK)))
        self.run(self._write_all(writes))
        for offset, data in writes:
            self.apply(offset, data)

    async def _write_all(self, writes: list[tuple[int, bytes]]) -> None:
        volume = self.attachment.volume
        reads = [volume.read(self.rng.randrange(0, self.size // 512) * 512, 512) for _ in range(3)]
        await asyncio.gather(
            *(volume.write(offset, data, durable=False) for offset, data in writes), *reads
        )

    @rule(place=places)
    def write_big(self, place: int) -> None:
        """Write more than a leaf's worth in one request."""
        offset, size = self.extent(place, 9 * limits.MIB, 512)
        data = self.rng.randbytes(size)
        self.run(self.attachment.volume.write(offset, data, durable=False))
        self.apply(offset, data)

    @rule(place=places, count=st.integers(1, 6))
    def write_batch(self, place: int, count: int) -> None:
        """Write whole blocks on the fast path, the rest on the slow one."""
        if self.size < BLOCK:
            return
        extents = [self.extent(place * (i + 1), 4096 << i % 4, BLOCK) for i in range(count)]
        writes = [(offset, self.rng.randbytes(size)) for offset, size in extents]
        self.run(self._write_batch(writes))
        for offset, data in writes:
            self.apply(offset, data)

    async def _write_batch(self, writes: list[tuple[int, bytes]]) -> None:
        volume = self.attachment.volume
        batch = RequestBatch(limits.NBD_REQUEST_BYTES_MAX, size_bytes=self.size)
        found = batch.received(batch.feed(request_stream(writes)))
        taken = volume.write_now(batch, 0, found)
        for offset, data in writes[taken:]:
            await volume.write(offset, data, durable=False)

    @rule(
        place=places,
        size=st.sampled_from((512, 4096, 65536, 5 << 20, 1 << 30)),
        how=st.sampled_from(("trim", "zero", "allocate")),
    )
    def zero(self, place: int, size: int, how: str) -> None:
        """Trim, or write zeroes in either way."""
        offset, size = self.extent(place, size, 512)
        volume = self.attachment.volume
        if how == "trim":
            self.run(volume.trim(offset, size, durable=False))
        else:
            allocate = how == "allocate" and size <= limits.MIB
            self.run(volume.write_zeroes(offset, size, durable=False, allocate=allocate))
        self.apply(offset, size)

    @rule()
    def flush(self) -> None:
        """Flush."""
        self.run(self.attachment.volume.flush())
        self.settle()

    @rule()
    def checkpoint(self) -> None:
        """Write a checkpoint."""
        self.run(self.attachment.volume.checkpointer.write())
        self.settle()

    @rule(place=places, count=st.integers(1, 8))
    def checkpoint_meanwhile(self, place: int, count: int) -> None:
        """Write while a checkpoint is being written."""
        writes = []
        for i in range(count):
            offset, size = self.extent(place * (i + 3), 8192, BLOCK)
            writes.append((offset, self.rng.randbytes(size)))
        self.run(self._beside_checkpoint(writes))
        for offset, data in writes:
            self.apply(offset, data)

    async def _beside_checkpoint(self, writes: list[tuple[int, bytes]]) -> None:
        checkpoint = asyncio.ensure_future(self.attachment.volume.checkpointer.write())
        for offset, data in writes:
            await asyncio.sleep(0)
            await self.attachment.volume.write(offset, data, durable=False)
        await checkpoint

    @rule(place=places, size=sizes, unit=st.sampled_from((512, 4096)))
    def read(self, place: int, size: int, unit: int) -> None:
        """Read on the slow path."""
        offset, size = self.extent(place, size, unit)
        found = self.run(self.attachment.volume.read(offset, size))
        assert found == self.content.read(offset, size), (offset, size)

    @rule(place=places, size=sizes)
    def read_fast(self, place: int, size: int) -> None:
        """Read on the fast path, which may leave it to the slow one."""
        offset, size = self.extent(place, size, 512)
        found = self.run(self._read_now(offset, size))
        if found:
            assert _REPLY.unpack_from(found) == (0x67446698, 0, 1)
            assert found[_REPLY.size :] == self.content.read(offset, size), (offset, size)

    async def _read_now(self, offset: int, size: int) -> bytes:
        batch = RequestBatch(limits.NBD_REQUEST_BYTES_MAX, size_bytes=self.size)
        batch.received(batch.feed(_READ.pack(0x25609513, 0, 0, 1, offset, size)))
        replies = ReplyBuilder()
        replies.expect(batch, 0, 1)
        left = self.attachment.volume.read_now(batch, 0, 1, replies)
        return b"" if left else replies.take()

    @rule(place=places, size=st.sampled_from((4096, 65536, 5 << 20, 1 << 30)))
    def read_sparse(self, place: int, size: int) -> None:
        """Read as pieces, holes left out."""
        offset, size = self.extent(place, size, 512)
        at = offset
        for length, data in self.run(self.attachment.volume.read_sparse(offset, size)):
            assert length > 0
            assert (bytes(length) if data is None else data) == self.content.read(at, length)
            at += length
        assert at == offset + size

    @rule(
        place=places, size=st.sampled_from((4096, 65536, 5 << 20, 1 << 30)), limit=st.integers(1, 9)
    )
    def block_status(self, place: int, size: int, limit: int) -> None:
        """Holes read as zeroes; the extents lie side by side."""
        offset, size = self.extent(place, size, 512)
        extents = self.run(self.attachment.volume.block_status(offset, size, limit))
        assert 1 <= len(extents) <= limit
        at = offset
        for length, flags in extents:
            assert length > 0
            assert flags in (0, 3)
            if flags:
                assert not any(self.content.read(at, length)), (at, length)
            at += length
        assert at <= offset + size
        if len(extents) < limit:
            assert at == offset + size

    @rule(blocks=st.integers(1, CAPACITY // BLOCK), rest=st.sampled_from((0, 0, 512, 3584)))
    def resize(self, blocks: int, rest: int) -> None:
        """Grow or shrink."""
        size = min(blocks * BLOCK + rest, self.capacity)
        self.run(self.world.resize(self.attachment, size))
        if size < self.size:
            self.apply(size, self.size - size)
            self.settle()
        self.size = size

    @rule(blocks=st.integers(1, CAPACITY // BLOCK), rest=st.sampled_from((0, 512)))
    def resize_detached(self, blocks: int, rest: int) -> None:
        """Resize while nobody has the volume."""
        self.run(self.attachment.detach())
        size = min(blocks * BLOCK + rest, self.capacity)
        self.run(self.world.catalog.resize(self.name, size, shrink=True))
        if size < self.size:
            self.apply(size, self.size - size)
        self.settle()
        self.size = size
        self.attachment = self.run(self.world.attach(self.name))

    @rule()
    def reattach(self) -> None:
        """Detach and attach."""
        self.run(self.attachment.detach())
        self.settle()
        self.attachment = self.run(self.world.attach(self.name))

    @rule(place=places, flushed=st.booleans())
    def takeover(self, place: int, flushed: bool) -> None:
        """Another process takes the volume over; the first can write no more."""
        old = self.attachment
        if flushed:
            self.run(old.volume.flush())
        self.attachment = self.run(self.world.attach(self.name))
        self.settle()
        self.run(self._refused(old, *self.extent(place, 4096, 512)))

    async def _refused(self, old: Attachment, offset: int, size: int) -> None:
        with pytest.raises(Fenced):
            await old.volume.write(offset, bytes(range(256)) * (size // 256), durable=True)
        with pytest.raises(Fenced):
            await old.volume.checkpointer.write()
        with pytest.raises(Fenced):
            await old.volume.write(0, bytes(512), durable=False)
        await old.detach()

    @rule()
    def kill(self) -> None:
        """The process dies; everything answered is there."""
        self._reopen(lost=False)
        for _ in self.each():
            self.settle()
        self.check_all()

    @rule()
    def cut_power(self) -> None:
        """The power goes; a prefix of what was answered is there, all of it that was flushed."""
        self._reopen(lost=True)
        for _ in self.each():
            self._accept_prefix()

    def _accept_prefix(self) -> None:
        found = blocks_of(self.run(self.attachment.volume.read_sparse(0, self.size)))
        state = Blocks(self.durable.blocks)
        operations, self.since = self.since, []
        for count, (offset, what) in enumerate([*operations, (0, b"")]):
            if state.blocks == found.blocks or _partly(state, found, offset, what):
                break
            _apply(state, offset, what)
            assert count < len(operations), f"no prefix of {len(operations)} operations fits"
        self.content = found
        self.settle()

    def _reopen(self, *, lost: bool) -> None:
        self.run(self.world.stop())
        power = PowerLoss(GEOMETRY, self.world.start)
        for event in self.world.history:
            power.step(event)
        image = power.cut(self.rng) if lost else power.killed()
        self.world = World(
            self.rng, image=image, snapshot=self.world.metadata.snapshot(), **self.options
        )
        self.world.disk.poison = True
        self.world.store.open()
        for _ in self.each():
            self.attachment = self.run(self.world.attach(self.name))

    @precondition(lambda self: self.rng.random() < 0.3)
    @rule()
    def check_all(self) -> None:
        """Compare everything; recount the map and the disk."""
        for _ in self.each():
            self._compare()
            self.run(self._recount())
        self._check_space()

    def _compare(self) -> None:
        at = 0
        for length, data in self.run(self.attachment.volume.read_sparse(0, self.size)):
            expected = self.content.read(at, length)
            assert (bytes(length) if data is None else data) == expected, at
            at += length

    async def _recount(self) -> None:
        async with self.attachment.volume.checkpointer._lock:  # none is freeing chunks now
            self.attachment.volume.core.blocks.verify()

    def _check_space(self) -> None:
        self.world.attachments = [self.attachment for _ in self.each()]
        check_space(self.world)

    def teardown(self) -> None:
        """End what runs."""
        if hasattr(self, "world"):
            self.check_all()
            for _ in self.each():
                self.run(self.attachment.detach())
            self.run(self.world.stop())
            self.loop.close()


def blocks_of(pieces: list[tuple[int, bytes | None]]) -> Blocks:
    """Return what a sparse read of a whole volume found."""
    found, at = Blocks(), 0
    for length, data in pieces:
        if data is not None:
            found.write(at, data)
        at += length
    return found


def _apply(blocks: Blocks, offset: int, what: bytes | int) -> None:
    if isinstance(what, int):
        blocks.zero(offset, what)
    else:
        blocks.write(offset, what)


def _partly(state: Blocks, found: Blocks, offset: int, what: bytes | int) -> bool:
    """True when ``found`` is ``state`` with a first part of one operation."""
    length = what if isinstance(what, int) else len(what)
    touched = range(offset // BLOCK, -(-(offset + length) // BLOCK))
    after = Blocks(state.blocks)
    _apply(after, offset, what)
    if {k: v for k, v in found.blocks.items() if k not in touched} != {
        k: v for k, v in state.blocks.items() if k not in touched
    }:
        return False
    done = True
    for block in touched:
        piece = found.blocks.get(block, ZERO)
        new, old = after.blocks.get(block, ZERO), state.blocks.get(block, ZERO)
        if done and piece != new:
            done = False
        if not done and piece != old:
            return False
    return True


TestVolume = VolumeMachine.TestCase
TestVolume.settings = settings(
    max_examples=max(1, STEPS // STEPS_EACH),
    stateful_step_count=STEPS_EACH,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestVolume.pytestmark = [pytest.mark.slow, pytest.mark.sim]
