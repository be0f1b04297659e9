"""Where the compiled read path is sent: to a whole copy, or to shards, of this host."""

from types import SimpleNamespace
from typing import Any

import pytest

from torus._fast.blockio import PythonIo
from torus.cluster.chunks import Place
from torus.cluster.file_places import FilePlaces
from torus.cluster.here import DisksHere
from torus.cluster.near_columns import NearColumns
from torus.errors import DiskFailed
from torus.format.shard import PAYLOAD_OFFSET
from torus.ids import ChunkId, shard_id, split_part
from torus.redundancy.stripe import Stripe

CHUNK = ChunkId(5, 2, 0, 7)
HERE, BESIDE, FAR = "here", "beside", "far"


class Disks:
    """Three disks: of this process, of another one of this host, of another host."""

    def __init__(self, *, near: bool) -> None:
        self.cut = True
        self.addresses: dict[tuple[str, ChunkId], int] = {}
        self.shards = {0: HERE, 1: BESIDE, 2: FAR, 3: BESIDE, 4: BESIDE, 5: FAR}
        self.asked: list[tuple[str, ChunkId]] = []
        self.lost: set[str] = set()
        self.failed = False
        places = SimpleNamespace(expected=lambda _chunk: self.cut)
        placed = lambda _chunk: (Stripe(4, 2, 4096), self.shards)  # noqa: E731
        self.reads = SimpleNamespace(places=places, placed=placed, near=None)
        reads: Any = SimpleNamespace(shards=self.reads, best=lambda _chunk: BESIDE)
        own: Any = SimpleNamespace(place=self._here, io=PythonIo(SimpleNamespace()))
        pool: Any = SimpleNamespace(
            here=DisksHere({HERE: own} if near else {}),
            nearby=None if near else SimpleNamespace(place=self._beside, io=object()),
            distance={HERE: 0 if near else 1, BESIDE: 1, FAR: 2}.__getitem__,
            connected=lambda disk: SimpleNamespace(disk_id=disk),
        )
        opened: Any = SimpleNamespace(lost=self.lost)
        self.files = FilePlaces(pool, reads, opened, near=near)

    def _beside(self, part: ChunkId, disk: Any) -> int | None:
        self.asked.append((disk.disk_id, part))
        return self.addresses.get((disk.disk_id, part))

    def _here(self, part: ChunkId) -> int | None:
        if self.failed:
            raise DiskFailed("it failed")
        return self.addresses.get((HERE, part))

    def know(self, *numbers: int) -> None:
        """Let shards be found; at 1000 times their number and one."""
        for number in numbers:
            part = shard_id(CHUNK, number)
            self.addresses[self.shards[number], part] = 1000 * (number + 1)


def payloads(*numbers: int | None) -> Place:
    """Return the place that names these shards."""
    found = [None if one is None else 1000 * (one + 1) + PAYLOAD_OFFSET for one in numbers]
    return 4096, *found


def test_shards_of_this_host_are_found_one_after_the_other() -> None:
    """Only data shards, only where they can be had, and each is asked for until it is known."""
    disks = Disks(near=False)
    assert disks.files.place(CHUNK) is None
    assert [split_part(part)[1] for _, part in disks.asked] == [0, 1, 3]
    disks.know(1)
    first = disks.files.place(CHUNK)
    assert first == payloads(None, 1, None, None)
    disks.know(0, 3)
    disks.asked.clear()
    assert disks.files.place(CHUNK, first) == payloads(0, 1, None, 3)
    assert [split_part(part)[1] for _, part in disks.asked] == [0, 3]


def test_lost_columns_are_made_where_the_files_of_others_are() -> None:
    """Not in a node, which has but its own."""
    assert Disks(near=True).reads.near is None
    assert isinstance(Disks(near=False).reads.near, NearColumns)


def test_what_is_known_of_another_cut_is_forgotten() -> None:
    """The volume was converted meanwhile."""
    disks = Disks(near=False)
    disks.know(0)
    assert disks.files.place(CHUNK, (8192, 1, 2, 3, 4)) == payloads(0, None, None, None)


def test_a_whole_copy_beside() -> None:
    """It is one address."""
    disks = Disks(near=False)
    disks.cut = False
    disks.addresses[BESIDE, CHUNK] = 77
    assert disks.files.place(CHUNK) == 77


@pytest.mark.parametrize("why", ["lost", "failed"])
def test_the_disk_of_this_process(why: str) -> None:
    """A copy of its own goes before shards, which it has one of; nothing of a disk that is out."""
    disks = Disks(near=True)
    disks.know(0, 1)
    assert disks.files.place(CHUNK) == payloads(0, None, None, None)
    disks.addresses[HERE, CHUNK] = 88
    assert disks.files.place(CHUNK) == 88
    if why == "lost":
        disks.lost.add(HERE)
    else:
        disks.failed = True
    assert disks.files.place(CHUNK) is None
    assert disks.asked == []
