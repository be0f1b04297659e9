"""Real NBD clients against the gateway over memory."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.interop, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
SIZE = 64 * MIB


class Server:
    """A server process and the URIs of its exports."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def uri(self, name: str = "disk") -> str:
        return f"nbd+unix:///{name}?socket={self.path}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serve ``disk`` (64 MiB) and ``ro`` (1 MiB, read-only); it must stop cleanly and silently."""
    path = tmp_path / "nbd.sock"
    process = subprocess.Popen(
        [
            sys.executable, str(ROOT / "tests/interop/serve_memory.py"), f"unix:{path}",
            f"disk={SIZE}", f"ro={MIB}:ro",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == f"unix:{path}\n"
    yield Server(path)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == ""


def client(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a client; its failure is the test's, with what it said."""
    name = str(command[0])
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, cwd=cwd,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a sparse file with data at the start, in the middle and at the end."""
    chance = random.Random(17)
    path = tmp_path / "image"
    with path.open("wb") as out:
        for offset in (0, 20 * MIB, SIZE - MIB):
            out.seek(offset)
            out.write(chance.randbytes(MIB))
    return path


def test_nbdinfo_sees_what_is_announced(server: Server) -> None:
    """Names, sizes and abilities as nbdinfo understands them."""
    listed = json.loads(client("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={server.path}"))
    assert [export["export-name"] for export in listed["exports"]] == ["disk", "ro"]
    (found,) = json.loads(client("nbdinfo", "--json", server.uri()))["exports"]
    assert found["export-size"] == SIZE
    assert found["contexts"] == ["base:allocation"]
    abilities = ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"]
    assert all(found[f"can_{ability}"] for ability in abilities)
    assert (found["block_size_minimum"], found["block_size_maximum"]) == (512, 32 * MIB)
    (found,) = json.loads(client("nbdinfo", "--json", server.uri("ro")))["exports"]
    assert found["is_read_only"]
    assert not found["can_zero"]


def test_nbdcopy_round_trip_keeps_bytes_and_holes(
    server: Server, image: Path, tmp_path: Path
) -> None:
    """Four connections, 256 KiB requests: the copy back is the image, holes stay holes."""
    client("nbdcopy", image, server.uri())
    extents = json.loads(client("nbdinfo", "--map", "--json", server.uri()))
    assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
        (0, MIB, 0),
        (MIB, 19 * MIB, 3),
        (20 * MIB, MIB, 0),
        (21 * MIB, 42 * MIB, 3),
        (63 * MIB, MIB, 0),
    ]
    client("nbdcopy", server.uri(), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


def test_qemu_img_convert_compare_map(server: Server, image: Path, tmp_path: Path) -> None:
    """qemu-img writes, compares and maps the export."""
    client("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, server.uri())
    client("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.uri())
    extents = json.loads(client("qemu-img", "map", "-f", "raw", "--output=json", server.uri()))
    assert [extent["data"] for extent in extents] == [True, False, True, False, True]
    client("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri(), tmp_path / "q")
    client("qemu-img", "check", tmp_path / "q")
    client("qemu-img", "bench", "-f", "raw", "-c", "500", "-d", "16", "-w", server.uri())


def test_qemu_io_patterns(server: Server) -> None:
    """Writes, FUA, discards and zeroes at 512-byte alignment read back as they should."""
    commands = (
        "write -P 7 512 1536",
        "read -P 7 512 1536",
        "write -f -P 9 1M 64k",
        "discard 1M 32k",
        "read -P 0 1M 32k",
        "read -P 9 1081344 32k",
        "write -P 3 4M 32M",
        "read -P 3 4M 32M",
        "write -z 5M 1M",
        "write -z -u 7M 512",
        "flush",
        "read -P 0 5M 1M",
        "read -P 3 6M 1M",
        "read -P 0 7M 512",
    )
    arguments = [part for command in commands for part in ("-c", command)]
    out = client("qemu-io", "-f", "raw", *arguments, server.uri())
    assert "verification failed" not in out


@pytest.mark.parametrize("pattern", ["randwrite", "write"])
def test_fio_verifies(server: Server, tmp_path: Path, pattern: str) -> None:
    """fio's nbd engine reads back every checksum it wrote."""
    out = tmp_path / "fio.json"
    client(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri()}", f"--rw={pattern}",
        "--bsrange=512-128k", "--blockalign=512", "--size=32m", "--iodepth=32",
        "--verify=crc32c", "--randseed=5", "--output-format=json", f"--output={out}",
        cwd=tmp_path,
    )  # fmt: skip
    (job,) = json.loads(out.read_text())["jobs"]
    assert job["error"] == 0
    assert job["read"]["total_ios"] > 0


NBDSH = """
import errno
h.set_export_name("disk")
h.add_meta_context("base:allocation")
h.set_strict_mode(0)
h.connect_uri(URI)
h.pwrite(b"a" * 4096, 0, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(4096, 0, nbd.CMD_FLAG_DF) == b"a" * 4096
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 16384, nbd.CMD_FLAG_FAST_ZERO)
h.cache(1 << 20, 0)
h.trim(4096, 0)
assert h.pread(4096, 0) == bytes(4096)

def fails(expected, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == expected, (call, arguments, error)
    else:
        raise AssertionError((call, arguments))

size = h.get_size()
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 512, 1)
fails(errno.ENOSPC, h.pwrite, bytes(512), size)
fails(errno.ENOSPC, h.zero, 1024, size - 512)
fails(errno.EINVAL, h.trim, 1024, size - 512)
fails(errno.EINVAL, h.pread, 512, 0, 2)
fails(errno.ENOTSUP, h.zero, 4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.block_status, 1024, size - 512, lambda *_: 0)
found = []
one = nbd.CMD_FLAG_REQ_ONE
h.block_status(4096, 0, lambda _, offset, found_, error: found.extend(found_), one)
assert found == [4096, 3], found
cookies = [h.aio_pread(nbd.Buffer(65536), i * 65536) for i in range(256)]
while cookies:
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
    if cookies:
        h.poll(-1)
assert h.pread(512, 0) == bytes(512)
h.shutdown()
print("good")
"""


@pytest.mark.parametrize("structured", [True, False])
def test_libnbd_errors_and_pipelining(server: Server, structured: bool) -> None:
    """libnbd, told not to check anything itself, sees the protocol's errors."""
    if subprocess.run(["/usr/bin/python3", "-c", "import nbd"], check=False).returncode:
        pytest.skip("python3-libnbd is not installed")
    script = NBDSH.replace("URI", repr(server.uri()))
    structured_only = ("context", "block_status", "_DF", "found", "one =")
    if not structured:
        script = "h.set_request_structured_replies(False)\n" + "\n".join(
            line
            for line in script.splitlines()
            if not any(word in line for word in structured_only)
        )
    done = client("/usr/bin/python3", "-c", f"import nbd\nh = nbd.NBD()\n{script}")
    assert done == "good\n"
