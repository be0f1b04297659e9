"""Snapshots, clones, rollback, flattening and copies: the commands beside real processes."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk_client import DiskClient, RequestFailed
from tests.processes import Machine, machine_in

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MIB = 1 << 20
SIZE = 64 * MIB
HOLDERS = ("node", "gateway", "nobody", "stopped")


@pytest.fixture
def machine(socket_folder: Path) -> Iterator[Machine]:
    """Give a machine with a running node and a volume of 64 MiB; nothing may crash in it."""
    with machine_in(socket_folder) as machine:
        machine.node()
        machine.run("volume", "create", "disk", str(SIZE))
        yield machine
    for service in machine.services:
        assert "Traceback" not in service.text
        assert '"traceback"' not in service.text


class Held:
    """The volume 'disk' in somebody's hands, or in nobody's, whenever a command runs."""

    def __init__(self, machine: Machine, holder: str) -> None:
        self.machine = machine
        self.holder = holder
        self.client: DiskClient | None = None
        self.socket = machine.folder / "g.sock"
        if holder == "gateway":
            machine.gateway("disk", "--socket", self.socket)
        self.take()

    def take(self) -> None:
        """Connect, with a node for those who have none running."""
        if self.holder == "stopped" and self.machine.services[-1].process.poll() is not None:
            self.machine.node(size=None)
        socket = self.socket if self.holder == "gateway" else self.machine.socket
        self.client = DiskClient(socket, "disk")

    def fill(self, byte: int) -> None:
        """Write the first and the last MiB; durable."""
        if self.client is None:
            self.take()
        assert self.client is not None
        for offset in (0, SIZE - MIB):
            self.client.write(offset, bytes([byte]) * MIB)
        self.client.flush()
        if self.holder in ("nobody", "stopped"):
            self.client.close()
            self.client = None
        if self.holder == "stopped":
            self.machine.services[-1].stop()

    def let_go(self) -> None:
        """Disconnect."""
        if self.client is not None:
            self.client.close()
            self.client = None


@pytest.fixture(params=HOLDERS)
def held(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Held]:
    """Give the volume as each kind of holder has it."""
    held = Held(machine, request.param)
    yield held
    held.let_go()


def bytes_at_ends(machine: Machine, name: str) -> tuple[int, int]:
    """Return the byte that fills the first, and that which fills the last MiB of a volume."""
    machine.run("volume", "export", name, machine.folder / "out", "--overwrite")
    data = (machine.folder / "out").read_bytes()
    assert len(data) == SIZE
    found = []
    for piece in (data[:MIB], data[-MIB:]):
        assert piece == piece[:1] * MIB
        found.append(piece[0])
    assert not data[MIB:-MIB].strip(b"\0")
    return found[0], found[1]


def snapshot_names(machine: Machine, volume: str = "disk") -> list[str]:
    """Return the names of a volume's snapshots."""
    document = machine.run("volume", "snapshot", "list", volume, "-o", "json").document
    return [one["name"] for one in document["snapshots"]]


def test_snapshot_keeps_what_was(machine: Machine, held: Held) -> None:
    """Made by whoever has the volume, each holds what was written before it, and no more."""
    for number, snap in enumerate("abc", start=1):
        held.fill(number)
        machine.run("volume", "snapshot", "create", f"disk@{snap}")
    held.fill(9)

    assert [bytes_at_ends(machine, f"disk@{snap}") for snap in "abc"] == [(1, 1), (2, 2), (3, 3)]
    listed = machine.run("volume", "snapshot", "list", "disk", "-o", "json").document["snapshots"]
    assert [one["number"] for one in listed] == [1, 2, 3]
    assert {one["used_bytes"] for one in listed} == {2 * MIB}
    machine.refused(3, "volume", "snapshot", "create", "disk@b")
    for snap in "bac":
        machine.run("volume", "snapshot", "delete", f"disk@{snap}")
        for left in snapshot_names(machine):
            assert bytes_at_ends(machine, f"disk@{left}") == ("_abc".index(left),) * 2
    assert snapshot_names(machine) == []


def test_clone_lives_on_its_own(machine: Machine, held: Held) -> None:
    """It begins as the snapshot, is written without it, and outlives it once it is flat."""
    held.fill(1)
    machine.run("volume", "snapshot", "create", "disk@a")
    held.fill(2)
    machine.run("volume", "clone", "disk@a", "copy")
    refusal = machine.refused(75, "volume", "snapshot", "delete", "disk@a")

    assert "copy" in refusal
    assert bytes_at_ends(machine, "copy") == (1, 1)
    image = machine.folder / "image"
    image.write_bytes(bytes([7]) * MIB)
    machine.run("volume", "import", image, "copy", "--overwrite")  # the rest becomes zeroes
    machine.run("volume", "rollback", "disk@a", code=75 if held.client else 0)
    machine.run("volume", "flatten", "copy")
    machine.run("volume", "snapshot", "delete", "disk@a")
    assert machine.run("volume", "info", "copy", "-o", "json").document["volume"]["origin"] is None
    assert bytes_at_ends(machine, "copy") == (7, 0)
    machine.refused(64, "volume", "flatten", "copy@x")
    held.let_go()
    machine.run("volume", "delete", "disk", "--force")
    assert bytes_at_ends(machine, "copy") == (7, 0)


def test_flattened_clone_needs_no_origin(machine: Machine, held: Held) -> None:
    """All it inherited is its own: the origin, its snapshot and their data go."""
    held.fill(3)
    machine.run("volume", "snapshot", "create", "disk@a")
    machine.run("volume", "clone", "disk@a", "copy")
    machine.run("volume", "snapshot", "create", "copy@inner")
    machine.run("volume", "clone", "copy@inner", "grandchild")
    machine.run("volume", "flatten", "grandchild")
    machine.run("volume", "flatten", "copy")
    tree = machine.run("volume", "tree", "-o", "json").document["volumes"]

    assert [one["name"] for one in tree] == ["copy", "disk", "grandchild"]
    # the clone's own snapshot still reads what the clone does not
    assert "copy" in machine.refused(75, "volume", "snapshot", "delete", "disk@a")
    machine.run("volume", "snapshot", "delete", "copy@inner")
    machine.run("volume", "snapshot", "delete", "disk@a")
    held.let_go()
    machine.run("volume", "delete", "disk", "--force")
    assert bytes_at_ends(machine, "copy") == (3, 3)
    assert bytes_at_ends(machine, "grandchild") == (3, 3)


def test_rollback_goes_back_and_forth(machine: Machine, held: Held) -> None:
    """Refused while clients have the volume, done when they are cut off or gone."""
    held.fill(1)
    machine.run("volume", "snapshot", "create", "disk@a")
    held.fill(2)
    machine.run("volume", "snapshot", "create", "disk@b")
    held.fill(3)
    if held.client is not None:
        refusal = machine.refused(75, "volume", "rollback", "disk@a")
        assert "is attached by" in refusal
        assert "--force" in refusal
        machine.run("volume", "rollback", "disk@a", "--force")
        with pytest.raises((RequestFailed, OSError)):
            held.client.read(0, MIB)
        held.client.close()
        held.take()
        assert held.client.read(SIZE - MIB, MIB) == bytes([1]) * MIB
        machine.run("volume", "rollback", "disk@b", "--force")
    else:
        machine.run("volume", "rollback", "disk@a")
        assert bytes_at_ends(machine, "disk") == (1, 1)
        machine.run("volume", "rollback", "disk@b")
    held.let_go()
    if held.holder != "gateway":  # which keeps what it serves
        assert bytes_at_ends(machine, "disk") == (2, 2)
    assert bytes_at_ends(machine, "disk@a") == (1, 1)
    assert snapshot_names(machine) == ["a", "b"]


def test_copy_shares_nothing(machine: Machine, held: Held) -> None:
    """Of a volume in use, and of a snapshot; the holes stay holes; no snapshot is left."""
    held.fill(1)
    machine.run("volume", "snapshot", "create", "disk@a")
    held.fill(2)
    now = machine.run("volume", "copy", "disk", "now", "-o", "json").document["copy"]
    then = machine.run("volume", "copy", "disk@a", "then", "-o", "json").document["copy"]

    assert (now["copied_bytes"], then["copied_bytes"]) == (2 * MIB, 2 * MIB)
    assert now["verified"]
    assert snapshot_names(machine) == ["a"]
    machine.run("volume", "snapshot", "delete", "disk@a")
    held.let_go()
    machine.run("volume", "delete", "disk", "--force")
    assert bytes_at_ends(machine, "now") == (2, 2)
    assert bytes_at_ends(machine, "then") == (1, 1)


def test_snapshots_under_load_are_moments(machine: Machine) -> None:
    """While a client overwrites the volume in order, a snapshot is one point of that order.

    Each pass writes its number over all blocks from the first to the last, so a snapshot holds
    one number up to some block, and the number before it behind that.  A request may be cut, as
    by a crash, between two blocks of 4 KiB.
    """
    stop = threading.Event()
    blocks, block, unit = 256, 64 << 10, 4096

    def write() -> None:
        with machine.open("disk") as client:
            number = 0
            while not stop.is_set():
                number += 1
                for index in range(blocks):
                    client.write(index * block, number.to_bytes(4, "little") * (block // 4))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for index in range(8):
            machine.run("volume", "snapshot", "create", f"disk@s{index}")
    finally:
        stop.set()
        writer.join()
    out = machine.folder / "out"
    seen = []
    for index in range(8):
        machine.run("volume", "export", f"disk@s{index}", out, "--overwrite")
        data = out.read_bytes()
        numbers = [
            int.from_bytes(data[at : at + 4], "little") for at in range(0, blocks * block, unit)
        ]
        for at, number in zip(range(0, blocks * block, unit), numbers, strict=True):
            same = data[at : at + unit] == number.to_bytes(4, "little") * (unit // 4)
            assert same, f"snapshot s{index} has a torn block at {at}"
        assert numbers == sorted(numbers, reverse=True)
        assert numbers[0] - numbers[-1] <= 1
        seen.append((numbers[0], numbers.count(numbers[0])))
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_refusals_say_what_stands_in_the_way(machine: Machine) -> None:
    """Each bad request is refused with its exit code and a message that names the thing."""
    machine.run("volume", "snapshot", "create", "disk@a")
    machine.run("volume", "protect", "disk@a")
    machine.run("volume", "create", "other", "1MiB")
    for code, words, said in (
        (3, ("snapshot", "create", "disk@a"), "exists"),
        (5, ("snapshot", "create", "nope@a"), "'nope'"),
        (5, ("snapshot", "delete", "disk@nope"), "'nope'"),
        (5, ("rollback", "disk@nope"), "'nope'"),
        (5, ("copy", "disk@nope", "x"), "'nope'"),
        (5, ("export", "disk@nope", "x"), "'nope'"),
        (5, ("flatten", "nope"), "'nope'"),
        (3, ("clone", "disk@a", "disk"), "'disk' exists"),
        (64, ("copy", "disk@a", "disk"), "into itself"),
        (3, ("copy", "disk@a", "other"), "'other'"),
        (64, ("snapshot", "delete", "disk@a"), "protected"),
        (64, ("snapshot", "create", "disk"), "no '@'"),
        (64, ("snapshot", "create", "disk@a@b"), "'@' is not allowed"),
        (64, ("delete", "disk"), "has a snapshot"),
        (64, ("delete", "disk", "--with-snapshots"), "protected"),
    ):
        assert said in machine.refused(code, "volume", *words), words
    machine.run("volume", "unprotect", "disk@a")
    machine.run("volume", "delete", "disk", "--with-snapshots")
    left = machine.run("volume", "tree", "-o", "json").document["volumes"]
    assert [(one["name"], one["snapshots"]) for one in left] == [("other", [])]


def test_exported_snapshot_is_not_deleted(machine: Machine) -> None:
    """Who reads it is named; when that is over it goes."""
    with machine.open("disk") as client:
        client.write(0, bytes([5]) * MIB, durable=True)
    machine.run("volume", "snapshot", "create", "disk@a")
    with machine.open("disk@a") as reader:
        assert reader.read(0, MIB) == bytes([5]) * MIB
        refusal = machine.refused(75, "volume", "snapshot", "delete", "disk@a")
        assert f"pid {machine.services[0].pid}" in refusal
        machine.run("volume", "rollback", "disk@a")
        assert reader.read(0, MIB) == bytes([5]) * MIB


def test_garbage_is_collected_by_whoever_has_the_volume(machine: Machine, held: Held) -> None:
    """What overwriting left behind is freed; data and snapshots stay."""
    held.fill(1)
    machine.run("volume", "snapshot", "create", "disk@a")
    for number in range(2, 12):
        held.fill(number)
    planned = machine.run("gc", "--dry-run", "-o", "json").document["gc"]
    done = machine.run("gc", "disk", "--target", "0.9", "-o", "json").document["gc"]

    assert [(one["volume"], one["state"]) for one in planned + done] == [
        ("disk", "planned"), ("disk", "collected"),
    ]  # fmt: skip
    assert done[0]["chunks_after"] < done[0]["chunks_before"]
    assert done[0]["freed_bytes"] > 0
    assert bytes_at_ends(machine, "disk@a") == (1, 1)
    machine.run("gc", "--defragment")
    held.let_go()
    if held.holder != "gateway":
        assert bytes_at_ends(machine, "disk") == (11, 11)
    assert bytes_at_ends(machine, "disk@a") == (1, 1)


def test_gateway_leaves_nothing_behind(machine: Machine) -> None:
    """Its socket and its registration go with it; a killed one's go with the next."""
    folder = machine.home / "gateways"
    first = machine.gateway("disk", "--socket", machine.folder / "g.sock")
    assert [path.name for path in folder.iterdir()] == [f"{first.pid}.ctl"]
    first.stop()
    assert list(folder.iterdir()) == []
    second = machine.gateway("disk", "--socket", machine.folder / "g.sock")
    second.kill()
    third = machine.gateway("disk", "--socket", machine.folder / "g.sock")
    assert [path.name for path in folder.iterdir()] == [f"{third.pid}.ctl"]
    third.stop()
