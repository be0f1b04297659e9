"""What sysfs and proc tell of a device, on trees of our own."""

from pathlib import Path

import pytest

from torus.errors import UsageError
from torus.net import block_device
from torus.net.block_device import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with nbd0 connected, with a partition, and nbd1 free; nothing is used."""
    for name, number in (("nbd0", "43:0"), ("nbd1", "43:32")):
        folder = tmp_path / "sys/block" / name
        (folder / "queue").mkdir(parents=True)
        (folder / "holders").mkdir()
        (folder / "dev").write_text(f"{number}\n")
        (folder / "size").write_text("0\n")
    (tmp_path / "sys/block/sda").mkdir()
    nbd0 = tmp_path / "sys/block/nbd0"
    (nbd0 / "size").write_text("2048\n")
    (nbd0 / "pid").write_text("77\n")
    (nbd0 / "backend").write_text("torus:abc:0000000000000001\n")
    (nbd0 / "queue/max_sectors_kb").write_text("128\n")
    part = nbd0 / "nbd0p1"
    (part / "holders").mkdir(parents=True)
    (part / "dev").write_text("43:1\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    (tmp_path / "dev").mkdir()
    return Machine(tmp_path / "sys", tmp_path / "proc", tmp_path / "dev")


def test_what_sysfs_tells(machine: Machine) -> None:
    """Size in bytes, owner, connector; a free device has none."""
    assert block_device.devices(machine) == [0, 1]
    assert block_device.size_of(0, machine) == 1 << 20
    assert block_device.backend_of(0, machine) == "torus:abc:0000000000000001"
    assert block_device.connector_of(0, machine) == 77
    assert block_device.connector_of(1, machine) is None
    assert block_device.size_of(9, machine) == 0


def test_unused(machine: Machine) -> None:
    """Nothing stands in the way."""
    assert block_device.uses_of(0, machine) == []


@pytest.mark.parametrize(("number", "source"), [("43:0", "/dev/nbd0"), ("43:1", "/dev/nbd0p1")])
def test_mounts_are_seen(machine: Machine, number: str, source: str) -> None:
    """Also of a partition, also with optional fields, also with a blank in the path."""
    with (machine.proc / "self/mountinfo").open("a") as file:
        file.write(f"30 22 {number} / /mnt/my\\040disk rw shared:1 - ext4 {source} rw\n")
    assert block_device.uses_of(0, machine) == [f"{source} is mounted on /mnt/my disk"]
    assert block_device.uses_of(1, machine) == []


def test_swap_is_seen(machine: Machine) -> None:
    """A device of a similar name is another one."""
    dev = machine.dev
    (machine.proc / "swaps").write_text(f"Filename Type\n{dev}/nbd0 partition 1 0 -2\n")
    assert block_device.uses_of(0, machine) == [f"{dev}/nbd0 is used as swap"]
    (machine.proc / "swaps").write_text(f"Filename Type\n{dev}/nbd01 partition 1 0 -2\n")
    assert block_device.uses_of(0, machine) == []


def test_holders_are_seen(machine: Machine) -> None:
    """A mapping is told by its own name."""
    (machine.sys / "block/nbd0/nbd0p1/holders/dm-3").mkdir()
    (machine.sys / "block/dm-3/dm").mkdir(parents=True)
    (machine.sys / "block/dm-3/dm/name").write_text("vg-root\n")
    assert block_device.uses_of(0, machine) == ["/dev/mapper/vg-root is built on /dev/nbd0p1"]


def test_partitions_are_forgotten(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those of a device that is not connected; one that is gone is no error."""
    asked: list[int] = []
    monkeypatch.setattr(block_device.fcntl, "ioctl", lambda _fd, request: asked.append(request))
    (machine.dev / "nbd0").touch()
    block_device.forget_partitions(0, machine)
    assert asked == []
    (machine.sys / "block/nbd0/pid").unlink()
    block_device.forget_partitions(0, machine)
    assert asked == [block_device.BLKRRPART]
    (machine.dev / "nbd0").unlink()
    block_device.forget_partitions(0, machine)
    block_device.forget_partitions(1, machine)  # has none
    assert len(asked) == 1


def test_settings(machine: Machine) -> None:
    """What the kernel does not have is not set, and told so."""
    assert block_device.set_queue(0, "max_sectors_kb", 4096, machine)
    assert block_device.queue_value(0, "max_sectors_kb", machine) == 4096
    assert block_device.queue_value(0, "nothing", machine) is None
    assert not block_device.set_queue(5, "max_sectors_kb", 4096, machine)


@pytest.mark.parametrize(("text", "index"), [("/dev/nbd0", 0), ("nbd15", 15)])
def test_names_of_devices(text: str, index: int) -> None:
    """With and without the folder."""
    assert block_device.parse_device(text) == index


@pytest.mark.parametrize("text", ["/dev/sda", "/dev/nbd", "/dev/nbd0p1", "nbd-1", "7", ""])
def test_no_names_of_devices(text: str) -> None:
    """A partition is no device, nor is anything else."""
    with pytest.raises(UsageError, match="not a network block device"):
        block_device.parse_device(text)
