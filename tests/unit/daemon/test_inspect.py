"""`torus segment inspect`: a segment file describes itself, however damaged it is."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torus import limits
from torus.daemon.offline import inspect_segment
from torus.errors import Corruption, UsageError
from torus.format.segment import SegmentHeader

SLOT = 64 * limits.KIB


@pytest.fixture
def directory(work: Callable[..., Any], tmp_path: Path) -> Any:
    return work(40, end="filled").leave(tmp_path)


def _messages(found: dict[str, Any]) -> str:
    return "\n".join(f"{one['where']}: {one['message']}" for one in found["findings"])


def test_inspect_describes_header_slots_and_records(directory: Any) -> None:
    """What the file holds, as values for programs; the records agree with the check's count."""
    found = [inspect_segment(path) for path in directory.segments()]
    report = directory.check()

    assert json.loads(json.dumps(found)) == found
    assert sum(len(one["records"]) for one in found) == report.records
    assert sum(len(one["slots"]) for one in found) == report.slots
    states = [slot["state"] for one in found for slot in one["slots"]]
    assert states.count("free") == report.slots_free
    assert states.count("used") == report.chunks
    assert found[0]["header"]["disk_id"] == "11" * 16
    kinds = {record["kind"] for one in found for record in one["records"]}
    assert kinds >= {"data", "pages", "root"}  # the head record goes with its chunk
    assert all(record["payload_ok"] for one in found for record in one["records"])


def test_inspect_names_extents_when_asked(directory: Any) -> None:
    """Only with detail: there may be many."""
    plain = inspect_segment(directory.segment())["records"]
    detailed = inspect_segment(directory.segment(), detail=True)["records"]

    assert all("extent_list" not in record for record in plain)
    assert [len(record["extent_list"]) for record in detailed] == [r["extents"] for r in plain]
    first = next(record for record in detailed if record["kind"] == "data")
    assert set(first["extent_list"][0]) == {"block", "count", "zero"}


def test_inspect_tells_of_damaged_records(directory: Any) -> None:
    """A rotten payload, and a header that cuts off those behind it."""
    path = directory.segment()
    clean = inspect_segment(path)
    at = next(iter(directory.chunks().values()))
    slot = (at - limits.SEGMENT_HEADER_BYTES) // SLOT
    first = next(record for record in clean["records"] if record["slot"] == slot)

    directory.flip(path, at + first["offset"] + first["header_bytes"] + 5)
    found = inspect_segment(path)
    assert "record 0 at offset 512 is damaged" in _messages(found)
    assert len(found["records"]) == len(clean["records"])

    directory.flip(path, at + first["offset"] + 33)
    found = inspect_segment(path)
    assert "header checksum is wrong" in _messages(found)
    assert "cannot be reached" in _messages(found)
    assert found["slots"][slot]["records"] == 0


def test_inspect_reads_a_damaged_header_as_far_as_it_can(directory: Any) -> None:
    """Magic, version, checksum: the slots are shown all the same."""
    clean = inspect_segment(directory.segment())
    for offset in (0, 8, 13, 2000, 4093):
        directory.flip(directory.segment(), offset)
        found = inspect_segment(directory.segment())
        directory.flip(directory.segment(), offset)
        assert found["findings"], offset
        assert "slots" in found

    directory.flip(directory.segment(), 2000)
    assert inspect_segment(directory.segment())["records"] == clean["records"]


def test_inspect_of_truncated_files(directory: Any, tmp_path: Path) -> None:
    """At every length: what is there is described, what is not is named."""
    data = directory.segment().read_bytes()
    path = tmp_path / "segment-00000000.seg"
    for size in (8, 100, 4095, 4096, 4097, 4608, 5000, 4096 + SLOT, len(data) - 1):
        path.write_bytes(data[:size])
        assert inspect_segment(path)["findings"], size

    path.write_bytes(data[: 4096 + SLOT])
    assert "beyond the file's end" in _messages(inspect_segment(path))


def test_inspect_of_foreign_files(directory: Any, tmp_path: Path) -> None:
    """A segment under another's name, and slots that were copied from elsewhere."""
    data = directory.segment().read_bytes()
    other = tmp_path / "segment-00000007.seg"
    other.write_bytes(data)
    assert "written as segment 0" in _messages(inspect_segment(other))

    header = SegmentHeader.unpack(data[:4096], "")
    other.write_bytes(replace(header, disk_id=b"z" * 16).pack() + data[4096:])
    assert "slot belongs to disk" in _messages(inspect_segment(other))


def test_inspect_refuses_what_is_no_segment(directory: Any, tmp_path: Path) -> None:
    """Any other file, an empty one, a folder."""
    path = tmp_path / "picture.png"
    for content in (b"", b"\x89PNG\r\n", bytes(10_000), b"#!/bin/sh\n" * 1000):
        path.write_bytes(content)
        with pytest.raises(Corruption, match="no segment file"):
            inspect_segment(path)
    with pytest.raises(UsageError, match="folder"):
        inspect_segment(tmp_path)


def test_inspect_survives_any_damage(directory: Any, seed: int) -> None:
    """Random bytes anywhere: findings, never an exception but the documented one."""
    rng = random.Random(f"{seed}:inspect")
    data = directory.segment().read_bytes()
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 3, 30))):
            at = rng.choice((rng.randrange(8, 4096), rng.randrange(4096, len(data))))
            size = rng.choice((1, 8, 512))
            damaged[at : at + size] = rng.randbytes(len(damaged[at : at + size]))
        directory.segment().write_bytes(damaged)
        found = inspect_segment(directory.segment(), detail=True)
        assert json.dumps(found)
