"""Real clients on snapshots, and on the contexts that say what changed since one."""

import concurrent.futures
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk_client import DiskClient, RequestFailed
from tests.processes import Machine, Service, machine_in, wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

KIB, MIB = 1 << 10, 1 << 20
SIZE = 64 * MIB
READERS = 16


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine with a running node and a volume of 64 MiB; nothing may crash in it."""
    with machine_in(socket_folder) as machine:
        machine.node(size="1GiB")
        machine.run("volume", "create", "disk", str(SIZE))
        yield machine
    for service in machine.services:
        assert "Traceback" not in service.text
        assert '"traceback"' not in service.text


class Disk:
    """The volume 'disk', served by a node or a gateway, and what should be on it."""

    def __init__(self, machine: Machine, rng: random.Random, server: str) -> None:
        self.machine = machine
        self.rng = rng
        self.socket = machine.socket
        if server == "gateway":
            self.socket = machine.folder / "disk.sock"
            machine.gateway("disk", "--socket", self.socket)
        self.client = machine.open("disk", self.socket)
        self.content = bytearray(SIZE)
        self.kept: dict[str, bytes] = {}

    def change(self, count: int = 20) -> None:
        """Write and trim here and there."""
        for _ in range(count):
            length = self.rng.choice((4 * KIB, 12 * KIB, 300 * KIB))
            offset = self.rng.randrange(0, SIZE - length, 4 * KIB)
            if self.rng.random() < 0.8:
                piece = self.rng.randbytes(length)
                self.client.write(offset, piece)
            else:
                piece = bytes(length)
                self.client.trim(offset, length)
            self.content[offset : offset + length] = piece
        self.client.flush()

    def snapshot(self, name: str) -> None:
        """Make a snapshot and remember what it holds."""
        self.machine.run("volume", "snapshot", "create", f"disk@{name}")
        self.kept[name] = bytes(self.content)

    def extents(self, name: str, context: str) -> list[tuple[int, int, int]]:
        """Return (offset, length, flags) of a context, as nbdinfo sees it."""
        socket = self.machine.socket if "@" in name else self.socket
        address = self.machine.uri(name, socket)
        found = json.loads(self.machine.client("nbdinfo", f"--map={context}", "--json", address))
        return [(one["offset"], one["length"], one["type"]) for one in found]


@pytest.fixture(params=["node", "gateway"])
def disk(request: pytest.FixtureRequest, machine: Machine, rng: random.Random) -> Iterator[Disk]:
    """Give the volume with a writing client on it."""
    disk = Disk(machine, rng, request.param)
    yield disk
    disk.client.close()


def test_nbdinfo_lists_snapshots_and_contexts(machine: Machine) -> None:
    """Each snapshot is an export behind its volume; the empty name is still the volume."""
    for name in ("b", "a"):
        machine.run("volume", "snapshot", "create", f"disk@{name}")
    address = f"nbd+unix:///?socket={machine.socket}"
    listed = json.loads(machine.client("nbdinfo", "--list", "--json", address))["exports"]
    found = {export["export-name"]: export for export in listed}
    (default,) = json.loads(machine.client("nbdinfo", "--json", address))["exports"]
    always = ["base:allocation", "qemu:allocation-depth"]

    assert [export["export-name"] for export in listed] == ["disk", "disk@a", "disk@b"]
    assert default["export-name"] == "disk"
    assert not default["is_read_only"]
    for name, since in (("disk", ["b", "a"]), ("disk@a", ["b"]), ("disk@b", [])):
        expected = [*always, *(f"torus:changed-since:{one}" for one in since)]
        assert found[name]["contexts"] == expected, name
    for name in ("disk@a", "disk@b"):
        assert found[name]["is_read_only"]
        assert found[name]["can_multi_conn"]
        assert not found[name]["can_trim"]


def test_copies_of_a_snapshot_under_load(disk: Disk, tmp_path: Path) -> None:
    """nbdcopy and qemu-img take it as it was, while its volume is overwritten."""
    machine = disk.machine
    disk.change(60)
    disk.snapshot("a")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        address = machine.uri("disk@a")
        copied = pool.submit(machine.client, "nbdcopy", "--connections=4", address, tmp_path / "n")
        converted = pool.submit(
            machine.client, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", address,
            tmp_path / "q",
        )  # fmt: skip
        while not (copied.done() and converted.done()):
            disk.change(5)
    copied.result()
    converted.result()
    machine.client(
        "qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "q", tmp_path / "n"
    )
    machine.client("qemu-img", "compare", "-f", "raw", "-F", "qcow2", address, tmp_path / "q")

    assert (tmp_path / "n").read_bytes() == disk.kept["a"]
    assert disk.client.read(0, 32 * MIB) == bytes(disk.content[: 32 * MIB])


def test_clients_agree_with_volume_diff(disk: Disk) -> None:
    """nbdinfo and qemu-img see the same changed ranges as `torus volume diff`."""
    machine = disk.machine
    for name in ("a", "b"):
        disk.change()
        disk.snapshot(name)
    disk.change()

    def changed(newer: str) -> list[tuple[int, int]]:
        found = machine.run("volume", "diff", "disk@a", newer, "-o", "json").document
        joined: list[tuple[int, int]] = []
        for one in found["diff"]["ranges"]:
            offset, length = one["offset"], one["length"]
            if joined and sum(joined[-1]) == offset:
                offset, length = joined[-1][0], joined.pop()[1] + length
            joined.append((offset, length))
        return joined

    for newer in ("disk@b", "disk"):
        expected = changed(newer)
        extents = disk.extents(newer, "torus:changed-since:a")
        socket = machine.socket if "@" in newer else disk.socket
        options = (
            f"driver=nbd,export={newer},server.type=unix,server.path={socket},"
            "x-dirty-bitmap=torus:changed-since:a"
        )
        seen = json.loads(
            machine.client("qemu-img", "map", "--output=json", "--image-opts", options)
        )

        assert len(expected) > 10
        assert sum(length for _, length, _ in extents) == SIZE
        assert [(offset, length) for offset, length, flags in extents if flags == 1] == expected
        # qemu shows what is dirty as what has no data
        assert [(one["start"], one["length"]) for one in seen if not one["data"]] == expected


def test_changed_blocks_make_an_incremental_backup(disk: Disk, tmp_path: Path) -> None:
    """A full copy of the first snapshot and then only what changed is each later one."""
    machine = disk.machine
    disk.change(40)
    disk.snapshot("s0")
    machine.client("nbdcopy", machine.uri("disk@s0"), tmp_path / "backup")
    for number in range(1, 6):
        disk.change(10)
        disk.snapshot(f"s{number}")
        disk.change(2)
        context = f"torus:changed-since:s{number - 1}"
        taken = 0
        with (
            (tmp_path / "backup").open("r+b") as backup,
            machine.open(f"disk@s{number}") as reader,
        ):
            for offset, length, flags in disk.extents(f"disk@s{number}", context):
                if flags:
                    backup.seek(offset)
                    backup.write(reader.read(offset, length))
                    taken += length

        assert (tmp_path / "backup").read_bytes() == disk.kept[f"s{number}"]
        assert 0 < taken < SIZE // 4


def test_depth_of_a_clone(machine: Machine) -> None:
    """What it wrote is at depth 1, what it inherits at 2; flattened, all is at 1."""
    with machine.open("disk") as client:
        client.write(0, b"a" * 2 * MIB, durable=True)
    machine.run("volume", "snapshot", "create", "disk@a")
    machine.run("volume", "clone", "disk@a", "copy")
    with machine.open("copy") as client:
        client.write(MIB, b"b" * 2 * MIB, durable=True)
    command = ("nbdinfo", "--map=qemu:allocation-depth", "--json", machine.uri("copy"))
    inherited = json.loads(machine.client(*command))
    machine.run("volume", "flatten", "copy")
    flattened = json.loads(machine.client(*command))

    assert [(one["length"], one["type"]) for one in inherited] == [
        (MIB, 2),
        (2 * MIB, 1),
        (SIZE - 3 * MIB, 0),
    ]
    assert [(one["length"], one["type"]) for one in flattened] == [
        (3 * MIB, 1),
        (SIZE - 3 * MIB, 0),
    ]


def test_many_readers_at_once(disk: Disk) -> None:
    """At the node and at two gateways of their own, while the volume is written."""
    machine = disk.machine
    disk.change(40)
    disk.snapshot("a")
    sockets = [machine.socket]
    for number in range(2):
        sockets.append(machine.folder / f"r{number}.sock")
        machine.gateway("disk@a", "--socket", sockets[-1])

    def read(number: int) -> bool:
        step = MIB
        with machine.open("disk@a", sockets[number % 3]) as reader:
            begin = number * 4 * MIB % SIZE
            offsets = [*range(begin, SIZE, step), *range(0, begin, step)]
            return all(
                reader.read(offset, step) == disk.kept["a"][offset : offset + step]
                for offset in offsets
            )

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        results = [pool.submit(read, number) for number in range(READERS)]
        while not all(result.done() for result in results):
            disk.change(5)

    assert [result.result() for result in results] == [True] * READERS


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_gateway_of_a_snapshot_keeps_it_while_it_lives(
    machine: Machine, end: signal.Signals
) -> None:
    """With or without clients; when it has ended, or was killed, the snapshot can go."""
    with machine.open("disk") as client:
        client.write(0, b"a" * MIB, durable=True)
    machine.run("volume", "snapshot", "create", "disk@a")
    socket = machine.folder / "a.sock"
    gateway: Service = machine.gateway("disk@a", "--socket", socket)
    address = machine.uri("disk@a", socket)
    machine.client("qemu-io", "-f", "raw", "-c", "write 0 4k", address, code=1)
    machine.client("qemu-io", "-r", "-f", "raw", "-c", "read -P 97 0 1M", address)
    with machine.open("", socket) as client:  # its only export is the default
        assert client.read(0, 4096) == b"a" * 4096
    for name in ("disk", "disk@b", "nothing"):
        with pytest.raises(RequestFailed):
            DiskClient(socket, name)
    assert f"pid {gateway.pid}" in machine.refused(75, "volume", "snapshot", "delete", "disk@a")
    if end == signal.SIGTERM:
        gateway.stop()
    else:
        gateway.kill()
    machine.run("volume", "snapshot", "delete", "disk@a")


def test_deletion_is_possible_as_soon_as_the_last_client_left(machine: Machine) -> None:
    """A client's context counts as a reader too."""
    with machine.open("disk") as client:
        client.write(0, b"a" * MIB, durable=True)
    for name in ("a", "b"):
        machine.run("volume", "snapshot", "create", f"disk@{name}")
    machine.client("nbdinfo", "--map=torus:changed-since:a", machine.uri("disk@b"))
    machine.client("nbdcopy", machine.uri("disk@a"), "/dev/null")
    opened = len(machine.services[0].events("snapshot.opened"))
    wait_until(
        lambda: len(machine.services[0].events("snapshot.closed")) == opened, "all are closed"
    )
    for name in ("a", "b"):
        machine.run("volume", "snapshot", "delete", f"disk@{name}")

    assert opened >= 3


def test_snapshots_that_are_not_there(machine: Machine) -> None:
    """They are refused in words, by the command and by the server."""
    socket = machine.folder / "x.sock"
    for name, code in (("disk@none", 5), ("none@a", 5), ("disk@", 64), ("disk@a@b", 64)):
        machine.refused(code, "nbd", "serve", name, "--socket", socket)
        with pytest.raises(RequestFailed):
            DiskClient(machine.socket, name)
