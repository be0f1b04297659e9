"""The composition root: the only place that constructs and connects the parts of torus.

Decides the order in which a process starts and stops, and what a signal means.  Everything
here runs on uvloop.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from torus import limits, log
from torus.config import CommonConfig, GatewayConfig, NodeConfig
from torus.daemon.command import run_command
from torus.daemon.copying import export_from, import_into
from torus.daemon.gateway import serve_volumes
from torus.daemon.node import serve_node
from torus.daemon.reach import attached, delete_without_disk, free_volume, reach, volume_options
from torus.daemon.reports import CopyReport, Progress
from torus.daemon.snapshot_work import opened
from torus.errors import NotFound
from torus.ids import split_snapshot
from torus.redundancy.codec import choose_engine
from torus.volume.snapshot_export import SnapshotVolume

Result = TypeVar("Result")
events = log.get_logger("torus.process")


def run_node(config: NodeConfig) -> int:
    """Run a node until SIGTERM or SIGINT; return the exit code.

    Raises: TorusError when it cannot start.
    """
    _configure(config.common)
    return _run(_until_signal(lambda stack, stop: serve_node(config, stack, stop)))


def run_gateway(config: GatewayConfig) -> int:
    """Run a gateway until SIGTERM or SIGINT; return the exit code.

    Raises: TorusError when it cannot start.
    """
    _configure(config.common)
    return _run(_until_signal(lambda stack, stop: serve_volumes(config, stack, stop)))


def import_volume(config: CommonConfig, name: str, source: str, progress: Progress) -> CopyReport:
    """Copy ``source`` into the volume.

    Raises: TorusError.
    """

    async def work() -> CopyReport:
        async with reach(config) as reached:
            async with attached(reached, name, "import", volume_options(config)) as attachment:
                return await import_into(attachment.volume, source, progress)

    return run_command(config, work())


def export_volume(config: CommonConfig, name: str, target: str, progress: Progress) -> CopyReport:
    """Copy the volume, or the snapshot NAME@SNAP, into ``target``.

    Raises: TorusError.
    """
    options = volume_options(config)

    async def work() -> CopyReport:
        async with reach(config) as reached:
            if "@" in name:
                volume, snap = split_snapshot(name)
                cache_bytes = options.map_cache_bytes
                async with opened(reached, volume, snap, "export", cache_bytes) as view:
                    source = SnapshotVolume(view, view.snapshot)
                    return await export_from(source, target, progress)
            async with attached(reached, name, "export", options) as attachment:
                return await export_from(attachment.volume, target, progress)

    return run_command(config, work())


def delete_volume(
    config: CommonConfig, name: str, force: bool, *, with_snapshots: bool = False
) -> None:
    """Delete the volume, with ``with_snapshots`` those as well, and free its space.

    Raises: TorusError.
    """

    async def work() -> None:
        try:
            async with reach(config) as reached:
                await free_volume(reached, name, force=force, with_snapshots=with_snapshots)
        except NotFound:
            if config.data_dir.is_dir():
                raise
            await delete_without_disk(config, name, force=force, with_snapshots=with_snapshots)

    run_command(config, work())


# --- processes --------------------------------------------------------------------------


async def _until_signal(serve: Any) -> int:
    """Serve until a signal; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            events.warning("process.killed", signal=signal.Signals(number).name)
            os._exit(128 + number)
        events.info("process.stopping", signal=signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    async with AsyncExitStack() as stack:
        await serve(stack, stop)
    events.info("process.stopped")
    return 0


def _configure(common: CommonConfig) -> None:
    log.configure(common.log_level, common.log_format)
    choose_engine(common.erasure)
    # A thread that comes back from fdatasync should not wait 5 ms for the interpreter.
    sys.setswitchinterval(limits.THREAD_SWITCH_S)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    import uvloop

    return uvloop.run(work)
