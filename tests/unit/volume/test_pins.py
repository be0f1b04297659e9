"""The interval rule: a chunk that a snapshot may need is pinned."""

import json
import random
import zlib

import pytest

from torus.errors import Corruption, UnknownVersion
from torus.format.root import RootPayload, unpack_list
from torus.metadata.schema import RootRef, Snapshot
from torus.volume.pins import Pins

SEED = 20261122


def snapshot(number: int, sequence: int | None) -> Snapshot:
    root = None if sequence is None else RootRef(sequence, 512, 1024, number, sequence, 2048, 1)
    return Snapshot(1, number, f"s{number}", f"{number:032x}", 0, 1 << 20, root)


def test_without_snapshots_nothing_is_pinned() -> None:
    assert not Pins().pinned(1, 0)
    assert Pins().through == 0
    assert Pins().payload() == b""


def test_a_chunk_between_birth_and_death_is_pinned() -> None:
    """Born before the snapshot, died after it."""
    pins = Pins([snapshot(3, 10)])

    assert pins.pinned(10, 3)
    assert pins.pinned(1, 7)
    assert not pins.pinned(10, 2), "dead before the snapshot was made"
    assert not pins.pinned(11, 3), "born after the snapshot"
    assert pins.through == 10


def test_a_snapshot_without_a_root_pins_nothing() -> None:
    """It reads as zeroes, or through its base."""
    pins = Pins([snapshot(1, None)])

    assert not pins.pinned(1, 1)
    assert pins.through == 0


def test_the_payload_is_read_back() -> None:
    pins = Pins([snapshot(1, 5)]).with_snapshot(snapshot(2, 9))
    packed = RootPayload(b"", b"{}", b"{}", snapshots=pins.payload()).pack()

    values = unpack_list(RootPayload.unpack(packed, "").snapshots, "")
    assert [
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode() for value in values
    ] == [one.to_bytes() for one in pins]
    assert pins.without([1]).payload() == Pins([snapshot(2, 9)]).payload()
    assert pins.payload(snapshot(3, None)) == pins.with_snapshot(snapshot(3, None)).payload()
    for bad in (b"x", pins.payload()[:-3], zlib.compress(b"{}"), zlib.compress(b"[")):
        with pytest.raises(Corruption):
            unpack_list(bad, "root")


@pytest.mark.parametrize("round_number", range(40))
def test_what_a_snapshot_reads_is_pinned(round_number: int) -> None:
    """A random life of a log: chunks are born, die, are found dead late; snapshots come and go."""
    rng = random.Random(SEED + round_number)
    born = 0
    alive: set[int] = set()
    found_dead: dict[int, int] = {}  # chunk -> era
    unfound: set[int] = set()
    reads: dict[int, set[int]] = {}  # snapshot number -> chunks that it reads
    snapshots: dict[int, Snapshot] = {}
    newest = 0
    for _ in range(400):
        match rng.randrange(6):
            case 0 | 1:
                born += 1
                alive.add(born)
            case 2 if alive:
                dying = rng.choice(sorted(alive))
                alive.remove(dying)
                unfound.add(dying)
            case 3:  # a checkpoint finds some of the dead
                for chunk in sorted(unfound):
                    if rng.random() < 0.7:
                        unfound.remove(chunk)
                        found_dead[chunk] = newest
            case 4:
                newest += 1
                born += 1  # the root lies in a chunk of its own
                reads[newest] = set(alive)
                snapshots[newest] = snapshot(newest, born)
            case 5 if snapshots:
                gone = rng.choice(sorted(snapshots))
                del snapshots[gone], reads[gone]
        pins = Pins(snapshots.values())
        needed = set().union(*reads.values()) if reads else set()
        for chunk, era in found_dead.items():
            assert pins.pinned(chunk, era) or chunk not in needed, (SEED, round_number)


def test_stored_values_are_read_together() -> None:
    """And kept, so that they are not written out again for every root record."""
    snapshots = [snapshot(number, number) for number in (3, 1, 2)]
    pins = Pins.read([one.to_bytes() for one in snapshots], "here")

    assert [one.number for one in pins] == [1, 2, 3]
    assert pins.payload() == Pins(snapshots).payload()
    assert Pins.read([], "here").payload() == b""


@pytest.mark.parametrize(
    "bad",
    [b"{}", b"[]", b"1", b'{"format":2}', b'{"format":1}', b'{"format":1},{"format":1}', b"{"],
)
def test_a_stored_value_that_is_no_snapshot_is_named(bad: bytes) -> None:
    good = snapshot(1, 5).to_bytes()
    with pytest.raises((Corruption, UnknownVersion), match="here"):
        Pins.read([good, bad], "here")
