"""What stands in a volume's write queue: a request, or other work that appends records."""

import asyncio

from torus._fast.record import KIND_DATA

_KIND_WORK = 0  # no kind of record: an item that makes its own


class Item:
    """One request in the queue; ``payload`` is None for zeroes."""

    __slots__ = ("allocate", "done", "kind", "length", "offset", "payload", "place")

    def __init__(
        self, kind: int, offset: int, length: int, payload: bytes | None, *, allocate: bool = False
    ) -> None:
        self.kind = kind
        self.offset = offset
        self.length = length
        self.payload = payload
        self.allocate = allocate
        self.place: tuple[int, int, int] = (0, 0, 0)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def may_use_reserve(self) -> bool:
        """True for what frees space or keeps the volume consistent, not for new data."""
        return self.kind != KIND_DATA or (self.payload is None and not self.allocate)


class Work(Item):
    """Something else that appends records, alone with the log and the map while it does."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_KIND_WORK, 0, 0, None)

    async def run(self) -> None:
        """Append; what is in the map on return is in the log.

        Raises: PoolFull, also after a part of the work; everything else ends the volume.
        """
        raise NotImplementedError
