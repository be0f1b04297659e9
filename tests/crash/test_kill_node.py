"""kill -9 of a real node under load: what was answered is there, and the image is a prefix.

A killed process loses nothing that reached the page cache, so every answered write must be
found, flushed or not.  Requests without an answer may be done, not done or done in part; plain
writes of one connection are done in the order in which they were sent.

TORUS_KILL_CYCLES sets how often; TORUS_SEED repeats a run.
"""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.disk_client import DiskClient
from tests.processes import Machine, Service, machine_in
from torus.nbd import constants as nbd

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(1800)]

CYCLES = int(os.environ.get("TORUS_KILL_CYCLES", "40"))
MIB = 1 << 20
SIZE = 8 * MIB
SECTOR = 512
BLOCK = 4096
BLOCKS = SIZE // BLOCK
STEPS_MAX = 400  # replies that a cycle waits for before it kills


@dataclass(frozen=True, slots=True)
class Change:
    """One request that changes the image; without a payload it makes zeroes."""

    command: int
    offset: int
    length: int
    payload: bytes
    flags: int

    @property
    def content(self) -> bytes:
        """What the range holds afterwards."""
        return self.payload or bytes(self.length)

    @property
    def blocks(self) -> range:
        """The blocks that are touched."""
        return range(self.offset // BLOCK, -(-(self.offset + self.length) // BLOCK))

    @property
    def plain(self) -> bool:
        """Whether nothing but a write of whole blocks is asked for."""
        aligned = self.offset % BLOCK == 0 and self.length % BLOCK == 0
        return self.command == nbd.NBD_CMD_WRITE and aligned and not self.flags


class Disk:
    """One volume, the client that changes it, and what the image must be."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self.image = bytearray(SIZE)
        self.rng = rng
        self.pending: dict[int, Change | None] = {}  # by cookie, as sent; None is a flush
        self.touched: set[int] = set()  # blocks of what is pending
        self.stamp = 0
        self.answered = 0
        self.client: DiskClient | None = None

    # --- load ---------------------------------------------------------------------------

    def send(self) -> None:
        """Send one more request; what is in flight never overlaps."""
        assert self.client is not None
        if self.rng.random() < 0.01:
            self.pending[self.client.send(nbd.NBD_CMD_FLUSH)] = None
            return
        change = self._change()
        while not self.touched.isdisjoint(change.blocks):
            change = self._change()
        self.touched.update(change.blocks)
        cookie = self.client.send(
            change.command, change.offset, 0 if change.payload else change.length,
            change.payload, change.flags,
        )  # fmt: skip
        self.pending[cookie] = change

    def receive(self) -> None:
        """Take one reply."""
        assert self.client is not None
        cookie, error, _ = self.client.receive()
        assert error == 0, f"{self.name}: {self.pending[cookie]} failed with {error}"
        change = self.pending.pop(cookie)
        self.answered += 1
        if change is not None:
            self.image[change.offset : change.offset + change.length] = change.content
            self.touched.difference_update(change.blocks)

    def _change(self) -> Change:
        rng, kind = self.rng, self.rng.random()
        flags = nbd.NBD_CMD_FLAG_FUA if rng.random() < 0.02 else 0
        if kind < 0.04:
            count = rng.choice((1, 3, 64))
            first = rng.randrange(BLOCKS - count)
            command = rng.choice((nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES))
            return Change(command, first * BLOCK, count * BLOCK, b"", flags)
        if kind < 0.12:  # parts of blocks: read, modify, write
            count = rng.randrange(1, 20)
            first = rng.randrange(SIZE // SECTOR - count)
        else:  # the last choice crosses a record's end, often a chunk's
            count = 8 * rng.choice((*[1] * 24, *[4] * 8, *[16] * 8, 64, 600))
            first = 8 * rng.randrange(BLOCKS - count // 8)
        self.stamp += 1
        stamp = self.stamp.to_bytes(8, "big")
        payload = b"".join(
            stamp + (first + index).to_bytes(8, "big") * 63 for index in range(count)
        )
        return Change(nbd.NBD_CMD_WRITE, first * SECTOR, len(payload), payload, flags)

    # --- judgement ----------------------------------------------------------------------

    def read(self, machine: Machine) -> bytes:
        """Return the image as the server has it."""
        self.client = machine.open(self.name)
        assert self.client.size_bytes == SIZE
        return b"".join(self.client.read(at, MIB) for at in range(0, SIZE, MIB))

    def judge(self, found: bytes) -> None:
        """Accept what a node that was started again has, or fail and say what is wrong."""
        image = self.image
        stopped = False
        for change in self.pending.values():
            if change is None:
                continue
            start, stop = change.offset, change.offset + change.length
            done = _done_bytes(found[start:stop], bytes(image[start:stop]), change.content)
            if change.plain:
                assert not (stopped and done), f"{self.name}: a newer write without the older"
                stopped = stopped or done < change.length
            image[start : start + done] = change.content[:done]
        self.pending.clear()
        self.touched.clear()
        if image != found:
            at = next(i for i in range(0, SIZE, SECTOR) if image[i : i + 8] != found[i : i + 8])
            expected, seen = (int.from_bytes(b[at : at + 8], "big") for b in (image, found))
            pytest.fail(
                f"{self.name} at {at}: stamp {seen} in place of {expected}, {self.stamp} was last"
            )


def _done_bytes(found: bytes, old: bytes, new: bytes) -> int:
    """Return how much of a change was done, from its start on; the rest must be as before."""
    done = len(new)
    while done > 0 and (found[:done] != new[:done] or found[done:] != old[done:]):
        done -= SECTOR
    return done


def load_and_kill(node: Service, disks: list[Disk], rng: random.Random) -> None:
    """Write at random depths until a random reply, then kill; take the replies that are left."""
    depths = {disk.name: rng.choice((1, 4, 32, 64)) for disk in disks}
    for _ in range(rng.randrange(STEPS_MAX)):
        disk = rng.choice(disks)
        while len(disk.pending) < depths[disk.name]:
            disk.send()
        disk.receive()
    node.kill()
    for disk in disks:
        assert disk.client is not None
        try:
            while disk.pending:
                disk.receive()
        except ConnectionError:
            pass
        disk.client.close()


def start(machine: Machine, rng: random.Random) -> Service:
    """Start a node; sometimes it is killed while it starts, or while it recovers a volume."""
    interval = rng.choice(("50ms", "60s"))
    while True:
        node = machine.node("--checkpoint-interval", interval, size="1GiB", ready=False)
        if rng.random() < 0.9:
            node.wait_for("node.ready")
            return node
        if rng.random() < 0.5:
            node.wait_for("node.ready")
            try:
                client = machine.open("left")
                client.close()
            except ConnectionError:
                pass
        else:
            node.wait_for("")
        node.kill()


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine without a node."""
    with machine_in(socket_folder) as machine:
        yield machine


def test_killed_node_keeps_every_answered_write(machine: Machine, rng: random.Random) -> None:
    """Two volumes under load: after each kill both are as answered, and the check is clean."""
    disks = [Disk(name, random.Random(rng.random())) for name in ("left", "right")]
    for disk in disks:
        machine.run("volume", "create", disk.name, str(SIZE))
    began = time.monotonic()
    for _ in range(CYCLES):
        node = start(machine, rng)
        for disk in disks:
            disk.judge(disk.read(machine))
        load_and_kill(node, disks, rng)
    elapsed = time.monotonic() - began
    node = start(machine, rng)
    for disk in disks:
        disk.judge(disk.read(machine))
        assert disk.client is not None
        disk.client.close()
    node.stop()
    checked = machine.run("check", "-o", "json").document["check"]

    assert checked["ok"], checked
    answered = sum(disk.answered for disk in disks)
    print(f"{CYCLES} kills, {answered} answered requests, {elapsed / CYCLES:.3f} s a cycle")
    assert answered > CYCLES
