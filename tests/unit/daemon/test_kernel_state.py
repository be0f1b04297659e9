"""What is known of attachments: files, locks, devices."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from torus.daemon import kernel_state
from torus.daemon.kernel_state import AttachPlace, AttachState, attach_folder, attached_devices
from torus.errors import Busy
from torus.net.block_device import Machine

BACKEND = kernel_state.backend_name("abc", 1)
STATE = AttachState(
    volume="vm1", backend=BACKEND, state="attached", device="/dev/nbd0", index=0,
    size_bytes=1 << 20, supervisor_pid=11, gateway_pid=12,
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> AttachPlace:
    folder = attach_folder(tmp_path)
    folder.mkdir()
    return AttachPlace(folder, "vm1")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A kernel without nbd devices."""
    found = Machine(tmp_path / "sys", tmp_path / "proc", tmp_path / "dev")
    (found.sys / "block").mkdir(parents=True)
    return found


def connect(machine: Machine, index: int, backend: str) -> None:
    folder = machine.sys / "block" / f"nbd{index}"
    folder.mkdir(parents=True)
    (folder / "backend").write_text(backend + "\n")
    (folder / "pid").write_text("12\n")
    (folder / "size").write_text("4096\n")


def test_state_is_kept(place: AttachPlace) -> None:
    """What was written is read; what is no state is none."""
    assert place.read() is None
    place.write(STATE)
    assert place.read() == STATE
    assert (place.folder / "vm1.pid").read_text() == "11\n"
    document = json.loads(place.state_path.read_text())
    place.state_path.write_text(json.dumps({**document, "of a newer torus": 1}))
    assert place.read() == STATE
    for garbage in ("", "[]", '{"volume": "vm1"}', "{"):
        place.state_path.write_text(garbage)
        assert place.read() is None
    place.forget()
    assert not place.state_path.exists()


def test_one_supervisor(place: AttachPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is told where the volume is."""
    monkeypatch.setattr(kernel_state, "_LOOK_AGAIN_S", 0.0)
    assert not place.is_supervised()
    lock = place.lock()
    assert place.is_supervised()
    with pytest.raises(Busy, match="starting just now"):
        place.lock()
    place.write(STATE)
    with pytest.raises(Busy, match="/dev/nbd0, gateway pid 12"):
        place.lock()
    os.close(lock)
    assert not place.is_supervised()
    os.close(place.lock())


def test_devices_of_this_home(tmp_path: Path, place: AttachPlace, machine: Machine) -> None:
    """Supervised and served; without gateway; without supervisor; gone."""
    place.write(STATE)
    assert attached_devices(tmp_path, machine) == []
    connect(machine, 0, BACKEND)
    (machine.proc / "12").mkdir(parents=True)
    lock = place.lock()
    (one,) = attached_devices(tmp_path, machine)
    assert (one.device, one.volume, one.state) == ("/dev/nbd0", "vm1", "attached")
    assert (one.gateway_pid, one.supervisor_pid, one.size_bytes) == (12, 11, 4096 * 512)
    place.write(replace(STATE, state="reconnecting", gateway_pid=0))
    (one,) = attached_devices(tmp_path, machine)
    assert (one.state, one.gateway_pid) == ("reconnecting", 0)
    os.close(lock)
    (one,) = attached_devices(tmp_path, machine)
    assert (one.state, one.supervisor_pid) == ("orphaned", 0)


def test_devices_of_another_home(tmp_path: Path, machine: Machine) -> None:
    """The kernel says that it is torus's, but not which volume; other people's are not shown."""
    connect(machine, 4, BACKEND)
    connect(machine, 5, "ceph")
    (one,) = attached_devices(tmp_path, machine)
    assert (one.device, one.volume, one.known) == ("/dev/nbd4", "", None)


def test_the_device_that_waits(machine: Machine) -> None:
    """A device is found by whom it belongs to; a snapshot is not its volume."""
    connect(machine, 4, BACKEND)
    assert kernel_state.device_of_backend(BACKEND, machine) == 4
    assert kernel_state.device_of_backend(kernel_state.backend_name("abc", 1, "s"), machine) is None
    assert kernel_state.device_of_backend(kernel_state.backend_name("abc", 2), machine) is None


def test_sectors_suit_the_size() -> None:
    """Whole blocks where the size allows it, and what was asked for otherwise."""
    assert kernel_state.block_bytes_for(1 << 20, None) == 4096
    assert kernel_state.block_bytes_for((1 << 20) + 512, None) == 512
    assert kernel_state.block_bytes_for(1 << 20, 512) == 512


def test_reservations(tmp_path: Path) -> None:
    """Two attachments of one home do not choose the same device."""
    first = kernel_state.reserve_index(tmp_path, 3)
    assert first is not None
    assert kernel_state.reserve_index(tmp_path, 3) is None
    os.close(first)
