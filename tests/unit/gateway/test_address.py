"""Addresses and listeners."""

import asyncio
import socket
from pathlib import Path

import pytest

from torus.errors import Busy, PermissionDenied, UsageError
from torus.net.address import TcpAddress, UnixAddress, parse_address
from torus.net.listener import listen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:10809", TcpAddress("127.0.0.1", 10809)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("[::1]:10809", TcpAddress("::1", 10809)),
        ("[::]", TcpAddress("::", 10809)),
        ("host", TcpAddress("host", 10809)),
        ("unix:/run/torus.sock", UnixAddress("/run/torus.sock")),
        ("unix:relative", UnixAddress("relative")),
    ],
)
def test_parse_address_good(text, expected):
    """Every form is understood, and written back it means the same."""
    assert parse_address(text, default_port=10809) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", ":1", "host:", "host:x", "host:65536", "host:-1", "::1:80", "[::1", "[::1]x:1",
        "[]:1", "unix:", "unix:" + "x" * 108, "host:\u0661",
    ],
)  # fmt: skip
def test_parse_address_bad(text):
    """What cannot be meant is refused with a hint."""
    with pytest.raises(UsageError) as refused:
        parse_address(text)
    assert refused.value.hint


def test_nbd_uri():
    """URIs that clients understand."""
    assert TcpAddress("::1", 1).nbd_uri("a") == "nbd://[::1]:1/a"
    assert UnixAddress("/s").nbd_uri("a") == "nbd+unix:///a?socket=/s"


def test_listen_tcp_taken_port_is_busy(run):
    """A port in use is named."""

    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(Busy, match=str(port)):
                await listen(TcpAddress("127.0.0.1", port), asyncio.Protocol)

    run(scenario)


def test_listen_tcp_port_zero_says_which(run):
    """The listener knows the port that the system chose."""

    async def scenario() -> None:
        listener = await listen(TcpAddress("127.0.0.1", 0), asyncio.Protocol)
        assert isinstance(listener.address, TcpAddress)
        assert listener.address.port
        listener.close()
        listener.close()

    run(scenario)


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_listen_foreign_host_is_a_usage_error(run, host):
    """An address of another machine, or of none."""

    async def scenario() -> None:
        with pytest.raises(UsageError):
            await listen(TcpAddress(host, 0), asyncio.Protocol)

    run(scenario)


def test_listen_unix_stale_socket_is_replaced(run, tmp_path: Path):
    """A socket file that a killed process left behind does not matter."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def scenario() -> None:
        listener = await listen(UnixAddress(str(path)), asyncio.Protocol)
        with pytest.raises(Busy):
            await listen(UnixAddress(str(path)), asyncio.Protocol)
        listener.close()
        assert not path.exists()

    run(scenario)


def test_listen_unix_does_not_remove_what_is_not_its_own(run, tmp_path: Path):
    """A file in the way stays; a socket that took the place of ours stays."""
    path = tmp_path / "s"
    path.write_text("precious")

    async def scenario() -> None:
        with pytest.raises(UsageError):
            await listen(UnixAddress(str(path)), asyncio.Protocol)
        assert path.read_text() == "precious"
        path.unlink()
        listener = await listen(UnixAddress(str(path)), asyncio.Protocol)
        path.unlink()
        path.write_text("another's")
        listener.close()
        assert path.read_text() == "another's"

    run(scenario)


def test_listen_unix_missing_folder_is_a_usage_error(run, tmp_path: Path):
    """The folder of the socket has to be there."""

    async def scenario() -> None:
        with pytest.raises((UsageError, PermissionDenied)):
            await listen(UnixAddress(str(tmp_path / "no" / "s")), asyncio.Protocol)

    run(scenario)
