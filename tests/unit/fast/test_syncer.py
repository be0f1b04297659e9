"""The fdatasync thread: every request gets one answer, with the system's errno."""

import errno
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from torus._fast.syncer import SyncThread

WAIT_S = 20.0


@pytest.fixture
def syncer() -> Iterator[SyncThread]:
    thread = SyncThread()
    thread.start()
    yield thread
    thread.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 8192)
    yield fd
    os.close(fd)


def collect(syncer: SyncThread, count: int) -> list[tuple[int, int, int]]:
    """Wait for ``count`` answers as an event loop would: through the descriptor."""
    found: list[tuple[int, int, int]] = []
    while len(found) < count:
        assert select.select([syncer.answer_fd], [], [], WAIT_S)[0], f"{len(found)} of {count}"
        found += syncer.collect()
    return found


def test_a_file_is_synced(syncer: SyncThread, file: int) -> None:
    """With the time that it took."""
    assert syncer.submit(file, 7)
    [(token, error, elapsed_ns)] = collect(syncer, 1)

    assert (token, error) == (7, 0)
    assert 0 < elapsed_ns < WAIT_S * 1e9
    assert syncer.collect() == []
    assert not select.select([syncer.answer_fd], [], [], 0)[0], "an answer is told once"


def test_errors_are_those_of_their_request(syncer: SyncThread, file: int) -> None:
    """A pipe cannot be synced, a closed descriptor is none; the others are not touched."""
    receiver, sender = os.pipe()
    for token, fd in enumerate([file, sender, -1, file, 2**30, 2**64 - 1 >> 33]):
        assert syncer.submit(fd, token)
    found = collect(syncer, 6)
    os.close(receiver)
    os.close(sender)

    assert [(token, error) for token, error, _ in found] == [
        (0, 0), (1, errno.EINVAL), (2, errno.EBADF), (3, 0), (4, errno.EBADF), (5, errno.EBADF),
    ]  # fmt: skip


def test_many_at_once_are_answered_in_order(syncer: SyncThread) -> None:
    """The ring goes round many times; tokens keep 64 bits."""
    first = 2**64 - 2000
    asked = answered = 0
    seen: list[int] = []
    while answered < 2000:
        while asked < 2000 and syncer.submit(-1, first + asked):
            asked += 1
        found = collect(syncer, 1)
        seen += [token for token, _, _ in found]
        answered += len(found)

    assert seen == [first + number for number in range(2000)]


def test_more_than_the_ring_holds_is_refused() -> None:
    """Answers that nobody collected count: they are never overwritten."""
    syncer = SyncThread()  # not started: nothing is answered
    accepted = [syncer.submit(-1, number) for number in range(300)]
    assert accepted == [True] * 256 + [False] * 44
    syncer.start()
    found = collect(syncer, 256)

    assert [token for token, _, _ in found] == list(range(256))
    assert syncer.submit(-1, 999)
    assert [token for token, _, _ in collect(syncer, 1)] == [999]
    syncer.close()


def test_close_lets_what_was_asked_finish(file: int) -> None:
    """However late it was asked; the answers can still be collected."""
    for count in (1, 1, 1, 2, 50, 256) * 5:
        syncer = SyncThread()
        syncer.start()
        for number in range(count):
            assert syncer.submit(file if number % 50 == 0 else -1, number)
        syncer.close()

        assert [token for token, _, _ in syncer.collect()] == list(range(count))


def test_close_is_idempotent_and_final() -> None:
    """No thread and no descriptor stay, and nothing is accepted that would never be answered."""
    before = len(os.listdir("/proc/self/fd"))
    for started in (True, False):
        syncer = SyncThread()
        if started:
            syncer.start()
        syncer.close()
        syncer.close()

        assert not syncer.submit(0, 1)
        assert syncer.collect() == []
        assert syncer.answer_fd == -1
    assert len(os.listdir("/proc/self/fd")) == before
    assert "fdatasync" not in [thread.name for thread in threading.enumerate()]
