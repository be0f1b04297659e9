"""Requests whose disks are away: they wait, unless it was said at once that nobody waits."""

import asyncio

import pytest

from torus import limits
from torus.errors import Corruption, TorusError, Unavailable
from torus.limits import MIB
from torus.nbd import constants as nbd
from torus.testing.memory_export import MemoryExport
from torus.testing.nbd_client import BareClient


class Away(MemoryExport):
    """An export whose disks come back after a number of calls."""

    def __init__(self, times: int, then: TorusError | None = None) -> None:
        super().__init__("disk", MIB)
        self.refuse_now = True
        self.times = times
        self.then = then

    async def _call(self, name: str) -> None:
        if self.times:
            self.times -= 1
            raise Unavailable("its disks cannot be asked")
        if self.then is not None:
            raise self.then
        await super()._call(name)


class AwaySoon(Away):
    """As `Away`, by the calls that need no task."""

    def _soon(self) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(Unavailable("its disks cannot be asked"))
        return future

    def read_soon(self, offset: int, length: int) -> "asyncio.Future[None]":  # type: ignore[override]
        return self._soon()

    def write_soon(self, offset: int, payload: bytes) -> "asyncio.Future[None]":  # type: ignore[override]
        return self._soon()


REQUESTS = [(0, 4096, b""), (1, 0, bytes(4096)), (4, 4096, b""), (6, 4096, b""), (5, 4096, b"")]


@pytest.mark.parametrize("kind", [Away, AwaySoon])
@pytest.mark.parametrize(("command", "length", "payload"), REQUESTS)
def test_requests_wait_for_disks_that_come_back(
    run, serving, monkeypatch, kind, command, length, payload
):
    """Each try took its time; the client sees no error."""
    monkeypatch.setattr(limits, "NBD_AWAY_S", 0.0)

    async def scenario() -> None:
        disk = kind(3)
        async with serving(disk) as served:
            client = await BareClient.go(served.path)
            assert (await client.ask(command, 0, length, payload=payload)).error == 0
            assert disk.times == 0
            await client.close()

    run(scenario)


@pytest.mark.parametrize(("command", "length", "payload"), REQUESTS)
def test_what_is_said_at_once_is_told(run, serving, command, length, payload):
    """A volume that another process has, or a process that stops: waiting would not help."""

    async def scenario() -> None:
        disk = Away(1)
        async with serving(disk) as served:
            client = await BareClient.go(served.path)
            reply = await client.ask(command, 0, length, payload=payload)
            assert reply.error == nbd.NBD_EIO
            assert (await client.ask(command, 0, length, payload=payload)).error == 0
            await client.close()

    run(scenario)


def test_what_turns_out_to_be_lost_is_an_error(run, serving, monkeypatch):
    """Once those that had it are known to be gone."""
    monkeypatch.setattr(limits, "NBD_AWAY_S", 0.0)

    async def scenario() -> None:
        disk = Away(2, Corruption("nobody has it any more"))
        async with serving(disk) as served:
            client = await BareClient.go(served.path)
            assert (await client.ask(0, 0, 4096)).error == nbd.NBD_EIO
            assert disk.times == 0
            await client.close()

    run(scenario)


def test_nobody_waits_for_a_client_that_left(run, serving, monkeypatch):
    """The export is given back; `serving` checks it."""
    monkeypatch.setattr(limits, "NBD_AWAY_S", 0.0)

    class Asleep(Away):
        async def _call(self, name: str) -> None:
            self.calls.append(name)
            await asyncio.sleep(0)
            raise Unavailable("its disks cannot be asked")

    async def scenario() -> None:
        disk = Asleep(1)
        async with serving(disk) as served:
            client = await BareClient.go(served.path)
            client.say(0, 0, 4096)
            while len(disk.calls) < 20:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await client.close()
            while served.server.stats.connections_open:  # noqa: ASYNC110, else it is drained
                await asyncio.sleep(0)

    run(scenario)
