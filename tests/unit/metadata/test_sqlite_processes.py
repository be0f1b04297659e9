"""The SQLite store among real processes: races, and kill -9 at any moment."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torus.metadata.base import Put
from torus.metadata.sqlite import SqliteMetadata

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 60.0

WRITER = """
import sys
from torus.metadata.base import Put
from torus.metadata.sqlite import SqliteMetadata
store = SqliteMetadata(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
entry = store.get("pair/first")
number = 0 if entry is None else int(entry.value)
while True:
    number += 1
    value = str(number).encode()
    # far apart in the file, and with pages to spill
    store.commit([], [Put("pair/first", value), Put("a/bulk", bytes(20000) + value),
                      Put("z/bulk", bytes(9000) + value), Put("pair/last", value)])
    print(number, flush=True)
"""

RACER = """
import sys
from torus.metadata.base import Expect, Put
from torus.metadata.sqlite import SqliteMetadata
path, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = SqliteMetadata(path)
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(rounds):
    key = f"prize/{number:04}"
    if store.commit([Expect(key, 0)], [Put(key, name.encode())]) is not None:
        won += 1
print(won, flush=True)
store.close()
"""


@contextmanager
def process(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script until it says that it is ready; kill it in the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def start(*children: subprocess.Popen[str]) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()


@pytest.mark.slow
def test_of_processes_that_race_for_a_key_exactly_one_wins(tmp_path: Path) -> None:
    """Three processes race for 200 keys by compare-and-swap; every key has one winner."""
    path = str(tmp_path / "meta.sqlite")
    rounds = 200
    names = ("a", "b", "c")
    with (
        process(RACER, path, "a", str(rounds)) as first,
        process(RACER, path, "b", str(rounds)) as second,
        process(RACER, path, "c", str(rounds)) as third,
    ):
        children = (first, second, third)
        start(*children)
        won = {
            name: int(child.communicate(timeout=WAIT_S)[0])
            for name, child in zip(names, children, strict=True)
        }

    store = SqliteMetadata(path)
    listing = store.list("prize/")
    store.close()
    values = [entry.value.decode() for entry in listing.entries]
    assert len(values) == sum(won.values()) == rounds
    assert {name: values.count(name) for name in names} == won
    assert listing.revision == rounds


@pytest.mark.crash
@pytest.mark.slow
def test_a_killed_writer_leaves_all_or_nothing(tmp_path: Path, rng: random.Random) -> None:
    """Kill a writer at a random moment, 40 times on one file.

    After each kill the four keys of a commit agree, what was answered is there, and the next
    writer carries on.
    """
    path = str(tmp_path / "meta.sqlite")
    reader = SqliteMetadata(path)
    watch = reader.watch("pair/", 0)
    seen: list[tuple[str, bytes | None]] = []
    answered = 0
    for _ in range(40):
        with process(WRITER, path) as child:
            start(child)
            assert child.stdout is not None
            for _ in range(rng.randrange(1, 12)):
                answered = int(child.stdout.readline())
            _spin(rng.randrange(60_000))  # into the middle of the next commit
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:  # what it still answered
                answered = int(line) if line.endswith("\n") else answered

        values = {
            entry.value.lstrip(b"\0")
            for prefix in ("a/", "pair/", "z/")
            for entry in reader.list(prefix).entries
        }
        seen.extend((event.key, event.value) for event in watch.next(0))

        assert len(values) == 1, f"half a commit: {values}"
        assert int(values.pop()) in (answered, answered + 1)
    reader.verify()
    reader.close()
    numbers = range(1, len(seen) // 2 + 1)
    assert seen == [
        (key, b"%d" % number) for number in numbers for key in ("pair/first", "pair/last")
    ]


@pytest.mark.crash
@pytest.mark.slow
def test_a_store_whose_last_user_was_killed_opens_again(tmp_path: Path, rng: random.Random) -> None:
    """The same with nobody else holding the file: the next opening recovers its log."""
    path = str(tmp_path / "meta.sqlite")
    answered = 0
    for _ in range(15):
        with process(WRITER, path) as child:
            start(child)
            assert child.stdout is not None
            for _ in range(rng.randrange(1, 6)):
                answered = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                answered = int(line) if line.endswith("\n") else answered
        store = SqliteMetadata(path)
        store.verify()
        first, last = store.get("pair/first"), store.get("pair/last")
        store.close()

        assert first is not None
        assert last is not None
        assert first.value == last.value
        assert int(first.value) in (answered, answered + 1)


def test_a_process_sees_another_ones_commit_and_watch(tmp_path: Path) -> None:
    path = str(tmp_path / "meta.sqlite")
    store = SqliteMetadata(path)
    store.commit([], [Put("prize/0000", b"taken")])
    watch = store.watch("prize/", store.list("prize/").revision)
    with process(RACER, path, "other", "2") as child:
        start(child)
        assert child.communicate(timeout=WAIT_S)[0] == "1\n"

        assert [(event.key, event.value) for event in watch.next(WAIT_S)] == [
            ("prize/0001", b"other")
        ]
    store.close()


def _spin(rounds: int) -> None:
    """Let a random time pass without a sleep."""
    for _ in range(rounds):
        pass
