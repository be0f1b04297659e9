"""Real clients against the real thing: a node, and a gateway beside it."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import Machine, machine_in

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
SIZE = 64 * MIB
DATA, HOLE = 0, 3  # base:allocation: neither, hole and zero
NBDSH = ("/usr/bin/python3", "-m", "nbd")  # Debian's binding belongs to Debian's Python

Uri = Callable[[str], str]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Give a machine with a node of 2 GiB; it must end well."""
    with machine_in(tmp_path_factory.mktemp("m")) as machine:
        node = machine.node(size="2GiB")
        yield machine
        node.stop()
        errors = [event for event in node.events() if event["level"] == "error"]
        assert [event for event in errors if "it is being deleted" not in event["error"]] == []


@pytest.fixture(params=["node", "gateway"])
def uri(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Uri]:
    """Give a maker of volumes: a name becomes a new volume of 64 MiB and its address."""
    made: list[str] = []
    gateways = []

    def make(name: str, size: int = SIZE) -> str:
        name = f"{request.node.name.partition('[')[0]}-{name}-{request.param}"
        machine.run("volume", "create", name, str(size))
        made.append(name)
        if request.param == "node":
            return machine.uri(name)
        socket = machine.folder / f"{len(made)}.sock"
        gateways.append(machine.gateway(name, "--socket", socket))
        return machine.uri(name, socket)

    yield make
    for gateway in gateways:
        gateway.stop()
    for name in made:
        machine.run("volume", "delete", name, "--force")
    for gateway in gateways:
        assert [event for event in gateway.events() if event["level"] == "error"] == []


@pytest.fixture
def image(tmp_path: Path, rng: random.Random) -> Path:
    """Return a sparse file with data at the start, in the middle and at the end."""
    path = tmp_path / "image"
    with path.open("wb") as out:
        for offset in (0, 20 * MIB, SIZE - MIB):
            out.seek(offset)
            out.write(rng.randbytes(MIB))
    return path


def test_nbdinfo_sees_what_is_announced(machine: Machine, uri: Uri) -> None:
    """Size, abilities and block sizes, as nbdinfo understands them."""
    address = uri("disk")

    (found,) = json.loads(machine.client("nbdinfo", "--json", address))["exports"]
    abilities = ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"]

    assert found["export-size"] == SIZE
    assert found["contexts"] == ["base:allocation", "qemu:allocation-depth"]
    assert {ability: found[f"can_{ability}"] for ability in abilities} == dict.fromkeys(
        abilities, True
    )
    assert not found["is_read_only"]
    assert (found["block_size_minimum"], found["block_size_maximum"]) == (512, 32 * MIB)


def test_nbdinfo_lists_volumes(machine: Machine) -> None:
    """A node lists all volumes by name."""
    for name in ("list-b", "list-a"):
        machine.run("volume", "create", name, "1MiB")
    listed = machine.client("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={machine.socket}")
    names = [export["export-name"] for export in json.loads(listed)["exports"]]

    assert {"list-a", "list-b"} <= set(names)


@pytest.mark.parametrize(("connections", "requests"), [(1, 64), (4, 16)])
def test_nbdcopy_there_and_back(
    machine: Machine, uri: Uri, image: Path, tmp_path: Path, connections: int, requests: int
) -> None:
    """What comes back is what went in, and holes stay holes."""
    address = uri(f"disk{connections}")
    options = (f"--connections={connections}", f"--requests={requests}", "--flush")
    machine.client("nbdcopy", *options, image, address)
    extents = json.loads(machine.client("nbdinfo", "--map", "--json", address))
    machine.client("nbdcopy", *options, address, tmp_path / "back")

    assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
        (0, MIB, DATA),
        (MIB, 19 * MIB, HOLE),
        (20 * MIB, MIB, DATA),
        (21 * MIB, 42 * MIB, HOLE),
        (63 * MIB, MIB, DATA),
    ]
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    assert (tmp_path / "back").stat().st_blocks * 512 < 8 * MIB


def test_nbdcopy_from_volume_to_volume(
    machine: Machine, uri: Uri, image: Path, tmp_path: Path
) -> None:
    """A copy between two volumes of one server is the same image."""
    first, second = uri("first"), uri("second")
    machine.client("nbdcopy", image, first)
    machine.client("nbdcopy", first, second)
    machine.client("nbdcopy", second, tmp_path / "back")

    assert (tmp_path / "back").read_bytes() == image.read_bytes()


NBDSH_SCRIPT = """
import errno
import nbd

def refused(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError(f"{call} was not refused")

def extents(handle, count, offset):
    found = []
    handle.block_status(count, offset, lambda c, o, entries, e: found.extend(entries))
    return found

size = h.get_size()
h.pwrite(b"a" * 512, 512)
assert h.pread(1024, 0) == bytes(512) + b"a" * 512
h.pwrite(b"b" * 65536, 65536, nbd.CMD_FLAG_FUA)
assert extents(h, 131072, 0) == [4096, 0, 61440, 3, 65536, 0], extents(h, 131072, 0)
h.trim(65536, 65536, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 65536) == bytes(65536)
assert extents(h, 131072, 0) == [4096, 0, 126976, 3]
h.pwrite(b"c" * 65536, 65536)
h.zero(4096, 65536)
h.zero(4096, 65536 + 8192, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 65536 + 16384, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(20480, 65536) == (bytes(4096) + b"c" * 4096) * 2 + bytes(4096)
found = extents(h, 65536, 65536)
assert found[:2] == [4096, 3] and found[4:6] == [4096, 3], found
h.cache(65536, 0)
h.flush()

chunks = []
buffer = h.pread_structured(4 << 20, 32 << 20, lambda b, o, s, e: chunks.append(s))
assert bytes(buffer) == bytes(4 << 20)
assert set(chunks) == {nbd.READ_HOLE}, chunks
h.pread_structured(131072, 0, lambda *chunk: None, nbd.CMD_FLAG_DF)

h.set_strict_mode(0)
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.ENOSPC, h.pwrite, b"x" * 512, size)
refused(errno.EINVAL, h.pread, 512, 100)
refused(errno.EINVAL, h.pwrite, b"x" * 100, 0)

cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n] * 4096)), n * 4096)
           for n in range(1, 200)]
for cookie in cookies:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
assert all(h.pread(4096, n * 4096) == bytes([n]) * 4096 for n in range(1, 200))
print("all well")
"""


def test_nbdsh_script(machine: Machine, uri: Uri) -> None:
    """Every command through libnbd, with its edges and its refusals."""
    out = machine.client(*NBDSH, "--base-allocation", "--uri", uri("disk"), "-c", NBDSH_SCRIPT)

    assert out == "all well\n"


def test_flush_on_one_connection_covers_the_other(machine: Machine, uri: Uri) -> None:
    """CAN_MULTI_CONN: what one connection was answered, the other reads at once."""
    out = machine.client(
        *NBDSH, "-c", f"""
import nbd
first, second = nbd.NBD(), nbd.NBD()
for handle in (first, second):
    handle.connect_uri({uri("disk")!r})
    assert handle.can_multi_conn()
for n in range(100):
    first.pwrite(bytes([n]) * 4096, n * 4096)
    assert second.pread(4096, n * 4096) == bytes([n]) * 4096
    second.flush()
print("all well")
""",
    )  # fmt: skip

    assert out == "all well\n"


def test_qemu_img_convert_compare_map_check_bench(
    machine: Machine, uri: Uri, image: Path, tmp_path: Path
) -> None:
    """qemu-img writes, compares, maps, measures, and keeps a qcow2 on a volume."""
    address, qcow = uri("raw"), uri("qcow2")
    machine.client("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, address)
    machine.client("qemu-img", "compare", "-f", "raw", "-F", "raw", image, address)
    extents = json.loads(machine.client("qemu-img", "map", "-f", "raw", "--output=json", address))
    machine.client("qemu-img", "create", "-q", "-f", "qcow2", qcow, str(SIZE))
    machine.client("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", address, qcow)
    machine.client("qemu-img", "check", qcow)
    machine.client("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, qcow)
    machine.client("qemu-img", "convert", "-f", "raw", "-O", "qcow2", address, tmp_path / "q")
    machine.client("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, tmp_path / "q")
    for options in (("-w",), ("-w", "--flush-interval=32"), ()):
        machine.client("qemu-img", "bench", "-f", "raw", "-c", "400", "-d", "16", *options, address)

    assert [extent["data"] for extent in extents] == [True, False, True, False, True]


def test_qemu_io_patterns(machine: Machine, uri: Uri) -> None:
    """Writes, FUA, discards and zeroes at 512-byte alignment read back as they should."""
    commands = (
        "write -P 7 512 1536",
        "read -P 7 512 1536",
        "read -P 0 0 512",
        "write -f -P 9 1M 64k",
        "discard 1M 32k",
        "read -P 0 1M 32k",
        "read -P 9 1081344 32k",
        "write -P 3 4M 32M",
        "read -P 3 4M 32M",
        "write -z 5M 1M",
        "write -z -u 7M 512",
        "write -z -u 8M 8M",
        "discard 17M 512",
        "flush",
        "read -P 0 5M 1M",
        "read -P 3 6M 1M",
        "read -P 0 7M 512",
        "read -P 3 7340544 1048064",
        "read -P 0 8M 8M",
        "read -P 3 16M 1M",
        "aio_write -P 5 40M 1M",
        "aio_write -P 6 41M 512",
        "aio_flush",
        "read -P 5 40M 1M",
        "read -P 6 41M 512",
    )
    arguments = [part for command in commands for part in ("-c", command)]
    out = machine.client("qemu-io", "-f", "raw", *arguments, uri("disk"))

    assert "verification failed" not in out
    assert "Pattern" not in out


def test_fio_verifies_random_writes(machine: Machine, uri: Uri, tmp_path: Path) -> None:
    """Four jobs at depth 32, each on its own part, read back every checksum they wrote."""
    address = uri("disk", 4 * 32 * MIB)
    out = tmp_path / "fio.json"
    machine.client(
        "fio", "--name=job", "--ioengine=nbd", f"--uri={address}", "--rw=randwrite", "--bs=4k",
        "--iodepth=32", "--numjobs=4", "--size=32m", "--io_size=16m", "--offset_increment=32m",
        "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=17",
        "--group_reporting", "--output-format=json", f"--output={out}",
    )  # fmt: skip
    (job,) = json.loads(out.read_text())["jobs"]

    assert job["error"] == 0
    assert job["write"]["total_ios"] == 4 * 16 * MIB // 4096
    assert job["read"]["total_ios"] == 4 * 16 * MIB // 4096


def test_fio_verifies_odd_sizes_with_trims(machine: Machine, uri: Uri, tmp_path: Path) -> None:
    """Sizes from 512 B to 256 KiB, with flushes in between."""
    out = tmp_path / "fio.json"
    machine.client(
        "fio", "--name=job", "--ioengine=nbd", f"--uri={uri('disk')}", "--rw=randwrite",
        "--bsrange=512-256k", "--bs_unaligned=0", "--blockalign=512", "--iodepth=16", "--size=32m",
        "--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--randseed=18",
        "--output-format=json", f"--output={out}",
    )  # fmt: skip
    (job,) = json.loads(out.read_text())["jobs"]

    assert job["error"] == 0


def test_read_only_gateway_refuses_writes(machine: Machine, image: Path, tmp_path: Path) -> None:
    """A read-only export says so, hands out what is there, and keeps it."""
    socket = tmp_path / "ro.sock"
    machine.run("volume", "import", image, "frozen")
    gateway = machine.gateway("frozen", "--socket", socket, "--read-only")
    address = machine.uri("frozen", socket)
    (found,) = json.loads(machine.client("nbdinfo", "--json", address))["exports"]
    machine.client("qemu-io", "-f", "raw", "-c", "write 0 4k", address, code=1)
    machine.client("nbdcopy", address, tmp_path / "back")
    gateway.stop()

    assert found["is_read_only"]
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
