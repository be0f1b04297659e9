"""Commands that run on an event loop: how they end."""

import asyncio
import socket
from pathlib import Path

import pytest

from torus.config import CommonConfig
from torus.daemon import app
from torus.errors import Interrupted, NotFound


def _config(level: str) -> CommonConfig:
    home = Path("/h")
    return CommonConfig(home, "sqlite:/h/meta", home / "data", log_level=level, log_format="human")


@pytest.mark.parametrize(
    ("asked", "shown"), [("info", "warning"), ("debug", "debug"), ("error", "error")]
)
def test_a_commands_log_is_for_those_who_ask(
    asked: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node says as a matter of course would only be in the way."""
    levels: list[str] = []
    monkeypatch.setattr(app.log, "configure", lambda level, _format: levels.append(level))

    async def work() -> int:
        return 7

    assert app.run_command(_config(asked), work()) == 7
    assert levels == [shown]


def test_an_interruption_is_an_error_with_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the work has been cancelled and has cleaned up."""
    monkeypatch.setattr(app.log, "configure", lambda *_arguments: None)
    ended: list[str] = []

    async def work() -> None:
        try:
            asyncio.get_running_loop().call_soon(_interrupt)
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    def _interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        app.run_command(_config("info"), work())
    assert caught.value.exit_code == 130
    assert ended == ["cleaned up"]


def test_an_error_passes_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the work says is what people see."""
    monkeypatch.setattr(app.log, "configure", lambda *_arguments: None)

    async def work() -> None:
        raise NotFound("no such thing", hint="look elsewhere")

    with pytest.raises(NotFound, match="no such thing") as caught:
        app.run_command(_config("info"), work())
    assert caught.value.hint == "look elsewhere"


class _Interrupted(asyncio.Protocol):
    """A protocol in the middle of which somebody presses Ctrl-C."""

    def data_received(self, _data: bytes) -> None:
        raise KeyboardInterrupt


def test_an_interruption_in_the_middle_of_a_callback_is_told_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the process was doing: it is Ctrl-C, not a broken connection."""
    ours, theirs = socket.socketpair()

    async def work() -> None:
        await asyncio.get_running_loop().create_connection(_Interrupted, sock=ours)
        theirs.send(b"x")
        await asyncio.get_running_loop().create_future()

    with theirs, pytest.raises(Interrupted):
        app.run_command(_config("info"), work())
    assert not caplog.records
