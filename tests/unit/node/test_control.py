"""Questions to a running node: one line of JSON each way."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.chunk_places import LOOPS
from torus import limits
from torus.errors import Busy, NotFound, RemoteProtocolError, TimedOut, TorusError, Unavailable
from torus.node import control
from torus.node.control import ask, control_path_beside
from torus.node.control_server import serve_control


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Give what runs a scenario on each loop, with a deadline."""

    def bounded(scenario: Callable[[], Awaitable[None]]) -> None:
        async def with_deadline() -> None:
            async with asyncio.timeout(30):
                await scenario()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(with_deadline())

    return bounded


async def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer what a node would; a few requests ask for trouble."""
    if request.get("ask") == "absent":
        raise NotFound("no such volume", hint="see torus volume list")
    if request.get("ask") == "bug":
        raise ZeroDivisionError("bug")
    if request.get("ask") == "wait":
        await asyncio.get_running_loop().create_future()
    return {"asked": request, "large": "x" * 300_000}


def test_question_is_answered(run: Any, socket_folder: Path) -> None:
    """What the callback returns comes back, however long; the socket is the user's own."""
    path = str(socket_folder / "ctl")

    async def scenario() -> None:
        server = await serve_control(path, answer)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        found = await asyncio.to_thread(ask, path, {"ask": "status"})
        assert found == {"asked": {"ask": "status"}, "large": "x" * 300_000}
        await server.close()
        await server.close()

    run(scenario)
    assert not Path(path).exists()


def test_error_comes_back_as_itself(run: Any, socket_folder: Path) -> None:
    """The asker raises the class, message and hint that the node raised; a bug is told as one."""
    path = str(socket_folder / "ctl")

    async def scenario() -> None:
        server = await serve_control(path, answer)
        with pytest.raises(NotFound, match="no such volume") as caught:
            await asyncio.to_thread(ask, path, {"ask": "absent"})
        assert caught.value.hint == "see torus volume list"
        with pytest.raises(TorusError, match="the node failed: ZeroDivisionError: bug"):
            await asyncio.to_thread(ask, path, {"ask": "bug"})
        await server.close()

    run(scenario)


def _raw(path: str, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        sock.sendall(data)
        received = b""
        while piece := sock.recv(65536):
            received += piece
        return received


@pytest.mark.parametrize(
    "garbage", [b"\n", b"[]\n", b"\xff\xfe\n", b"[" * 50_000 + b"\n", b"x" * 70_000]
)
def test_garbage_is_refused(run: Any, socket_folder: Path, garbage: bytes) -> None:
    """What is no question gets an error, and the next question is answered."""
    path = str(socket_folder / "ctl")

    async def scenario() -> None:
        server = await serve_control(path, answer)
        found = json.loads(await asyncio.to_thread(_raw, path, garbage))
        assert found["error"]["code"] == "remote-protocol"
        assert "asked" in await asyncio.to_thread(ask, path, {})
        await server.close()

    run(scenario)


def test_slow_answer_and_silent_asker_time_out(
    run: Any, socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither side waits for ever."""
    path = str(socket_folder / "ctl")
    monkeypatch.setattr(limits, "CONTROL_TIMEOUT_S", 0.1)

    async def scenario() -> None:
        server = await serve_control(path, answer)
        with pytest.raises(TimedOut, match=r"no answer in 0\.1 s"):
            await asyncio.to_thread(ask, path, {"ask": "wait"}, 10.0)
        with pytest.raises(TimedOut, match=r"did not answer in 0\.01 s"):
            await asyncio.to_thread(ask, path, {"ask": "wait"}, 0.01)
        assert b"no answer" in await asyncio.to_thread(_raw, path, b"{")
        await server.close()

    run(scenario)


def test_too_many_askers_are_told(
    run: Any, socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound a connection gets one error line."""
    path = str(socket_folder / "ctl")
    monkeypatch.setattr(limits, "CONTROL_CONNECTIONS_MAX", 0)

    async def scenario() -> None:
        server = await serve_control(path, answer)
        with pytest.raises(Busy, match="too many"):
            await asyncio.to_thread(ask, path, {"ask": "status"})
        await server.close()

    run(scenario)


def test_close_hangs_up_on_who_waits(run: Any, socket_folder: Path) -> None:
    """A node that stops does not wait for an answer that does not come."""
    path = str(socket_folder / "ctl")

    async def scenario() -> None:
        server = await serve_control(path, answer)
        waiting = asyncio.ensure_future(asyncio.to_thread(ask, path, {"ask": "wait"}))
        while not any(question.task for question in server._asking):  # noqa: ASYNC110
            await asyncio.sleep(0)
        await server.close()
        with pytest.raises(Unavailable, match=r"hung up|reset"):
            await waiting

    run(scenario)


def test_no_node_is_unavailable(socket_folder: Path) -> None:
    """Absent socket, nobody behind it, a path too long: each says what and what to do."""
    stale = str(socket_folder / "stale")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(stale)
    for path in (str(socket_folder / "none"), stale, "/" + "x" * 200):
        with pytest.raises(Unavailable, match="no node answers at"):
            ask(path, {"ask": "status"}, 1.0)


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"x" * 200])
def test_wrong_answer_is_refused(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """An answer that is no JSON object, or has no end, is not believed."""
    monkeypatch.setattr(limits, "CONTROL_ANSWER_BYTES_MAX", 100)

    class Said:
        def __init__(self) -> None:
            self.left = [line, b""]

        def settimeout(self, _seconds: float) -> None:
            return

        def recv(self, _size: int) -> bytes:
            return self.left.pop(0)

    def heard() -> dict[str, Any]:
        return control._parse(
            control._receive_line(Said(), "/x", 1e18),  # type: ignore[arg-type]
            "/x",
        )

    with pytest.raises(RemoteProtocolError):
        heard()


def test_control_socket_lies_beside_the_peer_socket() -> None:
    """A node's registration names its peer socket only."""
    assert control_path_beside("unix:/run/torus/peer") == "/run/torus/peer.ctl"
    for address in ("10.0.0.1:7000", ""):
        with pytest.raises(Unavailable, match="no control socket"):
            control_path_beside(address)


def test_asking_needs_no_event_loop() -> None:
    """A command that asks starts quickly: asyncio alone takes some 50 ms to import."""
    code = (
        "import sys, torus.node.control; print([name for name in "
        "('asyncio', 'uvloop', 'logging', 'torus.log') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
