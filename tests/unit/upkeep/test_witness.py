"""Who may witness that a chunk was deleted, and who not."""

import pytest

from tests.unit.upkeep.town import ring_of, slot_of
from torus.metadata.schema import Span
from torus.upkeep.placement import Placement
from torus.upkeep.plan import Closed, may_witness

DISKS = [letter * 32 for letter in "abc"]
SPAN = Span(1, 0, 1, 500, None, 1)


def _witnesses(versions: tuple[int, ...], closed: Closed) -> set[str]:
    rings = {version: ring_of(version, DISKS) for version in versions}
    placement = Placement(rings, 4, slot_of)
    chunk = closed.chunk(1, 7)
    return {disk for disk in DISKS if may_witness(closed, chunk, placement, disk, 3)}


def test_owners_since_it_was_written_are_witnesses() -> None:
    """They had the chunk and never a reason to give it up."""
    assert _witnesses((1, 2, 3, 4), Closed(SPAN, 500, frozenset(), 4)) == set(DISKS)


@pytest.mark.parametrize("forgotten", [1, 2, 3])
def test_nobody_is_a_witness_across_a_ring_that_is_forgotten(forgotten: int) -> None:
    """It may have been no owner then, and have given the chunk up."""
    versions = tuple(version for version in (1, 2, 3, 4) if version != forgotten)
    assert _witnesses(versions, Closed(SPAN, 500, frozenset(), 4)) == set()
