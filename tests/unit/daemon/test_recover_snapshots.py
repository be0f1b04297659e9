"""`torus recover` brings back snapshots and the bonds of clones."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torus import limits
from torus.daemon.recover_snapshots import Bonds, read_snapshots
from torus.errors import Corruption
from torus.format.root import pack_list
from torus.metadata.keys import SNAPSHOTS
from torus.metadata.schema import (
    THIS_RECORD,
    Base,
    Head,
    RootRef,
    Snapshot,
    Span,
    Value,
    VolumeSpec,
)
from torus.testing.world import World

Work = Callable[..., Any]
ROOT = RootRef(3, 512, 1024, 9, 4, 2048, 1)
HEAD = Head(1, None, (Span(1, 0, 1, 4, 2048),), ROOT)


def spec(volume: int) -> VolumeSpec:
    return VolumeSpec(volume, f"v{volume}", limits.MIB, "replica:1", 7)


def snapshot(volume: int, number: int, **fields: Any) -> Snapshot:
    made = Snapshot(volume, number, f"s{number}", f"u{number}", 5, limits.MIB, ROOT)
    return replace(made, **fields)


def listed(*snapshots: Value) -> bytes:
    return pack_list([one.to_bytes() for one in snapshots])


# --- the list ---------------------------------------------------------------------------


def test_a_snapshot_that_the_record_makes_gets_it_as_root() -> None:
    older, empty = snapshot(1, 1), snapshot(1, 2, root=None)
    made = snapshot(1, 3, root=THIS_RECORD)
    here = replace(ROOT, sequence=9)

    found = read_snapshots(listed(older, empty, made), "here", here)

    assert found == [older, empty, replace(made, root=here)]
    assert read_snapshots(b"", "here", here) == []


def test_a_damaged_list_is_named() -> None:
    for data in (b"{", pack_list([b"1"]), pack_list([b'{"format":1}']), listed(HEAD)[:-1]):
        with pytest.raises(Corruption, match="here"):
            read_snapshots(data, "here", ROOT)


# --- the bonds --------------------------------------------------------------------------


def test_clones_are_counted_anew() -> None:
    bonds = Bonds()
    bonds.add(spec(1), replace(HEAD, newest_snapshot=1), [snapshot(1, 1, clones=(7, 8))])
    bonds.add(spec(2), replace(HEAD, base=Base(1, 1)), [])
    bonds.add(spec(3), replace(HEAD, newest_snapshot=1), [snapshot(3, 1, base=Base(1, 1))])
    bonds.settle()

    assert [one.clones for one in bonds.snapshots()] == [(2, 3), ()]


def test_a_snapshot_made_since_the_newest_root_is_inferred() -> None:
    bonds = Bonds()
    bonds.add(spec(1), replace(HEAD, newest_snapshot=1), [snapshot(1, 1)])
    bonds.add(spec(2), replace(HEAD, base=Base(1, 2)), [])

    origin = bonds.origin(Base(1, 2))
    bonds.settle()

    assert (origin.root, origin.member) == (ROOT, 1)
    assert [(one.number, one.clones) for one in bonds.snapshots()] == [(1, ()), (2, (2,))]
    assert bonds.heads[1].newest_snapshot == 2


def test_an_origin_that_did_not_come_back_is_named() -> None:
    bonds = Bonds()
    bonds.add(spec(1), replace(HEAD, newest_snapshot=3), [])

    with pytest.raises(Corruption, match="snapshot number 2 of volume id 1"):
        bonds.origin(Base(1, 2))
    with pytest.raises(Corruption, match="volume id 9"):
        bonds.origin(Base(9, 1))


# --- a whole machine --------------------------------------------------------------------


async def _family(rng: random.Random) -> tuple[World, dict[str, bytes]]:
    world = World(rng)
    world.store.open()
    await world.catalog.init_cluster()
    await world.catalog.create("a", limits.MIB)
    attachment = await world.attach("a")
    await attachment.volume.write(0, rng.randbytes(300 * limits.KIB), durable=True)
    await attachment.snapshot("s", 5)
    await attachment.volume.write(0, rng.randbytes(100 * limits.KIB), durable=True)
    await attachment.snapshot("t", 6)
    await attachment.detach()
    await world.catalog.clone("a", "s", "b", 7)
    clone = await world.attach("b")
    await clone.volume.write(64 * limits.KIB, rng.randbytes(64 * limits.KIB), durable=True)
    content = {"b": await clone.volume.read(0, limits.MIB)}
    await clone.detach()
    await world.stop()
    return world, content


def test_a_family_comes_back(tmp_path: Path, directory_of: Work, seed: int) -> None:
    world, content = asyncio.run(_family(random.Random(seed)))
    directory = directory_of(tmp_path, world.disk.image, world.metadata.snapshot())
    before = {k: e.value for k, e in world.metadata.snapshot()[1].items() if SNAPSHOTS in k}
    for path in directory.meta_path.parent.glob("meta.sqlite*"):
        path.unlink()

    report = directory.recover()

    assert [one.outcome for one in report.volumes] == ["recovered", "recovered"]
    with directory.metadata() as store:
        after = {entry.key: entry.value for entry in store.list(SNAPSHOTS).entries}
        every = {key: store.get(key) for key in world.metadata.snapshot()[1]}
    assert _without_replay(after) == _without_replay(before)

    async def read() -> bytes:
        found = {key: entry for key, entry in every.items() if entry}
        found |= _entries(directory)
        again = World(random.Random(1), image=world.disk.image, snapshot=(1000, found))
        again.store.open()
        attachment = await again.attach("b")
        data = await attachment.volume.read(0, limits.MIB)
        await again.stop()
        return data

    assert asyncio.run(read()) == content["b"]


def _without_replay(values: dict[str, bytes]) -> dict[str, Snapshot]:
    """Return snapshots without what only an attach of the newest root asks for."""
    found = {}
    for key, value in values.items():
        one = Snapshot.from_bytes(value, key)
        assert one.root is not None
        root = RootRef(one.root.sequence, one.root.offset, one.root.size, 0, 0, 0, 0)
        found[key] = replace(one, root=root)
    return found


def _entries(directory: Any) -> dict[str, Any]:
    with directory.metadata() as store:
        return {entry.key: entry for entry in store.list(SNAPSHOTS).entries}
