"""kill -9 of a real process under load, again and again: every answered write is there.

TORUS_KILL_CYCLES sets how often.
"""

import asyncio
import os
import random
import selectors
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.child import VOLUME_BYTES, open_store, open_volume, stamp

pytestmark = [pytest.mark.crash, pytest.mark.slow]

CYCLES = int(os.environ.get("TORUS_KILL_CYCLES", "40"))
ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
LANES = 4  # they run side by side


def _run_and_kill(folder: Path, seed: int, number: int, after: int) -> int:
    """Start the child, kill it ``after`` more answers; return the last answered number."""
    command = [sys.executable, "-m", "tests.crash.child", str(folder), str(seed), str(number)]
    said = b""
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child,
        selectors.DefaultSelector() as waiting,
    ):
        assert child.stdout is not None
        waiting.register(child.stdout, selectors.EVENT_READ)
        try:
            while not said or _last(said, 0) < number + after:
                assert waiting.select(START_S), "the child says nothing"
                more = os.read(child.stdout.fileno(), 65536)
                assert more, f"the child ended by itself: {child.wait()}"
                said += more
        finally:
            child.kill()
        said += child.stdout.read()
    return _last(said, number - 1)


def _last(said: bytes, before: int) -> int:
    """Return the highest number in the whole lines that the child said."""
    return max([before, *(int(line.split()[1]) for line in said.split(b"\n")[:-1])])


def _is_between(found: bytes, before: bytes, after: bytes) -> bool:
    """True when a first part of one operation is there."""
    at = 0
    while at < len(found) and found[at : at + 512] == after[at : at + 512]:
        at += 512
    return found[at:] == before[at:]


async def _content(folder: Path) -> bytes:
    store = open_store(folder / "data")
    assert not store.damaged
    attachment, metadata = await open_volume(folder, store)
    content = await attachment.volume.read(0, VOLUME_BYTES)
    attachment.volume.core.blocks.verify()
    await attachment.detach()
    await store.close()
    await metadata.close()
    return content


@pytest.mark.parametrize("lane", range(LANES))
def test_kill_9_loses_no_answered_write(lane: int, tmp_path: Path, seed: int) -> None:
    """After each kill the volume holds all answered operations and, maybe, a part of the next."""
    seed += lane
    rng = random.Random(seed)
    expected = bytearray(VOLUME_BYTES)
    number = 1
    for cycle in range(-(-CYCLES // LANES)):
        answered = _run_and_kill(tmp_path, seed, number, rng.choice((0, 3, 10, 40, 150)))
        for done in range(number, answered + 1):
            offset, data = stamp(seed, done)
            expected[offset : offset + len(data)] = data
        found = asyncio.run(_content(tmp_path))
        offset, data = stamp(seed, answered + 1)  # it was under way
        after = bytearray(expected)
        after[offset : offset + len(data)] = data
        number = answered + 1
        if found != expected:
            lost = not _is_between(found, bytes(expected), bytes(after))
            assert not lost, f"cycle {cycle}: operation {answered} or an older one is lost"
