"""`torus check`: a healthy store is never called damaged, a damaged one never fine."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torus import limits
from torus._fast.crc import checksum
from torus.daemon.findings import FINDINGS_MAX, Findings
from torus.daemon.offline import check_store
from torus.daemon.slotwalk import walk
from torus.errors import Busy, ConfigError, Corruption, NotFound, UsageError
from torus.format.identity import IDENTITY_FILE
from torus.format.logend import headers_beyond
from torus.format.record import HEADER
from torus.format.segment import FREED_SLOT, UNUSED_SLOT, SegmentHeader, SlotHeader
from torus.ids import ChunkId
from torus.metadata.keys import CLUSTER, NEXT_VOLUME, head_key, lost_key, name_key, spec_key
from torus.metadata.schema import Cluster, Head, NameRef, NextVolume, VolumeSpec
from torus.store.disk import PosixDisk
from torus.store.fences import FENCES_FILE

Work = Callable[..., Any]
SLOT = 64 * limits.KIB


def _no_progress(done: int, total: int | None) -> None:
    return


def _kinds(report: Any) -> set[str]:
    return {finding.kind for finding in report.findings if finding.severity == "error"}


# --- healthy stores ---------------------------------------------------------------------


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("end", ["killed", "flushed", "detached"])
def test_check_of_a_healthy_store_finds_nothing(
    work: Work, tmp_path: Path, number: int, end: str
) -> None:
    """Whatever a volume went through, its store is fine, and every mapped byte was verified."""
    past = work(number, volumes=1 + number % 3, end=end, punch=number % 2 == 0)

    report = past.leave(tmp_path).check()

    assert report.ok, report.findings
    assert [finding.kind for finding in report.findings if finding.kind != "stray-chunk"] == []
    assert [one.verified_bytes for one in report.volumes] == [
        one.mapped_bytes for one in report.volumes
    ]
    assert report.chunks == report.slots - report.slots_free > 0
    assert report.records > 0


@pytest.mark.slow
def test_check_of_crashed_stores_finds_nothing(
    work: Work, tmp_path: Path, directory_of: Work, seed: int
) -> None:
    """Death of the process and loss of power at any moment leave nothing to find."""
    rng = random.Random(f"{seed}:check")
    torn = images = 0
    for number in range(4):
        past = work(100 + number, volumes=1 + number % 2, punch=number % 2 == 0)
        for moment, _, image in past.images(rng, 16):
            images += 1
            path = tmp_path / str(images)
            report = directory_of(path, image, moment.snapshot).check()
            torn += report.torn_tails
            wrong = [finding for finding in report.findings if finding.kind != "stray-chunk"]
            assert wrong == [], f"workload {number} before event {moment.number}"
            shutil.rmtree(path)

    assert images > 30
    assert torn > 0


def test_check_changes_nothing(work: Work, tmp_path: Path) -> None:
    """Not a byte of the data directory is different afterwards."""
    directory = work(1).leave(tmp_path)
    before = {path.name: path.read_bytes() for path in directory.data_dir.iterdir()}

    directory.check()

    assert {path.name: path.read_bytes() for path in directory.data_dir.iterdir()} == before


# --- every field ------------------------------------------------------------------------


def _must_find(directory: Any, path: Path, offset: int, mask: int = 1) -> None:
    directory.flip(path, offset, mask)
    try:
        report = directory.check()
        assert not report.ok, f"{path.name} at byte {offset}: {report.findings}"
    except Corruption:
        assert path.name == IDENTITY_FILE
    directory.flip(path, offset, mask)


@pytest.fixture
def detached(work: Work, tmp_path: Path) -> Any:
    """A store that was closed in order: then every record of it was durable."""
    return work(2, end="detached").leave(tmp_path)


def test_check_finds_a_flip_in_every_field_of_headers(detached: Any) -> None:
    """Segment header, slot headers, free slots: one bit is enough."""
    path = detached.segment()
    free = next(
        at
        for slot in range(16)
        if (at := limits.SEGMENT_HEADER_BYTES + slot * SLOT) not in detached.chunks().values()
    )
    used = min(detached.chunks().values())
    for offset in (0, 8, 10, 12, 16, 32, 48, 52, 56, 2000, 4092):
        _must_find(detached, path, offset)
    for offset in (0, 4, 6, 8, 24, 28, 32, 40, 44, 46, 50, 300, 508):
        _must_find(detached, path, used + offset)
        _must_find(detached, path, free + offset)
    _must_find(detached, detached.data_dir / IDENTITY_FILE, 30)
    fences = detached.data_dir / FENCES_FILE
    for offset in range(fences.stat().st_size):
        _must_find(detached, fences, offset)


@pytest.mark.slow
def test_check_finds_a_flip_in_every_field_of_records(detached: Any) -> None:
    """Every field of every record's header, its extents, its checksums, its payload."""
    path = detached.segment()
    data = path.read_bytes()
    fields = [0, 4, 6, 8, 16, 20, 24, 26, 28, 32, 40, 48, 52, 56, 60, 62, 64, 68]
    assert fields[-1] + 4 == HEADER.size
    tried = 0
    for chunk, at in detached.chunks().items():
        places: list[int] = []
        walk(
            data[at : at + SLOT],
            chunk,
            0,
            lambda reader, places=places: places.append(reader.offset),
        )
        for place in (places[0], places[-1]):
            header = HEADER.unpack_from(data, at + place)
            header_bytes, payload_bytes = header[12], header[13]
            extra = [72, header_bytes - 1, header_bytes + payload_bytes // 2]
            for offset in fields + extra if payload_bytes else fields:
                tried += 1
                _must_find(detached, path, at + place + offset, 0x10)

    assert tried > 200


def test_check_finds_random_flips(detached: Any, seed: int) -> None:
    """Any bit of any record of a closed log is missed by nobody."""
    rng = random.Random(f"{seed}:flips")
    for path in detached.segments():
        data = path.read_bytes()
        ends = {
            at: walk(data[at : at + SLOT], chunk, 0).end
            for chunk, at in detached.chunks(detached.segments().index(path)).items()
        }
        for _ in range(60 if ends else 0):
            at = rng.choice(sorted(ends))
            _must_find(detached, path, at + rng.randrange(ends[at]), 1 << rng.randrange(8))


def test_check_finds_lost_durable_records_of_an_open_log(
    work: Work, tmp_path: Path, seed: int
) -> None:
    """A record that a later one calls durable is missed also where no span was closed."""
    directory = work(3, volumes=1, end="flushed").leave(tmp_path)
    rng = random.Random(f"{seed}:open")
    data = directory.segment().read_bytes()
    seen = [walk(data[at : at + SLOT], chunk, at) for chunk, at in directory.chunks().items()]
    proven = max(one.committed for one in seen)
    tried = 0
    for one in seen:
        durable: list[tuple[int, int]] = []

        def note(reader: Any, durable: list[tuple[int, int]] = durable) -> None:
            if reader.lsn <= proven:
                durable.append((reader.offset, reader.end))

        walk(data[one.address : one.address + SLOT], one.chunk, 0, note)
        for start, end in durable:
            tried += 1
            _must_find(directory, directory.segment(), one.address + rng.randrange(start, end))

    assert tried > 20


# --- files and slots --------------------------------------------------------------------


def test_check_names_the_damaged_block(detached: Any) -> None:
    """A rotten block is named by its file, its place, and its address in the volume."""
    store = _volume_of(detached, "v0")
    with detached.metadata() as metadata:
        entry = metadata.get(head_key(store.volume))
    assert entry is not None
    report = detached.check()
    live = next(one for one in report.volumes if one.name == "v0")
    assert live.mapped_bytes > 0
    data = detached.segment().read_bytes()
    found = None
    for chunk, at in detached.chunks().items():
        if chunk.volume != store.volume:
            continue
        for offset in range(at + 1024, at + SLOT, 4096):
            if not any(data[offset : offset + 512]):
                continue
            detached.flip(detached.segment(), offset)
            bad = [one for one in detached.check().findings if one.kind == "bad-block"]
            detached.flip(detached.segment(), offset)
            if bad:
                found = bad[0]
                break
        if found:
            break

    assert found is not None
    assert found.where.startswith("segment-00000000.seg at byte ")
    assert "volume 'v0' byte 0x" in found.message


def _volume_of(directory: Any, name: str) -> VolumeSpec:
    from torus.metadata.schema import NameRef

    with directory.metadata() as metadata:
        ref = metadata.get(name_key(name))
        spec = metadata.get(spec_key(NameRef.from_bytes(ref.value, "").volume))
        return VolumeSpec.from_bytes(spec.value, "")


def test_check_finds_a_truncated_segment(detached: Any) -> None:
    """A file that lost its end is named with both sizes."""
    size = detached.segment().stat().st_size
    with detached.segment().open("r+b") as file:
        file.truncate(size - 40 * limits.KIB)

    report = detached.check()

    assert "truncated-segment" in _kinds(report)
    assert str(size) in next(f for f in report.findings if f.kind == "truncated-segment").message


@pytest.mark.parametrize("content", [b"", b"TORUSSEG", bytes(4096), b"x" * 100_000])
def test_check_finds_a_segment_that_is_none(detached: Any, content: bytes) -> None:
    """An empty, cut or strange file under a segment's name is reported, not a crash."""
    detached.segment().write_bytes(content)

    report = detached.check()

    assert {"bad-segment", "missing-chunk"} & _kinds(report)


def test_check_finds_a_missing_segment(work: Work, tmp_path: Path) -> None:
    """A gap in the files' numbers is a lost file."""
    directory = work(4, steps=120, end="detached").leave(tmp_path)
    assert len(directory.segments()) > 1
    directory.segment(0).unlink()

    assert "missing-segment" in _kinds(directory.check())


def test_check_finds_foreign_and_misplaced_files(detached: Any, tmp_path: Path) -> None:
    """Another disk's segment, and a segment under another's name."""
    header = SegmentHeader.unpack(detached.segment().read_bytes()[:4096], "")
    detached.write(detached.segment(), 0, replace(header, disk_id=b"f" * 16).pack())
    assert "foreign-segment" in _kinds(detached.check())

    detached.write(detached.segment(), 0, replace(header, segment=9).pack())
    assert "foreign-segment" in _kinds(detached.check())

    detached.write(detached.segment(), 0, replace(header, slot_count=0).pack())
    assert "foreign-segment" in _kinds(detached.check())


def test_check_finds_a_newer_format(detached: Any) -> None:
    """A version that is not known is reported as that."""
    data = bytearray(detached.segment().read_bytes()[:4096])
    data[8] = 99
    detached.write(
        detached.segment(), 0, bytes(data[:-4]) + checksum(data[:-4]).to_bytes(4, "little")
    )

    assert "unknown-version" in _kinds(detached.check())


def test_check_finds_misplaced_and_doubled_slots(detached: Any) -> None:
    """A slot that was copied elsewhere is told from one that belongs there."""
    (chunk, at), *_ = sorted(detached.chunks().items())
    data = detached.segment().read_bytes()
    free = next(
        slot
        for slot in range(16)
        if limits.SEGMENT_HEADER_BYTES + slot * SLOT not in detached.chunks().values()
    )
    place = limits.SEGMENT_HEADER_BYTES + free * SLOT
    detached.write(detached.segment(), place, data[at : at + SLOT])
    assert "foreign-slot" in _kinds(detached.check())

    header = SlotHeader.unpack(data[at : at + 512], "")
    assert header is not None
    detached.write(detached.segment(), place, replace(header, slot=free).pack())
    assert "duplicate-chunk" in _kinds(detached.check()), chunk


def test_check_finds_chunks_that_vanished(detached: Any) -> None:
    """Every chunk with live data is missed when its slot reads as free."""
    found = 0
    for at in detached.chunks().values():
        saved = detached.segment().read_bytes()[at : at + 512]
        detached.write(detached.segment(), at, UNUSED_SLOT)  # found again by its first record
        assert not _kinds(detached.check())
        detached.write(detached.segment(), at, FREED_SLOT)
        kinds = _kinds(detached.check())
        found += bool(kinds & {"missing-chunk", "bad-log"})
        detached.write(detached.segment(), at, saved)

    assert found >= len(detached.chunks()) - 2  # a dead chunk may wait for its deletion


def test_check_warns_of_strays(detached: Any) -> None:
    """A chunk that an older epoch left is no damage."""
    spec = _volume_of(detached, "v0")
    header = SlotHeader.unpack(
        detached.segment().read_bytes()[min(detached.chunks().values()) :][:512], ""
    )
    assert header is not None
    free = next(
        slot
        for slot in range(16)
        if limits.SEGMENT_HEADER_BYTES + slot * SLOT not in detached.chunks().values()
    )
    stray = replace(header, slot=free, chunk=ChunkId(spec.volume, 1, 7, 900))
    place = limits.SEGMENT_HEADER_BYTES + free * SLOT
    detached.write(detached.segment(), place, stray.pack())

    report = detached.check()

    assert report.ok
    assert [finding.kind for finding in report.findings] == ["stray-chunk"]


def test_check_lets_headers_in_a_payload_prove_nothing(detached: Any) -> None:
    """A copy of a record that a guest stored does not stand where it was written for."""
    (chunk, at), *_ = sorted(detached.chunks().items())
    slot = detached.segment().read_bytes()[at : at + SLOT]
    record = slot[512 : 512 + 4096]
    data = bytes(512) + bytes(1024) + record + bytes(4096)

    assert list(headers_beyond(slot, 512, chunk)) != []
    assert list(headers_beyond(data, 512, chunk)) == []


# --- the metadata -----------------------------------------------------------------------


def test_check_without_metadata_reads_the_records(detached: Any) -> None:
    """A lost store is one finding; the records are verified all the same."""
    detached.meta_path.unlink()

    report = detached.check()

    assert _kinds(report) == {"no-metadata"}
    assert report.records > 0


def test_check_finds_a_damaged_store(detached: Any) -> None:
    """A garbled SQLite file is one finding."""
    size = detached.meta_path.stat().st_size
    detached.write(detached.meta_path, 4096, b"\xa5" * (size - 4096))

    assert "bad-metadata" in _kinds(detached.check())


def test_check_finds_metadata_of_another_cluster(detached: Any) -> None:
    """It is not compared with what it does not know."""
    detached.put({CLUSTER: Cluster("33" * 16, 1).to_bytes()})

    report = detached.check()

    assert "foreign-metadata" in _kinds(report)
    assert report.volumes == ()


def test_check_finds_metadata_older_than_the_data(detached: Any) -> None:
    """An epoch that goes back, and a volume id that would be given out again."""
    volume = _volume_of(detached, "v0").volume
    with detached.metadata() as store:
        head = Head.from_bytes(store.get(head_key(volume)).value, "")
    detached.put({head_key(volume): replace(head, epoch=0).to_bytes()})
    assert "stale-metadata" in _kinds(detached.check())

    detached.put({head_key(volume): head.to_bytes(), NEXT_VOLUME: NextVolume(2).to_bytes()})
    assert "stale-metadata" in _kinds(detached.check())


def test_check_finds_volumes_that_the_metadata_lost(detached: Any) -> None:
    """Chunks of a volume that is not known, and keys that do not fit together."""
    volume = _volume_of(detached, "v0").volume
    detached.put({name_key("v0"): None})
    assert "bad-metadata" in _kinds(detached.check())

    detached.put({spec_key(volume): None})
    assert "bad-metadata" in _kinds(detached.check())

    detached.put({head_key(volume): None, lost_key(volume): NameRef(volume).to_bytes()})
    assert _kinds(detached.check()) == {"unknown-volume"}


def test_check_warns_of_a_volume_that_was_deleted(detached: Any) -> None:
    """A kill brings back what was in the trash: its id was given out, and nothing asks for it."""
    volume = _volume_of(detached, "v0").volume
    detached.put({name_key("v0"): None, spec_key(volume): None, head_key(volume): None})

    report = detached.check()

    assert report.ok
    assert [finding.kind for finding in report.findings] == ["unknown-volume"]
    assert report.left_over >= sum(chunk.volume == volume for chunk in detached.chunks())


def test_check_of_a_volume_that_is_being_deleted(detached: Any) -> None:
    """What is left of it is not compared; the node finishes the deletion."""
    spec = _volume_of(detached, "v0")
    detached.put({spec_key(spec.volume): replace(spec, state="deleting").to_bytes()})
    at = min(at for chunk, at in detached.chunks().items() if chunk.volume == spec.volume)
    detached.write(detached.segment(), at, bytes(512))

    report = detached.check()

    assert report.ok
    assert [finding.kind for finding in report.findings] == ["deleting"]


# --- the directory ----------------------------------------------------------------------


def test_check_refuses_a_directory_in_use(detached: Any) -> None:
    """A node holds the directory's lock."""
    disk = PosixDisk(detached.data_dir)
    try:
        with pytest.raises(Busy, match="in use"):
            detached.check()
    finally:
        disk.close()
    assert detached.check().ok


def test_check_of_no_data_directory_says_so(detached: Any, tmp_path: Path) -> None:
    """Missing, a file, or a folder of something else."""
    with pytest.raises(NotFound, match="does not exist"):
        check_store(tmp_path / "nowhere", detached.meta_url, _no_progress)
    with pytest.raises(NotFound, match="no data directory"):
        check_store(tmp_path, detached.meta_url, _no_progress)
    with pytest.raises(UsageError, match="not a folder"):
        check_store(detached.meta_path, detached.meta_url, _no_progress)
    with pytest.raises(ConfigError):
        check_store(detached.data_dir, "nonsense", _no_progress)


def test_check_reports_progress_up_to_the_end(detached: Any) -> None:
    """The last call says that all is done."""
    calls: list[tuple[int, int | None]] = []

    check_store(detached.data_dir, detached.meta_url, lambda *now: calls.append(now))

    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_findings_are_bounded_and_not_repeated() -> None:
    """A disk full of damage is summed up."""
    findings = Findings()
    for number in range(FINDINGS_MAX + 50):
        findings.error("bad-block", f"place {number}", "wrong")
        findings.error("bad-block", f"place {number % FINDINGS_MAX}", "wrong")
    kept = findings.to_tuple()

    assert len(kept) == FINDINGS_MAX + 1
    assert kept[-1].message == "50 more are not listed"
    assert findings.count == FINDINGS_MAX + 50


def test_check_report_is_json(detached: Any) -> None:
    """All values of a finding can be printed for programs."""
    detached.meta_path.unlink()
    report = detached.check()

    assert json.dumps([finding.message for finding in report.findings])


def test_check_finds_a_record_that_became_zeroes(detached: Any) -> None:
    """The last record of a chunk is missed by the lsn with which the next chunk begins."""
    data = detached.segment().read_bytes()
    seen = {c: walk(data[at : at + SLOT], c, at) for c, at in detached.chunks().items()}
    firsts = {(c.volume, one.first_lsn) for c, one in seen.items()}
    tried = 0
    for chunk, one in seen.items():
        if (chunk.volume, one.last_lsn + 1) not in firsts or one.records < 2:
            continue
        places: list[int] = []
        walk(
            data[one.address : one.address + SLOT],
            chunk,
            0,
            lambda reader, places=places: places.append(reader.offset),
        )
        tried += 1
        detached.write(detached.segment(), one.address + places[-1], bytes(512))
        assert "bad-record" in _kinds(detached.check()), chunk
        detached.write(detached.segment(), one.address, data[one.address : one.address + SLOT])

    assert tried > 2


def test_check_and_attach_miss_a_chunk_of_an_open_log(work: Work, tmp_path: Path) -> None:
    """Where a chunk's slot is damaged, later chunks that name durable records prove the loss."""
    past = work(9, steps=20, volumes=1, end="filled", resize=False)
    directory = past.leave(tmp_path)
    data = directory.segment().read_bytes()
    seen = {c: walk(data[at : at + SLOT], c, at) for c, at in directory.chunks().items()}
    proven = max(one.committed for one in seen.values())
    newest = max(chunk.epoch for chunk in seen)
    tried = 0
    for chunk, one in seen.items():
        if chunk.epoch != newest or one.last_lsn > proven or chunk.sequence < 2:
            continue
        directory.write(directory.segment(), one.address, b"\xff" * 16)
        report = directory.check()
        directory.write(directory.segment(), one.address, data[one.address : one.address + 16])
        kinds = _kinds(report)
        assert "bad-slot" in kinds
        if kinds & {"bad-log", "lost-records"}:
            tried += 1
            image = past.world.disk.image.copy()
            image.segments[0][one.address - 4096 : one.address - 4080] = b"\xff" * 16
            with pytest.raises(Corruption):
                past.attach_all(directory, image)

    assert tried > 3
