"""Who has a volume that this process lost, for the log.

Decides how long that is asked for: a disk that was fenced may say so before the metadata store can
be reached again.
"""

import asyncio
from collections.abc import Callable

from torus import limits
from torus.errors import TorusError, Unavailable
from torus.volume.catalog_ask import describe
from torus.volume.catalog_async import AsyncCatalog


async def successor(catalog: AsyncCatalog, volume: int, is_closing: Callable[[], bool]) -> str:
    """Return the present owner of a volume for people; waits for the metadata store until
    ``is_closing``, and never raises TorusError."""
    while True:
        try:
            owner = (await catalog.get_by_id(volume)).head.owner
            return "nobody" if owner is None else describe(owner)
        except TorusError as exc:
            if not isinstance(exc, Unavailable) or is_closing():
                return f"unknown: {exc.message}"
        await asyncio.sleep(limits.WATCH_RETRY_S)
