"""Import and export: every byte arrives, zeroes cost no space, and a difference is noticed."""

import asyncio
import errno
import os
import random
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from torus import limits
from torus.daemon import copying
from torus.daemon.copying import export_from, import_into
from torus.errors import Corruption, PermissionDenied, PoolFull, TorusError, UsageError
from torus.format.segment import Geometry
from torus.limits import BLOCK_BYTES as BLOCK
from torus.limits import MIB
from torus.testing.world import World
from torus.volume.volume import Volume

PIECE = limits.COPY_PIECE_BYTES
Scenario = Callable[[Volume], Awaitable[None]]


@pytest.fixture
def with_volume(rng: random.Random) -> Callable[..., None]:
    """Run a scenario on a volume of a simulated machine: with_volume(scenario, size_bytes)."""

    def run(scenario: Scenario, size_bytes: int = 3 * MIB) -> None:
        async def attached() -> None:
            world = World(rng, geometry=Geometry(256 * limits.KIB, 16), slots=64)
            await world.catalog.create("vol", size_bytes)
            await scenario((await world.attach("vol")).volume)
            names = [task.get_coro().__name__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
            assert "_put" not in names, "tasks of the copy are left"
            await world.stop()

        asyncio.run(attached())

    return run


def quiet(_done: int, _total: int | None) -> None:
    return None


def sparse_file(path: Path, size: int, pieces: dict[int, bytes]) -> bytes:
    """Write a file with holes between ``pieces``; return all its bytes."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            os.pwrite(file.fileno(), data, offset)
    content = path.read_bytes()
    assert len(content) == size
    return content


def mapped(content: bytes) -> int:
    """Return how many blocks are not all zero."""
    zero = bytes(BLOCK)
    return sum(
        content[at : at + BLOCK] != zero[: len(content) - at]
        for at in range(0, len(content), BLOCK)
    )


# --- import -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, 513, 4095, 4096, 4097, 70_000, PIECE - 1, PIECE, PIECE + 1, 3 * MIB]
)
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_every_size_arrives(
    size: int, kind: str, with_volume: Callable[..., None], tmp_path: Path, rng: random.Random
) -> None:
    """Sizes that are no sectors or blocks end with zeroes, as does the rest of the volume."""
    content = rng.randbytes(size)
    path = tmp_path / "source"
    if kind == "file":
        path.write_bytes(content)
    else:
        os.mkfifo(path)
        threading.Thread(target=path.write_bytes, args=(content,)).start()

    async def scenario(volume: Volume) -> None:
        await volume.write(0, b"old!" * (512 * 1024), durable=False)
        report = await import_into(volume, str(path), quiet)

        assert await volume.read(0, 3 * MIB) == content + bytes(3 * MIB - size)
        assert (report.volume, report.size_bytes, report.verified) == ("vol", 3 * MIB, True)
        assert 0 <= report.copied_bytes - size < 512
        assert volume.core.blocks.mapped_blocks <= -(-size // BLOCK)

    with_volume(scenario)


def test_zero_blocks_are_left_out(
    with_volume: Callable[..., None], tmp_path: Path, rng: random.Random
) -> None:
    """Holes and written zeroes alike, block by block."""
    content = b"".join(
        rng.choice([bytes(BLOCK), rng.randbytes(BLOCK), bytes(4095) + b"x", b"x" + bytes(4095)])
        for _ in range(600)
    )
    path = tmp_path / "source"
    path.write_bytes(content)

    async def scenario(volume: Volume) -> None:
        report = await import_into(volume, str(path), quiet)

        assert await volume.read(0, 3 * MIB) == content + bytes(3 * MIB - len(content))
        assert volume.core.blocks.mapped_blocks == mapped(content)
        assert report.copied_bytes == mapped(content) * BLOCK
        assert report.hole_bytes == 3 * MIB - report.copied_bytes

    with_volume(scenario)


@pytest.mark.parametrize("number", range(12))
def test_holes_at_odd_places(
    number: int, with_volume: Callable[..., None], tmp_path: Path, rng: random.Random
) -> None:
    """Wherever data begins and ends, beside, across and at the edges of pieces and of the file."""
    size = rng.choice([3 * MIB, 2 * MIB + 12345, PIECE, PIECE + 512, 2 * MIB - 1, 40_000])
    edges = [0, 1, 4095, 4096, 8191, PIECE - 1, PIECE, PIECE + 4096, 2 * PIECE - 4097, size - 1]
    pieces = {}
    for _ in range(rng.randrange(6)):
        at = min(rng.choice([*edges, rng.randrange(size)]), size - 1)
        pieces[at] = rng.randbytes(min(rng.choice([1, 511, 4096, 70_000]), size - at))
    content = sparse_file(tmp_path / "source", size, pieces)

    async def scenario(volume: Volume) -> None:
        await volume.write(0, b"\xff" * (2 * MIB), durable=False)
        await import_into(volume, str(tmp_path / "source"), quiet)

        assert await volume.read(0, 3 * MIB) == content + bytes(3 * MIB - size)
        # One more at most: the last, half block was there before, and stays as zeroes.
        assert mapped(content) <= volume.core.blocks.mapped_blocks <= mapped(content) + 1

    with_volume(scenario)


@pytest.mark.parametrize("excess", [1, 512, MIB])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_source_that_is_too_large_is_refused(
    excess: int, kind: str, with_volume: Callable[..., None], tmp_path: Path
) -> None:
    """A file before anything is written; a pipe when it turns out, and no task goes on."""
    path = tmp_path / "source"
    content = b"n" * (2 * MIB + excess)
    writer = None
    if kind == "file":
        path.write_bytes(content)
    else:
        os.mkfifo(path)

        def write() -> None:
            try:
                path.write_bytes(content)
            except BrokenPipeError:
                pass

        writer = threading.Thread(target=write)
        writer.start()

    async def scenario(volume: Volume) -> None:
        with pytest.raises(UsageError, match="'vol' has room for 2097152") as caught:
            await import_into(volume, str(path), quiet)

        assert caught.value.exit_code == 64
        assert caught.value.hint == "resize the volume first"
        if kind == "file":
            assert volume.core.blocks.mapped_blocks == 0

    with_volume(scenario, 2 * MIB)
    if writer is not None:
        writer.join()


def test_a_difference_is_noticed_when_the_volume_is_read_back(
    with_volume: Callable[..., None], tmp_path: Path, rng: random.Random
) -> None:
    """Whatever changed it since: said with the place."""
    (tmp_path / "source").write_bytes(rng.randbytes(3 * MIB))

    async def scenario(volume: Volume) -> None:
        flush = volume.flush

        async def flush_and_change() -> None:
            await flush()
            await volume.write(2 * MIB, b"changed!" * 512, durable=False)

        volume.flush = flush_and_change  # type: ignore[method-assign]
        with pytest.raises(Corruption, match=f"differs from its source at byte {2 * MIB}"):
            await import_into(volume, str(tmp_path / "source"), quiet)
        volume.flush = flush  # type: ignore[method-assign]

    with_volume(scenario)


def test_a_failed_write_ends_the_import(
    with_volume: Callable[..., None], tmp_path: Path, rng: random.Random
) -> None:
    """The others that were under way are over when it says so."""
    (tmp_path / "source").write_bytes(rng.randbytes(3 * MIB))

    async def scenario(volume: Volume) -> None:
        running = 0

        async def fail(offset: int, data: bytes, *, durable: bool) -> None:
            nonlocal running
            running += 1
            try:
                await asyncio.sleep(0)
                raise PoolFull(f"no room at {offset}")
            finally:
                running -= 1

        volume.write = fail  # type: ignore[method-assign]
        with pytest.raises(PoolFull):
            await import_into(volume, str(tmp_path / "source"), quiet)

        assert running == 0

    with_volume(scenario)


def test_what_cannot_be_read_does_not_become_zeroes(
    with_volume: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error while looking for data is no hole."""
    (tmp_path / "source").write_bytes(b"x" * MIB)
    seek = os.lseek

    def failing(fd: int, at: int, how: int) -> int:
        if how == os.SEEK_DATA:
            raise OSError(errno.EIO, "Input/output error")
        return seek(fd, at, how)

    monkeypatch.setattr(copying.os, "lseek", failing)

    async def scenario(volume: Volume) -> None:
        with pytest.raises(TorusError, match=r"source: Input/output error"):
            await import_into(volume, str(tmp_path / "source"), quiet)

    with_volume(scenario)


@pytest.mark.parametrize(("name", "words"), [("missing", "No such file"), ("", "Is a directory")])
def test_a_source_that_cannot_be_opened(
    name: str, words: str, with_volume: Callable[..., None], tmp_path: Path
) -> None:
    """Said with its name."""

    async def scenario(volume: Volume) -> None:
        with pytest.raises(TorusError, match=words):
            await import_into(volume, str(tmp_path / name), quiet)

    with_volume(scenario)


def test_a_forbidden_file_has_its_own_exit_code() -> None:
    """As in sysexits.h."""
    error = copying._file_error("x", PermissionError(errno.EACCES, "Permission denied"))

    assert type(error) is PermissionDenied
    assert error.exit_code == 77


def test_standard_input_is_left_open(
    with_volume: Callable[..., None], monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    """'-' reads it to its end, and progress has no total."""
    content = rng.randbytes(200_000)
    receiver, sender = os.pipe()

    def write() -> None:
        with os.fdopen(sender, "wb") as file:
            file.write(content)

    threading.Thread(target=write).start()
    seen: list[tuple[int, int | None]] = []

    async def scenario(volume: Volume) -> None:
        with os.fdopen(receiver, "rb") as standard_input:
            monkeypatch.setattr("sys.stdin", standard_input)
            await import_into(volume, "-", lambda done, total: seen.append((done, total)))
            assert standard_input.read() == b""

        assert await volume.read(0, 200_000) == content

    with_volume(scenario)
    assert seen[-1] == (200_192, None)


# --- export -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4096, 4608, MIB + 512, 3 * MIB - 512, 3 * MIB])
def test_a_volume_is_exported_sparse(
    size: int, with_volume: Callable[..., None], tmp_path: Path, rng: random.Random
) -> None:
    """Over whatever was in the file; pieces without data stay holes."""
    target = tmp_path / "target"
    target.write_bytes(b"old" * (2 * MIB))

    async def scenario(volume: Volume) -> None:
        at = size // 2 // 512 * 512
        await volume.write(at, rng.randbytes(512), durable=False)
        report = await export_from(volume, str(target), quiet)

        assert target.read_bytes() == await volume.read(0, size)
        assert target.stat().st_size == size
        assert (report.size_bytes, report.verified) == (size, True)
        assert report.copied_bytes == min(PIECE, size - at // PIECE * PIECE)
        assert target.stat().st_blocks * 512 <= PIECE + 64 * limits.KIB

    with_volume(scenario, size)


def test_export_and_import_give_the_same(
    with_volume: Callable[..., None], tmp_path: Path, rng: random.Random
) -> None:
    """There and back, through a file with holes at odd places."""
    content = sparse_file(
        tmp_path / "one", 3 * MIB, {5000: rng.randbytes(9000), 2 * MIB - 7: rng.randbytes(99)}
    )

    async def scenario(volume: Volume) -> None:
        await import_into(volume, str(tmp_path / "one"), quiet)
        await export_from(volume, str(tmp_path / "two"), quiet)

    with_volume(scenario)
    assert (tmp_path / "two").read_bytes() == content


def test_a_target_that_changes_is_noticed(
    with_volume: Callable[..., None], tmp_path: Path, rng: random.Random
) -> None:
    """By another program, or a disk that keeps something else: it is read back."""
    target = tmp_path / "target"

    async def scenario(volume: Volume) -> None:
        await volume.write(0, rng.randbytes(3 * MIB), durable=False)

        def change(done: int, _total: int | None) -> None:
            if done == 3 * MIB:
                with target.open("r+b") as file:
                    file.seek(MIB + 77)
                    byte = file.read(1)
                    file.seek(MIB + 77)
                    file.write(bytes([byte[0] ^ 1]))

        with pytest.raises(Corruption, match=f"differs from the volume at byte {MIB}"):
            await export_from(volume, str(target), change)

    with_volume(scenario)


@pytest.mark.parametrize("how", ["fifo", "standard output"])
def test_a_pipe_gets_every_byte(
    how: str, with_volume: Callable[..., None], tmp_path: Path, rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Zeroes included; nothing can be verified, and nothing synced."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()

    async def scenario(volume: Volume) -> None:
        await volume.write(2 * MIB, rng.randbytes(70_000 // 512 * 512), durable=False)
        content = await volume.read(0, 3 * MIB)
        if how == "fifo":
            report = await export_from(volume, str(path), quiet)
        else:
            with path.open("wb") as standard_output:
                monkeypatch.setattr("sys.stdout", standard_output)
                report = await export_from(volume, "-", quiet)
        reader.join()

        assert received == [content]
        assert not report.verified

    with_volume(scenario)


@pytest.mark.parametrize(
    ("target", "words"),
    [("/dev/full", "No space left"), ("missing/file", "No such file"), (".", "Is a directory")],
)
def test_a_target_that_cannot_be_written(
    target: str, words: str, with_volume: Callable[..., None], tmp_path: Path
) -> None:
    """Said with its name; the volume goes on."""

    async def scenario(volume: Volume) -> None:
        with pytest.raises(TorusError, match=words):
            await export_from(volume, str(tmp_path / target), quiet)
        assert volume.core.failure is None

    with_volume(scenario)


def test_a_device_without_memory_is_a_target(with_volume: Callable[..., None]) -> None:
    """To see whether all of a volume can be read."""
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)

    async def scenario(volume: Volume) -> None:
        report = await export_from(volume, "/dev/null", quiet)

        assert not report.verified

    with_volume(scenario)
