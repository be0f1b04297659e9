"""Which chunk a map entry means: the logs of a volume and of those it grew from.  Pure.

A clone's map names chunks of its ancestors until it has blocks of its own there.  An entry
carries the number of the family member that owns its chunk: 0 is the volume itself, 1 the
volume that it was cloned from, 2 that one's origin, and so on.  What is written in member m's
own log with number b therefore means member m + b here.
"""

from collections.abc import Sequence

from torus.errors import Corruption
from torus.ids import ChunkId
from torus.volume.spans import Spans


class Family:
    """The logs that one map may name, nearest first."""

    def __init__(self, own: Spans, ancestors: Sequence[Spans] = ()) -> None:
        self.own = own
        self.ancestors = tuple(ancestors)

    def chunk(self, sequence: int, base: int = 0) -> ChunkId:
        """Return the chunk ``sequence`` of family member ``base``.

        Raises: Corruption when there is no such member, or its log has no such chunk.
        """
        if base == 0:
            return self.own.chunk(sequence)
        if base > len(self.ancestors):
            raise Corruption(
                f"volume {self.own.volume}: its map names member {base} of a family of "
                f"{len(self.ancestors) + 1}",
                hint="run 'torus check'",
            )
        return self.ancestors[base - 1].chunk(sequence)

    @property
    def volumes(self) -> tuple[int, ...]:
        """Return the ids of the members, by number."""
        return (self.own.volume, *(spans.volume for spans in self.ancestors))
