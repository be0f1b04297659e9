"""What is counted of what a look at a volume found."""

from torus.ids import ChunkId
from torus.metadata.schema import Span
from torus.redundancy.scheme import erasure
from torus.upkeep.found import Found
from torus.upkeep.plan import Log
from torus.upkeep.shard_plan import PartSurplus, PartWant, Todo

SCHEME = erasure(2, 1)
CLOSED, OPEN = Span(1, 0, 1, 9, 512, 1), Span(2, 0, 10, None, None, 1)


def want(chunk: ChunkId) -> PartWant:
    return PartWant(chunk, 0, 2, None, SCHEME, (), frozenset(), False, 1, 2, False)


def surplus(chunk: ChunkId) -> PartSurplus:
    return PartSurplus(chunk, None, None, SCHEME, Todo(surplus=(None,)))


def test_what_a_writer_fills_meanwhile_and_suspects_are_not_unfinished() -> None:
    """Who waits for a conversion would never see the end of it."""
    log = Log(7, 2, 2, (CLOSED, OPEN), SCHEME)
    old, suspect, new = ChunkId(7, 1, 0, 3), ChunkId(7, 1, 0, 4), ChunkId(7, 2, 0, 11)
    found = Found(
        wants=[want(old), want(new)],
        parts_surplus=[surplus(old), surplus(suspect), surplus(new)],
        suspects=[suspect],
    )

    assert found.unfinished(log) == 2
    assert Found(wants=[want(new)]).unfinished(log) == 0
    assert Found(suspects=[suspect], parts_surplus=[surplus(suspect)]).unfinished(log) == 0
