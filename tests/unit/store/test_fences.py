"""The fences file: durable, refusing older epochs, whole after any failure."""

import errno
import random

import pytest

from torus.errors import Corruption, Fenced
from torus.store.fences import FENCES_FILE, Fences
from torus.testing.faults import FaultyDisk
from torus.testing.simdisk import SimDisk


def _load(disk: SimDisk) -> Fences:
    fences = Fences(disk)
    fences.load()
    return fences


def test_advance_is_durable_and_refuses_what_is_older() -> None:
    """Also after the disk was opened again."""
    disk = SimDisk()
    fences = _load(disk)
    fences.advance(1, 5)
    fences.advance(1, 5)
    fences.advance(2, 1)
    again = _load(disk)
    assert (again.get(1), again.get(2), again.get(3)) == (5, 1, 0)
    again.check(1, 5)
    for refuse in (again.check, again.advance):
        with pytest.raises(Fenced):
            refuse(1, 4)


def test_torn_last_entry_is_dropped_wherever_it_is_torn() -> None:
    """It was never answered."""
    disk = SimDisk()
    fences = _load(disk)
    fences.advance(1, 5)
    whole = disk.image.files[FENCES_FILE]
    fences.advance(1, 6)
    torn = disk.image.files[FENCES_FILE]
    for size in range(len(whole), len(torn)):
        disk.image.files[FENCES_FILE] = torn[:size]
        again = _load(disk)
        assert again.get(1) == 5
        again.advance(1, 7)
        assert _load(disk).get(1) == 7


def test_any_flipped_bit_before_the_last_entry_is_corruption() -> None:
    """An epoch that is lost would let an old writer in."""
    disk = SimDisk()
    fences = _load(disk)
    fences.advance(1, 5)
    fences.advance(2, 9)
    data = disk.image.files[FENCES_FILE]
    for bit in range(len(data) // 2 * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        disk.image.files[FENCES_FILE] = bytes(flipped)
        with pytest.raises(Corruption):
            _load(disk)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 1.0])
def test_append_without_space_leaves_no_torn_entry_in_the_middle(part: float) -> None:
    """The next fence is written over what the failed one left."""
    disk = FaultyDisk.over(SimDisk())
    fences = _load(disk)
    fences.advance(1, 5)
    disk.fail("append_file", 1, errno.ENOSPC, part=part)
    with pytest.raises(OSError, match="planned"):
        fences.advance(1, 6)
    assert fences.get(1) == 5
    fences.advance(2, 3)
    fences.advance(1, 8)
    again = _load(disk)
    assert (again.get(1), again.get(2)) == (8, 3)


def test_file_is_rewritten_when_it_has_grown(rng: random.Random) -> None:
    """It stays in proportion to the volumes."""
    disk = SimDisk()
    fences = _load(disk)
    for epoch in range(1, 3000):
        fences.advance(rng.randrange(3), epoch)
    again = _load(disk)
    assert len(disk.image.files[FENCES_FILE]) == 3 * 16
    assert [again.get(volume) for volume in range(3)] == [fences.get(volume) for volume in range(3)]
