"""Telling systemd: one datagram, or nothing at all."""

import socket
from pathlib import Path

import pytest

from torus.daemon.systemd import notify


def test_nobody_is_told_without_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify(ready="1") is False


@pytest.mark.parametrize("abstract", [False, True])
def test_state_is_told(
    abstract: bool, socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"@{socket_folder.name}" if abstract else str(socket_folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if abstract else name)
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify(ready="1", status="serving") is True
        assert listening.recv(1000) == b"READY=1\nSTATUS=serving"


def test_socket_that_is_gone_is_no_failure(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(socket_folder / "nobody"))
    assert notify(ready="1") is False
