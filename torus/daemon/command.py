"""Run one command's work on an event loop of its own.

Decides which of its log lines a person sees, and what Ctrl-C means.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from torus import log
from torus.config import CommonConfig
from torus.errors import ConfigError, Interrupted
from torus.redundancy.codec import choose_engine

Result = TypeVar("Result")


def run_command(config: CommonConfig, work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's work; its log lines are for people who ask for them.

    Raises: Interrupted, ConfigError, and what the work raises.
    """
    import uvloop

    level = config.log_level if config.log_level != "info" else "warning"
    log.configure(level, config.log_format)
    if config.erasure != "auto":
        try:
            choose_engine(config.erasure)
        except ConfigError:
            work.close()
            raise
    try:
        return uvloop.run(_guarded(work))
    except (KeyboardInterrupt, asyncio.CancelledError) as exc:
        raise Interrupted("interrupted") from exc


async def _guarded(work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work; an interruption in the middle of some callback ends it, and is no error."""
    task = asyncio.current_task()
    assert task is not None

    def take(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), KeyboardInterrupt):
            task.cancel()
        else:
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(take)
    return await work
