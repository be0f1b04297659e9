"""Tasks that run beside everything else: begun, ended, and heard of when they crash."""

import asyncio
import logging

import pytest

from torus.daemon.background import Background


class Work(Background):
    """Waits for the test to let it go on, then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def _run(self) -> None:
        await self.gate.wait()
        raise ValueError("a mistake")


def test_a_crash_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """With the name of the task; closing it afterwards is no error."""

    async def scenario() -> None:
        work = Work()
        work.start()
        work.gate.set()
        assert work._task is not None
        await asyncio.wait([work._task])
        await work.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    [record] = caplog.records
    assert "background.crashed" in record.getMessage()
    assert "Work" in str(vars(record))


def test_an_end_in_order_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """Closed, again, and when it was never begun."""

    async def scenario() -> None:
        work = Work()
        await work.close()
        work.start()
        await work.close()
        await work.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert caplog.records == []
