"""Many pieces of files read in one call."""

import errno
import os
import random
from pathlib import Path

import pytest

from torus._fast.blockio import read_files

SEED = 5


def test_every_piece_is_what_the_file_has_there(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    content = [rng.randbytes(1 << 20) for _ in range(2)]
    files = []
    for number, data in enumerate(content):
        (tmp_path / str(number)).write_bytes(data)
        files.append(os.open(tmp_path / str(number), os.O_RDONLY))
    places, expected = [], []
    for _ in range(500):
        number, at, size = rng.randrange(2), rng.randrange(1 << 20), rng.randrange(20_000)
        size = min(size, (1 << 20) - at)
        places.append((files[number], at, size))
        expected.append(content[number][at : at + size])

    assert read_files(places) == expected
    assert read_files([]) == []
    for fd in files:
        os.close(fd)


def test_a_file_that_ends_early_is_an_input_output_error(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 1000)
    fd = os.open(tmp_path / "short", os.O_RDONLY)

    with pytest.raises(OSError) as caught:
        read_files([(fd, 0, 1000), (fd, 600, 401)])

    assert caught.value.errno == errno.EIO
    os.close(fd)


def test_the_first_failure_is_told() -> None:
    with pytest.raises(OSError) as caught:
        read_files([(-1, 0, 10)])

    assert caught.value.errno == errno.EBADF
