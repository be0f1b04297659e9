"""Bad days of a gateway: it, or the node behind it, goes away and comes back."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk_client import DiskClient, RequestFailed
from tests.processes import Machine, machine_in, wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine with a running node and a volume of 64 MiB."""
    with machine_in(socket_folder) as machine:
        machine.node()
        machine.run("volume", "create", "disk", "64MiB")
        yield machine
    for service in machine.services:
        assert "Traceback" not in service.text
        assert '"traceback"' not in service.text


@pytest.fixture
def socket(machine: Machine) -> Path:
    """Return where gateways listen."""
    return machine.folder / "gateway.sock"


def open_again(machine: Machine, socket: Path) -> DiskClient:
    """Connect until the volume is served."""

    def attempt() -> DiskClient | None:
        try:
            return machine.open("disk", socket)
        except (RequestFailed, ConnectionError, FileNotFoundError):
            return None

    client: DiskClient = wait_until(attempt, "the volume is served again", 30)
    return client


def write_more(client: DiskClient, letter: bytes, count: int = 2) -> None:
    """Write the volume's fourth MiB, twice unless told otherwise."""
    for _ in range(count):
        client.write(3 * MIB, letter * MIB)


def test_killed_node_under_a_gateway(machine: Machine, socket: Path) -> None:
    """Its clients are cut off, its log says why; after the node's start they may come back."""
    gateway = machine.gateway("disk", "--socket", socket)
    client = machine.open("disk", socket)
    client.write(0, b"a" * MIB)
    client.write(MIB, b"b" * MIB, durable=True)
    client.write(2 * MIB, b"c" * MIB)
    machine.services[0].kill()
    began = time.monotonic()
    with pytest.raises((RequestFailed, ConnectionError)):
        write_more(client, b"d")
    assert time.monotonic() - began < 15
    client.close()
    failed = gateway.wait_for("volume.failed")
    assert "cannot be reached" in failed["error"]
    with pytest.raises(RequestFailed):  # no node: refused, not left hanging
        machine.open("disk", socket)

    machine.node(size=None)
    with open_again(machine, socket) as client:
        assert client.read(0, 3 * MIB) == b"a" * MIB + b"b" * MIB + b"c" * MIB
        client.write(3 * MIB, b"e" * MIB, durable=True)
        assert client.read(3 * MIB, MIB) == b"e" * MIB
    assert gateway.stop() < 5


def test_node_restarted_between_two_requests_of_a_client(machine: Machine, socket: Path) -> None:
    """Cut off, because unflushed data might be gone; a new connection finds all that was there."""
    gateway = machine.gateway("disk", "--socket", socket)
    client = machine.open("disk", socket)
    client.write(0, b"a" * MIB)
    machine.services[0].kill()
    machine.node(size=None)
    with pytest.raises(ConnectionError):
        write_more(client, b"b")
    client.close()
    with open_again(machine, socket) as client:
        assert client.read(0, MIB) == b"a" * MIB
        client.write(MIB, b"c" * MIB, durable=True)
    gateway.stop()

    with open_again(machine, machine.socket) as client:
        assert client.read(0, 2 * MIB) == b"a" * MIB + b"c" * MIB


def test_node_restarted_under_a_gateway_that_only_reads(machine: Machine, socket: Path) -> None:
    """A clean restart of the node in between is not even noticed by a reader."""
    with machine.open("disk") as client:
        client.write(0, b"a" * MIB)
    machine.gateway("disk", "--socket", socket)
    with machine.open("disk", socket) as client:
        assert client.read(0, MIB) == b"a" * MIB
        machine.services[0].stop()
        machine.node(size=None)
        assert client.read(0, MIB) == b"a" * MIB
        assert client.read(MIB, MIB) == bytes(MIB)


def test_second_gateway_for_a_volume_is_refused(machine: Machine, socket: Path) -> None:
    """Exit code 75, the message names the first; so does the node to an NBD client's log."""
    first = machine.gateway("disk", "--socket", socket)
    second = machine.gateway("disk", "--socket", machine.folder / "other.sock", ready=False)
    assert second.wait() == 75
    (message,) = [line for line in second.text.splitlines() if line.startswith("torus: ")]
    assert str(first.pid) in message
    with pytest.raises(RequestFailed):
        machine.open("disk")
    assert str(first.pid) in machine.services[0].wait_for("nbd.export.refused")["error"]

    with machine.open("disk", socket) as client:
        client.write(0, b"x" * 4096)
    assert first.stop() < 5


def test_killed_gateway_leaves_its_volume_to_others(machine: Machine, socket: Path) -> None:
    """kill -9 of the gateway: the node attaches the volume, with everything answered."""
    gateway = machine.gateway("disk", "--socket", socket)
    with machine.open("disk", socket) as client:
        for number in range(16):
            client.write(number * MIB, bytes([number]) * MIB)
        gateway.kill()
    with machine.open("disk") as client:
        assert all(client.read(n * MIB, MIB) == bytes([n]) * MIB for n in range(16))
        client.write(0, b"n" * MIB)
    gateway = machine.gateway("disk", "--socket", socket)

    with machine.open("disk", socket) as client:
        assert client.read(0, 2 * MIB) == b"n" * MIB + b"\1" * MIB
    gateway.stop()


def test_gateway_that_lost_its_volume_writes_no_more(machine: Machine, socket: Path) -> None:
    """A stopped gateway that is taken for dead is fenced when it wakes: no write of it counts."""
    gateway = machine.gateway("disk", "--socket", socket)
    client = machine.open("disk", socket)
    client.write(0, b"a" * MIB)
    machine.take_over("disk")
    with pytest.raises(ConnectionError):
        write_more(client, b"b", count=10_000)
    client.close()
    assert gateway.wait_for("volume.failed")["error"].startswith("volume ")
    machine.release("disk")
    gateway.stop()

    with machine.open("disk") as client:
        assert client.read(0, MIB) == b"a" * MIB


def test_gateway_without_a_node_says_so(machine: Machine, socket: Path) -> None:
    """Exit code 69, and the hint says to start one."""
    machine.services[0].stop()
    gateway = machine.gateway("disk", "--socket", socket, ready=False)

    assert gateway.wait() == 69
    assert "torus: no node is running" in gateway.text
    assert "hint: " in gateway.text


def test_gateway_for_a_volume_that_is_not_there(machine: Machine, socket: Path) -> None:
    """Exit code 5; nothing is listened on."""
    gateway = machine.gateway("nobody", "--socket", socket, ready=False)

    assert gateway.wait() == 5
    assert not socket.exists()


def test_volume_just_used_by_a_client_is_free_for_a_gateway(machine: Machine, socket: Path) -> None:
    """The node keeps a volume for clients that come back, but not against others."""
    for number in range(3):
        with machine.open("disk") as client:
            client.write(0, bytes([number]) * MIB)
        gateway = machine.gateway("disk", "--socket", socket)
        with machine.open("disk", socket) as client:
            assert client.read(0, MIB) == bytes([number]) * MIB
        gateway.stop()
    with machine.open("disk") as client:
        assert client.read(0, MIB) == b"\2" * MIB
    machine.run("volume", "export", "disk", machine.folder / "out")
    with machine.open("disk") as client:
        assert client.read(0, MIB) == b"\2" * MIB
    machine.run("volume", "delete", "disk")


def test_resize_and_forced_deletion_reach_a_gateway(machine: Machine, socket: Path) -> None:
    """Both are seen through the metadata store by a process of its own."""
    gateway = machine.gateway("disk", "--socket", socket)
    with machine.open("disk", socket) as client:
        client.write(0, b"x" * MIB)
        machine.run("volume", "resize", "disk", "128MiB")
        gateway.wait_for("volume.resized", new=128 * MIB)
        client.write(127 * MIB, b"y" * MIB)
        with machine.open("disk", socket) as other:
            assert other.size_bytes == 128 * MIB
        machine.refused(75, "volume", "delete", "disk")
        machine.run("volume", "delete", "disk", "--force")
        assert client.is_closed()
    with pytest.raises(RequestFailed):
        machine.open("disk", socket)
    assert machine.node_status()["used_bytes"] == 0
    gateway.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_gateway_ends_cleanly_under_load(
    machine: Machine, socket: Path, number: signal.Signals
) -> None:
    """Within seconds; everything answered is in the volume."""
    from torus.nbd import constants as nbd

    gateway = machine.gateway("disk", "--socket", socket)
    answered = 0
    with machine.open("disk", socket) as client:
        try:
            for index in range(100_000):
                payload = index.to_bytes(4, "big") * 1024
                client.send(nbd.NBD_CMD_WRITE, index % 16384 * 4096, payload=payload)
                if index == 500:
                    gateway.signal(number)
                if index >= 16:
                    _, error, _ = client.receive()
                    assert error == 0
                    answered += 1
        except ConnectionError:
            pass
    began = time.monotonic()
    assert gateway.wait(10) == 0
    assert time.monotonic() - began < 5
    with machine.open("disk") as client:
        for index in range(min(answered, 16384)):
            assert client.read(index * 4096, 4096) == index.to_bytes(4, "big") * 1024


def test_node_stopped_under_a_gateway_ends_in_time(machine: Machine, socket: Path) -> None:
    """A gateway that hangs on the node does not keep it from stopping."""
    gateway = machine.gateway("disk", "--socket", socket)
    with machine.open("disk", socket) as client:
        client.write(0, b"x" * MIB)
        assert machine.services[0].stop() < 8
    assert gateway.process.poll() is None
