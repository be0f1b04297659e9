"""Run one command's work on an event loop of its own.

Decides which of its log lines a person sees, and what Ctrl-C means.
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

from torus import log
from torus.config import CommonConfig
from torus.errors import Interrupted

Result = TypeVar("Result")


def run_command(config: CommonConfig, work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's work; its log lines are for people who ask for them.

    Raises: Interrupted, and what the work raises.
    """
    import uvloop

    level = config.log_level if config.log_level != "info" else "warning"
    log.configure(level, config.log_format)
    try:
        return uvloop.run(work)
    except KeyboardInterrupt as exc:
        raise Interrupted("interrupted") from exc
