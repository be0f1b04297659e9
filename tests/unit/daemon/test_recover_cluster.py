"""`torus recover` of a cluster: the metadata store is gone, the disks of all nodes are there."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cluster.replicas import Replicas, SimNode, let_pass, run
from tests.unit.cluster.test_replicated import head_of, read_back, spans_of, write
from tests.unit.cluster.test_sharded_reads import encode, settled, written
from torus import limits
from torus.clock import SystemClock
from torus.daemon.findings import Findings
from torus.daemon.merged import MergedDisks
from torus.daemon.recover_cluster import recover_cluster
from torus.daemon.reports import RecoverReport
from torus.daemon.rings import current_ring, history
from torus.daemon.stopped import StoppedDisk
from torus.errors import AlreadyExists, Busy, ForeignData, UsageError
from torus.format.identity import IDENTITY_FILE
from torus.format.segment import segment_name
from torus.ids import ChunkId
from torus.metadata.base import Put
from torus.metadata.keys import CLUSTER, MEMBERS
from torus.metadata.schema import Cluster, Member
from torus.metadata.sqlite import SqliteMetadata
from torus.redundancy.scheme import erasure

Scenario = Callable[[Replicas], Awaitable[None]]


def _no_progress(_done: int, _total: int | None) -> None:
    return


def leave(node: SimNode, folder: Path) -> Path:
    """Write a node's disk, page cache included, as the files of a stopped one."""
    folder.mkdir()
    image = node.disk.image
    (folder / IDENTITY_FILE).write_bytes(node.identity.to_bytes())
    for name, content in image.files.items():
        (folder / name).write_bytes(content)
    for number, slots in image.segments.items():
        (folder / segment_name(number)).write_bytes(image.headers[number] + slots)
    return folder


class Lost:
    """A cluster of which only the disks are left."""

    def __init__(self, seed: int, nodes: str, path: Path, scenario: Scenario) -> None:
        """Live ``scenario``, then end everything at once and lose the metadata."""
        self._seed = seed
        self._nodes = nodes
        self.path = path
        self._images: dict[str, Any] = {}

        async def live(replicas: Replicas) -> None:
            await scenario(replicas)
            for name, node in replicas.nodes.items():
                leave(node, path / name)
                self._images[name] = node.disk.image.copy()

        run(seed, live, nodes=nodes)

    @property
    def url(self) -> str:
        return f"sqlite:{self.path / 'meta.sqlite'}"

    def recover(self, *without: str, **options: bool) -> RecoverReport:
        """Recover from all disks, or all but some."""
        dirs = [self.path / name for name in self._nodes if name not in without]
        return recover_cluster(dirs, self.url, _no_progress, **{"write": True, **options})

    @contextlib.contextmanager
    def store(self) -> Iterator[SqliteMetadata]:
        store = SqliteMetadata(str(self.path / "meta.sqlite"), SystemClock(), create=False)
        try:
            yield store
        finally:
            store.close()

    def go_on(self, scenario: Scenario) -> None:
        """Start all nodes with the new metadata."""
        with self.store() as store:
            entries = store.list_lasting().entries
            ring = current_ring(store)

        async def live(replicas: Replicas) -> None:
            await replicas.metadata.commit([], [Put(one.key, one.value) for one in entries])
            replicas.view._rings.clear()
            replicas.view.set_ring(ring)
            replicas.ring = ring
            for name, image in self._images.items():
                node = replicas.nodes[name]
                await node.store.close()
                node.boot_id += 1
                node._start(image)
            await scenario(replicas)

        run(self._seed + 1, live, nodes=self._nodes)


async def busy_life(replicas: Replicas) -> None:
    """Write through several spans, rings and a takeover; flush, then write a little more."""
    await replicas.create(2, 1)
    first = await replicas.attach(1)
    await write(first.volume, *range(40), flush=True)
    replicas.next_ring("a")
    await let_pass(5)
    replicas.next_ring()
    await let_pass(5)
    await write(first.volume, *range(40, 60))
    await first.volume.checkpointer.write()
    replicas.nodes["b"].kill()
    await write(first.volume, *range(60, 70), flush=True)
    replicas.nodes["b"].restart()
    replicas.nodes["b"].up = True
    second = await replicas.attach(2)
    await write(second.volume, *range(70, 100), flush=True)
    assert len((await head_of(replicas)).spans) > 3
    await write(second.volume, 100)


def test_a_volume_in_copies_comes_back_and_is_written_again(tmp_path: Path) -> None:
    """Through takeovers, losses and changes of the ring; nothing is written without being asked."""
    lost = Lost(1, "abc", tmp_path, busy_life)

    shown = lost.recover(write=False)
    assert not (tmp_path / "meta.sqlite").exists()
    report = lost.recover()

    assert (shown.ok, shown.written, report.ok, report.written) == (True, False, True, True)
    assert [one.outcome for one in report.volumes] == ["recovered"]
    assert [one.chunks for one in report.disks] == [one.chunks for one in shown.disks]

    async def after(replicas: Replicas) -> None:
        spans = (await head_of(replicas)).spans
        assert spans[-1].last is not None, "what is the log's end was found"
        attachment = await replicas.attach(3)
        await read_back(attachment.volume, *range(101))
        await write(attachment.volume, *range(0, 101, 3), *range(101, 140), flush=True)
        again = await replicas.attach(4)
        await read_back(again.volume, *range(140))
        newest = (await spans_of(replicas))[-1].ring
        assert newest > max(span.ring for span in spans)

    lost.go_on(after)


def test_the_new_ring_is_behind_all_that_the_logs_name(tmp_path: Path) -> None:
    """It would be taken for one of them: a disk that never had a chunk would be a witness of its
    deletion.  Every disk is a member."""
    lost = Lost(2, "abc", tmp_path, busy_life)
    lost.recover()
    with lost.store() as store:
        [stored] = history(store)
        members = [Member.from_bytes(one.value, one.key) for one in store.list(MEMBERS).entries]
        cluster = Cluster.from_bytes(store.get(CLUSTER).value, CLUSTER)  # type: ignore[union-attr]

    assert stored.ring.version == 4
    assert {one.disk_id for one in stored.ring.members} == {one.disk_id for one in members}
    assert {one.state for one in members} == {"in"}
    assert cluster.secret
    assert cluster.cluster_id == lost.recover(write=False).cluster_id


@pytest.mark.parametrize("without", ["", "a", "b", "c"])
def test_one_disk_of_two_copies_may_be_missing(tmp_path: Path, without: str) -> None:
    """What was flushed is there without any one disk."""

    async def life(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        attachment = await replicas.attach(1)
        await write(attachment.volume, *range(80), flush=True)

    lost = Lost(3, "abc", tmp_path, life)
    report = lost.recover(*without)
    assert [one.outcome for one in report.volumes] == ["recovered"]

    async def after(replicas: Replicas) -> None:
        for name in without:
            replicas.nodes[name].kill()
        attachment = await replicas.attach(3)
        await read_back(attachment.volume, *range(80))

    lost.go_on(after)


def test_too_few_disks_write_nothing(tmp_path: Path) -> None:
    """A directory that was forgotten is no reason to give volumes up."""
    lost = Lost(4, "abc", tmp_path, busy_life)

    report = lost.recover("a", "c")
    assert not report.ok
    assert not report.written
    assert report.volumes[0].outcome.startswith("not recoverable")
    assert not (tmp_path / "meta.sqlite").exists() or not _cluster(lost)

    report = lost.recover("a", "c", partial=True)
    assert report.written
    with lost.store() as store:
        assert [one.key for one in store.list("lost/").entries]


def _cluster(lost: Lost) -> bool:
    with lost.store() as store:
        return store.get(CLUSTER) is not None


@pytest.mark.parametrize("gone", ["", "af", "cd"])
def test_a_volume_in_shards_comes_back(tmp_path: Path, gone: str) -> None:
    """Chunks of closed spans that exist as shards alone, with as many lost as may be."""

    async def life(replicas: Replicas) -> None:
        second, chunks, _nodes = await settled(replicas)
        assert len(chunks) > 2
        assert not any(node.store.slots.get(chunks[0]) for node in replicas.nodes.values())
        await write(second.volume, *range(24, 30), flush=True)

    lost = Lost(5, "abcdef", tmp_path, life)
    report = lost.recover(*gone)
    assert [one.outcome for one in report.volumes] == ["recovered"]
    assert sum(one.shards for one in report.disks) > 0

    async def after(replicas: Replicas) -> None:
        attachment = await replicas.attach(3)
        await read_back(attachment.volume, *range(30))
        await write(attachment.volume, *range(30, 40), flush=True)
        again = await replicas.attach(4)
        await read_back(again.volume, *range(40))

    lost.go_on(after)


def test_too_few_shards_are_no_chunk(tmp_path: Path) -> None:
    """One disk too many is missing."""

    async def life(replicas: Replicas) -> None:
        await settled(replicas)

    lost = Lost(6, "abcdef", tmp_path, life)

    assert not lost.recover("a", "b", "c").ok
    assert lost.recover("a", "b").ok


def test_the_longest_right_copy_is_read(tmp_path: Path) -> None:
    """Short, damaged in different places, or complemented by shards."""
    chunks: list[ChunkId] = []

    async def life(replicas: Replicas) -> None:
        _, found = await written(replicas)
        chunks.extend(found)
        await encode(replicas, found[0], erasure(4, 2), keep=True)

    lost = Lost(7, "abcdef", tmp_path, life)
    whole = {}
    for chunk in chunks:
        with _merged(lost) as merged:
            whole[chunk] = merged.read_chunk(chunk)[limits.SLOT_HEADER_BYTES :]
    for place, chunk in enumerate(chunks[:2]):
        _rot(lost, chunk, spread=place == 1)
        with _merged(lost) as merged:
            assert merged.read_chunk(chunk)[limits.SLOT_HEADER_BYTES :] == whole[chunk]
            assert "chunk" in merged.where(merged.chunks[chunk])
            for other in chunks:  # more than are kept
                merged._kept.clear()
                assert merged.read_chunk(other)[limits.SLOT_HEADER_BYTES :] == whole[other]


@contextlib.contextmanager
def _merged(lost: Lost) -> Iterator[MergedDisks]:
    findings = Findings()
    disks = [StoppedDisk(lost.path / name, findings) for name in "abcdef"]
    try:
        yield MergedDisks(disks, findings)
    finally:
        for disk in disks:
            disk.close()


def _rot(lost: Lost, chunk: ChunkId, *, spread: bool) -> None:
    """Damage every copy of a chunk; ``spread``: each in another place."""
    count = 0
    for name in "abcdef":
        disk = StoppedDisk(lost.path / name, Findings())
        address = disk.chunks.get(chunk)
        segment_bytes = disk.geometry.segment_bytes
        disk.close()
        if address is None:
            continue
        segment, within = divmod(address, segment_bytes)
        at = limits.SEGMENT_HEADER_BYTES + within + 6000 + (count * 9000 if spread else 0)
        with (lost.path / name / segment_name(segment)).open("r+b") as file:
            file.seek(at)
            [byte] = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        count += 1
    assert count >= 2


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    """A store that is in use, a running node, disks of two clusters, one disk twice."""

    async def life(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        attachment = await replicas.attach(1)
        await write(attachment.volume, 0, flush=True)

    lost = Lost(8, "abc", tmp_path, life)
    running = StoppedDisk(tmp_path / "b", Findings())
    with pytest.raises(Busy, match="in use"):
        lost.recover()
    running.close()
    twice = [tmp_path / "a", _copy(tmp_path / "a", tmp_path / "copy")]
    with pytest.raises(UsageError, match="the same disk"):
        recover_cluster(twice, lost.url, _no_progress, write=True)
    foreign = _copy(tmp_path / "a", tmp_path / "foreign")
    made = StoppedDisk(foreign, Findings())
    other = replace(made.identity, cluster_id="ee" * 16, disk_id="ef" * 16)
    made.close()
    (foreign / IDENTITY_FILE).write_bytes(other.to_bytes())
    with pytest.raises(ForeignData, match="belongs to cluster"):
        recover_cluster([tmp_path / "a", foreign], lost.url, _no_progress, write=True)
    assert lost.recover().written
    with pytest.raises(AlreadyExists, match="not empty"):
        lost.recover()


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target
