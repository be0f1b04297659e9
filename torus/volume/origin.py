"""Where a clone comes from: the logs of its ancestors, and the root that its map begins with."""

from dataclasses import dataclass

from torus.errors import Corruption
from torus.limits import CLONE_DEPTH_MAX
from torus.metadata.schema import Base, RootRef
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.spans import Spans


@dataclass(frozen=True, slots=True)
class Origin:
    """The ancestors of a volume or snapshot, nearest first.

    ``root`` is what reads through where the volume itself has no root: it lies in the log of
    family member ``member``.  None: nothing was ever written there.
    """

    ancestors: tuple[Spans, ...] = ()
    root: RootRef | None = None
    member: int = 0


async def find_origin(catalog: AsyncCatalog, base: Base | None) -> Origin:
    """Follow a chain of clones to its beginning.

    Raises: NotFound, Corruption, Unavailable.
    """
    ancestors: list[Spans] = []
    root, member = None, 0
    while base is not None:
        if len(ancestors) == CLONE_DEPTH_MAX:
            raise Corruption(f"a chain of more than {CLONE_DEPTH_MAX} clones ends nowhere")
        snapshot = await catalog.snapshot_by_number(base.volume, base.number)
        head = (await catalog.get_by_id(base.volume)).head
        ancestors.append(Spans(base.volume, head.spans))
        if root is None and snapshot.root is not None:
            root, member = snapshot.root, len(ancestors)
        base = snapshot.base
    return Origin(tuple(ancestors), root, member)
