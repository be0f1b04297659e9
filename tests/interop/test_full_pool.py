"""A pool or a host's file system without space: nothing is lost, and it ends when space is free."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk_client import DiskClient
from tests.processes import Machine, http_get, machine_in, wait_until
from torus.nbd import constants as nbd

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
SIZE = 64 * MIB  # of the pool: 16 slots, of which 4 are kept


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine without a node; no process of it may show a traceback."""
    with machine_in(socket_folder) as machine:
        yield machine
    for service in machine.services:
        assert "Traceback" not in service.text
        assert '"traceback"' not in service.text


def stamp(number: int) -> bytes:
    """Return a MiB that says which it is."""
    return number.to_bytes(8, "big") * (MIB // 8)


def write_until_full(client: DiskClient, first: int = 0) -> int:
    """Write MiBs until one is not answered within a second; return how many were."""
    for number in range(first, 1000):
        client.send(nbd.NBD_CMD_WRITE, number * MIB, payload=stamp(number))
        if client.silent_for(1.0):
            return number
        assert client.receive()[1] == 0
    raise AssertionError("the pool never was full")


def can_write(client: DiskClient, number: int) -> bool:
    """Write a MiB, or say that there is no space for it."""
    client.send(nbd.NBD_CMD_WRITE, number * MIB, payload=stamp(number))
    error = client.receive()[1]
    assert error in (0, errno.ENOSPC)
    return error == 0


def test_full_pool_pauses_writes_until_a_volume_is_deleted(machine: Machine) -> None:
    """Reads go on, status and healthz say so, and the paused write is answered in the end."""
    node = machine.node("--http", "127.0.0.1:0", size=str(SIZE))
    http = node.wait_for("node.ready")["http"]
    with machine.client_of_new("ballast", "32MiB") as client:
        for number in range(20):
            client.write(number * MIB, stamp(number))
    with machine.client_of_new("disk", "1GiB") as client, machine.open("disk") as reader:
        count = write_until_full(client)
        assert count >= 20
        for number in range(count):
            assert reader.read(number * MIB, MIB) == stamp(number)
        status = machine.status()
        assert not status["healthy"]
        assert "the pool is full" in " ".join(status["problems"])
        code, text = http_get(http, "/healthz")
        assert code == 503
        assert "the pool is full" in text
        machine.run("volume", "delete", "ballast")

        assert client.receive()[1] == 0
        client.flush()
        assert reader.read(count * MIB, MIB) == stamp(count)
        wait_until(lambda: machine.status()["healthy"], "all is well again")
        assert http_get(http, "/healthz") == (200, "ok\n")
    node.stop()
    node = machine.node(size=None)
    with machine.open("disk") as client:
        assert all(client.read(n * MIB, MIB) == stamp(n) for n in range(count + 1))


def test_full_pool_goes_on_after_a_trim(machine: Machine) -> None:
    """A trim is taken while writes wait, and its space goes to them."""
    machine.node(size=str(SIZE))
    with machine.client_of_new("disk", "1GiB") as client, machine.open("disk") as other:
        count = write_until_full(client)
        other.trim(0, 16 * MIB)
        assert client.receive()[1] == 0
        other.flush()

        assert other.read(0, 16 * MIB) == bytes(16 * MIB)
        assert other.read(count * MIB, MIB) == stamp(count)
        assert other.read(16 * MIB, MIB) == stamp(16)


def test_full_pool_answers_enospc_where_asked(machine: Machine) -> None:
    """--on-full error: the write fails at once, reads and trims go on, then writes again."""
    machine.node("--on-full", "error", size=str(SIZE))
    with machine.client_of_new("disk", "1GiB") as client:
        count = 0
        while can_write(client, count):
            count += 1
        assert count >= 40
        assert all(client.read(n * MIB, MIB) == stamp(n) for n in range(count))
        client.trim(0, 16 * MIB)
        wait_until(lambda: can_write(client, count), "writes go on after a trim")
        assert client.read(count * MIB, MIB) == stamp(count)
        assert client.read(0, MIB) == bytes(MIB)


def test_full_pool_does_not_delay_the_end(machine: Machine) -> None:
    """SIGTERM with writes that wait: they are refused, the node ends, all answered is there."""
    node = machine.node(size=str(SIZE))
    with machine.client_of_new("disk", "1GiB") as client:
        count = write_until_full(client)
        began = time.monotonic()
        node.signal(signal.SIGTERM)
        assert client.receive()[1] == errno.ENOSPC
        assert node.wait(15) == 0
        assert time.monotonic() - began < 5
    node = machine.node(size=str(2 * SIZE))  # the way out: a larger pool
    with machine.open("disk") as client:
        assert all(client.read(n * MIB, MIB) == stamp(n) for n in range(count))
        client.write(count * MIB, stamp(count))
        client.flush()
    node.stop()


def test_full_pool_survives_a_kill(machine: Machine) -> None:
    """kill -9 while writes wait: the next start has everything that was answered."""
    node = machine.node(size=str(SIZE))
    with machine.client_of_new("disk", "1GiB") as client:
        count = write_until_full(client)
        node.kill()
    machine.node(size=None)
    with machine.open("disk") as client:
        assert all(client.read(n * MIB, MIB) == stamp(n) for n in range(count))
        client.trim(0, count * MIB)
        client.write(0, stamp(0))
        client.flush()


def test_full_pool_forced_deletion_of_the_volume_that_waits(machine: Machine) -> None:
    """The client whose write waits is cut off; the space is free for others."""
    machine.node(size=str(SIZE))
    with machine.client_of_new("disk", "1GiB") as client:
        write_until_full(client)
        machine.run("volume", "delete", "disk", "--force")
        assert client.is_closed()
    with machine.client_of_new("other", "1GiB") as client:
        client.write(0, stamp(0) * 30)
        assert client.read(29 * MIB, MIB) == stamp(0)


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
@pytest.mark.parametrize("mode", ["pause", "error"])
def test_full_host_file_system(machine: Machine, mode: str) -> None:
    """The host has less than --size: the same, and the disk is not taken for failed."""
    data = machine.folder / "small"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96M", "torus-test", data], check=True)
    try:
        _fill_host(machine, data, mode)
    finally:
        machine.close()
        subprocess.run(["umount", data], check=True)


def _fill_host(machine: Machine, data: Path, mode: str) -> None:
    options = ("--data-dir", data, "--on-full", mode)
    node = machine.node(*options, size="1GiB")
    assert node.events("disk.overcommitted")
    with machine.client_of_new("disk", "1GiB") as client, machine.open("disk") as other:
        count = 0
        try:
            count = write_until_full(client)
        except AssertionError:
            assert mode == "error"
            count = next(n for n in range(1000) if other.read(n * MIB, MIB) != stamp(n))
        assert count > 40
        assert all(other.read(n * MIB, MIB) == stamp(n) for n in range(count))
        status = machine.node_status()
        assert not status["disk_failed"]
        other.trim(0, 40 * MIB)
        if mode == "pause":
            assert client.receive()[1] == 0
        wait_until(lambda: can_write(other, count), "writes go on after a trim")
        other.flush()
        assert other.read(40 * MIB, MIB) == stamp(40)
    node.stop()
    node = machine.node(*options, size=None)
    with machine.open("disk") as client:
        assert client.read(count * MIB, MIB) == stamp(count)
        assert all(client.read(n * MIB, MIB) == stamp(n) for n in range(40, count))
        assert client.read(0, MIB) == bytes(MIB)
    node.stop()
