"""A volume moves between processes while it is written: nothing that was answered is lost."""

import contextlib
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk_client import DiskClient, RequestFailed
from tests.interop.moving import Writer
from tests.processes import Machine, Service, machine_in, wait_until
from torus.clock import SystemClock
from torus.daemon.move import Moved, find_target, move, targets
from torus.errors import Busy, TorusError
from torus.metadata.open import open_metadata
from torus.volume.catalog import Catalog

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
BLOCKS = 64 * MIB // 4096
PAUSE_MS_MAX = 1000


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine with a running node and a volume of 64 MiB."""
    with machine_in(socket_folder) as machine:
        machine.node(size="2GiB")
        machine.run("volume", "create", "disk", "64MiB")
        yield machine
    for service in machine.services:
        assert "Traceback" not in service.text
        assert '"traceback"' not in service.text


@pytest.fixture
def places(machine: Machine) -> dict[str, Path]:
    """Return where the two gateways and the node listen."""
    return {"a": machine.folder / "a.sock", "b": machine.folder / "b.sock", "n": machine.socket}


def serve(machine: Machine, socket: Path) -> Service:
    """Start a gateway that stands by."""
    return machine.gateway("disk", "--standby", "--socket", socket)


def move_to(machine: Machine, wanted: object, *, force: bool = False) -> Moved:
    """Move the volume as the command does, without the start of an interpreter."""
    store = open_metadata(f"sqlite:{machine.home / 'meta.sqlite'}", SystemClock())
    try:
        target = find_target(targets(store), str(wanted))
        return move(Catalog(store, SystemClock()), target, "disk", force=force)
    finally:
        store.close()


def insist(machine: Machine, wanted: object) -> None:
    """Move the volume; a client that asks for it elsewhere may be quicker a few times."""

    def attempt() -> bool:
        with contextlib.suppress(Busy):
            return move_to(machine, wanted).target.pid > 0
        return False

    wait_until(attempt, f"the volume is at {wanted}")


def owner_pid(machine: Machine) -> int | None:
    """Return who has the volume."""
    with machine.catalog() as catalog:
        owner = catalog.get("disk").head.owner
        return None if owner is None else owner.pid


def test_twenty_moves_under_load(machine: Machine, places: dict[str, Path]) -> None:
    """Back and forth between two gateways and the node; each pause is short."""
    serve(machine, places["a"])
    serve(machine, places["b"])
    writer = Writer(list(places.values()), "disk", BLOCKS, seed=1)
    move_to(machine, places["a"])
    writer.start()
    pauses = []
    for number in range(20):
        writer.go_on()
        moved = move_to(machine, places["bnba"[number % 4]])
        assert moved.moved
        pauses.append(moved.pause_ms)
    writer.finish()
    writer.verify()
    print(f"{writer.answers} writes, {writer.connects} connections, pauses {pauses} ms, "
          f"worst gap between two answers {writer.worst_gap_s * 1e3:.0f} ms")  # fmt: skip
    assert writer.connects > 20
    assert max(pauses) <= PAUSE_MS_MAX
    machine.services[0].stop()
    machine.run("check")


@pytest.mark.parametrize("victim", ["old", "new"])
def test_owner_killed_in_the_middle(machine: Machine, places: dict[str, Path], victim: str) -> None:
    """Whoever dies at whatever moment, the other one, or the node, has everything."""
    rng = random.Random(victim)
    gateways = {place: serve(machine, places[place]) for place in "ab"}
    move_to(machine, places["a"])
    writer = Writer(list(places.values()), "disk", BLOCKS, seed=2).start()
    outcomes = []
    doomed = "a" if victim == "old" else "b"
    for _ in range(6):
        insist(machine, places["a"])
        writer.go_on()
        killer = threading.Timer(rng.uniform(0, 0.12), gateways[doomed].kill)
        killer.start()
        try:
            outcomes.append(f"paused {move_to(machine, places['b']).pause_ms} ms")
        except TorusError as exc:
            outcomes.append(exc.message)
        killer.join()
        writer.go_on()
        gateways[doomed] = serve(machine, places[doomed])
    writer.finish()
    writer.verify()
    print(victim, outcomes)


def test_snapshot_and_collection_beside_moves(machine: Machine, places: dict[str, Path]) -> None:
    """Tasks of the former owner end or are done; the volume moves all the same."""
    serve(machine, places["a"])
    serve(machine, places["b"])
    writer = Writer(list(places.values()), "disk", BLOCKS, seed=3)
    move_to(machine, places["a"])
    writer.start()
    wait_until(lambda: writer.failure or len(writer.answered) > 2000, "it writes")
    snapshots = 0
    for number in range(6):
        commands = [
            subprocess.Popen(
                machine.command(*words), env=machine.environment, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True,
            )
            for words in (
                ("gc", "disk", "--defragment"),
                ("volume", "snapshot", "create", f"disk@s{number}"),
            )
        ]  # fmt: skip
        while any(command.poll() is None for command in commands):
            insist(machine, places["b" if number % 2 else "a"])
            insist(machine, places["a" if number % 2 else "b"])
        said = [command.communicate()[1] for command in commands]
        assert all("Traceback" not in text for text in said)
        snapshots += commands[1].returncode == 0
    writer.finish()
    writer.verify()
    with machine.catalog() as catalog:
        assert len(catalog.snapshots("disk")) >= snapshots
    print(f"{snapshots} of 6 snapshots")
    machine.services[0].stop()
    machine.run("check")


def test_two_moves_at_once(machine: Machine, places: dict[str, Path]) -> None:
    """Each either has it in the end, or says who stood in the way."""
    serve(machine, places["a"])
    serve(machine, places["b"])
    writer = Writer(list(places.values()), "disk", BLOCKS, seed=4)
    move_to(machine, places["a"])
    writer.start()
    refused = []
    for _ in range(10):
        insist(machine, places["a"])
        outcomes: list[object] = []

        def attempt(place: str, outcomes: list[object] = outcomes) -> None:
            try:
                outcomes.append(move_to(machine, places[place]))
            except TorusError as exc:
                outcomes.append(exc)

        threads = [threading.Thread(target=attempt, args=(place,)) for place in "bn"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [one for one in outcomes if isinstance(one, TorusError)]
        # While it is nobody's, the writer's client may be quicker than both: it asks at either.
        quicker = any("is attached by" in error.message for error in errors)
        assert len(errors) < 2 or quicker, errors
        assert all(error.code == "busy" for error in errors), errors
        refused += [error.message for error in errors]
        assert owner_pid(machine) != machine.services[1].pid
    writer.finish()
    writer.verify()
    print(refused)


def test_where_it_is_already_and_where_nobody_is(machine: Machine, places: dict[str, Path]) -> None:
    """The command says so, and names those that are there."""
    gateway = machine.gateway("disk", "--socket", places["a"])
    other = serve(machine, places["b"])
    said = machine.run("nbd", "move", "disk", "--to", places["a"]).out
    assert "already" in said
    assert "already" in machine.run("nbd", "move", "disk", "--to", str(gateway.pid)).out
    message = machine.refused(5, "nbd", "move", "disk", "--to", "nowhere")
    for known in (places["a"], places["b"], places["n"], str(other.pid)):
        assert str(known) in message
    message = machine.refused(64, "nbd", "move", "disk", "--to", "gateway")
    assert str(places["n"]) not in message
    machine.refused(5, "nbd", "move", "nobody", "--to", "node")
    machine.refused(64, "nbd", "move", "disk@snap", "--to", "node")
    moved = machine.run("nbd", "move", "disk", "--to", f"unix:{places['b']}", "-o", "json")
    assert moved.document["move"]["moved"] is True
    assert owner_pid(machine) == other.pid
    other.stop()
    gateway.stop()
    said = machine.run("nbd", "move", "disk", "--to", "node").out
    assert "from nobody" in said


def test_gateway_takes_a_volume_it_was_not_started_with(
    machine: Machine, places: dict[str, Path]
) -> None:
    """It is listed and served there from then on."""
    machine.run("volume", "create", "other", "1MiB")
    machine.gateway("other", "--socket", places["b"])
    with pytest.raises(RequestFailed):
        machine.open("disk", places["b"])
    with machine.open("disk") as client:
        client.write(0, b"x" * 4096)
        said = machine.run("nbd", "move", "disk", "--to", places["b"]).out
        assert "1 connections were closed" in said
        assert client.is_closed()
    with pytest.raises(RequestFailed):
        machine.open("disk")
    with machine.open("disk", places["b"]) as client:
        assert client.read(0, 4096) == b"x" * 4096
    listed = machine.client("nbdinfo", "--list", f"nbd+unix:///?socket={places['b']}")
    assert 'export="disk"' in listed


def write_on(client: DiskClient) -> None:
    """Write until it fails."""
    for _ in range(10_000):
        client.write(0, b"!" * 4096)


# --- standby ----------------------------------------------------------------------------


def test_first_request_takes_a_volume_that_stands_by(
    machine: Machine, places: dict[str, Path]
) -> None:
    """Connecting, asking for the size and flushing does not."""
    source = machine.gateway("disk", "--socket", places["a"])
    target = serve(machine, places["b"])
    with machine.open("disk", places["a"]) as old, machine.open("disk", places["b"]) as new:
        assert new.size_bytes == 64 * MIB
        for number in range(8):
            old.write(number * MIB, bytes([number]) * MIB)
            new.flush()
        assert owner_pid(machine) == source.pid
        machine.client("nbdinfo", f"nbd+unix:///disk?socket={places['b']}", "--size")
        assert owner_pid(machine) == source.pid
        assert new.read(0, MIB) == bytes(MIB)
        assert owner_pid(machine) == target.pid
        assert old.is_closed()
        assert all(new.read(n * MIB, MIB) == bytes([n]) * MIB for n in range(8))
        with pytest.raises(RequestFailed):
            machine.open("disk", places["a"])
        new.write(0, b"n" * MIB)
        # It stood by once: those who come back do not take it from where it moved.
        move_to(machine, places["a"])
        assert new.is_closed()
        with pytest.raises(RequestFailed):
            machine.open("disk", places["b"])
    with machine.open("disk", places["a"]) as client:
        assert client.read(0, MIB) == b"n" * MIB


def test_map_of_a_volume_that_stands_by(machine: Machine, places: dict[str, Path]) -> None:
    """Asking for the status of blocks takes it as well."""
    machine.run("volume", "snapshot", "create", "disk@s")
    machine.gateway("disk", "--socket", places["a"])
    with machine.open("disk", places["a"]) as client:
        client.write(0, b"x" * MIB)
    target = serve(machine, places["b"])
    for context in ("base:allocation", "torus:changed-since:s", "qemu:allocation-depth"):
        found = machine.client(
            "nbdinfo", f"--map={context}", f"nbd+unix:///disk?socket={places['b']}"
        )
        assert found.splitlines()[0].split()[:2] == ["0", str(MIB)]
    assert owner_pid(machine) == target.pid


def test_standby_behind_an_owner_that_cannot_be_asked(
    machine: Machine, places: dict[str, Path]
) -> None:
    """Requests fail with EIO until it has gone; the log says why; force takes it."""
    target = serve(machine, places["b"])
    machine.take_over("disk")  # as this process, which answers no questions
    with machine.open("disk", places["b"]) as client:
        with pytest.raises(RequestFailed, match="EIO"):
            client.read(0, 4096)
        assert "cannot be asked" in target.wait_for("standby.failed")["error"]
        machine.run("nbd", "move", "disk", "--to", places["b"], code=75)
        machine.release("disk")
        client.write(0, b"y" * 4096)
        assert client.read(0, 4096) == b"y" * 4096
    assert owner_pid(machine) == target.pid


def test_owner_that_hangs_is_moved_from_by_force(machine: Machine, places: dict[str, Path]) -> None:
    """It is fenced: when it wakes, its clients are cut off."""
    source = machine.gateway("disk", "--socket", places["a"])
    serve(machine, places["b"])
    client: DiskClient
    with machine.open("disk", places["a"]) as client:
        client.write(0, b"z" * MIB)
        source.signal(signal.SIGSTOP)
        try:
            machine.run("nbd", "move", "disk", "--to", places["b"], code=124)
            said = machine.run("nbd", "move", "disk", "--to", places["b"], "--force").out
            assert "by force" in said
            with machine.open("disk", places["b"]) as new:
                assert new.read(0, MIB) == b"z" * MIB
                new.write(0, b"w" * MIB)
        finally:
            source.signal(signal.SIGCONT)
        with pytest.raises((ConnectionError, RequestFailed)):
            write_on(client)
    with machine.open("disk", places["b"]) as new:
        assert new.read(0, MIB) == b"w" * MIB
