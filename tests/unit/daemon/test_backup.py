"""Backup streams between two clusters: every generation arrives, and nothing wrong ever does."""

import asyncio
import os
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from torus.clock import SystemClock
from torus.config import CommonConfig
from torus.daemon import backup_export, backup_files
from torus.daemon.backup import BackupReport
from torus.daemon.backup_export import export_diff
from torus.daemon.backup_import import import_diff
from torus.daemon.command import run_command
from torus.daemon.diff import Side, diff
from torus.daemon.disks import open_store
from torus.daemon.reach import attached, reach, volume_options
from torus.daemon.snapshot_work import opened
from torus.errors import (
    AlreadyExists,
    Busy,
    Corruption,
    Interrupted,
    NotFound,
    TorusError,
    UnknownVersion,
    UsageError,
)
from torus.limits import BLOCK_BYTES as BLOCK
from torus.limits import KIB, MIB
from torus.metadata.schema import Cluster
from torus.metadata.sqlite import SqliteMetadata
from torus.volume.attachment import Attachment
from torus.volume.catalog import Catalog
from torus.volume.reads import Reads

pytestmark = pytest.mark.slow
Work = Callable[[Attachment], Awaitable[None]]


def quiet(_done: int, _total: int | None) -> None:
    return None


@dataclass
class Place:
    """A cluster of one stopped node."""

    config: CommonConfig
    catalog: Catalog

    def work(self, name: str, work: Work) -> None:
        async def run() -> None:
            async with reach(self.config) as reached:
                options = volume_options(self.config)
                async with attached(reached, name, "test", options) as attachment:
                    await work(attachment)

        run_command(self.config, run())

    def write(self, name: str, *pieces: tuple[int, bytes]) -> None:
        async def work(attachment: Attachment) -> None:
            for offset, data in pieces:
                await attachment.volume.write(offset, data, durable=False)

        self.work(name, work)

    def snapshot(self, name: str, snap: str) -> None:
        async def work(attachment: Attachment) -> None:
            await attachment.snapshot(snap, 7)

        self.work(name, work)

    def content(self, name: str, snap: str) -> bytes:
        async def run() -> bytes:
            async with reach(self.config) as reached:
                async with opened(reached, name, snap, "test", MIB) as view:
                    return await Reads(view).read(0, view.snapshot.size_bytes)

        return run_command(self.config, run())

    def snapshots(self, name: str) -> dict[str, str]:
        return {one.name: one.uid for one in self.catalog.snapshots(name)}

    def export(
        self, name: str, snap: str, target: Path | str, base: str | None = None, **how: bool
    ) -> BackupReport:
        how = {"resume": False, "overwrite": False, **how}
        source = name, snap, base
        return export_diff(self.catalog, self.config, source, str(target), quiet, **how)

    def take(self, source: Path | str, name: str, *, rollback: bool = False) -> BackupReport:
        return import_diff(self.config, str(source), name, quiet, rollback=rollback)

    def diff(self, base: Side | None, to: Side) -> list[tuple[int, int, bool]]:
        report = diff(self.catalog, self.config, base, to, 7)
        return [(one.offset, one.length, one.mapped) for one in report.changes]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[list[Place]]:
    """Two clusters that know nothing of each other."""
    made, stores = [], []
    for number in (1, 2):
        home = tmp_path / f"cluster{number}"
        home.mkdir()
        config = CommonConfig(
            home, f"sqlite:{home}/meta.sqlite", home / "data", "error", "json", MIB
        )
        store = SqliteMetadata(str(home / "meta.sqlite"), SystemClock())
        stores.append(store)
        catalog = Catalog(store, SystemClock())
        cluster = catalog.init_cluster()

        async def format_disk(config: CommonConfig, cluster: Cluster) -> None:
            clock = SystemClock()
            disk = open_store(config.data_dir, cluster.cluster_id, clock, size_bytes=512 * MIB)
            await disk.close()

        asyncio.run(format_disk(config, cluster))
        made.append(Place(config, catalog))
    yield made
    for store in stores:
        store.close()


async def random_generation(
    rng: random.Random, place: Place, attachment: Attachment, content: bytearray
) -> bytearray:
    """Change a volume in every way; return what it holds then."""
    volume = attachment.volume
    if rng.random() < 0.4:
        size = rng.choice((3, 5, 6, 9)) * MIB + rng.choice((0, 0, 512, 7 * 512))
        place.catalog.resize(volume.name, size, shrink=True)
        await attachment.resize(size)
        content = content[:size] + bytes(max(size - len(content), 0))
    for _ in range(rng.choice((0, 1, 8, 30))):
        length = 512 * rng.choice((1, 3, 8, 8, 40, 300))
        offset = 512 * rng.randrange((len(content) - length) // 512 + 1)
        if rng.random() < 0.3:
            await volume.trim(offset, length, durable=False)
            data = bytes(length)
        else:
            data = rng.randbytes(length) if rng.random() < 0.9 else bytes(length)
            await volume.write(offset, data, durable=False)
        content[offset : offset + length] = data
    assert await volume.read(0, len(content)) == content
    return content


def generations(rng: random.Random, place: Place, count: int) -> list[bytes]:
    """Make vol@g0, vol@g1, ...; return what each holds."""
    place.catalog.create("vol", 6 * MIB)
    kept: list[bytes] = []

    async def work(attachment: Attachment) -> None:
        content = bytearray(6 * MIB)
        for number in range(count):
            content = await random_generation(rng, place, attachment, content)
            await attachment.snapshot(f"g{number}", 100 + number)
            kept.append(bytes(content))

    place.work("vol", work)
    return kept


def test_twenty_generations_arrive(places: list[Place], tmp_path: Path, rng: random.Random) -> None:
    """A full stream and nineteen differences; every snapshot is the same, its uid too."""
    source, target = places
    kept = generations(rng, source, 20)
    for number in range(20):
        path = tmp_path / f"{number}"
        source.export("vol", f"g{number}", path, f"g{number - 1}" if number else None)
        report = target.take(path, "copy")
        assert report.made == (number == 0)
        path.unlink()

    assert target.snapshots("copy") == source.snapshots("vol")
    for number, content in enumerate(kept):
        assert target.content("copy", f"g{number}") == content
        assert source.content("vol", f"g{number}") == content
    made = target.catalog.get_snapshot("copy", "g7").snapshot
    assert made.created_ns == source.catalog.get_snapshot("vol", "g7").snapshot.created_ns


def test_any_base_gives_the_same(places: list[Place], tmp_path: Path, rng: random.Random) -> None:
    """s1 to s2, s1 to s3, s2 to s3, backwards; each on the right base only."""
    source, target = places
    kept = generations(rng, source, 4)
    for snap, base in (("g1", None), ("g2", "g1"), ("g3", "g1"), ("g3", "g2"), ("g0", "g3")):
        source.export("vol", snap, tmp_path / f"{base}-{snap}", base)

    for name, chain in (
        ("straight", ("None-g1", "g1-g2", "g2-g3", "g3-g0")), ("leap", ("None-g1", "g1-g3")),
    ):  # fmt: skip
        for stream in chain:
            target.take(tmp_path / stream, name)
        for snap in target.snapshots(name):
            assert target.content(name, snap) == kept[int(snap[1:])]

    target.catalog.delete_snapshot("leap", "g3")
    with pytest.raises(NotFound, match=r"no snapshot with the uid .*'g2' of 'vol'.*has: g1$"):
        target.take(tmp_path / "g2-g3", "leap")
    with pytest.raises(NotFound, match="'new' does not exist, and the stream begins at"):
        target.take(tmp_path / "g1-g2", "new")
    assert [one.spec.name for one in target.catalog.list()] == ["leap", "straight"]


def test_a_stream_is_as_small_as_the_change(
    places: list[Place], tmp_path: Path, rng: random.Random
) -> None:
    """One block of 64 MiB costs one frame."""
    source, _ = places
    source.catalog.create("vol", 64 * MIB)
    source.write("vol", *((at * MIB, rng.randbytes(MIB)) for at in range(8)))
    source.snapshot("vol", "a")
    source.write("vol", (3 * MIB, rng.randbytes(BLOCK)))
    source.snapshot("vol", "b")
    report = source.export("vol", "b", tmp_path / "b", "a")

    assert (report.frames, report.data_bytes, report.zero_bytes) == (1, BLOCK, 0)
    assert (tmp_path / "b").stat().st_size < BLOCK + KIB
    assert source.diff(("vol", "a"), ("vol", "b")) == [(3 * MIB, BLOCK, True)]
    assert source.diff(("vol", "a"), ("vol", None)) == [(3 * MIB, BLOCK, True)]
    assert source.diff(None, ("vol", None)) == [(0, 8 * MIB, True)]
    assert source.diff(("vol", "b"), ("vol", None)) == []
    assert source.snapshots("vol").keys() == {"a", "b"}, "a temporary snapshot is left"
    with pytest.raises(UsageError, match="a difference from itself"):
        source.export("vol", "b", tmp_path / "c", "b")
    assert not (tmp_path / "c.partial").exists()


def test_volumes_without_a_common_log(places: list[Place]) -> None:
    """Everything would be a change: that is a mistake, not an answer."""
    source, _ = places
    for name in ("one", "two"):
        source.catalog.create(name, MIB)
        source.write(name, (0, b"x" * BLOCK))
        source.snapshot(name, "s")
    with pytest.raises(UsageError, match="'one@s' and 'two@s' have nothing in common"):
        source.diff(("one", "s"), ("two", "s"))
    source.catalog.clone("one", "s", "three", 7)
    assert source.diff(("one", "s"), ("three", None)) == []
    source.write("three", (BLOCK, b"y" * BLOCK))
    assert source.diff(("one", "s"), ("three", None)) == [(BLOCK, BLOCK, True)]
    assert source.diff(("three", None), ("one", "s")) == [(BLOCK, BLOCK, False)]


# --- what may not be put on ------------------------------------------------------------------


@pytest.fixture
def chain(places: list[Place], tmp_path: Path, rng: random.Random) -> tuple[Path, Path, bytes]:
    """vol@a and vol@b at the source, a at the target as `copy`; the two streams, b's bytes."""
    source, target = places
    source.catalog.create("vol", 4 * MIB)
    source.write("vol", (0, rng.randbytes(2 * MIB)))
    source.snapshot("vol", "a")
    data = rng.randbytes(MIB + 512 * KIB)
    source.write("vol", (MIB, data), (3 * MIB, b"z" * BLOCK))
    source.snapshot("vol", "b")
    full, step = tmp_path / "full", tmp_path / "step"
    source.export("vol", "a", full)
    source.export("vol", "b", step, "a")
    target.take(full, "copy")
    return full, step, source.content("vol", "b")


def test_a_changed_volume_is_refused_or_rolled_back(
    places: list[Place], chain: tuple[Path, Path, bytes]
) -> None:
    """Also one whose size alone was changed."""
    _, target = places
    _, step, expected = chain
    target.catalog.resize("copy", 8 * MIB)
    with pytest.raises(UsageError, match="was changed since snapshot 'a'"):
        target.take(step, "copy")
    assert target.catalog.get("copy").spec.size_bytes == 8 * MIB
    target.take(step, "copy", rollback=True)
    assert target.content("copy", "b") == expected

    target.catalog.delete_snapshot("copy", "b")
    with pytest.raises(UsageError, match="was changed since snapshot 'a'") as caught:
        target.take(step, "copy")
    assert "--rollback" in str(caught.value.hint)
    target.write("copy", (BLOCK, b"!" * BLOCK))
    target.take(step, "copy", rollback=True)
    assert target.content("copy", "b") == expected


def test_a_name_alone_is_no_base(places: list[Place], chain: tuple[Path, Path, bytes]) -> None:
    """Another snapshot may be called as the base is; its bytes are others."""
    _, target = places
    target.catalog.create("other", 4 * MIB)
    target.snapshot("other", "a")
    with pytest.raises(NotFound, match="has no snapshot with the uid"):
        target.take(chain[1], "other", rollback=True)


def test_what_is_there_is_not_imported_again(
    places: list[Place], chain: tuple[Path, Path, bytes]
) -> None:
    """A repeated import does nothing; another snapshot of that name stops it."""
    source, target = places
    full, step, expected = chain
    assert not target.take(step, "copy").present
    assert target.take(step, "copy").present
    assert target.take(full, "copy").present
    assert source.take(step, "vol").present
    target.write("copy", (0, b"later" + bytes(507)))
    assert target.take(step, "copy").present
    assert target.content("copy", "b") == expected

    target.catalog.delete_snapshot("copy", "b")
    target.snapshot("copy", "b")
    with pytest.raises(AlreadyExists, match="has another snapshot 'b'"):
        target.take(step, "copy")
    source.export("vol", "b", full.with_name("all"))
    target.catalog.delete_snapshot("copy", "b")
    with pytest.raises(UsageError, match="holds data or snapshots"):
        target.take(full.with_name("all"), "copy", rollback=True)


def test_an_empty_volume_takes_a_full_stream(
    places: list[Place], chain: tuple[Path, Path, bytes]
) -> None:
    """Whatever its size was."""
    _, target = places
    target.catalog.create("ready", MIB)
    assert not target.take(chain[0], "ready").made
    target.take(chain[1], "ready")
    assert target.content("ready", "b") == chain[2]


def test_an_attached_volume_is_refused(
    places: list[Place], chain: tuple[Path, Path, bytes]
) -> None:
    """Its clients would see it change under them."""
    _, target = places

    async def work(_attachment: Attachment) -> None:
        with pytest.raises(TorusError):
            await asyncio.to_thread(target.take, chain[1], "copy")

    target.work("copy", work)
    assert target.snapshots("copy").keys() == {"a"}


def cuts(size: int, rng: random.Random) -> list[int]:
    return sorted({*range(0, 400, 40), *(rng.randrange(size) for _ in range(12)), size - 1})


def test_a_damaged_file_changes_nothing(
    places: list[Place], chain: tuple[Path, Path, bytes], rng: random.Random
) -> None:
    """It is read to its end before the volume is touched."""
    _, target = places
    _, step, expected = chain
    good = step.read_bytes()
    bad = step.with_name("bad")
    for at in cuts(len(good), rng):
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        for content in (good[:at], bytes(changed), good + b"\0"):
            bad.write_bytes(content)
            with pytest.raises((Corruption, UnknownVersion), match="file "):
                target.take(bad, "copy")
            with pytest.raises((Corruption, UnknownVersion)):
                target.take(bad, "new")
    assert [one.spec.name for one in target.catalog.list()] == ["copy"]
    target.take(step, "copy")
    assert target.content("copy", "b") == expected


def piped(path: Path, content: bytes) -> Path:
    """Give a pipe that `content` comes through."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)

    def feed() -> None:
        with path.open("wb") as file:
            try:
                file.write(content)
            except BrokenPipeError:
                return

    threading.Thread(target=feed, daemon=True).start()
    return path


def test_a_damaged_pipe_leaves_no_snapshot(
    places: list[Place], chain: tuple[Path, Path, bytes], rng: random.Random
) -> None:
    """What came before the damage is in the volume; the message says how to go on."""
    _, target = places
    full, step, expected = chain
    good, pipe = step.read_bytes(), step.with_name("pipe")
    for at in (0, 100, 400, MIB // 2, MIB + 400, len(good) - 60, len(good) - 1):
        with pytest.raises(Corruption, match="is cut off") as caught:
            target.take(piped(pipe, good[:at]), "copy", rollback=True)
        assert target.snapshots("copy").keys() == {"a"}
        if at > MIB + 100:
            assert "between 'a' and 'b': import again with --rollback" in str(caught.value.hint)
            with pytest.raises(UsageError, match="or an import of it was interrupted"):
                target.take(step, "copy")
    target.take(piped(pipe, good), "copy", rollback=True)
    assert target.content("copy", "b") == expected

    with pytest.raises(Corruption, match="is cut off") as caught:
        target.take(piped(pipe, full.read_bytes()[:-1]), "half")
    assert "torus volume delete half" in str(caught.value.hint)
    assert target.snapshots("half") == {}


# --- files -----------------------------------------------------------------------------------


def test_an_export_is_resumed_where_it_stopped(
    places: list[Place], chain: tuple[Path, Path, bytes], rng: random.Random
) -> None:
    """From every cut on the same bytes come out, and what is there is not read again."""
    source, _ = places
    _, step, _ = chain
    good = step.read_bytes()
    path = step.with_name("again")
    partial = step.with_name("again.partial")
    head = good.index(b'"vol"}') + 10
    for at in [head, *[one for one in cuts(len(good), rng) if one > head], len(good)]:
        for junk in (b"", bytes(2 * len(good))):  # sizes can reach the disk before bytes do
            partial.write_bytes(good[:at] + junk)
            report = source.export("vol", "b", path, "a", resume=True)
            assert path.read_bytes() == good
            assert not partial.exists()
            assert (report.resumed_at > 0) == (at >= head + 28 + MIB)
            path.unlink()


def test_what_cannot_be_resumed(
    places: list[Place], chain: tuple[Path, Path, bytes], tmp_path: Path
) -> None:
    """Nothing there; another export's; not a stream; a pipe; a finished file in the way."""
    source, _ = places
    full, step, _ = chain
    with pytest.raises(NotFound, match="there is nothing to resume"):
        source.export("vol", "b", tmp_path / "x", "a", resume=True)
    partial = tmp_path / "x.partial"
    for content, problem in (
        (full.read_bytes(), "begun for other snapshots"), (b"", "is cut off"),
        (bytes(4096), "not a torus backup stream"),
    ):  # fmt: skip
        partial.write_bytes(content)
        with pytest.raises(Corruption, match=problem) as caught:
            source.export("vol", "b", tmp_path / "x", "a", resume=True)
        assert "without --resume" in str(caught.value.hint)
        assert partial.read_bytes() == content
    with pytest.raises(NotFound, match="keeps nothing"):
        source.export("vol", "b", "/dev/null", "a", resume=True)
    with pytest.raises(AlreadyExists, match="exists"):
        source.export("vol", "b", step, "a")
    source.export("vol", "b", tmp_path / "x", "a")
    assert (tmp_path / "x").read_bytes() == step.read_bytes()
    with pytest.raises(NotFound, match=r"folder .*/no does not exist"):
        source.export("vol", "b", tmp_path / "no/x", "a")


def test_one_export_to_a_file_at_a_time(
    places: list[Place], chain: tuple[Path, Path, bytes], tmp_path: Path
) -> None:
    """Two would write into each other's bytes."""
    source, _ = places
    header = backup_export._header(source.catalog, "vol", "b", "a")
    path = str(tmp_path / "x")
    with backup_files.open_target(path, header, resume=False, overwrite=False) as out:
        out.write([b"mine"])
        with pytest.raises(Busy, match="another export"):
            source.export("vol", "b", path, "a")
    assert (tmp_path / "x.partial").read_bytes().endswith(b"mine")


def test_an_export_that_fails_keeps_its_part(
    places: list[Place], chain: tuple[Path, Path, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A full disk, an interruption: the hint says --resume, and that works."""
    source, _ = places
    _, step, _ = chain
    path = tmp_path / "x"
    write = backup_files.Target.write
    for failure in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        calls = iter(range(10))

        def failing(
            out: backup_files.Target, pieces: list[bytes], failure: BaseException = failure,
            calls: object = calls,
        ) -> None:  # fmt: skip
            if next(calls) == 2:  # type: ignore[call-overload]
                raise failure
            write(out, pieces)

        monkeypatch.setattr(backup_files.Target, "write", failing)
        with pytest.raises((TorusError, Interrupted)) as caught:
            source.export("vol", "b", path, "a")
        monkeypatch.undo()
        assert "x.partial is kept: --resume" in str(caught.value.hint)
        assert not path.exists()
        assert source.export("vol", "b", path, "a", resume=True).resumed_at > 0
        assert path.read_bytes() == step.read_bytes()
        path.unlink()


def test_through_a_pipe(
    places: list[Place], chain: tuple[Path, Path, bytes], tmp_path: Path
) -> None:
    """The same bytes, and nothing beside them."""
    source, _ = places
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    source.export("vol", "b", pipe, "a")
    reader.join()
    assert got == [chain[1].read_bytes()]


def test_damaged_data_is_not_exported(
    places: list[Place], chain: tuple[Path, Path, bytes], tmp_path: Path
) -> None:
    """A block that rotted ends the export; it never gets a good checksum in a stream."""
    source, _ = places
    [segment] = sorted(source.config.data_dir.glob("segment-*.seg"))
    content = segment.read_bytes()
    at = content.index(b"z" * BLOCK)
    with segment.open("r+b") as file:
        file.seek(at + 100)
        file.write(b"!")
    with pytest.raises(Corruption, match="does not have the checksum"):
        source.export("vol", "b", tmp_path / "x", "a")
    assert not (tmp_path / "x").exists()


def test_a_snapshot_is_not_deleted_while_it_is_read(
    places: list[Place], chain: tuple[Path, Path, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither of the two; afterwards they may go."""
    source, _ = places
    refused: list[str] = []
    write = backup_files.Target.write

    def meanwhile(out: backup_files.Target, pieces: list[bytes]) -> None:
        if out.written_bytes:
            for snap in ("a", "b"):
                with pytest.raises(Busy, match="is read by backup"):
                    source.catalog.delete_snapshot("vol", snap)
                refused.append(snap)
        write(out, pieces)

    monkeypatch.setattr(backup_files.Target, "write", meanwhile)
    source.export("vol", "b", tmp_path / "x", "a")
    assert set(refused) == {"a", "b"}
    source.catalog.delete_snapshot("vol", "a")


@pytest.mark.parametrize("snap", ["a", "b"])
def test_a_snapshot_that_is_made_anew_is_another(
    snap: str, places: list[Place], chain: tuple[Path, Path, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Between the header and the first range: the header's uid would lie."""
    source, _ = places
    run = backup_export.run_command

    def later(config: CommonConfig, work: Any) -> Any:
        monkeypatch.undo()
        source.catalog.delete_snapshot("vol", snap)
        source.snapshot("vol", snap)
        return run(config, work)

    monkeypatch.setattr(backup_export, "run_command", later)
    with pytest.raises(Busy, match=f"'vol@{snap}' was deleted and made anew"):
        source.export("vol", "b", tmp_path / "x", "a")
    assert not (tmp_path / "x").exists()
