"""Which names a process serves: volumes, their snapshots, and what the empty name means."""

from collections.abc import Sequence

from torus import limits
from torus.errors import NotFound
from torus.ids import join_snapshot
from torus.metadata.keys import SNAPSHOTS
from torus.metadata.loop import AsyncMetadata
from torus.volume.catalog_ask import DELETING
from torus.volume.catalog_async import AsyncCatalog


class Offer:
    """What clients may open."""

    def __init__(
        self, metadata: AsyncMetadata, catalog: AsyncCatalog, only: Sequence[str] | None
    ) -> None:
        """``only``: nothing but these volumes and snapshots; a volume does not stand for its
        snapshots, which hold what was removed from it."""
        self._metadata = metadata
        self._catalog = catalog
        self._only = None if only is None else list(only)

    def add(self, name: str) -> None:
        """Offer one more volume."""
        if self._only is not None and name not in self._only:
            self._only.append(name)

    def check(self, name: str) -> None:
        """Raises: NotFound when ``name`` is not one of those served."""
        if self._only is not None and name not in self._only:
            what = "snapshot" if "@" in name else "volume"
            raise NotFound(f"{what} {name!r} is not served here")

    async def names(self) -> list[str]:
        """Return volumes by name, each followed by its snapshots by theirs.

        Every volume is there, but at most NBD_LISTED_SNAPSHOTS_MAX snapshots; one that is being
        deleted may be among them.

        Raises: Unavailable.
        """
        volumes = [one.spec for one in await self._catalog.list() if one.spec.state != DELETING]
        below = await self._snapshots()
        found = []
        for spec in volumes:
            snapshots = sorted(below.get(spec.volume, ()))
            found += [spec.name, *(join_snapshot(spec.name, one) for one in snapshots)]
        return [name for name in found if self._only is None or name in self._only]

    async def default(self) -> str:
        """Return what the empty name means: the only name served, or the only volume there is.

        Raises: NotFound, Unavailable.
        """
        if self._only is not None:
            names = list(self._only)
        else:
            names = [name for name in await self.names() if "@" not in name]
        if len(names) != 1:
            raise NotFound(f"there is no default among {len(names)} exports, a name is needed")
        return names[0]

    async def _snapshots(self) -> dict[int, list[str]]:
        """Return the names of snapshots by their volume's id, from the keys alone."""
        found: dict[int, list[str]] = {}
        entries = (await self._metadata.list(SNAPSHOTS)).entries
        for entry in entries[: limits.NBD_LISTED_SNAPSHOTS_MAX]:
            volume, _, name = entry.key.removeprefix(SNAPSHOTS).partition("/")
            found.setdefault(int(volume, 16), []).append(name)
        return found
