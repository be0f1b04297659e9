"""Bad days of a node: a clear message, the right exit code or NBD error, and nothing lost."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.disk_client import RequestFailed
from tests.processes import Machine, http_get, machine_in, resident_bytes, wait_until
from torus.nbd import constants as nbd

pytestmark = [pytest.mark.interop, pytest.mark.slow]

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine without a node; no process of it may show a traceback."""
    with machine_in(socket_folder) as machine:
        yield machine
    for service in machine.services:
        assert "Traceback" not in service.text
        assert '"traceback"' not in service.text


def refused_node(
    machine: Machine, code: int, *options: str | Path, size: str | None = "1GiB"
) -> str:
    """Start a node, which must end at once with this code; return its message."""
    began = time.monotonic()
    node = machine.node(*options, size=size, ready=False)
    assert node.wait() == code, node.text
    assert time.monotonic() - began < 10
    (message,) = [line for line in node.text.splitlines() if line.startswith("torus: ")]
    return message


# --- starting ---------------------------------------------------------------------------


def test_nbd_port_in_use_is_named(machine: Machine, free_port: int) -> None:
    """Exit code 75; the message names the address; the next node starts without trouble."""
    with socket.create_server(("127.0.0.1", free_port)):
        message = refused_node(machine, 75, "--nbd", f"127.0.0.1:{free_port}")

    assert f"127.0.0.1:{free_port}" in message
    machine.node("--nbd", f"127.0.0.1:{free_port}", size=None).stop()


def test_http_port_in_use_is_named(machine: Machine, free_port: int) -> None:
    """The same for the port of /metrics."""
    with socket.create_server(("127.0.0.1", free_port)):
        message = refused_node(machine, 75, "--http", f"127.0.0.1:{free_port}")

    assert f"127.0.0.1:{free_port}" in message


def test_socket_in_use_is_refused_and_a_left_one_is_taken(machine: Machine) -> None:
    """A living server's unix socket is not stolen; a dead one's is replaced."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(machine.socket))
        server.listen()
        message = refused_node(machine, 75)
        assert str(machine.socket) in message
    assert machine.socket.exists()
    machine.node(size=None).stop()

    assert not machine.socket.exists()


def test_directory_of_another_cluster_is_refused(machine: Machine, tmp_path: Path) -> None:
    """Exit code 65, both clusters named; nothing in the directory changes."""
    machine.node().stop()
    identity = {path.name: path.read_bytes() for path in machine.data.iterdir() if path.is_file()}
    with machine_in(tmp_path) as other:
        other.node().stop()
        message = refused_node(other, 65, "--data-dir", machine.data, size=None)

    assert message.count("cluster") == 2
    assert identity == {
        path.name: path.read_bytes() for path in machine.data.iterdir() if path.is_file()
    }


def test_lost_metadata_is_not_made_anew(machine: Machine) -> None:
    """A disk that has a cluster is not given to a new one; recover brings the volumes back."""
    machine.run("volume", "create", "disk", "16MiB")
    node = machine.node()
    with machine.open("disk") as client:
        client.write(0, b"x" * MIB, durable=True)
    node.stop()
    for path in machine.home.glob("meta.sqlite*"):
        path.unlink()
    message = refused_node(machine, 5, size=None)
    assert "torus recover" in machine.services[-1].text
    assert "belongs to cluster" in message
    machine.run("recover")
    machine.node(size=None)

    with machine.open("disk") as client:
        assert client.read(0, MIB) == b"x" * MIB


def like_others(*command: str) -> list[str]:
    """Return a command that permissions hold for: root's is run without the right to pass them.

    Becoming another user would not do: that one may not reach the program.
    """
    rights = "-dac_override,-dac_read_search"
    return [*(("setpriv", f"--bounding-set={rights}") if os.geteuid() == 0 else ()), *command]


def test_unwritable_directory_is_refused(machine: Machine) -> None:
    """A directory that may not be written to: exit code 77, and it says which."""
    data = machine.folder / "locked"
    data.mkdir(mode=0o555)
    command = machine.command("node", "--size", "1GiB", "--data-dir", data, "--http", "none")
    done = subprocess.run(
        like_others(*command, "--nbd", f"unix:{machine.folder}/nbd"),
        capture_output=True, text=True, timeout=60, env=machine.environment,
    )  # fmt: skip

    assert done.returncode == 77, done.stderr
    assert f"torus: data directory {data} is not writable" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(data.iterdir()) == []


def test_unwritable_home_is_refused(machine: Machine) -> None:
    """A TORUS_HOME that may not be entered: exit code 77 from every command, no traceback."""
    machine.node().stop()
    machine.home.chmod(0)
    try:
        for words in (("node", "--http", "none"), ("volume", "list"), ("status",), ("check",)):
            done = subprocess.run(
                like_others(*machine.command(*words)),
                capture_output=True, text=True, timeout=60, env=machine.environment,
            )  # fmt: skip
            assert done.returncode == 77, (words, done.stderr)
            assert "Traceback" not in done.stderr
    finally:
        machine.home.chmod(0o700)


def test_directory_that_is_a_file_is_refused(machine: Machine) -> None:
    """Exit code 64: the command line cannot be meant."""
    (machine.folder / "file").write_text("not a folder")
    for path in (machine.folder / "file", machine.folder / "file" / "below"):
        assert "is not a folder" in refused_node(machine, 64, "--data-dir", path)


def test_foreign_files_are_refused_and_kept(machine: Machine) -> None:
    """A folder with something else in it is not made a store."""
    machine.data.mkdir(parents=True)
    (machine.data / "letter.txt").write_text("dear reader")
    message = refused_node(machine, 65)

    assert "letter.txt" in message
    assert [path.name for path in machine.data.iterdir()] == ["letter.txt"]


def test_foreign_file_in_a_store_does_no_harm(machine: Machine) -> None:
    """A stranger's file that comes later is left alone."""
    machine.run("volume", "create", "disk", "16MiB")
    machine.node().stop()
    (machine.data / "letter.txt").write_text("dear reader")
    machine.node(size=None)
    with machine.open("disk") as client:
        client.write(0, b"x" * MIB)
    machine.services[-1].stop()

    assert (machine.data / "letter.txt").read_text() == "dear reader"
    assert machine.run("check", "-o", "json").document["check"]["ok"]


def test_new_directory_without_a_size_is_refused(machine: Machine) -> None:
    """Exit code 64, and the hint says what to give."""
    refused_node(machine, 64, size=None)
    assert "hint: give --size" in machine.services[-1].text


def test_second_node_on_a_directory_is_refused(machine: Machine, tmp_path: Path) -> None:
    """By the registration, and by the directory's lock where the metadata is another one."""
    machine.node().stop()
    copied = shutil.copytree(machine.home, tmp_path / "home")
    first = machine.node()
    message = refused_node(machine, 75)
    assert str(first.pid) in message
    with machine_in(tmp_path) as other:
        assert other.home == copied
        message = refused_node(other, 75, "--data-dir", machine.data)
        assert str(machine.data) in message
    with machine.client_of_new("disk", "4MiB") as client:
        client.write(0, b"x" * 4096)


# --- requests ---------------------------------------------------------------------------


def test_unaligned_and_out_of_range_requests(machine: Machine) -> None:
    """EINVAL or ENOSPC, the connection goes on, nothing is written."""
    machine.node()
    with machine.client_of_new("disk", "1MiB") as client:
        client.write(0, b"a" * MIB)
        for offset, length, number in (
            (MIB, 512, errno.EINVAL),
            (MIB - 512, 1024, errno.EINVAL),
            (100, 512, errno.EINVAL),
            (0, 100, errno.EINVAL),
            ((1 << 64) - 512, 1024, errno.EINVAL),
            (0, (1 << 32) - 512, errno.EINVAL),
        ):
            with pytest.raises(RequestFailed) as refusal:
                client.read(offset, length)
            assert refusal.value.number == number, (offset, length)
        for offset, length, number in (
            (MIB, 512, errno.ENOSPC),
            (MIB - 512, 1024, errno.ENOSPC),
            (100, 512, errno.EINVAL),
            (0, 100, errno.EINVAL),
        ):
            for command in (nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES):
                with pytest.raises(RequestFailed):
                    client.ask(command, offset, length)
            with pytest.raises(RequestFailed) as refusal:
                client.write(offset, b"b" * length)
            assert refusal.value.number == number, (offset, length)
        for command in (9, 99, 65535):
            with pytest.raises(RequestFailed) as refusal:
                client.ask(command, 0, 512)
            assert refusal.value.number == errno.EINVAL

        assert client.read(0, MIB) == b"a" * MIB


def test_unknown_names_are_refused(machine: Machine) -> None:
    """An export that is not there, whatever its name is made of, is unknown; others go on."""
    node = machine.node()
    for name in ("nobody", "", "../../etc/passwd", "a" * 4000, "ü☃"):
        with pytest.raises(RequestFailed) as refusal:
            machine.open(name)
        assert refusal.value.number == nbd.NBD_REP_ERR_UNKNOWN & ~nbd.NBD_REP_ERR, name
    node.stop()

    assert node.events("nbd.task.crashed") == []


def test_client_that_vanishes_in_a_large_write(machine: Machine) -> None:
    """Half a payload is no write; its memory comes back; others do not notice."""
    node = machine.node()
    with machine.client_of_new("disk", "64MiB") as witness:
        witness.write(0, b"a" * (32 * MIB))
        for _ in range(8):
            client = machine.open("disk")
            client.send(nbd.NBD_CMD_WRITE, 0, payload=b"b" * 4096)
            header = (nbd.NBD_REQUEST_MAGIC, 0, nbd.NBD_CMD_WRITE, 7, 0, 32 * MIB)
            client.socket.sendall(_request(*header) + b"c" * (16 * MIB))
            client.close()
        wait_until(lambda: len(node.events("nbd.client.left")) == 8, "eight departures")

        assert witness.read(4096, 32 * MIB - 4096) == b"a" * (32 * MIB - 4096)
    assert resident_bytes(node.pid) < 250 * MIB


def _request(*fields: int) -> bytes:
    from tests.disk_client import REQUEST

    return REQUEST.pack(*fields)


def test_two_hundred_connections(machine: Machine) -> None:
    """All at once on ten volumes, each with writes in flight: all are answered and right."""
    node = machine.node()
    names = [f"disk{number}" for number in range(10)]
    for name in names:
        machine.run("volume", "create", name, "16MiB")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(machine.open(names[i % 10])) for i in range(200)]
        for number, client in enumerate(clients):
            for index in range(8):
                at = (number // 10 * 8 + index) * 4096
                client.send(nbd.NBD_CMD_WRITE, at, payload=number.to_bytes(2) * 2048)
            client.send(nbd.NBD_CMD_FLUSH)
        for client in clients:
            assert [client.receive()[1] for _ in range(9)] == [0] * 9
        for number, client in enumerate(clients):
            at = number // 10 * 8 * 4096
            assert client.read(at, 8 * 4096) == number.to_bytes(2) * 2048 * 8
        assert resident_bytes(node.pid) < 400 * MIB
    node.stop()


@pytest.mark.parametrize("kind", ["random", "zeroes", "http", "half", "nothing"])
def test_garbage_to_every_port(
    machine: Machine, kind: str, rng: random.Random, free_port: int
) -> None:
    """NBD, HTTP, peer and control ports: the connection ends, the node goes on."""
    node = machine.node("--nbd", f"127.0.0.1:{free_port}", "--http", "127.0.0.1:0")
    http = node.wait_for("node.ready")["http"]
    garbage = {
        "random": rng.randbytes(100_000),
        "zeroes": bytes(100_000),
        "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,
        "half": b"\x00\x00\x00\x03IHAVEO",
        "nothing": b"",
    }[kind]
    host, port = http.rsplit(":", 1)
    for target in (
        str(machine.socket), ("127.0.0.1", free_port), (host, int(port)),
        str(machine.home / "peer.sock"), str(machine.home / "peer.sock.ctl"),
    ):  # fmt: skip
        for _ in range(3):
            family = socket.AF_UNIX if isinstance(target, str) else socket.AF_INET
            with socket.socket(family) as sock:
                sock.settimeout(20)
                sock.connect(target)
                with contextlib.suppress(ConnectionError):
                    sock.sendall(garbage)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(1 << 16):
                        pass

    with machine.client_of_new("disk", "1MiB") as client:
        client.write(0, b"x" * 4096)
    assert http_get(http, "/healthz") == (200, "ok\n")
    assert machine.run("status", "-o", "json").document["healthy"]
    assert node.stop() < 5
    assert [event for event in node.events() if event["level"] == "error"] == []


# --- the end ----------------------------------------------------------------------------


def test_sigterm_under_load_is_a_clean_end(machine: Machine, rng: random.Random) -> None:
    """Within seconds, everything answered is there, and the next attach replays nothing."""
    node = machine.node()
    machine.run("volume", "create", "disk", "32MiB")
    client = machine.open("disk")
    image = bytearray(32 * MIB)
    pending: dict[int, int] = {}
    closed = False
    for step in range(100_000):
        at = step % 8192 * 4096
        try:
            pending[client.send(nbd.NBD_CMD_WRITE, at, payload=step.to_bytes(4) * 1024)] = step
            if step == 2000:
                node.signal(signal.SIGTERM)
            if len(pending) < 32:
                continue
            cookie, error, _ = client.receive()
        except ConnectionError:
            closed = True
            break
        assert error == 0
        done = pending.pop(cookie)
        image[done % 8192 * 4096 : (done % 8192 + 1) * 4096] = done.to_bytes(4) * 1024
    client.close()
    began = time.monotonic()
    assert closed
    assert node.wait(10) == 0
    assert time.monotonic() - began < 5

    node = machine.node(size=None)
    unsure = {step % 8192 for step in pending.values()}
    with machine.open("disk") as client:
        for block in range(8192):
            if block not in unsure:
                at = block * 4096
                assert client.read(at, 4096) == image[at : at + 4096], block
    attached = node.wait_for("volume.attached")
    assert attached["records"] == 0
    assert attached["milliseconds"] < 1000


def test_second_signal_ends_at_once(machine: Machine) -> None:
    """A client that never takes its replies does not keep an impatient operator waiting."""
    node = machine.node()
    with machine.client_of_new("disk", "64MiB") as client:
        client.write(0, b"x" * (32 * MIB), durable=True)
        for _ in range(40):
            client.send(nbd.NBD_CMD_READ, 0, 32 * MIB)
        node.signal(signal.SIGTERM)
        node.wait_for("process.stopping")
        began = time.monotonic()
        node.signal(signal.SIGTERM)
        assert node.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 2
    machine.node(size=None)

    with machine.open("disk") as client:
        assert client.read(0, 32 * MIB) == b"x" * (32 * MIB)


# --- volumes ----------------------------------------------------------------------------


def test_grown_volume_is_seen_by_old_and_new_clients(machine: Machine) -> None:
    """A new connection sees the new size; the old one may use it."""
    machine.node()
    with machine.client_of_new("disk", "4MiB") as old:
        machine.run("volume", "resize", "disk", "8MiB")

        def can_write() -> bool:
            try:
                old.write(8 * MIB - 4096, b"n" * 4096)
            except RequestFailed:
                return False
            return True

        wait_until(can_write, "the old client can use the new size")
        with machine.open("disk") as new:
            assert new.size_bytes == 8 * MIB
            assert new.read(8 * MIB - 4096, 4096) == b"n" * 4096
            assert new.read(4 * MIB, 4096) == bytes(4096)


def test_shrunk_volume_loses_its_end_for_good(machine: Machine) -> None:
    """Refused without --shrink; then what was cut off reads as zeroes after growing again."""
    node = machine.node()
    with machine.client_of_new("disk", "8MiB") as client:
        client.write(0, b"d" * (8 * MIB), durable=True)
        message = machine.refused(64, "volume", "resize", "disk", "4097KiB")
        assert "--shrink" in message
        machine.run("volume", "resize", "disk", str(4 * MIB + 512), "--shrink")
        node.wait_for("volume.resized", new=4 * MIB + 512)
        with pytest.raises(RequestFailed) as refusal:
            client.read(4 * MIB + 512, 512)
        assert refusal.value.number == errno.EINVAL
        assert client.read(4 * MIB, 512) == b"d" * 512
        machine.run("volume", "resize", "disk", "8MiB")
        node.wait_for("volume.resized", new=8 * MIB)
        assert client.read(4 * MIB, 4 * MIB) == b"d" * 512 + bytes(4 * MIB - 512)
    node.kill()
    machine.node(size=None)

    with machine.open("disk") as client:
        assert client.read(0, 8 * MIB) == b"d" * (4 * MIB + 512) + bytes(4 * MIB - 512)


def test_forced_deletion_cuts_clients_off(machine: Machine) -> None:
    """Refused without --force; then clients are cut off and the space is free at once."""
    machine.node("--http", "127.0.0.1:0")
    used = machine.node_status()["used_bytes"]
    with machine.client_of_new("disk", "64MiB") as client:
        for at in range(0, 64 * MIB, MIB):
            client.write(at, os.urandom(MIB))
        assert machine.node_status()["used_bytes"] > used + 60 * MIB
        message = machine.refused(75, "volume", "delete", "disk")
        assert "--force" in message
        client.read(0, 4096)
        machine.run("volume", "delete", "disk", "--force")
        assert client.is_closed()
    wait_until(lambda: machine.status()["healthy"], "nothing is left of the volume", 3)
    assert machine.node_status()["used_bytes"] == used
    machine.refused(5, "volume", "info", "disk")
    with machine.client_of_new("disk", "64MiB") as client:
        assert client.read(0, MIB) == bytes(MIB)


def test_interrupted_deletion_is_finished_by_the_next_start(machine: Machine) -> None:
    """A volume in state deleting is no export, and goes when the node starts."""
    machine.run("volume", "create", "disk", "64MiB")
    node = machine.node()
    with machine.open("disk") as client:
        client.write(0, b"x" * (32 * MIB))
    node.stop()
    machine.set_deleting("disk")
    assert machine.run("volume", "info", "disk", "-o", "json").document["volume"]["state"] == (
        "deleting"
    )
    machine.refused(3, "volume", "create", "disk", "64MiB")
    node = machine.node(size=None)

    assert [event["volume"] for event in node.events("node.deletion.resumed")] == ["disk"]
    assert machine.run("volume", "list", "-o", "json").document["volumes"] == []
    assert machine.node_status()["used_bytes"] == 0


def test_largest_volume_costs_next_to_nothing(machine: Machine) -> None:
    """64 TiB: made in a moment, kilobytes of metadata, written at both ends, mapped quickly."""
    node = machine.node()
    before = sum(path.stat().st_size for path in machine.home.glob("meta.sqlite*"))
    with machine.client_of_new("disk", "64TiB") as client:
        assert client.size_bytes == 64 * TIB
        client.write(0, b"a" * 4096)
        client.write(64 * TIB - 4096, b"z" * 4096, durable=True)
        client.write(32 * TIB - 512, b"m" * 1024)
    after = sum(path.stat().st_size for path in machine.home.glob("meta.sqlite*"))
    began = time.monotonic()
    extents = json.loads(machine.client("nbdinfo", "--map", "--json", machine.uri("disk")))
    mapped_s = time.monotonic() - began
    node.stop()
    node = machine.node(size=None)
    with machine.open("disk") as client:
        ends = client.read(0, 4096) + client.read(64 * TIB - 4096, 4096)
        middle = client.read(32 * TIB - 4096, 8192)

    assert [(extent["length"], extent["type"]) for extent in extents] == [
        (4096, 0),
        (32 * TIB - 8192, 3),
        (8192, 0),
        (32 * TIB - 8192, 3),
        (4096, 0),
    ]
    assert mapped_s < 10
    assert after - before < 100 * KIB
    assert ends == b"a" * 4096 + b"z" * 4096
    assert middle == bytes(3584) + b"m" * 1024 + bytes(3584)
    assert node.wait_for("volume.attached")["milliseconds"] < 1000
    message = machine.refused(64, "volume", "create", "more", str(64 * TIB + 512))
    assert "64 TiB" in message


def test_smallest_volume_works(machine: Machine) -> None:
    """4 KiB is a volume; less, nothing, or less than nothing is not."""
    machine.node()
    with machine.client_of_new("disk", "4096") as client:
        client.write(512, b"x" * 512)
        client.flush()
        assert client.read(0, 4096) == bytes(512) + b"x" * 512 + bytes(3072)
    for size in ("0", "-1", "-4KiB", "512", "4097", "1e3", "ten"):
        machine.refused(64, "volume", "create", "bad", "--", size)


def test_hundred_volumes_are_listed(machine: Machine) -> None:
    """Lists, of the command line and over NBD, are complete, sorted and quick."""
    machine.node()
    names = sorted(f"disk{number}" for number in range(100))
    machine.create_volumes(names, MIB)
    began = time.monotonic()
    listed = machine.run("volume", "list", "-o", "json").document["volumes"]
    assert time.monotonic() - began < 3
    exports = json.loads(
        machine.client("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={machine.socket}")
    )["exports"]

    assert [volume["name"] for volume in listed] == names
    assert sorted(export["export-name"] for export in exports) == names
    assert len(machine.run("nbd", "list", "-o", "json").document["exports"]) == 100


def test_odd_names_are_refused_or_work_everywhere(machine: Machine) -> None:
    """A name is refused at its creation, or it is good for every client."""
    machine.node()
    for name in ("", " ", "a b", "a/b", "../a", "ü", "a\nb", "-a", ".", "..", "a" * 300, "a%41"):
        assert machine.run("volume", "create", "--", name, "1MiB", code=64).err.startswith(
            "torus: "
        )
    for name in ("a", "A.b_c-9", "0"):
        machine.run("volume", "create", name, "1MiB")
        (export,) = [
            one
            for one in machine.run("nbd", "list", "-o", "json").document["exports"]
            if one["volume"] == name
        ]
        assert machine.client("nbdinfo", "--size", export["uri"]) == f"{MIB}\n"
    machine.refused(3, "volume", "create", "a", "1MiB")
    machine.refused(5, "volume", "delete", "nobody")


# --- observing --------------------------------------------------------------------------


def test_logs_metrics_and_health(machine: Machine) -> None:
    """Every log line is a JSON object, /metrics is Prometheus's format, with what was done."""
    node = machine.node("--http", "127.0.0.1:0")
    http = node.wait_for("node.ready")["http"]
    with machine.client_of_new("disk", "4MiB") as client:
        client.write(0, b"x" * 4096)
        client.flush()
        status, text = http_get(http, "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}
    assert http_get(http, "/healthz") == (200, "ok\n")
    assert http_get(http, "/nothing")[0] == 404
    node.stop()

    assert status == 200
    assert all(name.startswith(("torus_", "process_", "python_")) for name in families)
    samples = [sample for family in families.values() for sample in family.samples]
    assert any(sample.labels.get("command") == "write" and sample.value for sample in samples)
    lines = node.text.splitlines()
    assert all({"time", "level", "event"} <= json.loads(line).keys() for line in lines)
