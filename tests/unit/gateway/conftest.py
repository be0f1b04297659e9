"""A server over memory exports, on both event loops."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from torus.gateway.server import NbdServer, ServerLimits
from torus.net.address import UnixAddress
from torus.testing.memory_export import MemoryExport, MemoryExports

Scenario = Callable[[], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Run a coroutine function on one of the loops; whatever the loop reports fails the test."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_scenario(scenario: Scenario) -> None:
        reported: list[dict[str, object]] = []

        async def guarded() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: reported.append(context))
            await asyncio.wait_for(scenario(), 30)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(guarded())
        assert not reported, reported

    return run_scenario


class Served:
    """A running server, its exports and the path of its socket."""

    def __init__(self, path: str, exports: MemoryExports, server: NbdServer) -> None:
        self.path = path
        self.exports = exports
        self.server = server

    @property
    def disk(self) -> MemoryExport:
        return self.exports.exports["disk"]


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., object]:
    """Return a context manager that serves memory exports and checks that all is given back."""

    @asynccontextmanager
    async def serve(
        *exports: MemoryExport, size_bytes: int = 64 << 20, **limits: float
    ) -> AsyncIterator[Served]:
        directory = MemoryExports(*(exports or (MemoryExport("disk", size_bytes),)))
        server = NbdServer(directory, limits=ServerLimits(**limits))  # type: ignore[arg-type]
        path = str(tmp_path / "nbd.sock")
        await server.start([UnixAddress(path)])
        served = Served(path, directory, server)
        try:
            yield served
        finally:
            await server.close()
        assert not any(directory.open_counts.values()), directory.open_counts
        assert directory.open_contexts_count == 0
        assert server.stats.connections_open == 0
        assert not tmp_path.joinpath("nbd.sock").exists()

    return serve
