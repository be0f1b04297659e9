"""`torus nbd attach`, `detach`, `restart` up to the kernel's door."""

import json
from pathlib import Path

import pytest

from torus.cli import nbd_kernel
from torus.clock import SystemClock
from torus.daemon import kernel_start
from torus.daemon.kernel_state import AttachPlace, AttachState, attach_folder
from torus.errors import NotFound
from torus.metadata.open import open_metadata
from torus.metadata.schema import Owner
from torus.net.netlink_nbd import NO_MODULE_HINT


class NoDriver:
    """A kernel without nbd."""

    def __init__(self) -> None:
        raise NotFound("the kernel's nbd driver is not loaded", hint=NO_MODULE_HINT)


class Driver:
    """A kernel with nbd, as far as looking for it goes."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(nbd_kernel, "NbdFamily", Driver)


@pytest.fixture
def volume(run) -> str:
    assert run("volume", "create", "vm1", "1GiB").code == 0
    return "vm1"


@pytest.mark.parametrize("words", [("attach", "vm1"), ("detach", "vm1"), ("restart", "--all")])
def test_others_than_root_are_refused(run, monkeypatch: pytest.MonkeyPatch, words) -> None:
    """Before anything else is looked at."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    ended = run("nbd", *words)
    assert ended.code == 77
    assert "needs root" in ended.err
    assert "sudo" in ended.err


def test_without_the_driver_it_says_how_to_load_it(run, root, monkeypatch, volume) -> None:
    """And nothing is left of the attempt."""
    monkeypatch.setattr(nbd_kernel, "NbdFamily", NoDriver)
    ended = run("nbd", "attach", volume)
    assert ended.code == 5
    assert "driver is not loaded" in ended.err
    assert "modprobe nbd nbds_max=64" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a/b",), "name"),
        (("vm1", "--device", "/dev/sda"), "'/dev/sda' is not a network block device"),
        (("vm1", "--device", "/dev/nbd0p1"), "is not a network block device"),
        (("vm1", "--connections", "0"), "--connections 0 is not from 1 to 16"),
        (("vm1", "--connections", "17"), "--connections 17 is not from 1 to 16"),
        (("vm1", "--timeout", "500ms"), "--timeout 500ms is too short"),
        (("vm1", "--block-size", "1024"), "invalid choice"),
    ],
)
def test_what_cannot_be_meant(run, root, words, message: str) -> None:
    """Exit code 64, and which word it is."""
    ended = run("nbd", "attach", *words)
    assert ended.code == 64
    assert message in ended.err


def test_a_volume_that_there_is_not(run, root, volume) -> None:
    """Nor a snapshot."""
    assert run("nbd", "attach", "vm2").code == 5
    assert run("nbd", "attach", "vm1@monday").code == 5


def test_a_volume_that_somebody_has(run, root, volume, monkeypatch) -> None:
    """Says who, and as what; nothing is started."""
    owner = Owner("far", "boot", 7, 8, "gateway", "/dev/nbd4", 0)
    monkeypatch.setattr(nbd_kernel, "is_alive", lambda _owner: None)
    catalog = nbd_kernel.Catalog

    class Taken(catalog):  # type: ignore[valid-type,misc]
        def get(self, name: str):
            from dataclasses import replace

            found = super().get(name)
            return replace(found, head=replace(found.head, owner=owner))

    monkeypatch.setattr(nbd_kernel, "Catalog", Taken)
    ended = run("nbd", "attach", volume)
    assert ended.code == 75
    assert "gateway pid 7 on far as /dev/nbd4" in ended.err
    assert "--takeover" in ended.err

    started: list[object] = []
    monkeypatch.setattr(
        kernel_start,
        "start_in_background",
        lambda _place, resume: (
            started.append(resume) or AttachState("vm1", "b", "attached", "/dev/nbd0")
        ),
    )
    ended = run("nbd", "attach", volume, "--takeover")
    assert (ended.code, ended.out) == (0, "/dev/nbd0\n")
    assert started[0].takeover is True  # type: ignore[attr-defined]


def test_disks_of_other_machines_are_listed(run, volume, environment) -> None:
    """With their host; no URI is shown for what nobody can open."""
    store = open_metadata(f"sqlite:{environment['TORUS_HOME']}/meta.sqlite", SystemClock())
    catalog = nbd_kernel.Catalog(store, SystemClock())
    owner = Owner("far", "boot", 7, 8, "gateway", "/dev/nbd4", 0)
    catalog.acquire(catalog.get(volume).spec.volume, owner)
    store.close()
    listed = json.loads(run("nbd", "list", "-o", "json").out)
    assert listed["exports"] == []
    (one,) = listed["devices"]
    assert (one["device"], one["host"], one["volume"]) == ("/dev/nbd4", "far", volume)
    assert "/dev/nbd4  vm1" in run("nbd", "list").out


def test_attached_already(run, root, volume, environment) -> None:
    """The second attach is told the device of the first."""
    place = AttachPlace(attach_folder(Path(environment["TORUS_HOME"])), volume)
    place.lock()
    place.write(AttachState(volume, "b", "attached", "/dev/nbd3", 3, gateway_pid=99))
    ended = run("nbd", "attach", volume)
    assert ended.code == 75
    assert "is attached on this machine already: /dev/nbd3, gateway pid 99" in ended.err


@pytest.mark.parametrize("words", [("detach", "vm1"), ("restart", "vm1"), ("detach", "/dev/nbd60")])
def test_what_is_not_attached(run, root, words) -> None:
    """Exit code 5."""
    ended = run("nbd", *words)
    assert ended.code == 5
    assert "is not attached on this machine" in ended.err


def test_restart_needs_to_know_which(run, root) -> None:
    """One or all, not both, not neither; all of none is no error."""
    assert run("nbd", "restart").code == 64
    assert run("nbd", "restart", "vm1", "--all").code == 64
    ended = run("nbd", "restart", "--all", "-o", "json")
    assert ended.code == 0
    assert json.loads(ended.out)["restarted"] == []
