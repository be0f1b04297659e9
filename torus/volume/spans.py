"""The spans of a volume's log: which chunk a sequence number means.  Pure.

A sequence number is unique within the log that was kept: where an older writer was cut off, the
next epoch goes on with the next number, so (volume, sequence) finds its span and with it the
whole chunk id.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from torus.errors import Corruption
from torus.ids import ChunkId
from torus.metadata.schema import Span


class Spans:
    """The spans of one volume, oldest first; only the last may be open."""

    def __init__(self, volume: int, spans: Sequence[Span]) -> None:
        """Raises: Corruption when the spans are out of order."""
        self.volume = volume
        self._spans = list(spans)
        for earlier, later in zip(self._spans, self._spans[1:], strict=False):
            behind = (later.epoch, later.tag) > (earlier.epoch, earlier.tag)
            if earlier.last is None or later.first <= earlier.last or not behind:
                raise Corruption(f"volume {volume}: span {later} does not follow {earlier}")
        self._firsts = [span.first for span in self._spans]

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def chunk(self, sequence: int) -> ChunkId:
        """Return the chunk with that sequence number.

        Raises: Corruption when no span has it.
        """
        place = bisect_right(self._firsts, sequence) - 1
        if place >= 0:
            span = self._spans[place]
            if span.last is None or sequence <= span.last:
                return ChunkId(self.volume, span.epoch, span.tag, sequence)
        raise Corruption(f"volume {self.volume}: no span of its log has chunk {sequence}")

    @property
    def last(self) -> Span | None:
        """Return the newest span."""
        return self._spans[-1] if self._spans else None

    @property
    def last_sequence(self) -> int:
        """Return the newest sequence number that a closed span names; 0 for none."""
        last = self.last
        if last is None:
            return 0
        return last.first - 1 if last.last is None else last.last

    def close(self, last: int | None, end: int | None) -> "Spans":
        """Return these spans with the open one closed at ``end`` of chunk ``last``; an open
        span without a chunk goes."""
        spans = list(self._spans)
        if spans and spans[-1].last is None:
            if last is None:
                _inherit(spans, spans.pop())
            else:
                spans[-1] = replace(spans[-1], last=last, end=end)
        return Spans(self.volume, spans)

    def short(self, disks: Iterable[str]) -> "Spans":
        """Return these spans, of which the last may be shorter on these disks than on others."""
        spans = list(self._spans)
        if spans:
            spans[-1] = replace(spans[-1], short=tuple(sorted({*spans[-1].short, *disks})))
        return Spans(self.volume, spans)

    def open(
        self,
        epoch: int,
        first: int,
        tag: int = 0,
        place: tuple[int, tuple[str, ...], int] = (0, (), 0),
    ) -> "Spans":
        """Return these spans with a new open one; ``place``: its ring version, the disks that it
        leaves out, and how many copies its chunks have."""
        ring, excluded, copies = place
        span = Span(epoch, tag, first, ring=ring, excluded=excluded, copies=copies)
        return Spans(self.volume, [*self._spans, span])

    def trim(self, needed: int, gone: Callable[[int], bool]) -> "Spans":
        """Return these spans without leading chunks that are gone; ``needed`` and later stay."""
        spans: list[Span] = []
        for span in self._spans:
            if span.last is not None:
                first, last = span.first, span.last
                while first <= last and first < needed and gone(first):
                    first += 1
                if first > last:
                    _inherit(spans, span)
                    continue
                spans.append(replace(span, first=first))
            else:
                spans.append(span)
        return Spans(self.volume, spans)

    def to_tuple(self) -> tuple[Span, ...]:
        """Return the spans as they are stored in the head."""
        return tuple(self._spans)


def _inherit(spans: list[Span], gone: Span) -> None:
    """Keep what a span that goes says of the one before it, the last of ``spans``: whom it left
    out has missed that one's end, and is no witness against its chunks."""
    if spans and spans[-1].epoch == gone.epoch and gone.excluded:
        missed = {*spans[-1].short, *gone.excluded}
        spans[-1] = replace(spans[-1], short=tuple(sorted(missed)))
