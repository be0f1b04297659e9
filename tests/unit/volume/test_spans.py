"""Spans: who may have less of one stays known when the span behind it goes."""

from torus.metadata.schema import Span
from torus.upkeep.plan import Log, closed_spans
from torus.volume.spans import Spans

VOLUME = 7


def failed(spans: Spans) -> dict[tuple[int, int], frozenset[str] | None]:
    """Return the disks that may have less of each closed span."""
    found = closed_spans(Log(VOLUME, 1, 3, spans.to_tuple()))
    return {(one.span.epoch, one.span.tag): one.failed for one in found}


def lost_twice() -> Spans:
    """Return the spans of a writer that lost disk b, and then c before it wrote anything."""
    spans = Spans(VOLUME, ()).open(1, 1, 0, (1, (), 3))
    return spans.close(3, 9216).open(1, 4, 1, (1, ("b",), 3))


def test_span_without_a_chunk_that_goes_leaves_behind_whom_it_left_out() -> None:
    """A disk that missed the end of the span before is in the one that takes its place."""
    spans = lost_twice().close(None, None).open(1, 4, 2, (1, ("c",), 3))

    assert [span.tag for span in spans] == [0, 2]
    assert failed(spans) == {(1, 0): frozenset("bc")}
    assert [span.short for span in spans] == [("b",), ()]


def test_several_spans_without_a_chunk_leave_all_behind() -> None:
    """However often a disk is lost before anything is written."""
    spans = lost_twice().close(None, None).open(1, 4, 2, (1, ("c",), 3))
    spans = spans.close(None, None).open(1, 4, 3, (2, (), 3))

    assert failed(spans) == {(1, 0): frozenset("bc")}


def test_trimmed_span_leaves_behind_whom_it_left_out() -> None:
    """All chunks of a span are gone, and the one before it is needed still."""
    spans = lost_twice().close(5, 512).open(1, 6, 2, (1, (), 3))
    before = failed(spans)
    spans = spans.trim(6, lambda sequence: sequence in (1, 4, 5))

    assert before == {(1, 0): frozenset("b"), (1, 1): frozenset()}
    assert [(span.tag, span.first) for span in spans] == [(0, 2), (2, 6)]
    assert failed(spans) == {(1, 0): frozenset("b")}


def test_span_of_another_epoch_leaves_nothing_behind() -> None:
    """Where an epoch ended any disk may have less: nothing more is to be noted."""
    spans = lost_twice().close(4, 512).open(2, 5, 0, (1, ("a",), 3))
    spans = spans.close(None, None).open(3, 5, 0, (1, (), 3))

    assert failed(spans)[1, 1] is None
    assert [span.short for span in spans] == [(), (), ()]


def test_first_span_goes_without_a_trace() -> None:
    """There is none before it."""
    spans = Spans(VOLUME, (Span(1, 0, 1, excluded=("a",)),)).close(None, None)

    assert spans.to_tuple() == ()
