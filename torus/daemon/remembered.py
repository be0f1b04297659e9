"""What a node's disks remember of their cluster's metadata, so that an older copy is noticed.

Decides where history tokens are kept (a file in each data directory, written by whoever has the
directory locked) and when they are renewed: at the start, now and then, and at a clean end.  What
a token proves is decided in `torus.metadata.history`.

Implements docs/metadata.md, "An older copy".
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from torus.errors import Corruption, TorusError
from torus.limits import HISTORY_MARK_S, METADATA_CLOSE_S
from torus.log import get_logger
from torus.metadata.loop import AsyncMetadata

log = get_logger("torus.history")

TOKEN_FILE = "history.json"


class RememberedHistory:
    """The history tokens of some data directories, each with a mark of its own."""

    def __init__(self, metadata: AsyncMetadata, data_dirs: Sequence[Path]) -> None:
        self._metadata = metadata
        self._tokens = dict.fromkeys(data_dirs, "")
        self._task: asyncio.Task[None] | None = None

    async def start(self, stack: AsyncExitStack) -> None:
        """Compare the store with what every disk remembers, then go on remembering.

        Raises: Corruption for an older copy, ForeignData for another store, Unavailable.
        """
        for data_dir in self._tokens:
            token = self._tokens[data_dir] = await asyncio.to_thread(_read, data_dir)
            try:
                await self._metadata.check_not_older(token)
            except Corruption as exc:
                exc.message = f"{data_dir / TOKEN_FILE}: {exc.message}"
                exc.args = (exc.message,)
                raise
        await self._renew()
        if any(self._tokens.values()):
            self._task = asyncio.ensure_future(self._run())
            stack.push_async_callback(self.close)

    async def close(self) -> None:
        """Renew once more, if the store answers; idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        try:
            async with asyncio.timeout(METADATA_CLOSE_S):
                await self._renew_if_possible()
        except TimeoutError:
            log.warning("history.not_renewed", error="the store does not answer")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(HISTORY_MARK_S)
            await self._renew_if_possible()

    async def _renew_if_possible(self) -> None:
        try:
            await self._renew()
        except TorusError as exc:
            log.warning("history.not_renewed", error=str(exc))

    async def _renew(self) -> None:
        for data_dir, token in self._tokens.items():
            new = await self._metadata.history_token(token)
            if not new:
                return  # an embedded store: it is not restored behind the back of its machine
            try:
                await asyncio.to_thread(_write, data_dir, new)
            except OSError as exc:
                # the old token stays right: its mark is the new one's "before"
                log.warning("history.not_kept", data_dir=str(data_dir), error=str(exc))
            else:
                self._tokens[data_dir] = new


def _read(data_dir: Path) -> str:
    try:
        return (data_dir / TOKEN_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise Corruption(
            f"{data_dir / TOKEN_FILE} cannot be read: {exc}",
            hint="the disk may be failing; see docs/metadata.md, 'An older copy'",
        ) from exc


def _write(data_dir: Path, token: str) -> None:
    """Replace the file durably.  Raises: OSError."""
    new = data_dir / f".{TOKEN_FILE}.new"
    with new.open("w", encoding="utf-8") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(data_dir / TOKEN_FILE)
    descriptor = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
