"""The compiled half of the disk: on real files, whole or not at all."""

import errno
import mmap
import os
import random
import resource
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torus import limits
from torus._fast.blockio import BlockIo, FileIo, PythonIo, fallocate
from torus._fast.blockmap import BlockMap
from torus._fast.crc import block_checksums
from torus._fast.datapath import Datapath
from torus._fast.frame import RequestBatch
from torus._fast.record import KIND_DATA, KIND_PAGES, RecordBuilder
from torus._fast.reply import ReplyBuilder
from torus.testing.nbd_client import request_bytes

BLOCK = limits.BLOCK_BYTES
HEADER = 4096
SEGMENT = 64 * BLOCK
CHUNK = (1, 1, 0, 1)


def record_of(*payloads: bytes) -> RecordBuilder:
    builder = RecordBuilder(limits.MIB, max(len(payloads), 1))
    for number, payload in enumerate(payloads):
        builder.add_data(number, payload)
    builder.finish(KIND_DATA, CHUNK, 0, 1, 0, 512)
    return builder


class Reader:
    """Calls an io's read_now for one block, as the data path does."""

    def __init__(self, io: BlockIo) -> None:
        self.blocks = BlockMap(4096, limits.MIB)
        self.blocks.open_sequence(1)
        self.places: dict[int, int] = {}
        self.path = Datapath(self.blocks, io, self.places)

    def read(self, address: int, expected: bytes) -> bytes | None:
        """Return the blocks at ``address``, or None when that would wait or fails."""
        self.places[1] = address
        self.blocks.set(0, block_checksums(expected), 1, 0)
        batch, replies = RequestBatch(limits.MIB, size_bytes=4096 * BLOCK), ReplyBuilder()
        assert batch.received(batch.feed(request_bytes(0, 0, len(expected)))) == 1
        left = self.path.read_now(batch, 0, 1, replies)
        answer = replies.take()
        assert bool(answer) is not bool(left), "answered or left over, never both"
        return None if left else answer[16:]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[FileIo, list[int]]]:
    """Return an io over two segment files of random bytes, and their descriptors."""
    io, fds = FileIo(SEGMENT, HEADER), []
    for number in range(2):
        fd = os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT)
        os.write(fd, random.Random(number).randbytes(HEADER + SEGMENT))
        io.set_file(number, fd)
        fds.append(fd)
    yield io, fds
    for fd in fds:
        os.close(fd)


# --- reading ----------------------------------------------------------------------------


def test_what_is_cached_is_read_at_once(files: tuple[FileIo, list[int]]) -> None:
    """Addresses count slot bytes: each segment's header is stepped over."""
    io, fds = files
    reader = Reader(io)
    for address in (0, BLOCK, SEGMENT - 2 * BLOCK, SEGMENT, 2 * SEGMENT - 2 * BLOCK):
        segment, within = divmod(address, SEGMENT)
        expected = os.pread(fds[segment], 2 * BLOCK, HEADER + within)

        assert reader.read(address, expected) == expected, address


def test_a_short_file_is_left_to_the_slow_path(files: tuple[FileIo, list[int]]) -> None:
    """It knows how to say what is missing; nothing of half a block is handed out."""
    io, fds = files
    reader = Reader(io)
    expected = os.pread(fds[0], 2 * BLOCK, HEADER)
    os.ftruncate(fds[0], HEADER + 2 * BLOCK - 1)

    assert reader.read(0, expected) is None
    assert reader.read(4 * BLOCK, expected) is None
    assert reader.path.mismatches == 0


def cold_file(path: Path, size: int) -> bytes:
    """Write a file past the page cache, and return what is in it.

    What never was in memory need not be dropped from it: a kernel may keep what it is asked
    to drop.  A hole will not do, as it is filled at once.
    """
    data = mmap.mmap(-1, size)  # O_DIRECT wants whole pages
    data.write(random.Random(1).randbytes(size))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    for start in range(0, size, limits.MIB):
        with memoryview(data) as view:
            assert os.pwrite(fd, view[start : start + limits.MIB], start) == limits.MIB
    os.fsync(fd)
    os.close(fd)
    return data[:]


@pytest.fixture
def disk_path(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is not in memory as a whole, as some have under /tmp."""
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        in_memory = False
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as exc:
            in_memory = exc.errno == errno.EOPNOTSUPP  # tmpfs
    if not in_memory:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def left_over(path: Path) -> float:
    """Return the share of reads of a cold file that the fast path leaves; all are made again."""
    segment = 16 * limits.MIB
    data = cold_file(path, segment)
    fd = os.open(path, os.O_RDWR)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # some disks read 8 MiB ahead
    io = FileIo(segment - HEADER, HEADER)
    io.set_file(0, fd)
    reader = Reader(io)
    places = {at: data[HEADER + at : HEADER + at + BLOCK] for at in range(0, segment, limits.MIB)}
    cold = [at for at, expected in places.items() if reader.read(at, expected) is None]
    for at, expected in places.items():
        assert os.pread(fd, BLOCK, HEADER + at) == expected
        assert reader.read(at, expected) == expected, "it is in memory now"
    os.close(fd)
    return len(cold) / len(places)


def test_what_is_not_cached_is_left_to_the_slow_path(disk_path: Path) -> None:
    """Reading it would hold up every client of the process.

    The read that is left over begins one of the disk, which may be done before the processor is
    had again: then another file has to tell.
    """
    shares = []
    while len(shares) < 5:
        shares.append(left_over(disk_path / f"cold-{len(shares)}"))
        if shares[-1] > 0.5:
            return
    pytest.fail(f"reads of what was not in memory waited for it: {shares} were left over")


@pytest.mark.parametrize("address", [2 * SEGMENT, 9 * SEGMENT, 2**40])
def test_an_unknown_segment_is_left_to_the_slow_path(
    address: int, files: tuple[FileIo, list[int]]
) -> None:
    """A fast read never fails a connection, and leaves no reply without content behind."""
    assert Reader(files[0]).read(address, bytes(BLOCK)) is None


def test_a_failing_descriptor_is_left_to_the_slow_path(tmp_path: Path) -> None:
    """EISDIR here, EIO on a dying disk."""
    io = FileIo(SEGMENT, HEADER)
    folder = os.open(tmp_path, os.O_RDONLY)
    io.set_file(0, folder)

    assert Reader(io).read(0, bytes(BLOCK)) is None
    os.close(folder)


def test_a_segment_is_taken_away(files: tuple[FileIo, list[int]]) -> None:
    """Its descriptor's number may soon be another file's."""
    io, fds = files
    io.set_file(1, -1)

    assert Reader(io).read(SEGMENT, os.pread(fds[1], BLOCK, HEADER)) is None
    with pytest.raises(OSError, match="no open segment") as caught:
        io.write(SEGMENT, record_of(bytes(BLOCK)))
    assert caught.value.errno == errno.EIO
    with pytest.raises(ValueError, match="no segment -1"):
        io.set_file(-1, fds[0])


def test_segments_come_in_any_order(tmp_path: Path) -> None:
    """Numbers between that were never given are unknown."""
    io = FileIo(SEGMENT, HEADER)
    fd = os.open(tmp_path / "s", os.O_RDWR | os.O_CREAT)
    io.set_file(40, fd)
    record = record_of(b"a" * BLOCK)
    io.write(40 * SEGMENT, record)
    for other in (0, 39, 41):
        with pytest.raises(OSError, match="no open segment"):
            io.write(other * SEGMENT, record)

    assert os.pread(fd, record.size, HEADER) == record.tobytes()
    os.close(fd)


# --- writing ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 255, 256, 1022, 1023, 1024, 1500])
def test_a_record_of_many_pieces_is_written_whole(
    count: int, files: tuple[FileIo, list[int]], rng: random.Random
) -> None:
    """More pieces than the system takes at once (IOV_MAX is 1024) included."""
    io, fds = files
    builder = RecordBuilder(8 * limits.MIB, count)
    data = rng.randbytes(BLOCK)
    for number in range(count):
        builder.add_data(number, data)
    builder.finish(KIND_DATA, CHUNK, 0, 1, 0, 512)
    io.write(SEGMENT + 1024, builder)

    assert os.pread(fds[1], builder.size, HEADER + 1024) == builder.tobytes()
    assert io.short_writes == 0


def test_an_unfinished_record_is_not_written(files: tuple[FileIo, list[int]]) -> None:
    """There is no header yet."""
    io, fds = files
    before = os.pread(fds[0], HEADER + SEGMENT, 0)
    builder = RecordBuilder(limits.MIB, 4)
    builder.add_data(0, bytes(BLOCK))
    for each in (io, PythonIo(Memory())):
        with pytest.raises(ValueError, match="not finished"):
            each.write(0, builder)

    assert os.pread(fds[0], HEADER + SEGMENT, 0) == before


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let files of this process end at ``size``: a write across it is short, the next fails."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_short_write_goes_on_and_its_error_is_told(files: tuple[FileIo, list[int]]) -> None:
    """What the first call left over is tried, and the system says why it does not fit."""
    io, fds = files
    record = record_of(b"a" * BLOCK, b"b" * BLOCK, b"c" * BLOCK)
    os.ftruncate(fds[0], HEADER)
    with file_size_limit(HEADER + 512 + BLOCK + 100):
        with pytest.raises(OSError) as caught:
            io.write(0, record)

    assert caught.value.errno == errno.EFBIG
    assert (io.short_writes, io.writes) == (1, 2)
    found = os.pread(fds[0], record.size, HEADER)
    assert found == record.tobytes()[: len(found)]
    assert len(found) == 512 + BLOCK + 100


def test_a_pipe_is_no_disk() -> None:
    """It has no offsets, so nothing is written anywhere."""
    receiver, sender = os.pipe()
    io = FileIo(SEGMENT, 0)
    io.set_file(0, sender)
    with pytest.raises(OSError) as caught:
        io.write(0, record_of(bytes(BLOCK)))
    os.close(receiver)
    os.close(sender)

    assert caught.value.errno == errno.ESPIPE


@pytest.mark.parametrize(("target", "error"), [("/dev/full", errno.ENOSPC), ("r", errno.EBADF)])
def test_the_errno_of_a_failed_write_is_passed(target: str, error: int, tmp_path: Path) -> None:
    """No space is one thing, a broken disk another: the store decides by it."""
    (tmp_path / "r").touch()
    fd = os.open(tmp_path / target, os.O_WRONLY if target == "/dev/full" else os.O_RDONLY)
    io = FileIo(SEGMENT, HEADER)
    io.set_file(0, fd)
    with pytest.raises(OSError) as caught:
        io.write(0, record_of(bytes(BLOCK)))
    os.close(fd)

    assert caught.value.errno == error


# --- a disk in Python -------------------------------------------------------------------


class Memory:
    """The least that `PythonIo` asks for."""

    def __init__(self) -> None:
        self.content = bytearray(SEGMENT)
        self.answer: object = None
        self.error: Exception | None = None

    def read_now(self, address: int, size: int) -> bytes | None:
        if self.error is not None:
            raise self.error
        return self.answer or bytes(self.content[address : address + size])  # type: ignore[return-value]

    def write(self, address: int, data: bytes) -> None:
        self.content[address : address + len(data)] = data


def test_a_disk_in_python_does_the_same() -> None:
    """Bytes there and back."""
    disk = Memory()
    record = record_of(b"x" * BLOCK)
    PythonIo(disk).write(1024, record)

    assert bytes(disk.content[1024 : 1024 + record.size]) == record.tobytes()
    assert Reader(PythonIo(disk)).read(1536, b"x" * BLOCK) == b"x" * BLOCK


def test_a_disk_in_python_that_is_wrong_is_not_believed() -> None:
    """Nothing of another size or type is copied into a reply."""
    disk = Memory()
    reader = Reader(PythonIo(disk))
    disk.answer = bytes(BLOCK - 1)
    assert reader.read(0, bytes(BLOCK)) is None
    disk.answer = bytearray(BLOCK)
    with pytest.raises(TypeError):
        reader.read(0, bytes(BLOCK))
    disk.answer, disk.error = None, OSError(errno.EIO, "planned")
    assert reader.read(0, bytes(BLOCK)) is None


def test_a_payload_without_extents_is_written(files: tuple[FileIo, list[int]]) -> None:
    """Pages and roots take the same way."""
    io, fds = files
    builder = RecordBuilder(limits.MIB, 1)
    builder.set_payload(b"p" * 1536)
    builder.finish(KIND_PAGES, CHUNK, 0, 1, 0, 512)
    io.write(512, builder)

    assert os.pread(fds[0], builder.size, HEADER + 512) == builder.tobytes()


def test_fallocate_punches_and_tells_errors(files: tuple[FileIo, list[int]]) -> None:
    """The mode that frees space and reads as zeroes, and the errno of one that cannot be."""
    _, fds = files
    fallocate(fds[0], 0x03, HEADER, 2 * BLOCK)
    assert os.pread(fds[0], 2 * BLOCK, HEADER) == bytes(2 * BLOCK)
    assert os.fstat(fds[0]).st_size == HEADER + SEGMENT
    with pytest.raises(OSError) as caught:
        fallocate(-1, 0, 0, 1)
    assert caught.value.errno == errno.EBADF
