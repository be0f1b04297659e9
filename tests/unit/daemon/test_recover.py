"""`torus recover`: lost metadata is made anew, and nothing that was flushed is lost."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torus import limits
from torus._fast.record import KIND_PAGES, KIND_ROOT
from torus.clock import SystemClock
from torus.daemon.offline import recover
from torus.daemon.recover_meta import replace_store
from torus.daemon.slotwalk import walk
from torus.errors import Busy, ConfigError, ForeignData, NotFound, UsageError
from torus.metadata.keys import CLUSTER, NEXT_VOLUME, head_key, name_key, spec_key
from torus.metadata.schema import Cluster, Head, NameRef, NextVolume, VolumeSpec
from torus.metadata.sqlite import SqliteMetadata
from torus.store.disk import PosixDisk
from torus.testing.crash import Known

Work = Callable[..., Any]
SLOT = 64 * limits.KIB


def _outcomes(report: Any) -> dict[str, str]:
    return {one.name: one.outcome for one in report.volumes}


def _lose_metadata(directory: Any) -> None:
    for path in directory.meta_path.parent.glob("meta.sqlite*"):
        path.unlink()


# --- everything comes back --------------------------------------------------------------


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("end", ["killed", "detached", "filled"])
def test_recover_brings_back_every_answered_byte(
    work: Work, tmp_path: Path, number: int, end: str
) -> None:
    """After the death of the process and the loss of the store all that was answered is there."""
    past = work(200 + number, volumes=1 + number % 3, end=end, resize=False, punch=number % 2 == 0)
    directory = past.leave(tmp_path)
    _lose_metadata(directory)

    report = directory.recover()

    assert set(_outcomes(report).values()) == {"recovered"}
    assert report.ok
    assert directory.check().ok
    found = past.attach_all(directory, past.world.disk.image, punch=number % 2 == 0)
    assert len(found) == len(report.volumes)
    for recorder in past.recorders:
        if recorder.name in found:
            content, _ = found[recorder.name]
            assert content == recorder.history.content[: len(content)]
            assert len(content) > 0
        else:
            assert not any(recorder.history.content), "a volume without records is not in the log"


@pytest.mark.slow
def test_recover_after_crashes_at_any_moment(
    work: Work, tmp_path: Path, directory_of: Work, seed: int
) -> None:
    """What a power loss or a kill must leave is there, and it is a prefix."""
    rng = random.Random(f"{seed}:recover")
    images = 0
    for number in range(4):
        past = work(300 + number, volumes=1 + number % 2, resize=False, punch=number % 2 == 0)
        histories = {recorder.name: recorder.history for recorder in past.recorders}
        for moment, promise, image in past.images(rng, 20):
            images += 1
            directory = directory_of(tmp_path / str(images), image, None)
            report = directory.recover()
            found = past.attach_all(directory, image, punch=number % 2 == 0)
            for name, history in histories.items():
                known = moment.known.get(name, Known())
                least = getattr(known, promise)
                content, lsn = found.get(name, (bytes(4096), 0))
                assert history.find(content, least, known.issued, lsn) is not None, (
                    f"workload {number} before event {moment.number}: {name} {report.volumes}"
                )
            shutil.rmtree(directory.data_dir.parent)

    assert images > 25


def test_recover_counts_what_was_written_beyond_the_last_known_size(
    work: Work, tmp_path: Path
) -> None:
    """A volume that grew after the last copy of its specification keeps what was written there."""
    past = work(5, volumes=1, end="grown", resize=False)
    directory = past.leave(tmp_path)
    _lose_metadata(directory)

    report = directory.recover()

    assert _outcomes(report) == {"v0": "recovered"}
    [volume] = report.volumes
    content, _ = past.attach_all(directory, past.world.disk.image)["v0"]
    assert volume.size_bytes == len(content) == limits.MIB
    assert content == past.recorders[0].history.content


def test_recover_keeps_the_epoch_above_every_writer(work: Work, tmp_path: Path) -> None:
    """The next attach gets an epoch that no chunk and no fence has seen."""
    past = work(6, volumes=1, end="killed", resize=False)
    directory = past.leave(tmp_path)
    with directory.metadata() as store:
        before = Head.from_bytes(store.get(head_key(1)).value, "")
    _lose_metadata(directory)

    [volume] = directory.recover().volumes

    with directory.metadata() as store:
        after = Head.from_bytes(store.get(head_key(1)).value, "")
        assert NextVolume.from_bytes(store.get(NEXT_VOLUME).value, "").next_id >= 2
    assert after.epoch == volume.epoch == before.epoch
    assert after.owner is None
    assert after.spans[-1].last is None, "the next attach walks to the log's end"


# --- damage -----------------------------------------------------------------------------


@pytest.fixture
def lost(work: Work, tmp_path: Path) -> Any:
    """Two volumes, detached; the metadata is gone."""
    directory = work(7, volumes=2, end="filled", resize=False).leave(tmp_path)
    _lose_metadata(directory)
    return directory


def test_recover_passes_over_a_rotten_copy(work: Work, tmp_path: Path) -> None:
    """When the newest copy of the head is damaged an older one serves, if its map is there."""
    outcomes = []
    for number in range(20, 27):
        past = work(number, steps=4, volumes=1, end="checkpointed twice", resize=False)
        directory = past.leave(tmp_path / str(number))
        with directory.metadata() as store:
            root = Head.from_bytes(store.get(head_key(1)).value, "").root
        _lose_metadata(directory)
        places = {chunk.sequence: at for chunk, at in directory.chunks().items()}
        rotten = places[root.sequence] + root.offset + root.size - 600
        directory.flip(directory.segment(), rotten)
        [volume] = directory.recover().volumes
        outcomes.append(volume.outcome.partition(":")[0])
        if volume.outcome == "recovered":
            image = past.world.disk.image.copy()
            image.segments[0][rotten - limits.SEGMENT_HEADER_BYTES] ^= 1
            content, _ = past.attach_all(directory, image)["v0"]
            assert content == past.recorders[0].history.content[: len(content)]

    assert set(outcomes) <= {"recovered", "not recoverable"}
    assert outcomes.count("recovered") >= 2, outcomes


def test_recover_prefers_an_older_copy_whose_map_is_whole(work: Work, tmp_path: Path) -> None:
    """A rotten map page of the newest checkpoint is no loss while the one before leads there."""
    outcomes = []
    for number in range(20, 27):
        past = work(number, steps=4, volumes=1, end="checkpointed twice", resize=False)
        directory = past.leave(tmp_path / str(number))
        _lose_metadata(directory)
        chunk, at = max(directory.chunks().items())
        kinds: list[tuple[int, int, int]] = []

        def note(reader: Any, kinds: list[tuple[int, int, int]] = kinds) -> None:
            kinds.append((reader.kind, reader.offset + reader.header_bytes, reader.end))

        walk(directory.segment().read_bytes()[at : at + SLOT], chunk, at, note)
        roots = [place for place, (kind, _, _) in enumerate(kinds) if kind == KIND_ROOT]
        if len(roots) < 2:
            continue
        leaves = next(
            start for kind, start, _ in kinds[roots[-2] : roots[-1]] if kind == KIND_PAGES
        )
        directory.flip(directory.segment(), at + leaves + 20)
        [volume] = directory.recover().volumes
        outcomes.append(volume.outcome)

    assert len(outcomes) >= 2
    assert set(outcomes) == {"recovered"}


def test_recover_does_not_fall_back_behind_a_flush(work: Work, tmp_path: Path) -> None:
    """An epoch that lost the copy of its head, and flushed, is not passed over in silence."""
    directory = work(30, steps=10, volumes=1, end="reattached", resize=False).leave(tmp_path)
    _lose_metadata(directory)
    assert directory.recover().ok
    newest = max(chunk.epoch for chunk in directory.chunks())
    [first] = [at for chunk, at in directory.chunks().items() if chunk.epoch == newest]
    directory.flip(directory.segment(), first + limits.SLOT_HEADER_BYTES + 8)

    [volume] = directory.recover(force=True).volumes

    assert volume.outcome.startswith("not recoverable: its log ends at lsn ")
    assert "was flushed" in volume.outcome


def test_recover_tells_of_damaged_blocks(lost: Any) -> None:
    """A volume with a rotten block comes back, and is not called whole."""
    data = lost.segment().read_bytes()
    outcomes = set()
    for chunk, at in sorted(lost.chunks().items()):
        if chunk.volume != 1:
            continue
        seen = walk(data[at : at + SLOT], chunk, at)
        if seen.records > 1:
            lost.flip(lost.segment(), at + seen.end // 2)
            [one] = [v for v in lost.recover(force=True).volumes if v.volume == 1]
            outcomes.add(one.outcome[: len("recovered, but")])
            lost.flip(lost.segment(), at + seen.end // 2)

    assert "recovered, but" in outcomes
    assert lost.recover(force=True).ok


def test_recover_refuses_a_volume_whose_chunks_are_gone(lost: Any) -> None:
    """A deletion that was under way: what remains is not passed off as the volume."""
    chunks = sorted((chunk, at) for chunk, at in lost.chunks().items() if chunk.volume == 1)
    for chunk, at in chunks[:-1]:
        if chunk.sequence % 2:
            lost.write(lost.segment(), at, bytes(1024))

    report = lost.recover()

    [one] = [one for one in report.volumes if one.volume == 1]
    assert one.outcome.startswith("not recoverable: ")
    assert not report.ok
    [other] = [one for one in report.volumes if one.volume == 2]
    assert other.outcome == "recovered"
    with lost.metadata() as store:
        assert store.get(spec_key(1)) is None
        assert NextVolume.from_bytes(store.get(NEXT_VOLUME).value, "").next_id >= 3


def test_recover_without_any_copy_says_so(lost: Any) -> None:
    """Only chunks without a copy of the head are left."""
    for number, path in enumerate(lost.segments()):
        data = path.read_bytes()
        for chunk, at in lost.chunks(number).items():
            if chunk.volume == 1 and walk(data[at : at + SLOT], chunk, at).heads:
                lost.write(path, at, bytes(1024))

    outcomes = {one.volume: one.outcome for one in lost.recover().volumes}

    assert outcomes[1] == "not recoverable: no copy of its head is left in its chunks"


# --- what is there already --------------------------------------------------------------


def test_recover_refuses_a_healthy_store(work: Work, tmp_path: Path) -> None:
    """There is nothing to recover, and nothing is changed; force rebuilds all the same."""
    past = work(10, volumes=2, end="detached", resize=False)
    directory = past.leave(tmp_path)
    before = directory.meta_path.read_bytes()

    with pytest.raises(UsageError, match="healthy"):
        directory.recover()

    assert directory.meta_path.read_bytes() == before
    report = directory.recover(force=True)
    assert _outcomes(report) == {"v0": "recovered", "v1": "recovered"}
    assert report.old_meta_kept_at is not None
    assert report.old_meta_kept_at.exists()
    assert directory.check().ok


def test_recover_keeps_a_damaged_store_aside(work: Work, tmp_path: Path) -> None:
    """The old file has the same bytes under its new name, with its log."""
    directory = work(11, volumes=2, end="detached", resize=False).leave(tmp_path)
    garbled = directory.meta_path.read_bytes()[:4096] + b"\xa5" * 9000
    directory.meta_path.write_bytes(garbled)
    Path(f"{directory.meta_path}-wal").write_bytes(b"a log")

    report = directory.recover()

    assert _outcomes(report) == {"v0": "recovered", "v1": "recovered"}
    kept = report.old_meta_kept_at
    assert kept is not None
    assert kept.read_bytes() == garbled
    assert directory.check().ok
    assert sorted(path.name for path in tmp_path.iterdir() if "sqlite" in path.name) == sorted(
        {directory.meta_path.name, kept.name, f"{kept.name}-wal"}
        & {path.name for path in tmp_path.iterdir()}
    )


def test_recover_brings_an_older_store_up_to_date(work: Work, tmp_path: Path) -> None:
    """A restored backup knows an old head of one volume and nothing of another."""
    past = work(12, volumes=3, end="detached", resize=False)
    directory = past.leave(tmp_path)
    with directory.metadata() as store:
        head = Head.from_bytes(store.get(head_key(1)).value, "")
        known = store.get(head_key(2)).value
    directory.put(
        {
            head_key(1): replace(head, epoch=0, spans=(), root=None).to_bytes(),
            spec_key(3): None,
            head_key(3): None,
            name_key("v2"): None,
        }
    )

    report = directory.recover()

    assert _outcomes(report) == {"v0": "recovered", "v1": "already known", "v2": "recovered"}
    with directory.metadata() as store:
        assert store.get(head_key(2)).value == known
    found = past.attach_all(directory, past.world.disk.image)
    for recorder in past.recorders:
        content, _ = found[recorder.name]
        assert content == recorder.history.content[: len(content)]


def test_recover_keeps_known_volumes_without_data(work: Work, tmp_path: Path) -> None:
    """A volume that nobody wrote to is in no log; the store that knows it is not thrown away."""
    directory = work(13, volumes=1, end="detached", resize=False).leave(tmp_path)
    spec = VolumeSpec(9, "empty", 4096, "replica:1", 1)
    directory.put(
        {
            spec_key(9): spec.to_bytes(),
            head_key(9): Head(0, None, (), None).to_bytes(),
            name_key("empty"): NameRef(9).to_bytes(),
            NEXT_VOLUME: NextVolume(10).to_bytes(),
        }
    )

    report = directory.recover(force=True)

    assert _outcomes(report) == {"v0": "recovered", "empty": "already known"}
    with directory.metadata() as store:
        assert NextVolume.from_bytes(store.get(NEXT_VOLUME).value, "").next_id == 10


def test_recover_gives_every_volume_a_name_of_its_own(work: Work, tmp_path: Path) -> None:
    """A volume found in the log does not push out one of the same name that is known."""
    directory = work(14, volumes=2, end="detached", resize=False).leave(tmp_path)
    with directory.metadata() as store:
        spec = VolumeSpec.from_bytes(store.get(spec_key(1)).value, "")
    directory.put(
        {
            spec_key(1): replace(spec, name="v1").to_bytes(),
            name_key("v0"): None,
            name_key("v1"): NameRef(1).to_bytes(),
            spec_key(2): None,
            head_key(2): None,
        }
    )

    report = directory.recover()

    assert _outcomes(report) == {"v1": "already known", "v1-recovered-2": "recovered"}
    assert directory.check().ok


def test_recover_refuses_another_clusters_store(work: Work, tmp_path: Path) -> None:
    """A store that is merely the wrong one is never moved aside."""
    directory = work(15, end="detached").leave(tmp_path)
    directory.put({CLUSTER: Cluster("33" * 16, 1).to_bytes()})

    for force in (False, True):
        with pytest.raises(ForeignData, match="belongs to cluster 3333"):
            directory.recover(force=force)


def test_recover_refuses_what_it_cannot_do(work: Work, tmp_path: Path) -> None:
    """A running node, a directory that is none, a store that is no file."""
    directory = work(16, end="detached").leave(tmp_path)
    disk = PosixDisk(directory.data_dir)
    with pytest.raises(Busy):
        directory.recover()
    disk.close()
    with pytest.raises(NotFound):
        replace(directory, data_dir=tmp_path / "nowhere").recover()
    with pytest.raises(ConfigError):
        recover(directory.data_dir, "memory:", lambda done, total: None)


# --- the store's file -------------------------------------------------------------------


def test_replace_store_never_writes_over_an_older_one(tmp_path: Path) -> None:
    """Two recoveries within a second keep two files."""
    path = tmp_path / "meta.sqlite"
    values = {f"volumes/{number:04}/spec": bytes(70_000) for number in range(40)}

    kept = [replace_store(path, values, SystemClock()) for _ in range(3)]

    assert kept[0] is None
    assert len({*kept}) == 3
    assert all(one.exists() for one in kept if one is not None)
    store = SqliteMetadata(str(path), SystemClock(), create=False)
    assert {entry.key: entry.value for entry in store.list("volumes/").entries} == values
    store.close()
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
