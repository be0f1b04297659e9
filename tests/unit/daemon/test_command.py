"""What every command's work runs under."""

from pathlib import Path

import pytest

from torus.config import CommonConfig
from torus.daemon.command import run_command
from torus.errors import ConfigError
from torus.redundancy import codec


@pytest.mark.parametrize(("engine", "expected"), [("zfec", {"zfec"}), ("kernel", None)])
def test_work_computes_with_the_engine_that_was_asked_for(
    engine: codec.Engine, expected: set[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_chosen", ["auto"])
    config = CommonConfig(Path("/h"), "sqlite:/h/meta", Path("/h/data"), erasure=engine)

    async def work() -> str:
        return codec.engine_in_use()

    found = run_command(config, work())

    assert (found == "zfec") == (expected is not None)


def test_work_does_not_begin_without_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_engine: codec.Engine) -> None:
        raise ConfigError("erasure coding by zfec is not possible")

    monkeypatch.setattr("torus.daemon.command.choose_engine", missing)
    config = CommonConfig(Path("/h"), "sqlite:/h/meta", Path("/h/data"), erasure="zfec")
    begun = []

    async def work() -> None:
        begun.append(1)

    with pytest.raises(ConfigError, match="zfec is not possible"):
        run_command(config, work())
    assert not begun
